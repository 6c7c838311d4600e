"""labelme: one JSON beside each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from protoseg.convert.draw import Drawer, Shape, as_points, bitmap, box, ellipse, outline
from protoseg.convert.formats.maps import decode_base64, decode_mask
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected, read_text
from protoseg.errors import DataError

TITLE = "labelme JSON"
IGNORED_NAMES = ("__ignore__", "_ignore_")


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    for name in tree.some_json():
        if _is_labelme(tree.json(name)):
            return f"{name} holds shapes and imagePath"
    return None


def _is_labelme(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read every labelme file below the source.

    Raises:
        DataError: If one is damaged.
    """
    images = Images(tree, choices.images, notes)
    samples: list[Sample] = []
    names: set[str] = set()
    for file in tree.ending(".json"):
        value = tree.json(file)
        if not _is_labelme(value):
            continue
        with expected(str(tree.root / file)):
            size = (int(value["imageHeight"]), int(value["imageWidth"])) if value.get("imageHeight") else None
            shapes = []
            for number, item in enumerate(value["shapes"], start=1):
                where = f"{file}, shape {number}"
                draw = _drawer(item, notes, where)
                if draw is not None:
                    shapes.append(Shape(str(item["label"]), draw, where))
            names |= {str(shape.label) for shape in shapes} - set(IGNORED_NAMES)
            image: Path | bytes
            image, name = _image(images, value, file)
        if name:
            samples.append(Sample(image, name, shapes, size=size, part=part_of(file) or part_of(name)))
    samples += images.unannotated()
    return Export(samples, len(samples), _class_order(tree, names), ordered=True, void=IGNORED_NAMES)


def _image(images: Images, value: Any, file: str) -> tuple[Path | bytes, str]:
    """The file that ``imagePath`` names, or the picture within the JSON."""
    folder = file.rpartition("/")[0]
    data = value.get("imageData")
    text = str(value["imagePath"])
    if not data:
        name = images.find(text, folder, file)
        return (images.path(name), name) if name else (b"", "")
    if images.has(text.replace("\\", "/").rpartition("/")[2]):
        name = images.find(text, folder, file)
        return (images.path(name), name) if name else (b"", "")
    decoded = decode_base64(data, file)
    images.found += 1
    suffix = ".png" if decoded[:4] == b"\x89PNG" else ".jpg"
    return decoded, str(Path(file).with_suffix(suffix).as_posix())


def _drawer(item: Any, notes: Notes, where: str) -> Drawer | None:
    kind = item.get("shape_type") or "polygon"
    points = as_points(item["points"])
    if kind in ("polygon", "oriented_rectangle"):
        return outline([points])
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        return outline([box(x0, y0, x1, y1)])
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return outline([ellipse(points[0][0], points[0][1], radius, radius)])
    if kind == "mask":
        left, top = np.round(points.min(axis=0)).astype(int)
        return bitmap(decode_mask(decode_base64(item["mask"], where), where), int(top), int(left))
    if kind in ("line", "linestrip", "point", "points"):
        notes.warn("lines and points, which have no area and are not drawn", where)
        return None
    raise DataError(f"{where}: unknown shape type {kind!r}")


def _class_order(tree: Tree, names: set[str]) -> list[str]:
    """Names as in ``labels.txt`` if it knows them all, else by alphabet."""
    for file in tree.files:
        if file.rpartition("/")[2] == "labels.txt":
            lines = [line.strip() for line in read_text(tree.root / file).splitlines()]
            listed = [line for line in lines if line and line not in IGNORED_NAMES]
            if names <= set(listed):
                return listed
    return sorted(names)
