"""Cityscapes: leftImg8bit, and gtFine as label ids or polygons, with the 19 official classes."""

from __future__ import annotations

from typing import Any

from protoseg.convert.draw import Shape, as_points, outline
from protoseg.convert.formats.maps import (
    CITYSCAPES_COLORS,
    CITYSCAPES_NAMES,
    CITYSCAPES_VOID,
    cityscapes_values,
    map_loader,
)
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected, read_json
from protoseg.errors import DataError

TITLE = "Cityscapes (labelIds or polygons)"
_IDS, _POLYGONS, _IMAGE = "_gtFine_labelIds.png", "_gtFine_polygons.json", "_leftImg8bit"


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    found = next((name for name in tree.files if name.endswith((_IDS, _POLYGONS))), None)
    return f"{found} is named as it names them" if found else None


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read label ids where they are, else polygons.

    Raises:
        DataError: If a polygon file is damaged or names an unknown class.
    """
    images = Images(tree, choices.images, notes)
    frames = {
        name.removesuffix(s): name for s in (_POLYGONS, _IDS) for name in tree.files if name.endswith(s)
    }
    samples = []
    for stem, file in frames.items():
        place = stem.replace("gtFine/", "leftImg8bit/", 1)
        name = images.find(f"{place}{_IMAGE}.png", where=file)
        if name is None:
            continue
        image, part = images.path(name), part_of(name)
        if file.endswith(_IDS):
            samples.append(Sample(image, name, labels=map_loader(tree.root / file), part=part))
            continue
        value = read_json(tree.root / file)
        with expected(str(tree.root / file)):
            size = int(value["imgHeight"]), int(value["imgWidth"])
            shapes = [_shape(item, f"{file}, object {i}") for i, item in enumerate(value["objects"], start=1)]
        kept = [shape for shape in shapes if shape is not None]
        samples.append(Sample(image, name, kept, size=size, part=part))
    samples += images.unannotated()
    return Export(
        samples, len(samples), list(CITYSCAPES_NAMES), instances=False, values=cityscapes_values(),
        colors=CITYSCAPES_COLORS, ordered=True, void=CITYSCAPES_VOID,
    )  # fmt: skip


def _shape(item: Any, where: str) -> Shape | None:
    """An object; the word ``group`` after a class changes nothing, and void objects hide what they cover."""
    label = str(item["label"])
    if item.get("deleted") or label == "license plate":
        # the official script does not draw license plates: the car stays
        return None
    name = label if label in CITYSCAPES_VOID else label.removesuffix("group")
    if name not in CITYSCAPES_NAMES and name not in CITYSCAPES_VOID:
        raise DataError(f"{where}: {label!r} is no class of Cityscapes")
    draw = outline([as_points(item["polygon"])], edge=True)
    return Shape(name, draw, where)
