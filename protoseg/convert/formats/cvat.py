"""CVAT for images 1.1: one XML for a task or a project."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

import numpy as np

from protoseg.convert.draw import Drawer, Shape, as_points, bitmap, box, ellipse, outline
from protoseg.convert.images import Images
from protoseg.convert.rle import decode_counts
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected, read_xml
from protoseg.data.palette import Color
from protoseg.errors import DataError

TITLE = "CVAT for images 1.1"
_NO_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    names = _files(tree)
    return f"{names[0]} begins with <annotations>" if names else None


def _files(tree: Tree) -> list[str]:
    names = []
    for name in tree.ending(".xml")[:50]:
        with (tree.root / name).open("rb") as stream:
            if re.search(rb"<annotations[\s>]", stream.read(2000)):
                names.append(name)
    return names


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read every CVAT file below the source.

    Raises:
        DataError: If a file is damaged, or is the form for videos.
    """
    images = Images(tree, choices.images, notes)
    samples: list[Sample] = []
    colors: dict[str, Color | None] = {}
    for file in _files(tree):
        root = read_xml(tree.root / file)
        if root.find("track") is not None:
            raise DataError(f"{file} is `CVAT for video`; export the task as `CVAT for images 1.1`")
        for item in root.iterfind("meta//labels/label"):
            with expected(f"{file}, label"):
                # parts of skeletons, and what has no area by its type, are no classes
                if item.find("parent") is None and item.findtext("type") not in _NO_AREA:
                    name = (item.findtext("name") or "").strip()
                    colors.setdefault(name, hex_color(item.findtext("color") or ""))
        for picture in root.iterfind("image"):
            where = f"{file}, image {picture.get('name')}"
            with expected(where):
                found = images.find(picture.attrib["name"], file.rpartition("/")[0], file)
                size = int(picture.attrib["height"]), int(picture.attrib["width"])
                shapes = _shapes(picture, notes, where)
            unknown = {str(shape.label) for shape in shapes} - set(colors)
            if unknown and root.find("meta//labels/label") is not None:
                raise DataError(f"{where}: labels that <meta> does not name: {', '.join(sorted(unknown))}")
            colors.update(dict.fromkeys(sorted(unknown)))
            if found is not None:
                part = part_of(f"{picture.get('subset', '')}/") or part_of(found)
                samples.append(Sample(images.path(found), found, shapes, size=size, part=part))
    samples += images.unannotated()
    known = {name: color for name, color in colors.items() if color is not None}
    return Export(samples, len(samples), list(colors), colors=known, ordered=True)


def hex_color(text: str) -> Color | None:
    """``#ff8000`` as RGB; None for another text."""
    match = re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text.strip())
    return None if match is None else (int(match[1], 16), int(match[2], 16), int(match[3], 16))


def _shapes(picture: Element, notes: Notes, where: str) -> list[Shape]:
    shapes = []
    for number, item in enumerate(picture, start=1):
        if item.tag == "tag":
            continue
        place = f"{where}, {item.tag} {number}"
        with expected(place):
            draw = _drawer(item)
            if draw is None:
                notes.warn(f"<{item.tag}>, which has no area and is not drawn", where)
            else:
                shapes.append(Shape(item.attrib["label"], draw, place, int(item.get("z_order", 0))))
    return shapes


def _drawer(item: Element) -> Drawer | None:
    def number(key: str) -> float:
        return float(item.attrib[key])

    degrees = float(item.get("rotation", 0))
    if item.tag == "polygon":
        return outline([as_points([pair.split(",") for pair in item.attrib["points"].split(";") if pair])])
    if item.tag == "box":
        return outline([box(number("xtl"), number("ytl"), number("xbr"), number("ybr"), degrees)])
    if item.tag == "ellipse":
        return outline([ellipse(number("cx"), number("cy"), number("rx"), number("ry"), degrees)])
    if item.tag == "mask":
        counts = np.array([int(count) for count in item.attrib["rle"].split(",")])
        mask = decode_counts(counts, int(number("height")), int(number("width")), columns=False)
        return bitmap(mask, int(number("top")), int(number("left")))
    if item.tag in _NO_AREA:
        return None
    raise DataError(f"unknown shape <{item.tag}>")
