"""COCO instances: polygons, and run lengths in both forms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from protoseg.convert.draw import Drawer, Region, Shape, as_points, bitmap, outline
from protoseg.convert.images import Images
from protoseg.convert.rle import decode_coco
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected
from protoseg.errors import DataError

TITLE = "COCO JSON (instances)"


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    names = [name for name in tree.some_json() if _is_coco(tree.json(name))]
    return f"{names[0]} holds images, annotations and categories" if names else None


def _files(tree: Tree, notes: Notes) -> list[str]:
    names = [name for name in tree.ending(".json") if _is_coco(tree.json(name))]
    instances = [name for name in names if "person_keypoints" not in name]
    for name in set(names) - set(instances) if instances else ():
        notes.warn("files of keypoints beside instances are not read", name)
    return instances or names


def _is_coco(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) for key in ("images", "annotations", "categories")
    )


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read every COCO file below the source.

    Raises:
        DataError: If a file is damaged, has boxes only, or two annotate the same image.
    """
    images = Images(tree, choices.images, notes)
    names = _files(tree, notes)
    if not names:
        raise DataError(f"{tree.root}: no JSON with images, annotations and categories")
    samples: list[Sample] = []
    classes: dict[str, str] = {}
    parents: set[str] = set()
    found = _Found()
    for file in names:
        value = tree.json(file)
        category, above = _categories(value, str(tree.root / file))
        parents |= above
        classes.update({name: str(number) for number, name in category.items() if name not in classes})
        by_image = _by_image(value, category, f"{tree.root / file}")
        for picture in value["images"]:
            with expected(f"{tree.root / file}, image {_id(picture)}"):
                name = images.find(str(picture["file_name"]), file.rpartition("/")[0], file)
                size = (int(picture["height"]), int(picture["width"])) if picture.get("height") else None
            shapes = found.shapes(by_image[picture["id"]], category, file, choices, notes)
            if name is not None:
                part = part_of(file, file=True) or part_of(name)
                samples.append(Sample(images.path(name), name, shapes, size=size, part=part))
    if found.boxes and not found.used:
        raise DataError(
            f"{names[0]} has {found.boxes} boxes and no outlines; export segmentation (polygons or masks)"
        )
    # Roboflow adds a category that only groups the others
    for name in [n for n in classes if n in parents and not found.used[n] and len(classes) > 1]:
        notes.warn("categories that only group others and have no object: no class", name)
        del classes[name]
    samples += images.unannotated()
    return Export(samples, len(samples), list(classes), source_ids=classes)


def _categories(value: Any, where: str) -> tuple[dict[Any, str], set[str]]:
    """Names by id, and the names that others are grouped by."""
    with expected(where):
        category = {item["id"]: str(item["name"]) for item in value["categories"]}
        if len(set(category.values())) < len(value["categories"]):
            raise DataError("two categories have the same name or the same id")
        above = {(str(c.get("supercategory")), c["name"]) for c in value["categories"]}
    return category, {name for name, own in above if name != own}


def _by_image(value: Any, category: dict[Any, str], where: str) -> dict[Any, list[Any]]:
    """Annotations by the id of their image."""
    with expected(where):
        by_image: dict[Any, list[Any]] = {item["id"]: [] for item in value["images"]}
    for item in value["annotations"]:
        with expected(f"{where}, annotation {_id(item)}"):
            if "segments_info" in item:
                raise DataError("this is the panoptic form; export instances")
            if item["image_id"] not in by_image or item["category_id"] not in category:
                raise DataError(
                    f"image {item['image_id']} or category {item['category_id']} is not in the file"
                )
            by_image[item["image_id"]].append(item)
    return by_image


@dataclass
class _Found:
    """What the objects so far were."""

    used: Counter[str] = field(default_factory=Counter)
    """Outlines by class."""
    boxes: int = 0
    """Objects without one."""

    def shapes(
        self, items: list[Any], category: dict[Any, str], file: str, choices: Choices, notes: Notes
    ) -> list[Shape]:
        """Outlines of an image's annotations; boxes are only counted."""
        shapes = []
        for item in items:
            where = f"{file}, annotation {_id(item)}"
            if not item.get("segmentation"):
                self.boxes += 1
                notes.warn("objects that are only a box and are not drawn", where)
                continue
            name = category[item["category_id"]]
            self.used[name] += 1
            shapes.append(_shape(item, name, where, choices))
        return shapes


def _id(item: Any) -> Any:
    return item.get("id", "without an id") if isinstance(item, dict) else "of another type"


def _shape(item: Any, label: str, where: str, choices: Choices) -> Shape:
    name = None if item.get("iscrowd") and choices.crowd == "ignore" else label
    segmentation = item["segmentation"]
    with expected(where):
        if isinstance(segmentation, dict):
            return Shape(
                name, _run_lengths(segmentation, [int(side) for side in segmentation["size"]]), where
            )
        return Shape(name, lambda h, w: outline([as_points(part) for part in segmentation])(h, w), where)


def _run_lengths(segmentation: Any, size: list[int]) -> Drawer:
    def draw(height: int, width: int) -> Region | None:
        if size != [height, width]:
            raise DataError(f"run lengths are for {size}, the image is {[height, width]}")
        return bitmap(decode_coco(segmentation))(height, width)

    return draw
