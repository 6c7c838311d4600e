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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Literal, get_args

import numpy as np

from protoseg.config.data import DataConfig, FolderPair
from protoseg.data.compact import join_names, split_lines
from protoseg.data.lines import CITYSCAPES_IDS, CITYSCAPES_MASK, Entry, Resolver
from protoseg.data.listed import read_listed
from protoseg.data.long_list import LONG, FolderEntries, ListedEntries, MissingEntryError, read_long
from protoseg.data.members import File
from protoseg.data.names import Listings, plain
from protoseg.data.pairs import pair_folders, unlabeled_folder
from protoseg.data.shards.entries import ShardEntries
from protoseg.data.shards.roles import choose_images
from protoseg.data.shards.root import absolute_root, shard_root
from protoseg.data.storage import cache_folder, expand_text, is_url, read_blob
from protoseg.data.text import read_text, refuse_annotations
from protoseg.errors import DataError
from protoseg.files import write_bytes_whole

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

    entries: Sequence[Entry]
    family: str
    sha256: str
    known_name: str | None
    warnings: tuple[str, ...] = ()


def expand_path(text: str) -> Path:
    """Expand ``~`` and environment variables; PROTOSEG_DATA has a default beside a checkout.

    Raises:
        DataError: If a variable is not set.
    """
    return Path(expand_text(text))


def data_root(config: DataConfig) -> Path:
    """The folder that entries are relative to, absolute; of shards behind a URL, the working directory.

    Raises:
        DataError: If it is not a folder.
    """
    shards = shard_root(config)
    root = expand_path(config.root if shards is None else shards.folder).absolute()
    if shards is not None and is_url(shards.folder):
        return Path.cwd()
    if not root.is_dir():
        raise DataError(f"data.root={config.root} is not a folder ({root}); set data.root")
    return root


def portable_root(config: DataConfig) -> str:
    """``data.root`` as it means the same from any folder.

    Raises:
        DataError: If it is not there.
    """
    shards = shard_root(config)
    return str(data_root(config).resolve()) if shards is None else absolute_root(config, shards)


def named_file(config: DataConfig, text: str, setting: str) -> Path:
    """A file or folder that a setting names: below root, or from the working directory.

    What lies beside shards behind a URL is fetched.

    Raises:
        DataError: If it is nowhere.
    """
    shards = shard_root(config)
    if shards is None or not is_url(shards.folder) or Path(text).is_absolute() or Path(text).exists():
        return find_file(data_root(config), text, setting)
    place = text if is_url(text) else f"{shards.folder}/{text}"
    name = f"{hashlib.sha256(place.encode()).hexdigest()[:16]}-{PurePath(text).name}"
    path = cache_folder() / "fetched" / name
    try:
        data = read_blob(place)
    except DataError as error:
        raise DataError(f"{setting}={text}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_whole(path, data)
    return path


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


def hash_stems(images: Sequence[File]) -> str:
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
        more = f"\n({len(problems)} such problems; protoseg check lists them all)" if problems[1:] else ""
        raise DataError(problems[0] + more)
    return found


def scan_entries(config: DataConfig, split: Split) -> tuple[EntryList, list[str]]:
    """As ``read_entries``, but broken lines are returned as readable texts and left out.

    Raises:
        DataError: If the list or folder itself cannot be read or holds nothing.
    """
    shards = shard_root(config)
    root = data_root(config)
    source = getattr(config, split)
    setting = f"data.{split}"
    if source is None:
        if split != "unlabeled":
            raise DataError(f"{setting} is not set; give a list file or a pair of folders")
        return _finish([], "none", []), []
    if shards is not None:
        chosen = choose_images(config, split, shards, partial(_read_keys, config, f"data.{split}"))
        return _finish(chosen.entries, chosen.family, chosen.remarks), chosen.problems
    if isinstance(source, FolderPair):
        images = find_file(root, source.images, f"{setting}.images")
        if split == "unlabeled":
            return _scan_unlabeled(config, images, setting), []
        if source.masks is None:
            raise DataError(f"{setting}.masks is not set; it names the folder of masks")
        masks = find_file(root, source.masks, f"{setting}.masks")
        pairs = pair_folders(
            images, masks, setting, config.image_suffix, config.mask_suffix, _city_mask(config)
        )
        return _finish(pairs.entries, pairs.family, pairs.warnings), pairs.problems
    path = find_file(root, source, setting)
    if path.is_dir():
        if split != "unlabeled":
            raise DataError(
                f"{setting}={source} is a folder; give a list file, or {setting}.images and {setting}.masks"
            )
        return _scan_unlabeled(config, path, setting), []
    return _scan_list(config, path, root, split)


def _read_keys(config: DataConfig, setting: str, source: str) -> tuple[str, list[str]]:
    """A list of keys: its name and lines."""
    path = named_file(config, source, setting)
    if path.is_dir():
        raise DataError(
            f"{setting}={source} is a folder, data.root holds shards; give a pattern or a list of keys"
        )
    text = read_text(path, "list")
    refuse_annotations(path, text, setting)
    return source, [line.strip() for line in text.split("\n")]


def _finish(entries: Sequence[Entry], family: str, warnings: list[str]) -> EntryList:
    if isinstance(entries, ShardEntries | ListedEntries | FolderEntries):
        digest = entries.stems().digest()
        if not isinstance(entries, ShardEntries):
            count, first = entries.texts.first_repeated()
        else:
            rows, counts = np.unique(entries.which, return_counts=True)
            count = int((counts > 1).sum())
            first = str(entries.shards.table.names()[int(rows[counts.argmax()])]) if count else ""
    else:
        entries = tuple(entries)
        digest = hash_stems([entry.image for entry in entries])
        repeated = [p for p, n in Counter(entry.image for entry in entries).items() if n > 1]
        count, first = len(repeated), str(repeated[0]) if repeated else ""
    if count:
        warnings = [*warnings, f"{count} image(s) are listed more than once, as {first}"]
    return EntryList(entries, family, digest, KNOWN_LISTS.get(digest), tuple(warnings))


def _scan_list(config: DataConfig, path: Path, root: Path, split: Split) -> tuple[EntryList, list[str]]:
    text = read_text(path, "list")
    refuse_annotations(path, text, f"data.{split}")
    if not text.strip():
        raise DataError(f"list {path} is empty; it needs one image a line")
    resolver = Resolver(
        root, config.image_dir, config.mask_dir, split != "unlabeled", config.image_suffix,
        config.mask_suffix, _city_mask(config),
    )  # fmt: skip
    try:
        long = None
        if split == "unlabeled" and text.count("\n") >= LONG:
            long = read_long(path, split_lines(text), resolver)
        listed = (
            read_listed([line.strip() for line in text.split("\n")], resolver) if long is None else long[1]
        )
    except DataError as error:
        raise DataError(f"{path}, {error}") from error
    entries: Sequence[Entry] = listed.entries if long is None else long[0]
    problems = [f"{path}, line {number}: {text}" for number, text in listed.problems]
    if not entries and not problems:
        raise DataError(f"list {path} names no image; it needs one image a line")
    remarks = [f"{path}: {text}" for text in listed.remarks]
    if split == "unlabeled":
        entries, remark = _without_masks(config, entries)
        remarks += [f"{path}: {remark}"] if remark else []
        if remark and not entries:
            raise DataError(f"list {path} names only masks of labelled images")
    family = " + ".join(listed.families) + (", looked up as they are drawn" if long is not None else "")
    return _finish(entries, family, remarks), problems


def _city_mask(config: DataConfig) -> str:
    return CITYSCAPES_IDS if config.label_map == "cityscapes" else CITYSCAPES_MASK


def _without_masks(config: DataConfig, entries: Sequence[Entry]) -> tuple[Sequence[Entry], str]:
    """Entries that are no masks of labelled images, and a remark on the others."""
    masks = {entry.mask.resolve() for entry in _labeled_entries(config) if entry.mask is not None}
    names = {path.name for path in masks}
    if isinstance(entries, ListedEntries):
        candidates = sorted(i for some in entries.names().find(names).values() for i in some)
    else:
        candidates = [i for i, entry in enumerate(entries) if entry.image.name in names]
    used = []
    for i in candidates:
        with contextlib.suppress(MissingEntryError):
            used += [i] if entries[i].image.resolve() in masks else []
    if not used:
        return entries, ""
    remark = f"{len(used)} line(s) name masks of labelled images, as {entries[used[0]].image}: left out"
    if isinstance(entries, ListedEntries):
        return entries.take(np.delete(np.arange(len(entries)), used)), remark
    left = set(used)
    return [entry for i, entry in enumerate(entries) if i not in left], remark


def _scan_unlabeled(config: DataConfig, folder: Path, setting: str) -> EntryList:
    names, warnings = unlabeled_folder(folder, setting, _labeled_entries(config), config.mask_suffix)
    entries: Sequence[Entry] = FolderEntries(folder, join_names(names))
    if len(names) < LONG:
        entries = [*entries]
    return _finish(entries, "folder", warnings)


def _labeled_entries(config: DataConfig) -> list[Entry]:
    """Entries with masks, as far as they can be read: what is wrong with them is told where they are used."""
    entries: list[Entry] = []
    for split in ("labeled", "val"):
        with contextlib.suppress(DataError):
            entries += scan_entries(config, split)[0].entries
    return entries
