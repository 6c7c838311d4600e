"""Reads which images and masks take part: list files of every published family, and folders.

Accepted lines of a list file (one family or several in one file):

* ``image mask`` pairs split by a tab or by spaces; a leading ``/`` means "below root";
* ``image None``, ``image -`` or the image alone, for unlabelled images;
* ids (``2007_000733``): ``JPEGImages/ID.jpg`` and ``SegmentationClassAug/ID.png``, else
  ``SegmentationClass/ID.png``; ``data.image_dir`` and ``data.mask_dir`` name other folders;
* Cityscapes images: the mask is the ``gtFine/..._gtFine_labelTrainIds.png`` beside ``leftImg8bit``;
* any other image alone: the mask has the same stem in a parallel folder (``images`` -> ``masks``,
  ``annotations``, ``labels``, ...).

Blank lines, a byte order mark, CRLF and a missing last newline are harmless.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from protoseg.config.sections import DataConfig, FolderPair
from protoseg.data.lines import (
    CITYSCAPES_IMAGE,
    CITYSCAPES_MASK,
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    Entry,
    Resolver,
)
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
    """Expand ``~`` and environment variables; PROTOSEG_DATA has a default beside the project.

    Raises:
        DataError: If a variable is not set.
    """
    if "PROTOSEG_DATA" not in os.environ:
        default = str(PROJECT_ROOT.parent / "shared" / "data")
        text = re.sub(r"\$(PROTOSEG_DATA\b|\{PROTOSEG_DATA\})", lambda _: default, text)
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
    places = " or ".join(str(p) for p in dict.fromkeys(tried))
    raise DataError(f"{setting}={text} not found; looked for {places}")


def hash_stems(images: list[Path]) -> str:
    """SHA-256 of the sorted stems, joined by newlines."""
    stems = sorted(path.stem for path in images)
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
        masks = None
        if split != "unlabeled":
            if source.masks is None:
                raise DataError(f"{setting}.masks is not set; it names the folder of masks")
            masks = find_file(root, source.masks, f"{setting}.masks")
        return _scan_folders(images, masks, setting)
    path = find_file(root, source, setting)
    if path.is_dir():
        if split != "unlabeled":
            raise DataError(
                f"{setting}={source} is a folder; give a list file, or {setting}.images and {setting}.masks"
            )
        return _scan_folders(path, None, setting)
    return _scan_list(path, Resolver(root, config.image_dir, config.mask_dir, split != "unlabeled"))


def _finish(entries: list[Entry], family: str, warnings: list[str]) -> EntryList:
    digest = hash_stems([entry.image for entry in entries])
    repeated = [p for p, n in Counter(entry.image for entry in entries).items() if n > 1]
    if repeated:
        warnings = [*warnings, f"{len(repeated)} image(s) are listed more than once, as {repeated[0]}"]
    return EntryList(tuple(entries), family, digest, KNOWN_LISTS.get(digest), tuple(warnings))


def _scan_list(path: Path, resolver: Resolver) -> tuple[EntryList, list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {path} cannot be read: {error}") from error
    entries: list[Entry] = []
    families: dict[str, None] = {}
    problems: list[str] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line:
            continue
        try:
            entry, family = resolver.resolve(line)
        except DataError as error:
            problems.append(f"{path}, line {number}: {error}")
            continue
        entries.append(entry)
        families[family] = None
    if not entries and not problems:
        raise DataError(f"list {path} is empty; it needs one image a line")
    return _finish(entries, " + ".join(families), []), problems


def _index(folder: Path, suffixes: tuple[str, ...], setting: str) -> dict[str, Path]:
    """Files below a folder by their relative path without suffix, sorted."""
    if not folder.is_dir():
        raise DataError(f"{setting}: {folder} is not a folder")
    index: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in suffixes or any(p.startswith(".") for p in relative.parts):
            continue
        key = relative.with_suffix("").as_posix()
        if key in index:
            raise DataError(
                f"{setting}: {index[key].name} and {path.name} have the same stem; keep one of them"
            )
        index[key] = path
    if not index:
        raise DataError(f"{setting}: {folder} has no file ending in {', '.join(suffixes)}")
    return index


def _scan_folders(images: Path, masks: Path | None, setting: str) -> tuple[EntryList, list[str]]:
    image_index = _index(images, IMAGE_SUFFIXES, setting)
    if masks is None:
        return _finish([Entry(path, None) for path in image_index.values()], "folder", []), []
    mask_index = _index(masks, MASK_SUFFIXES, setting)
    entries, problems = [], []
    used = set()
    for key, image in image_index.items():
        city = key.removesuffix(CITYSCAPES_IMAGE) + CITYSCAPES_MASK
        name = key if key in mask_index else city
        if name not in mask_index:
            problems.append(f"{setting}: {image} has no mask {key}.png below {masks}")
            continue
        used.add(name)
        entries.append(Entry(image, mask_index[name]))
    if not entries:
        raise DataError(
            f"{setting}: no image below {images} has a mask of the same stem below {masks} (as "
            f"{next(iter(image_index))} and {next(iter(mask_index))}); rename one side, or write a list"
        )
    orphans = [] if masks.name == "gtFine" or "gtFine" in masks.parts else sorted(set(mask_index) - used)
    warnings = [f"{len(orphans)} mask(s) have no image, as {mask_index[orphans[0]]}"] if orphans else []
    return _finish(entries, "folder pair", warnings), problems
