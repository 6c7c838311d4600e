"""Label Studio: JSON and JSON-MIN exports, and the PNG and NumPy exports of brush regions beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np

from protoseg.convert.draw import Drawer, Shape, as_points, bitmap, box, ellipse, outline
from protoseg.convert.formats.maps import decode_base64, decode_mask
from protoseg.convert.images import Images
from protoseg.convert.rle import decode_label_studio
from protoseg.convert.source import IMAGE_SUFFIXES, Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected
from protoseg.data.pictures import load_array
from protoseg.errors import DataError

TITLE = "Label Studio JSON, JSON-MIN, PNG or NumPy"
# task, annotation, annotator, then the name of the control, the label and a number
_MASK_FILE = re.compile(r"(?:^|/)task-(\d+)-annotation-(\d+)-by-[^-/]*-([^/]+)-\d+\.(?:png|npy)$")


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    names = _files(tree, tree.some_json())
    if names:
        return f"{names[0]} is a list of tasks"
    masks = [name for name in tree.files if _MASK_FILE.search(name)]
    return f"{masks[0]} is named as its brush exports are" if masks else None


def _files(tree: Tree, names: list[str]) -> list[str]:
    return [name for name in names if _is_export(tree.json(name))]


def _is_export(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(task, dict) for task in value):
        return False
    if all("data" in task for task in value):
        return any("annotations" in task or "completions" in task or "predictions" in task for task in value)
    return any(True for task in value for _ in _minimal_regions(task)) or all(
        "id" in task and "annotator" in task for task in value
    )


def _minimal_regions(task: dict[str, Any]) -> Iterator[Any]:
    for value in task.values():
        if isinstance(value, list):
            yield from (item for item in value if isinstance(item, dict) and "original_width" in item)


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read the tasks; masks from PNG or NumPy exports take the place of their brush regions.

    Raises:
        DataError: If a file is damaged, or masks are there without the JSON that names their images.
    """
    images = Images(tree, choices.images, notes)
    masks: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for file in tree.files:
        match = _MASK_FILE.search(file)
        if match is not None:
            masks.setdefault((match[1], match[2]), []).append((match[3], file))
            images.used[file] = "an exported mask"
    files = _files(tree, tree.ending(".json"))
    if not files:
        raise DataError(
            "PNG and NumPy exports of Label Studio do not name their images: export JSON-MIN, too, and put "
            "it beside the masks"
        )
    samples = []
    names: set[str] = set()
    controls: set[str] = set()
    for file in files:
        with expected(str(tree.root / file)):
            controls |= {name for task in tree.json(file) for name in _controls(task)}
    for file in files:
        for task in tree.json(file):
            where = f"{file}, task {task.get('id', 'without an id')}"
            with expected(where):
                number, regions = _regions(task, notes, where)
                image, found = _image(task, images, file, where)
                exported = masks.get((str(task.get("id")), number))
                if exported is None and "data" not in task:
                    # older JSON-MIN has no annotation ids
                    exported = next((m for key, m in masks.items() if key[0] == str(task.get("id"))), None)
                shapes = None if regions is None else _shapes(regions, notes, where, brushes=exported is None)
                if exported is not None:
                    drawn = [(_label(text, controls), mask) for text, mask in exported]
                    shapes = (shapes or []) + [Shape(name, _mask_drawer(tree, m), m) for name, m in drawn]
                size = _size(regions or [])
                turned = any(int(item.get("image_rotation") or 0) % 360 for item in regions or [])
            names |= {str(shape.label) for shape in shapes or []}
            if turned:
                notes.leave_out(
                    "images annotated while their view was turned; turn them back in Label Studio", image
                )
            elif found is not None:
                samples.append(Sample(images.path(found), found, shapes, size=size, part=part_of(found)))
    samples += images.unannotated()
    return Export(samples, len(samples), sorted(names), ordered=True)


def _regions(task: dict[str, Any], notes: Notes, where: str) -> tuple[str, list[Any] | None]:
    """Annotation id and regions; None when nobody annotated the task."""
    if "data" not in task:
        regions = list(_minimal_regions(task))
        return str(task.get("annotation_id", "")), regions if regions or "annotation_id" in task else None
    done = task.get("annotations") or task.get("completions") or []
    done = [item for item in done if not item.get("was_cancelled")]
    if not done:
        return "", None
    if len(done) > 1:
        notes.warn("tasks with several annotations: ground truth, else the one changed last", where)
    best = max(done, key=lambda item: (bool(item.get("ground_truth")), str(item.get("updated_at", ""))))
    return str(best.get("id", "")), list(best["result"])


def _image(task: dict[str, Any], images: Images, file: str, where: str) -> tuple[str, str | None]:
    """The task's text for its image, and the image found for it."""
    data = task.get("data", task)
    texts = [value for value in [*data.values(), task.get("file_upload")] if isinstance(value, str)]
    for text in texts:
        url = urlparse(text)
        place = unquote(parse_qs(url.query).get("d", [url.path])[0])
        if place.lower().endswith(IMAGE_SUFFIXES):
            last = PurePosixPath(place).name
            # uploads get a prefix that images kept by the user do not have
            plain = re.sub(r"^[0-9a-f]{8}-", "", last)
            use = plain if images.has(plain) and not images.has(last) else place
            return text, images.find(use, file.rpartition("/")[0], where)
    raise DataError("names no image")


def _shapes(regions: list[Any], notes: Notes, where: str, *, brushes: bool) -> list[Shape]:
    labels_of = {
        item.get("id"): _names(item.get("value", item)) for item in regions if _names(item.get("value", item))
    }
    shapes = []
    for number, item in enumerate(regions, start=1):
        value = item.get("value", item)
        if item.get("type") == "labels" and "points" not in value and "rle" not in value and "x" not in value:
            continue
        if "rle" in value and not brushes:
            continue
        place = f"{where}, region {number}"
        with expected(place):
            drawer = _drawer(item, value)
            labels = _names(value) or labels_of.get(item.get("id"), [])
            if drawer is None:
                notes.warn("regions without an area, which are not drawn", place)
            elif not labels:
                notes.warn("regions without a label, which are not drawn", place)
            else:
                shapes.append(Shape(labels[0], drawer, place))
                if len(labels) > 1:
                    notes.warn("regions with several labels: the first one counts", place)
    return shapes


def _names(value: dict[str, Any]) -> list[str]:
    for key, names in value.items():
        if key.endswith("labels") and isinstance(names, list):
            return [str(name) for name in names]
    return []


def _drawer(item: Any, value: dict[str, Any]) -> Drawer | None:
    if "original_width" not in item and "original_width" not in value:
        return None
    width = int(item.get("original_width", value.get("original_width")))
    height = int(item.get("original_height", value.get("original_height")))
    scale = np.array([width, height]) / 100
    if "rle" in value:
        rle = value["rle"]
        return lambda h, w: bitmap(decode_label_studio(rle, height, width))(h, w)
    if "imageDataURL" in value:
        data = decode_base64(str(value["imageDataURL"]).partition(",")[2], "imageDataURL")
        return bitmap(decode_mask(data, "imageDataURL"))
    if "points" in value:
        return outline([as_points(value["points"]) * scale])
    if "radiusX" in value:
        x, y = float(value["x"]) * scale[0], float(value["y"]) * scale[1]
        rx, ry = float(value["radiusX"]) * scale[0], float(value["radiusY"]) * scale[1]
        return outline([ellipse(x, y, rx, ry, float(value.get("rotation") or 0))])
    if {"x", "y", "width", "height"} <= value.keys():
        x, y = float(value["x"]) * scale[0], float(value["y"]) * scale[1]
        right, bottom = x + float(value["width"]) * scale[0], y + float(value["height"]) * scale[1]
        # it turns about its top left corner
        return outline([box(x, y, right, bottom, float(value.get("rotation") or 0), (x, y))])
    return None


def _size(regions: list[Any]) -> tuple[int, int] | None:
    for item in regions:
        if item.get("original_width"):
            return int(item["original_height"]), int(item["original_width"])
    return None


def _controls(task: dict[str, Any]) -> list[str]:
    """Names of the labelling controls that drew the task's regions."""
    if "data" not in task:
        return [key for key, value in task.items() if isinstance(value, list)]
    done = task.get("annotations") or task.get("completions") or []
    return [str(item.get("from_name")) for one in done for item in one.get("result") or []]


def _label(text: str, controls: set[str]) -> str:
    """The label in CONTROL-LABEL; both may hold dashes."""
    fitting = [name for name in controls if text.startswith(f"{name}-")]
    return text[len(max(fitting, key=len)) + 1 :] if fitting else text.partition("-")[2]


def _mask_drawer(tree: Tree, file: str) -> Drawer:
    def draw(height: int, width: int) -> Any:
        path = tree.root / file
        mask = (
            load_array(path, "mask", 2) > 0 if file.endswith(".npy") else decode_mask(path.read_bytes(), file)
        )
        if mask.shape != (height, width):
            raise DataError(f"{file} is {mask.shape[1]} x {mask.shape[0]}, its image {width} x {height}")
        return bitmap(mask)(height, width)

    return draw
