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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protoseg.config import PROJECT_ROOT, DataConfig, FolderPair
from protoseg.data.errors import DataError

Split = Literal["labeled", "unlabeled", "val"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".npy", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".npy", ".pgm", ".gif")
IMAGE_FOLDERS = ("JPEGImages", "images", "image", "imgs", "img")
MASK_FOLDERS = (
    "SegmentationClassAug", "SegmentationClass", "masks", "mask", "annotations", "annotation",
    "labels", "label", "segmentation", "gt",
)  # fmt: skip
NO_MASK = frozenset({"none", "null", "-"})
CITYSCAPES_IMAGE = "_leftImg8bit"
CITYSCAPES_MASK = "_gtFine_labelTrainIds"

# SHA-256 of the sorted stems -> published list. Only hashes computed from the published files
# themselves belong here: the same path holds different lists in different repositories.
KNOWN_LISTS: dict[str, str] = {}


@dataclass(frozen=True)
class Entry:
    """One image and, where it is labelled, its mask."""

    image: Path
    mask: Path | None


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
    return _scan_list(path, _Resolver(root, config.image_dir, config.mask_dir, split != "unlabeled"))


def _finish(entries: list[Entry], family: str, warnings: list[str]) -> EntryList:
    digest = hash_stems([entry.image for entry in entries])
    repeated = [p for p, n in Counter(entry.image for entry in entries).items() if n > 1]
    if repeated:
        warnings = [*warnings, f"{len(repeated)} image(s) are listed more than once, as {repeated[0]}"]
    return EntryList(tuple(entries), family, digest, KNOWN_LISTS.get(digest), tuple(warnings))


def _scan_list(path: Path, resolver: _Resolver) -> tuple[EntryList, list[str]]:
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


class _Resolver:
    """Turns one line into an entry whose files exist."""

    def __init__(self, root: Path, image_dir: str | None, mask_dir: str | None, need_mask: bool) -> None:
        self.root = root
        self.image_dir = image_dir
        self.mask_dir = mask_dir
        self.need_mask = need_mask

    def resolve(self, line: str) -> tuple[Entry, str]:
        """Entry and family of a stripped, non-empty line.

        Raises:
            DataError: Without the list's name and the line number, which the caller adds.
        """
        if "\t" in line:
            columns = [part.strip() for part in line.split("\t") if part.strip()]
            if len(columns) > 2:
                raise DataError(f"{len(columns)} columns split by tabs, expected image and mask")
            return self._entry(columns[0], columns[1] if columns[1:] else None), _family(
                columns, "tab", self.need_mask
            )
        readings: list[tuple[str, str | None]] = [
            (line[: gap.start()], line[gap.end() :]) for gap in re.finditer(r" +", line)
        ]
        if len(readings) == 1:
            # the usual pair first; a name with one space only when there is no such pair
            readings.append((line, None))
            return self._first(readings)
        return self._only([*readings, (line, None)])

    def _first(self, readings: list[tuple[str, str | None]]) -> tuple[Entry, str]:
        failure: DataError | None = None
        for image, mask in readings:
            try:
                entry = self._entry(image, mask)
            except DataError as error:
                failure = failure or error
            else:
                columns = [image] if mask is None else [image, mask]
                return entry, _family(columns, "space", self.need_mask)
        assert failure is not None
        raise failure

    def _only(self, readings: list[tuple[str, str | None]]) -> tuple[Entry, str]:
        if len(readings) == 1:
            return self._first(readings)
        good = []
        for reading in readings:
            try:
                good.append((self._entry(*reading), reading))
            except DataError:
                continue
        if len(good) == 1:
            entry, (image, mask) = good[0]
            return entry, _family([image] if mask is None else [image, mask], "space", self.need_mask)
        how = "can be read in several ways" if good else "names no existing files"
        raise DataError(
            f"{' '.join(filter(None, readings[0]))!r} {how} below {self.root}; split image and mask "
            "by a tab when names have spaces"
        )

    def _entry(self, image_text: str, mask_text: str | None) -> Entry:
        image = _existing("image", image_text, self._image_candidates(image_text), self.root)
        if not self.need_mask:
            return Entry(image, None)
        if mask_text is None:
            mask = _existing("mask of", image_text, self._derived_masks(image), self.root)
        elif mask_text.lower() in NO_MASK:
            raise DataError(f"{image_text} has no mask ({mask_text}), but a labelled list needs one")
        else:
            mask = _existing("mask", mask_text, self._mask_candidates(mask_text), self.root)
        return Entry(image, mask)

    def _below_root(self, text: str) -> Iterator[Path]:
        relative = text.lstrip("/")
        yield self.root / relative
        if text.startswith("/"):
            yield Path(text)
        parts = Path(relative).parts
        if self.root.name in parts[:-1]:
            # the list was written relative to a folder above root
            last = max(i for i, part in enumerate(parts[:-1]) if part == self.root.name)
            yield self.root.joinpath(*parts[last + 1 :])

    def _image_candidates(self, text: str) -> Iterator[Path]:
        folders = [self.image_dir] if self.image_dir else [*IMAGE_FOLDERS[:2]]
        if Path(text).suffix.lower() in IMAGE_SUFFIXES:
            yield from self._below_root(text)
            if self.image_dir or "/" not in text:
                yield from (self.root / folder / text.lstrip("/") for folder in folders)
            return
        stem = text.lstrip("/")
        if stem.endswith(CITYSCAPES_IMAGE) and not self.image_dir:
            city = Path(stem).name.split("_")[0]
            for part in ("train", "val", "train_extra", "test"):
                yield self.root / "leftImg8bit" / part / city / f"{Path(stem).name}.png"
        for folder in folders:
            yield from (self.root / folder / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES)
        yield from (self.root / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES)

    def _mask_candidates(self, text: str) -> Iterator[Path]:
        yield from self._below_root(text)
        if self.mask_dir:
            yield self.root / self.mask_dir / text.lstrip("/")
        if Path(text).suffix.lower() not in MASK_SUFFIXES:
            folders = [self.mask_dir] if self.mask_dir else MASK_FOLDERS
            for folder in folders:
                yield from (self.root / folder / f"{text.lstrip('/')}{s}" for s in MASK_SUFFIXES)

    def _derived_masks(self, image: Path) -> Iterator[Path]:
        try:
            parts = image.relative_to(self.root).parts
            base = self.root
        except ValueError:
            parts, base = image.parts[1:], Path(image.anchor)
        names = [f"{image.stem}{suffix}" for suffix in MASK_SUFFIXES]
        if image.stem.endswith(CITYSCAPES_IMAGE):
            stem = image.stem.removesuffix(CITYSCAPES_IMAGE)
            names = [f"{stem}{CITYSCAPES_MASK}.png", *names]
            yield from _swap(base, parts, "leftImg8bit", ["gtFine"], names[:1])
        if self.mask_dir:
            inside = image.parent
            if self.image_dir and inside.is_relative_to(self.root / self.image_dir):
                below = inside.relative_to(self.root / self.image_dir)
                yield from (self.root / self.mask_dir / below / name for name in names)
            yield from (self.root / self.mask_dir / name for name in names)
            return
        for folder in IMAGE_FOLDERS:
            yield from _swap(base, parts, folder, MASK_FOLDERS, names)


def _swap(
    base: Path, parts: tuple[str, ...], old: str, new: list[str] | tuple[str, ...], names: list[str]
) -> Iterator[Path]:
    """The image's path with its last folder called ``old`` renamed, for every name."""
    at = [i for i, part in enumerate(parts[:-1]) if part == old]
    if at:
        for folder in new:
            place = base.joinpath(*parts[: at[-1]], folder, *parts[at[-1] + 1 : -1])
            yield from (place / name for name in names)


def _existing(what: str, text: str, candidates: Iterator[Path], root: Path) -> Path:
    tried: dict[Path, None] = {}
    for path in candidates:
        if path.is_file():
            return path
        tried[path] = None
    shown = [str(p.relative_to(root)) if p.is_relative_to(root) else str(p) for p in tried]
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    places = ", ".join(shown[:4]) + more if shown else "no rule applies"
    cure = "; set data.mask_dir, or list `image mask` pairs" if what == "mask of" else ""
    for path in tried:
        ids = path.with_name(path.name.replace("labelTrainIds", "labelIds"))
        if ids != path and ids.is_file():
            cure = f"; {ids.name} is there: make the train ids with cityscapesscripts"
    raise DataError(f"{what} {text} not found below {root} (tried {places}){cure}")


def _family(columns: list[str], separator: str, need_mask: bool) -> str:
    image = columns[0]
    if len(columns) == 2:
        if columns[1].lower() in NO_MASK:
            return "images with None"
        return f"{separator} pairs, leading slash" if image.startswith("/") else f"{separator} pairs"
    if Path(image).suffix.lower() not in IMAGE_SUFFIXES:
        return "VOC ids" if re.fullmatch(r"\d{4}_\d{6}", image) else "bare stems"
    if Path(image).stem.endswith(CITYSCAPES_IMAGE):
        return "Cityscapes images"
    return "images, masks in a parallel folder" if need_mask else "images"


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
