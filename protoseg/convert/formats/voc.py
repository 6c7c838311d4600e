"""Pascal VOC and CVAT's "Segmentation mask": JPEGImages, SegmentationClass, lists, perhaps labelmap.txt."""

from __future__ import annotations

from protoseg.convert.formats.maps import map_loader, read_labelmap_colors
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Part, Sample, Tree, part_of
from protoseg.convert.texts import read_text
from protoseg.data.palette import Color, voc_palette
from protoseg.errors import DataError

TITLE = "Pascal VOC masks (SegmentationClass)"
NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
BORDER = (224, 224, 192)


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    if "SegmentationClass" in tree.folders:
        return "it has a folder SegmentationClass"
    boxes = _box_file(tree)
    return f"{boxes} begins with <annotation>" if boxes else None


def _box_file(tree: Tree) -> str | None:
    for name in tree.ending(".xml")[:3]:
        with (tree.root / name).open("rb") as stream:
            head = stream.read(2000)
        if b"<annotation>" in head or b"<annotation " in head:
            return name
    return None


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read the masks and lists.

    Raises:
        DataError: If there are boxes only, or classes are unknown.
    """
    masks = [n for n in tree.files if "SegmentationClass" in n.split("/")[:-1] and n.lower().endswith(".png")]
    if not masks:
        raise DataError(
            f"{_box_file(tree) or tree.root} has boxes only: VOC XML holds no outlines; export masks (CVAT: "
            "`Segmentation mask 1.1`) or polygons (CVAT: `CVAT for images 1.1`, or COCO)"
        )
    images = Images(tree, choices.images, notes)
    parts = _parts(tree)
    labelmap = next((n for n in tree.files if n.rpartition("/")[2] == "labelmap.txt"), None)
    listed = next((n for n in tree.files if n.rpartition("/")[2] == "class_names.txt"), None)
    table: dict[str, Color]
    if labelmap is not None:
        table = read_labelmap_colors(read_text(tree.root / labelmap), labelmap)
    else:
        # labelme2voc writes class_names.txt
        lines = read_text(tree.root / listed).splitlines() if listed is not None else []
        names = choices.classes or [line.strip() for line in lines if line.strip()] or NAMES
        table = dict(zip(names, voc_palette(len(names)), strict=True))
    classes = list(table)
    colors = {color: index for index, color in enumerate(table.values())}
    if len(colors) < len(table):
        raise DataError(f"{labelmap}: two labels have the same colour; give each its own in the tool")
    values: dict[int, str | None] = {**dict(enumerate(classes)), 255: None}
    samples = []
    for mask in masks:
        folder, _, below = mask.partition("SegmentationClass/")
        stem = below[: -len(".png")]
        name = images.find(f"{folder}JPEGImages/{stem}", where=mask, stem=True)
        if name is not None:
            # indices mean the VOC classes; with a labelmap colours do
            load = map_loader(tree.root / mask, {BORDER: 255, **colors} if labelmap else None)
            samples.append(
                Sample(images.path(name), name, labels=load, part=parts.get(stem) or part_of(name))
            )
    samples += images.unannotated(lambda n: parts.get(n.rpartition("/")[2].rpartition(".")[0], ""))
    return Export(samples, len(samples), classes, instances=False, values=values, colors=table)


def _parts(tree: Tree) -> dict[str, Part]:
    """Division by image stem, from ``ImageSets/Segmentation/*.txt``."""
    parts: dict[str, Part] = {}
    for name in tree.files:
        folder, _, last = name.rpartition("/")
        part = {"train.txt": "train", "val.txt": "val", "test.txt": "test"}.get(last)
        if part is not None and "ImageSets" in folder.split("/"):
            for line in read_text(tree.root / name).split("\n"):
                if line.strip():
                    parts[line.strip()] = part  # type: ignore[assignment]
    return parts
