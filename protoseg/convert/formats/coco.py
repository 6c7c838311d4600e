"""COCO instances: polygons, and run lengths in both forms."""

from __future__ import annotations

from collections import Counter
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
    used: Counter[str] = Counter()
    parents: set[str] = set()
    outlines = boxes = 0
    for file in names:
        value = tree.json(file)
        with expected(str(tree.root / file)):
            category = {item["id"]: str(item["name"]) for item in value["categories"]}
            if len(set(category.values())) < len(value["categories"]):
                raise DataError("two categories have the same name or the same id")
            parents |= {
                str(c.get("supercategory"))
                for c in value["categories"]
                if c.get("supercategory") != c["name"]
            }
            classes.update({name: str(number) for number, name in category.items() if name not in classes})
            by_image: dict[Any, list[Any]] = {item["id"]: [] for item in value["images"]}
        for item in value["annotations"]:
            with expected(f"{tree.root / file}, annotation {_id(item)}"):
                if "segments_info" in item:
                    raise DataError("this is the panoptic form; export instances")
                if item["image_id"] not in by_image or item["category_id"] not in category:
                    raise DataError(
                        f"image {item['image_id']} or category {item['category_id']} is not in the file"
                    )
                by_image[item["image_id"]].append(item)
        for picture in value["images"]:
            with expected(f"{tree.root / file}, image {_id(picture)}"):
                name = images.find(str(picture["file_name"]), file.rpartition("/")[0], file)
                size = (int(picture["height"]), int(picture["width"])) if picture.get("height") else None
            shapes = []
            for item in by_image[picture["id"]]:
                where = f"{file}, annotation {_id(item)}"
                if not item.get("segmentation"):
                    boxes += 1
                    notes.warn("objects that are only a box and are not drawn", where)
                    continue
                outlines += 1
                used[category[item["category_id"]]] += 1
                shapes.append(_shape(item, category[item["category_id"]], where, choices))
            if name is not None:
                samples.append(
                    Sample(
                        images.path(name),
                        name,
                        shapes,
                        size=size,
                        part=part_of(file, file=True) or part_of(name),
                    )
                )
    if boxes and not outlines:
        raise DataError(
            f"{names[0]} has {boxes} boxes and no outlines; export segmentation (polygons or masks)"
        )
    # Roboflow adds a category that only groups the others
    groups = [name for name in classes if name in parents and not used[name] and len(classes) > 1]
    for name in groups:
        notes.warn("categories that only group others and have no object: no class", name)
        del classes[name]
    samples += images.unannotated()
    return Export(samples, len(samples), list(classes), source_ids=classes)


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
