"""Turns one line of a list file into an image and its mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from protoseg.data.columns import Header, other_readings
from protoseg.data.members import File
from protoseg.data.names import (
    IMAGE_SUFFIXES,
    MASK_ENDINGS,
    MASK_SUFFIXES,
    Listings,
    ends_with,
    mask_names,
    plain,
)
from protoseg.errors import DataError

IMAGE_FOLDERS = ("JPEGImages", "images", "image", "imgs", "img")
MASK_FOLDERS = (
    "SegmentationClassAug", "SegmentationClass", "masks", "mask", "annotations", "annotation",
    "labels", "label", "segmentation", "gt",
)  # fmt: skip
NO_MASK = frozenset({"none", "null", "-"})
CITYSCAPES_IMAGE = "_leftImg8bit"
CITYSCAPES_MASK = "_gtFine_labelTrainIds"
CITYSCAPES_IDS = "_gtFine_labelIds"
"""What masks end in to which ``data.label_map=cityscapes`` is to be applied."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Entry:
    """One image and, where it is labelled, its mask."""

    image: File
    mask: File | None


class Resolver:
    """Turns one line into an entry whose files exist.

    Args:
        root: Folder that lines are relative to.
        image_dir: ``data.image_dir``.
        mask_dir: ``data.mask_dir``.
        need_mask: Whether an entry has a mask.
        image_suffix: ``data.image_suffix``.
        mask_suffix: ``data.mask_suffix``.
        city_mask: What masks of Cityscapes end in.
    """

    def __init__(
        self,
        root: Path,
        image_dir: str | None,
        mask_dir: str | None,
        need_mask: bool,
        image_suffix: str | None = None,
        mask_suffix: str | None = None,
        city_mask: str = CITYSCAPES_MASK,
    ) -> None:
        self.city_mask = city_mask
        self.root = root
        self.image_dir = image_dir
        self.mask_dir = mask_dir
        self.need_mask = need_mask
        self.image_suffix = image_suffix
        self.mask_suffix = mask_suffix
        self.respelled: dict[str, Path] = {}
        """Names whose letter case is another on the disk."""
        self._listings = Listings()

    def resolve(self, line: str, header: Header | None = None) -> tuple[Entry, str]:
        """Entry and family of a stripped, non-empty line.

        Args:
            line: The line.
            header: Columns, where a header line named them.

        Raises:
            DataError: Without the list's name and the line number, which the caller adds.
        """
        if header is not None:
            image, mask = header.pick(line)
            return self._read(image, mask, "table")
        try:
            return self._resolveplain(line)
        except DataError as error:
            failure = error
        for name, fields in other_readings(line):
            if len(fields) > 2 and Path(fields[0]).suffix.lower() in IMAGE_SUFFIXES:
                failure = DataError(f"{len(fields)} columns split by {name}s, expected image and mask")
            if not 1 <= len(fields) <= 2:
                continue
            try:
                return self._read(fields[0], fields[1] if fields[1:] else None, name)
            except DataError as error:
                if Path(fields[0]).suffix.lower() in IMAGE_SUFFIXES:
                    failure = error
        raise failure

    def _resolveplain(self, line: str) -> tuple[Entry, str]:
        if "\t" in line:
            columns = [part.strip() for part in line.split("\t") if part.strip()]
            if len(columns) > 2:
                raise DataError(f"{len(columns)} columns split by tabs, expected image and mask")
            return self._read(columns[0], columns[1] if columns[1:] else None, "tab")
        readings: list[tuple[str, str | None]] = [
            (line[: gap.start()], line[gap.end() :]) for gap in re.finditer(r" +", line)
        ]
        readings.append((line, None))
        # the usual pair first; a name with one space only when there is no such pair
        plain = len(readings) <= 2
        good: list[tuple[Entry, str]] = []
        failures: list[DataError] = []
        for image, mask in readings:
            try:
                good.append(self._read(image, mask, "space"))
            except DataError as error:
                failures.append(error)
            else:
                if plain:
                    break
        if len(good) == 1:
            return good[0]
        if plain:
            raise failures[0]
        how = "can be read in several ways" if good else "names no existing files"
        raise DataError(
            f"{' '.join(filter(None, readings[0]))!r} {how} below {self.root}; split image and mask "
            "by a tab when names have spaces"
        )

    def _read(self, image: str, mask: str | None, separator: str) -> tuple[Entry, str]:
        columns = [image] if mask is None else [image, mask]
        return self._entry(image, mask), _family(columns, separator, self.need_mask)

    def _entry(self, image_text: str, mask_text: str | None) -> Entry:
        image = self._existing("image", image_text, _spelled(self._image_candidates, image_text))
        if not self.need_mask:
            return Entry(image, None)
        if mask_text is None:
            mask = self._existing("mask of", image_text, self._derived_masks(image))
            self._refuse_second_mask(image, mask)
        elif mask_text.lower() in NO_MASK:
            raise DataError(f"{image_text} has no mask ({mask_text}), but a labelled list needs one")
        else:
            mask = self._existing("mask", mask_text, _spelled(self._mask_candidates, mask_text))
        if mask == image:
            raise DataError(f"{image_text} is named as image and as its own mask")
        return Entry(image, mask)

    def _below_root(self, text: str) -> Iterator[Path]:
        relative = text.lstrip("/")
        yield self.root / relative
        if Path(text).is_absolute():
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
        stem = ends_with(image.name, self.image_suffix) or image.stem
        names = mask_names(stem, self.mask_suffix or "")
        if image.stem.endswith(CITYSCAPES_IMAGE):
            city = image.stem.removesuffix(CITYSCAPES_IMAGE)
            names = [f"{city}{self.city_mask}.png", *names]
            yield from _swap(base, parts, "leftImg8bit", ["gtFine"], names[:1])
        guesses = [] if self.mask_suffix else [n for end in MASK_ENDINGS for n in mask_names(stem, end)]
        for some in (names, guesses):
            if self.mask_dir:
                inside = image.parent
                if self.image_dir and inside.is_relative_to(self.root / self.image_dir):
                    below = inside.relative_to(self.root / self.image_dir)
                    yield from (self.root / self.mask_dir / below / name for name in some)
                yield from (self.root / self.mask_dir / name for name in some)
            else:
                for folder in IMAGE_FOLDERS:
                    yield from _swap(base, parts, folder, MASK_FOLDERS, some)
                # beside the image: another stem, or the same one where only one of them can be a mask
                lossy = image.suffix.lower() not in MASK_SUFFIXES
                yield from (image.with_name(name) for name in some if lossy or Path(name).stem != image.stem)

    def _refuse_second_mask(self, image: Path, mask: Path) -> None:
        """Where the mask's ending was guessed, no other ending may fit too.

        Raises:
            DataError: Naming both masks.
        """
        stem = ends_with(image.name, self.image_suffix) or image.stem
        others = [mask.with_name(n) for end in MASK_ENDINGS for n in mask_names(stem, end)]
        if self.mask_suffix or mask not in others:
            return
        second = next((p for p in others if p != mask and p.is_file()), None)
        if second is not None:
            raise DataError(
                f"{image.name} has two masks, {mask.name} and {second.name}; set data.mask_suffix to "
                f"{mask.name.removeprefix(stem)} or {second.name.removeprefix(stem)}"
            )

    def _existing(self, what: str, text: str, candidates: Iterator[Path]) -> Path:
        tried: dict[Path, None] = {}
        for path in candidates:
            if path.is_file():
                return path
            tried[path] = None
        for path in tried:
            found = self._listings.find(self.root, path)
            if found is not None and found.is_file():
                if what != "mask of" and plain(found.stem) != plain(path.stem):
                    self.respelled.setdefault(text, found)
                return found
        root = self.root
        shown = [str(p.relative_to(root)) if p.is_relative_to(root) else str(p) for p in tried]
        more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
        places = ", ".join(shown[:4]) + more if shown else "no rule applies"
        cure = (
            "; set data.mask_dir or data.mask_suffix, or list `image mask` pairs" if what == "mask of" else ""
        )
        for path in tried:
            ids = path.with_name(path.name.replace("labelTrainIds", "labelIds"))
            if ids != path and ids.is_file():
                cure = f"; {ids.name} is there: set data.label_map=cityscapes and data.classes=null"
        raise DataError(
            f"{what} {text} not found below {root} (tried {places}){cure}{self._drive_cure(text)}"
        )

    def _drive_cure(self, text: str) -> str:
        if not _DRIVE.match(text) or Path(text).is_absolute():
            return ""
        parts = text.replace("\\", "/").split("/")
        for start in range(1, len(parts)):
            if self.root.joinpath(*parts[start:]).is_file():
                found, dropped = "/".join(parts[start:]), text[: -len("/".join(parts[start:]))]
                return f"; that is a path of a Windows drive: take {dropped} off, to leave {found}"
        return "; that is a path of a Windows drive: write lines relative to data.root"


def _spelled(candidates: Callable[[str], Iterator[Path]], text: str) -> Iterator[Path]:
    """Places for a name as it is written, and for one with backslashes as Windows writes them."""
    yield from candidates(text)
    if "\\" in text:
        yield from candidates(text.replace("\\", "/"))


def _swap(
    base: Path, parts: tuple[str, ...], old: str, new: list[str] | tuple[str, ...], names: list[str]
) -> Iterator[Path]:
    """The image's path with its last folder called ``old`` renamed, for every name."""
    at = [i for i, part in enumerate(parts[:-1]) if part == old]
    if at:
        for folder in new:
            place = base.joinpath(*parts[: at[-1]], folder, *parts[at[-1] + 1 : -1])
            yield from (place / name for name in names)


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
