"""Turns one line of a list file into an image and its mask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protoseg.errors import DataError

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


@dataclass(frozen=True)
class Entry:
    """One image and, where it is labelled, its mask."""

    image: Path
    mask: Path | None


class Resolver:
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
