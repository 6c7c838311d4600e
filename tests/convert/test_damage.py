"""Exports with one value replaced by something else: a text or a result, but never a traceback."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_exports import brush, coco_string, png_bytes, runs

from protoseg.convert.write import Options, convert
from protoseg.errors import DataError

BLOB = np.random.default_rng(3).random((12, 20)) > 0.5
SQUARE = [[1, 1], [5, 1], [5, 5], [1, 5]]
BITMAP = base64.b64encode(zlib.compress(png_bytes(BLOB))).decode()
PICTURE = base64.b64encode(png_bytes(BLOB)).decode()
RLE = {"size": [12, 20], "counts": coco_string(runs(BLOB.T.ravel()))}
LS = {
    "original_width": 20,
    "original_height": 12,
    "image_rotation": 0,
    "from_name": "t",
    "to_name": "i",
    "id": "a",
}

EXPORTS: dict[str, dict[str, Any]] = {
    "coco": {"a.json": {
        "images": [{"id": 1, "file_name": "0.png", "height": 12, "width": 20},
                   {"id": 2, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "x", "supercategory": "s"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": RLE, "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 1,
             "segmentation": {"size": [12, 20], "counts": [100, 140]}},
        ]}},
    "labelme": {f"{i}.json": {"imagePath": f"{i}.png", "imageData": PICTURE if i else None, "imageHeight": 12,
        "imageWidth": 20, "shapes": [
            {"label": "x", "points": SQUARE, "shape_type": "polygon"},
            {"label": "y", "points": [[1, 1], [3, 3]], "shape_type": "circle"},
            {"label": "z", "points": [[0, 0], [19, 11]], "shape_type": "mask", "mask": PICTURE}]}
        for i in range(2)},
    "label-studio": {"a.json": [
        {"id": i, "data": {"image": f"/d/{i}.png"}, "annotations": [{"id": 5, "result": [
            {**LS, "type": "polygonlabels", "value": {"points": SQUARE, "polygonlabels": ["x"]}},
            {**LS, "type": "brushlabels", "value": {
                "format": "rle", "rle": brush(BLOB), "brushlabels": ["y"]}},
            {**LS, "type": "ellipselabels", "value": {
                "x": 5, "y": 5, "radiusX": 5, "radiusY": 2, "rotation": 3, "ellipselabels": ["z"]}}]}]}
        for i in range(2)]},
    "supervisely": {"meta.json": {"classes": [{"title": "x", "color": "#ff0000"}]}, **{
        f"d/ann/{i}.png.json": {"size": {"height": 12, "width": 20}, "objects": [
            {"classTitle": "x", "geometryType": "polygon",
             "points": {"exterior": SQUARE, "interior": [SQUARE[:3]]}},
            {"classTitle": "x", "geometryType": "bitmap", "bitmap": {"data": BITMAP, "origin": [1, 2]}}]}
        for i in range(2)}},
    "cityscapes": {f"gtFine/train/a/{i}_gtFine_polygons.json": {"imgHeight": 12, "imgWidth": 20, "objects": [
        {"label": "road", "polygon": SQUARE}, {"label": "cargroup", "polygon": SQUARE}]} for i in range(2)},
}  # fmt: skip
IMAGES = {"supervisely": "d/img/{}.png", "cityscapes": "leftImg8bit/train/a/{}_leftImg8bit.png"}
OTHER = [None, -1, 2.5, "x", "", [], {}, [1], True, float("nan"), 10**30, [[1, 2], [3]], ["a", {}]]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Container and key of every value within."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        # of long run lengths a few are enough
        if not (isinstance(item, list) and len(item) > 20):
            yield from places(item)


@pytest.mark.parametrize("name", EXPORTS)
def test_one_replaced_value(tmp_path: Path, name: str) -> None:
    root = tmp_path / "source"
    for i in range(2):
        path = root / IMAGES.get(name, "{}.png").format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(np.zeros((12, 20, 3), np.uint8)))

    def run(files: dict[str, Any]) -> bool:
        for file, value in files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(json.dumps(value))
        try:
            convert(root, tmp_path / "out", Options(format=name, overwrite=True))
        except DataError:
            return False
        return True

    assert run(EXPORTS[name])
    rng = np.random.default_rng(0)
    count = len(list(places(EXPORTS[name])))
    failed = 0
    for index in rng.choice(count, min(count, 30), replace=False):
        files = copy.deepcopy(EXPORTS[name])
        container, key = list(places(files))[index]
        if container is files:
            continue
        container[key] = OTHER[rng.integers(len(OTHER))]
        failed += not run(files)
    assert failed > 8
