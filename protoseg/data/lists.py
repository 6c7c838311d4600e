"""Reads which images and masks take part: list files of every published family, and folders.

Accepted lines of a list file (one family or several in one file):

* ``image mask`` pairs split by a tab or by spaces; a leading ``/`` means "below root";
* ``image None``, ``image -`` or the image alone, for unlabelled images;
* ids (``2007_000733``): ``JPEGImages/ID.jpg`` and ``SegmentationClassAug/ID.png``, else
  ``SegmentationClass/ID.png``; ``data.image_dir`` and ``data.mask_dir`` name other folders;
* Cityscapes images: the mask is the ``gtFine/..._gtFine_labelTrainIds.png`` beside ``leftImg8bit``;
* any other image alone: the mask has the same stem in a parallel folder (``images`` -> ``masks``,
  ``annotations``, ``labels``, ...).

Tables divided by commas, semicolons or tabs are read too, with a header (``image,mask``) or without, and so
are quotes, backslashes, comments (``# ...``), blank lines, UTF-16, a byte order mark, CRLF and a missing last
newline. Names are found in another Unicode form or letter case, where only one file can be meant.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from protoseg.config.sections import DataConfig, FolderPair
from protoseg.data.lines import Entry, Resolver
from protoseg.data.listed import read_listed
from protoseg.data.names import Listings, plain
from protoseg.data.pairs import pair_folders, unlabeled_folder
from protoseg.data.text import read_lines, refuse_annotations
from protoseg.errors import DataError
from protoseg.files import PROJECT_ROOT

Split = Literal["labeled", "unlabeled", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

# SHA-256 of the sorted stems -> published list. Only hashes computed from the published files
# themselves belong here: the same path holds different lists in different repositories.
KNOWN_LISTS = {
    "124b0aab2fcd1767214bf465d8fa24dd179c3abe99951a063a92d11c48663987": "VOC classic, 92 labels",
    "79b959bccf7753cd70bba8d5abdb7e9c0f16df053ce458916ae19a897149136d": "VOC classic, 183 labels",
}


@dataclass(frozen=True)
class EntryList:
    """The images of a split in list order.

    ``sha256`` hashes the sorted image stems, so that the same images give the same hash under any
    list format; ``known_name`` is the published list with that hash, if it is one.
    """

    entries: tuple[Entry, ...]
    family: str
    sha256: str
    known_name: str | None
    warnings: tuple[str, ...] = ()


def expand_path(text: str) -> Path:
    """Expand ``~`` and environment variables; PROTOSEG_DATA has a default beside a checkout.

    Raises:
        DataError: If a variable is not set.
    """
    default = PROJECT_ROOT.parent / "shared" / "data"
    if "PROTOSEG_DATA" not in os.environ and default.is_dir():
        text = re.sub(r"\$(PROTOSEG_DATA\b|\{PROTOSEG_DATA\})", lambda _: str(default), text)
    expanded = os.path.expandvars(text)
    left = re.search(r"\$\{?([A-Za-z_]\w*)\}?", expanded)
    if left is not None and left.group(1) not in os.environ:
        raise DataError(f"{text!r} uses the environment variable {left.group(1)}, which is not set")
    return Path(expanded).expanduser()


def data_root(config: DataConfig) -> Path:
    """The folder that entries are relative to, absolute.

    Raises:
        DataError: If it is not a folder.
    """
    root = expand_path(config.root).absolute()
    if not root.is_dir():
        raise DataError(f"data.root={config.root} is not a folder ({root}); set data.root")
    return root


def find_file(root: Path, text: str, setting: str) -> Path:
    """A file or folder named in the configuration: below root, or from the working directory.

    Raises:
        DataError: If it is in neither place.
    """
    path = expand_path(text)
    tried = [root / path] if path.is_absolute() else [root / path, Path.cwd() / path]
    for candidate in tried:
        if candidate.exists():
            return candidate
        spelled = Listings().find(Path(candidate.anchor), candidate)
        if spelled is not None and plain(spelled.name) == plain(candidate.name):
            return spelled
    places = " or ".join(str(p) for p in dict.fromkeys(tried))
    raise DataError(f"{setting}={text} not found; looked for {places}")


def hash_stems(images: list[Path]) -> str:
    """SHA-256 of the sorted stems (composed Unicode form), joined by newlines."""
    stems = sorted(plain(path.stem) for path in images)
    return hashlib.sha256("\n".join(stems).encode()).hexdigest()


def read_entries(config: DataConfig, split: Split) -> EntryList:
    """Read the entries of a split (``data.kind=files``); every file named exists afterwards.

    Unlabelled entries never carry a mask. ``data.unlabeled=null`` gives an empty list.

    Raises:
        DataError: Naming the list, the line, what was tried, and how many entries are affected.
    """
    found, problems = scan_entries(config, split)
    if problems:
        more = f"\n({len(problems)} such problems; the doctor lists them all)" if problems[1:] else ""
        raise DataError(problems[0] + more)
    return found


def scan_entries(config: DataConfig, split: Split) -> tuple[EntryList, list[str]]:
    """As ``read_entries``, but broken lines are returned as readable texts and left out.

    Raises:
        DataError: If the list or folder itself cannot be read or holds nothing.
    """
    root = data_root(config)
    source = getattr(config, split)
    setting = f"data.{split}"
    if source is None:
        if split != "unlabeled":
            raise DataError(f"{setting} is not set; give a list file or a pair of folders")
        return _finish([], "none", []), []
    if isinstance(source, FolderPair):
        images = find_file(root, source.images, f"{setting}.images")
        if split == "unlabeled":
            return _scan_unlabeled(config, images, setting), []
        if source.masks is None:
            raise DataError(f"{setting}.masks is not set; it names the folder of masks")
        masks = find_file(root, source.masks, f"{setting}.masks")
        pairs = pair_folders(images, masks, setting, config.image_suffix, config.mask_suffix)
        return _finish(pairs.entries, pairs.family, pairs.warnings), pairs.problems
    path = find_file(root, source, setting)
    if path.is_dir():
        if split != "unlabeled":
            raise DataError(
                f"{setting}={source} is a folder; give a list file, or {setting}.images and {setting}.masks"
            )
        return _scan_unlabeled(config, path, setting), []
    return _scan_list(config, path, root, split)


def _finish(entries: list[Entry], family: str, warnings: list[str]) -> EntryList:
    digest = hash_stems([entry.image for entry in entries])
    repeated = [p for p, n in Counter(entry.image for entry in entries).items() if n > 1]
    if repeated:
        warnings = [*warnings, f"{len(repeated)} image(s) are listed more than once, as {repeated[0]}"]
    return EntryList(tuple(entries), family, digest, KNOWN_LISTS.get(digest), tuple(warnings))


def _scan_list(config: DataConfig, path: Path, root: Path, split: Split) -> tuple[EntryList, list[str]]:
    lines = read_lines(path, "list")
    refuse_annotations(path, lines, f"data.{split}")
    if not any(lines):
        raise DataError(f"list {path} is empty; it needs one image a line")
    resolver = Resolver(
        root, config.image_dir, config.mask_dir, split != "unlabeled", config.image_suffix, config.mask_suffix
    )
    try:
        listed = read_listed(lines, resolver)
    except DataError as error:
        raise DataError(f"{path}, {error}") from error
    problems = [f"{path}, line {number}: {text}" for number, text in listed.problems]
    if not listed.entries and not problems:
        raise DataError(f"list {path} names no image; it needs one image a line")
    entries, remarks = listed.entries, [f"{path}: {text}" for text in listed.remarks]
    if split == "unlabeled":
        masks = {entry.mask.resolve() for entry in _labeled_entries(config) if entry.mask is not None}
        mask_names = {path.name for path in masks}
        used = [e for e in entries if e.image.name in mask_names and e.image.resolve() in masks]
        if used:
            entries = [entry for entry in entries if entry not in used]
            remarks.append(
                f"{path}: {len(used)} line(s) name masks of labelled images, as {used[0].image}: left out"
            )
            if not entries:
                raise DataError(f"list {path} names only masks of labelled images")
    return _finish(entries, " + ".join(listed.families), remarks), problems


def _scan_unlabeled(config: DataConfig, folder: Path, setting: str) -> EntryList:
    files, warnings = unlabeled_folder(folder, setting, _labeled_entries(config), config.mask_suffix)
    return _finish([Entry(path, None) for path in files], "folder", warnings)


def _labeled_entries(config: DataConfig) -> list[Entry]:
    """Entries with masks, as far as they can be read: what is wrong with them is told where they are used."""
    entries: list[Entry] = []
    for split in ("labeled", "val"):
        with contextlib.suppress(DataError):
            entries += scan_entries(config, split)[0].entries
    return entries
