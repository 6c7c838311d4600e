"""Supervisely projects: ``meta.json``, and ``ann`` beside ``img`` in each dataset."""

from __future__ import annotations

import zlib
from typing import Any

from protoseg.convert.draw import Drawer, Shape, as_points, bitmap, outline
from protoseg.convert.formats.cvat import hex_color
from protoseg.convert.formats.maps import decode_base64, decode_mask
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected, read_json
from protoseg.errors import DataError

TITLE = "Supervisely project"


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    meta = _meta(tree)
    return f"{meta} and ann folders are there" if meta and _annotations(tree) else None


def _meta(tree: Tree) -> str | None:
    return next((name for name in tree.files if name.rpartition("/")[2] == "meta.json"), None)


def _annotations(tree: Tree) -> list[str]:
    return [n for n in tree.files if n.endswith(".json") and n.split("/")[-2:-1] == ["ann"]]


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read every dataset of the project.

    Raises:
        DataError: If a file is damaged.
    """
    images = Images(tree, choices.images, notes)
    meta = _meta(tree)
    if meta is None:
        raise DataError(f"{tree.root} has no meta.json, which names a Supervisely project's classes")
    with expected(str(tree.root / meta)):
        classes = {
            str(item["title"]): hex_color(item.get("color", ""))
            for item in read_json(tree.root / meta)["classes"]
        }
    samples = []
    for file in _annotations(tree):
        value = read_json(tree.root / file)
        with expected(str(tree.root / file)):
            folder, _, last = file.rpartition("/")
            size = int(value["size"]["height"]), int(value["size"]["width"])
            base = folder.rpartition("/")[0]
            name = images.find(last.removesuffix(".json"), f"{base}/img" if base else "img", file)
            shapes = []
            for number, item in enumerate(value["objects"], start=1):
                where = f"{file}, object {number}"
                draw = _drawer(item, where)
                if draw is None:
                    notes.warn("lines, points and the like, which have no area and are not drawn", where)
                elif item["classTitle"] not in classes:
                    raise DataError(
                        f"object {number} is of class {item['classTitle']!r}, which {meta} does not name"
                    )
                else:
                    shapes.append(Shape(str(item["classTitle"]), draw, where))
        if name is not None:
            samples.append(Sample(images.path(name), name, shapes, size=size, part=part_of(file)))
    samples += images.unannotated()
    colors = {name: color for name, color in classes.items() if color is not None}
    return Export(samples, len(samples), list(classes), colors=colors, ordered=True)


def _drawer(item: Any, where: str) -> Drawer | None:
    kind = item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon")
    if kind == "bitmap":
        left, top = (int(value) for value in item["bitmap"]["origin"])
        try:
            data = zlib.decompress(decode_base64(item["bitmap"]["data"], where))
        except zlib.error as error:
            raise DataError(f"{where}: damaged bitmap ({error})") from error
        return bitmap(decode_mask(data, where), top, left)
    points = [as_points(part) for part in [item["points"]["exterior"], *item["points"].get("interior", [])]]
    if kind == "polygon":
        return outline(points[:1], points[1:], edge=True)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points[0].min(axis=0), points[0].max(axis=0)
        return outline([as_points([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])], edge=True)
    return None
