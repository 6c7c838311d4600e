"""File names: which suffixes are images and masks, what masks end in, and names spelled otherwise."""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import overload

from PIL import features

from protoseg.data.members import File, Member

HEIF = (".heic", ".heif")


def _optional_suffixes() -> tuple[str, ...]:
    """Suffixes that Pillow reads here, but not everywhere."""
    found: tuple[str, ...] = (".avif",) if features.check("avif") else ()
    return (*found, *HEIF) if know_heif() else found


def know_heif() -> bool:
    """Let Pillow read HEIC, where a package that can is installed; says whether it can now."""
    for name in ("pi_heif", "pillow_heif"):
        with suppress(ImportError, AttributeError):
            importlib.import_module(name).register_heif_opener()
            return True
    return False


IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".npy", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jfif", ".jpe",
    *_optional_suffixes(),
)  # fmt: skip
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".npy", ".pgm", ".gif")
MASK_ENDINGS = (
    "_mask", "-mask", ".mask", "_masks", "_label", "_labels", "-label", "_seg", "_segmentation", "_gt",
    "_annotation", "_semantic", ".jpg.png", ".jpeg.png", ".png.png", ".tif.png",
)  # fmt: skip
"""What masks end in that lie beside their images, unless ``data.mask_suffix`` says it."""


def ends_with(name: str, suffix: str | None) -> str | None:
    """A file's relative name without what it ends in, or None if it ends otherwise.

    Args:
        name: With its extension.
        suffix: End of the stem (``_mask``), or of the whole name (``_mask.png``); None: the extension.
    """
    stem, dot, _ = name.rpartition(".")
    stem = stem if dot else name
    if not suffix:
        return stem
    whole = name if has_extension(suffix) else stem
    rest = whole[: -len(suffix)]
    return rest if whole.lower().endswith(suffix.lower()) and Path(rest).name else None


def has_extension(suffix: str) -> bool:
    """Whether ``data.mask_suffix`` or ``data.image_suffix`` includes the file's extension."""
    return Path("x" + suffix).suffix.lower() in {*IMAGE_SUFFIXES, *MASK_SUFFIXES}


def mask_names(stem: str, end: str) -> list[str]:
    """What a mask of this stem may be called that ends so."""
    return (
        [stem + end] if end and has_extension(end) else [f"{stem}{end}{suffix}" for suffix in MASK_SUFFIXES]
    )


def beside_ending(name: str, stems: Collection[str | None], endings: Sequence[str]) -> str | None:
    """The ending by which a file is the mask of one beside it, whose stem is in ``stems``."""
    for end in fitting_endings(name, endings):
        stem = ends_with(name, end)
        if stem in stems and stem != ends_with(name, None):
            return end
    return None


def fitting_endings(name: str, endings: Sequence[str]) -> list[str]:
    """Those of some endings that a name may end in, with its extension or without it."""
    lower = name.lower()
    bare, known = lower.rpartition(".")[0], _lowered(tuple(endings))
    # most files have none of the endings, and there may be millions
    if not (lower.endswith(known) or bare.endswith(known)):
        return []
    return [end for end in endings if lower.endswith(end.lower()) or bare.endswith(end.lower())]


@lru_cache(maxsize=8)
def _lowered(endings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(end.lower() for end in endings)


def plain(text: str) -> str:
    """A name in the composed Unicode form; macOS writes the decomposed one."""
    return unicodedata.normalize("NFC", text)


class Places:
    """Resolves files whose folders are resolved once each."""

    def __init__(self) -> None:
        self._folders: dict[tuple[Path, str], Path] = {}

    @overload
    def resolve(self, path: Path) -> Path: ...
    @overload
    def resolve(self, path: File) -> File: ...
    def resolve(self, path: File) -> File:
        """As ``path.resolve()``."""
        if isinstance(path, Member):
            return path
        if path.is_symlink():
            return path.resolve()
        return self.folder(path.parent, path.name) / path.name

    def folder(self, root: Path, name: str) -> Path:
        """The folder, resolved, of a file below ``root`` by its relative name."""
        key = (root, name.rpartition("/")[0])
        found = self._folders.get(key)
        if found is None:
            found = self._folders[key] = (root / key[1]).resolve()
        return found


class Listings:
    """Folders' listings, read once each, to find names that are spelled otherwise."""

    def __init__(self) -> None:
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, root: Path, path: Path) -> Path | None:
        """The only file or folder of this name but for Unicode form and letter case."""
        start = root if path.is_relative_to(root) else Path(path.anchor)
        place = start
        for part in path.relative_to(start).parts:
            step = place / part
            if part != ".." and not step.exists():
                same = self._names(place).get(plain(part).casefold(), [])
                same = [name for name in same if plain(name) == plain(part)] or same
                if len(same) != 1:
                    return None
                step = place / same[0]
            place = step
        return place

    def _names(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listings:
            table: dict[str, list[str]] = {}
            with suppress(OSError):
                for item in folder.iterdir():
                    table.setdefault(plain(item.name).casefold(), []).append(item.name)
            self._listings[folder] = table
        return self._listings[folder]
