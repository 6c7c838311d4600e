"""Converts an export: masks, lists and settings, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from protoseg.convert.classes import ClassTable, Others, class_table
from protoseg.convert.draw import IGNORED, draw_labels
from protoseg.convert.find import FORMATS, find_format
from protoseg.convert.frames import Orientation, annotated_frame, look, turn_upright
from protoseg.convert.lists import Entry, data_settings, divide, write_lists
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, normal
from protoseg.data.images import save_mask
from protoseg.data.palette import default_palette
from protoseg.errors import DataError
from protoseg.files import folder_whole, write_bytes_whole, write_text_whole

RECORD = "convert.json"


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    format: str | None = None
    images: Path | None = None
    classes: list[str] | None = None
    ignore: list[str] = field(default_factory=list)
    others: Others = "error"
    val: str | None = None
    group: str = "auto"
    seed: int = 0
    order: Literal["area", "file"] | None = None
    empty: Literal["unlabeled", "background"] = "unlabeled"
    crowd: Literal["ignore", "object"] = "ignore"
    orientation: Orientation = "auto"
    place: Literal["refer", "link", "copy"] = "refer"
    overwrite: bool = False
    progress: bool = False


@dataclass
class Conversion:
    """What was written."""

    format: str
    reason: str
    table: ClassTable
    export: Export
    settings: dict[str, Any]
    counts: dict[str, int]
    val_from: str
    """How the validation images were chosen."""
    images_with: list[int]
    """Images that show each class."""
    pixels: list[int]
    """Pixels of each class, and of ignored ones last."""
    notes: Notes


def convert(source: Path, out: Path, options: Options) -> Conversion:
    """Read an export and write masks, lists, names and settings.

    Args:
        source: Folder or annotation file; nothing is written there.
        out: Folder of the result.
        options: What the user chose.

    Raises:
        DataError: If the source cannot be understood, or the target must not be replaced.
    """
    source, out = normal(source), normal(out)
    tree = Tree(source, skip=out)
    _check_target(source, out, options.overwrite)
    if options.format is None:
        name, reason = find_format(tree)
    else:
        name, reason = options.format, "named by --format"
    notes = Notes()
    choices = Choices(options.images, options.classes, options.crowd)
    export = FORMATS[name].read(tree, choices, notes)
    table = class_table(export, options.classes, options.ignore, options.others)
    with folder_whole(out) as partial:
        writer = _Writer(partial, out, export, table, options, notes)
        for sample in tqdm(export.samples, total=export.total, unit="image", disable=not options.progress):
            writer.add(sample)
        parts, val_from = divide(writer.entries, options.val, options.group, options.seed, notes)
        settings = data_settings(writer.entries, parts, table, out)
        write_lists(partial, parts, settings, table, out)
        counts = {part: len(entries) for part, entries in parts.items()}
        record = {"format": name, "source": str(source), "images": counts, "data": settings}
        write_text_whole(partial / RECORD, json.dumps(record, indent=1) + "\n")
    shown = Counter(label for entry in writer.entries for label in entry.present)
    return Conversion(
        name, reason, table, export, settings, counts, val_from, [shown[i] for i in range(len(table.names))],
        [*writer.pixels[: len(table.names)].tolist(), int(writer.pixels[IGNORED])], notes,
    )  # fmt: skip


def _check_target(source: Path, out: Path, overwrite: bool) -> None:
    if out.is_relative_to(source) or source.is_relative_to(out):
        raise DataError(f"-o {out} and SOURCE {source} lie within one another; choose a folder beside SOURCE")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise DataError(f"{out} is there and not empty; choose another -o")
    if not overwrite:
        raise DataError(
            f"{out} holds an earlier conversion; add --overwrite to replace it, or choose another -o"
        )


class _Writer:
    """Writes masks (and images, where asked) and remembers what goes into the lists."""

    def __init__(
        self, partial: Path, out: Path, export: Export, table: ClassTable, options: Options, notes: Notes
    ) -> None:
        self.partial, self.out = partial, out
        self.export, self.table, self.options, self.notes = export, table, options, notes
        self.colors = table.palette or default_palette(table.names)
        self.order = options.order or ("file" if export.ordered else "area")
        self.entries: list[Entry] = []
        self.pixels = np.zeros(256, np.int64)
        self._stems: set[str] = set()

    def add(self, sample: Sample) -> None:
        """Write one image's mask, or note why the image takes no part."""
        if any(mark in sample.name for mark in "\t\n\r"):
            self.notes.leave_out("images with a tab or line break in their name", repr(sample.name))
            return
        labels = None
        if sample.shapes is not None or sample.labels is not None:
            try:
                labels = self._labels(sample)
            except _LeftOutError as error:
                self.notes.leave_out(
                    error.reason, f"{sample.name}: {error.detail}" if error.detail else sample.name
                )
                return
        mask = None
        present: frozenset[int] = frozenset()
        if labels is not None:
            counts = np.bincount(labels.ravel(), minlength=256)
            self.pixels += counts
            present = frozenset(np.flatnonzero(counts[:IGNORED]).tolist())
            mask = self._mask_name(sample.name)
            path = self.partial / mask
            path.parent.mkdir(parents=True, exist_ok=True)
            save_mask(path, labels, self.colors)
        self.entries.append(Entry(sample.name, self._place(sample), mask, sample.part, present))

    def _labels(self, sample: Sample) -> NDArray[np.uint8] | None:
        """Class ids of the upright image; None when nothing is annotated."""
        try:
            frame = look(sample.image)
        except DataError as error:
            raise _LeftOutError("images that cannot be read", str(error)) from error
        if sample.shapes is not None and not sample.shapes and self.options.empty == "unlabeled":
            self.notes.warn(
                "images whose annotation holds no object are unlabelled (--empty background: labelled)",
                sample.name,
            )
            return None
        raw = None
        if sample.labels is not None:
            try:
                raw = self.table.map_values(sample.labels())
            except DataError as error:
                raise DataError(f"{sample.name}: {error}") from error
        size = sample.size if raw is None else (raw.shape[0], raw.shape[1])
        try:
            side, guessed = annotated_frame(frame, size, self.options.orientation)
        except DataError as error:
            raise _LeftOutError("images of another size than their annotation", str(error)) from error
        if guessed:
            self.notes.warn(
                "turned images (EXIF orientation) whose annotation may be of the stored or the turned image: "
                "taken as turned; look at the masks, and give --orientation stored if they do not match",
                sample.name,
            )  # fmt: skip
        height, width = frame.upright if side == "upright" else frame.stored
        if raw is None:
            skipped: list[str] = []

            def skip(reason: str, where: str) -> None:
                skipped.append(where)
                self.notes.warn(reason, where)

            shapes = sample.shapes or []
            raw = draw_labels(
                shapes, self.table.ids, height, width, background=self.table.background, order=self.order,
                skipped=skip,
            )  # fmt: skip
            if self.options.empty == "unlabeled" and len(skipped) == len(shapes):
                self.notes.warn("images whose objects cover no pixel are unlabelled", sample.name)
                return None
        if (raw == IGNORED).all():
            self.notes.warn("images without a labelled pixel are unlabelled", sample.name)
            return None
        return turn_upright(raw, frame.tag) if side == "stored" else raw

    def _mask_name(self, name: str) -> str:
        stem = name.rpartition(".")[0]
        if stem.casefold() in self._stems:
            stem = name
        self._stems.add(stem.casefold())
        return f"masks/{stem}.png"

    def _place(self, sample: Sample) -> str:
        """Where lists find the image: absolute where it lies, else below the target."""
        if isinstance(sample.image, Path) and self.options.place == "refer":
            return str(sample.image)
        place = f"images/{sample.name}"
        path = self.partial / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(sample.image, bytes):
            write_bytes_whole(path, sample.image)
        elif self.options.place == "copy":
            shutil.copyfile(sample.image, path)
        else:
            path.symlink_to(sample.image.resolve())
        return place


class _LeftOutError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail
