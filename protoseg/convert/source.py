"""What a reader of a format works with: the files of an export, its images, and what it hands on."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from protoseg.convert.draw import Shape
from protoseg.convert.texts import read_json
from protoseg.data.palette import Color
from protoseg.errors import DataError

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".npy",
)  # fmt: skip
_PART = "(train|training|val|valid|validation|test|testing)(?:\\d{4})?"
_PART_FOLDER = re.compile(f"(?:^|/){_PART}/")
_PART_FILE = re.compile(f"(?:^|[/_.-]){_PART}(?:[_.-][^/]*)?$")

Part = Literal["", "train", "val", "test"]


@dataclass
class Notes:
    """What is left out or worth a warning: counted by reason, with the first places."""

    left_out: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, place: str) -> None:
        """Count an image that takes no part."""
        self.left_out.setdefault(reason, []).append(place)

    def warn(self, reason: str, place: str = "") -> None:
        """Count something that the user should know."""
        self.warnings.setdefault(reason, []).append(place)

    def lines(self) -> list[str]:
        """One line for each reason."""
        out = [f"left out: {_counted(*item)}" for item in self.left_out.items()]
        return out + [f"warning: {_counted(*item)}" for item in self.warnings.items()]


def _counted(reason: str, places: Sequence[str]) -> str:
    shown = [place for place in dict.fromkeys(places) if place][:3]
    count = f"{len(places)} " if places[0] else ""
    return f"{count}{reason}" + (f", as {'; '.join(shown)}" if shown else "")


@dataclass(frozen=True)
class Choices:
    """What the user chose that readers need."""

    images: Path | None = None
    """Folder of images; None: those below the source."""
    classes: list[str] | None = None
    """Class names, if the user gave them."""
    crowd: Literal["ignore", "object"] = "ignore"
    """What COCO's crowd regions become."""


@dataclass(frozen=True)
class Sample:
    """An image and what is known of it; with neither shapes nor labels it is unlabelled."""

    image: Path | bytes
    name: str
    """File name with subfolders, unique."""
    shapes: Sequence[Shape] | None = None
    """Objects; an empty list is an annotation that marks nothing."""
    labels: Callable[[], NDArray[Any]] | None = None
    """Loads the values of a label map, ``(H, W)``."""
    size: tuple[int, int] | None = None
    """Height and width that the annotation states."""
    part: Part = ""
    """The export's own division."""


@dataclass
class Export:
    """A read export."""

    samples: Iterable[Sample]
    total: int
    classes: list[str] | None
    """Names in the order of the source; None: the source has none (label maps hold bare ids)."""
    instances: bool = True
    """Whether objects lie on a background (else label maps say what every pixel is)."""
    values: dict[int, str | None] | None = None
    """Name of each value of label maps; None: value i is class i. A name None is ignored."""
    colors: dict[str, Color] = field(default_factory=dict)
    ordered: bool = False
    """Whether the tool's own order says which object lies on top."""
    void: Sequence[str] = ()
    """Names of objects that are drawn like others and then ignored."""
    source_ids: dict[str, str] = field(default_factory=dict)
    """How the source numbers its classes, where that differs from here."""


def normal(path: Path) -> Path:
    """The absolute path without ``..``; links stay, because lists are to show the names that users know."""
    return Path(os.path.normpath(path.absolute()))


class Tree:
    """The files below a source (through links, without hidden ones), as posix paths relative to it."""

    def __init__(self, source: Path, skip: Path | None = None) -> None:
        """Take the files below a folder; of an annotation file, those below its folder or the one above.

        Args:
            source: Folder or file.
            skip: Folder that does not count (the target, which may lie beside an annotation file).

        Raises:
            DataError: If the source is not there or is an archive.
        """
        if not source.exists():
            raise DataError(f"{source} not found")
        if source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
            raise DataError(f"{source} is an archive: unpack it and give the folder")
        self.skip = skip
        self.file = None if source.is_dir() else source.name
        self.root = normal(source if source.is_dir() else source.parent)
        self.files = sorted(walk(self.root, skip))
        if self.file is not None and not any(name.lower().endswith(IMAGE_SUFFIXES) for name in self.files):
            # annotations/instances.json: the images are beside the file's folder
            self.file = f"{self.root.name}/{self.file}"
            self.root = self.root.parent
            self.files = sorted(walk(self.root, skip))
        self.folders = {part for name in self.files for part in name.split("/")[:-1]}
        self._json: dict[str, Any] = {}

    def ending(self, *suffixes: str) -> list[str]:
        """Files with one of the endings; only the given one when the source is a file."""
        if self.file is not None:
            return [self.file] if self.file.lower().endswith(suffixes) else []
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def json(self, name: str) -> Any:
        """A JSON file's value; the first ones are kept, because several readers look at them."""
        if name not in self._json:
            value = read_json(self.root / name)
            if len(self._json) >= 64:
                return value
            self._json[name] = value
        return self._json[name]

    def some_json(self) -> list[str]:
        """The first JSON files of each folder: enough to know a format by, not to read it."""
        seen: Counter[str] = Counter()
        names: list[str] = []
        for name in self.ending(".json"):
            folder = name.rpartition("/")[0]
            seen[folder] += 1
            if seen[folder] <= 12 and len(names) < 60:
                names.append(name)
        return names


def walk(root: Path, skip: Path | None) -> Iterator[str]:
    """Files below a folder as posix paths relative to it, through links, each folder once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or folder == str(skip):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        base = Path(folder).relative_to(root).as_posix()
        for name in files:
            if not name.startswith("."):
                yield name if base == "." else f"{base}/{name}"


def part_of(path: str, *, file: bool = False) -> Part:
    """The division that a folder's name states (``train2017/``, ``valid/``).

    Args:
        path: File.
        file: Whether the file's own name counts, too (``instances_val2017.json``, ``train-00000.parquet``).
    """
    found = (_PART_FILE.search(path.lower()) if file else None) or _PART_FOLDER.search(path.lower())
    if found is None:
        return ""
    return "val" if found[1].startswith("val") else "test" if found[1].startswith("test") else "train"
