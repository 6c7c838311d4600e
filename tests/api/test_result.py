from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import photo

from protoseg.api.inputs import Origin
from protoseg.api.result import ClassArea, ModelInfo, Result
from protoseg.draw.colours import overlay_picture
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

CLASSES = (
    ClassInfo(name="ground", color=(0, 0, 0)),
    ClassInfo(name="crack & <b>", color=(200, 30, 40)),
    ClassInfo(name="moss", color=(20, 160, 60)),
)
LABELS = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [0, 2, 2, 1]], np.uint8)
IMAGE = photo(3, 3, 4)


def made(labels: Any = LABELS, source: str = "<array 1>", name: str = "image", **options: Any) -> Result:
    confidence = np.where(labels == 1, 0.5, 0.75).astype(np.float32)
    maps = {"confidence": confidence, "agreement": 1 - confidence} | options
    info = ModelInfo("cracks", "12", "fused", CLASSES)
    return Result(labels, maps["confidence"], maps["agreement"], info, Origin(source, name), lambda: IMAGE)


def test_areas_by_hand() -> None:
    found = made()
    assert found.classes == (
        ClassArea(0, "ground", (0, 0, 0), 4, 4 / 12, 0.75, 0.25),
        ClassArea(1, "crack & <b>", (200, 30, 40), 4, 4 / 12, 0.5, 0.5),
        ClassArea(2, "moss", (20, 160, 60), 4, 4 / 12, 0.75, 0.25),
    )
    assert made(np.full((2, 2), 2, np.uint8), confidence=None, agreement=None).classes == (
        ClassArea(2, "moss", (20, 160, 60), 4, 1.0, None, None),
    )
    assert repr(found).startswith("<Result image: 4x3 pixels; ground 33.3%")
    np.testing.assert_array_equal(found.mask("moss"), LABELS == 2)
    np.testing.assert_array_equal(found.mask(1), LABELS == 1)
    for name in ("moos", 3, -1):
        with pytest.raises(DataError, match=r"there is no class .*ground, crack & <b>, moss"):
            found.mask(name)
    with pytest.raises(AttributeError):
        found.labels = LABELS  # type: ignore[misc]


def test_overlay_mixes_as_asked() -> None:
    found = made()
    expected = overlay_picture(IMAGE, LABELS, found.palette)
    np.testing.assert_array_equal(np.asarray(found.overlay()), expected)
    # but for outlines the image shows through
    flat = made(np.full((3, 4), 1, np.uint8))
    np.testing.assert_array_equal(np.asarray(flat.overlay(0)), IMAGE)
    assert np.array_equal(np.asarray(flat.overlay(1)), np.broadcast_to((200, 30, 40), (3, 4, 3)))
    with pytest.raises(DataError, match=r"alpha must be in \[0, 1\], got 2"):
        found.overlay(2)
    shown = found.to_pil()
    assert shown.mode == "P"
    np.testing.assert_array_equal(np.asarray(shown), LABELS)
    assert (shown.getpalette() or [])[3:6] == [200, 30, 40]


def test_coco_is_read_by_its_own_tools() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    value = made(source="photos/a.jpg", name="a").to_coco(image_id=7, first_id=20)
    assert value["images"] == [{"id": 7, "file_name": "a.jpg", "width": 4, "height": 3}]
    assert [item["name"] for item in value["categories"]] == [item.name for item in CLASSES]
    assert [item["id"] for item in value["annotations"]] == [20, 21, 22]
    for item in value["annotations"]:
        packed = mask.frPyObjects(item["segmentation"], 3, 4)
        np.testing.assert_array_equal(mask.decode(packed), item["category_id"] == LABELS)
        assert item["area"] == mask.area(packed)
        assert item["bbox"] == mask.toBbox(packed).tolist()
        assert (item["image_id"], item["iscrowd"]) == (7, 1)


def test_polygons_and_geojson() -> None:
    labels = np.zeros((9, 9), np.uint8)
    labels[2:6, 3:8] = 2
    found = made(labels)
    (ring,) = found.to_polygons()["moss"][0]
    assert {tuple(point) for point in ring} == {(3, 2), (7, 2), (7, 5), (3, 5)}
    features = found.to_geojson()["features"]
    assert [item["properties"]["name"] for item in features] == ["ground", "moss"]
    assert features[1]["properties"]["pixels"] == 20
    assert features[1]["geometry"]["coordinates"] == found.to_polygons()["moss"]


def test_nothing_of_another_image_is_written_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = np.full_like(LABELS, 1)
    first = made(source=str(tmp_path / "a" / "x.png"), name="x")
    everything = first.save(out, overlay=True, confidence=True, disagreement=True)
    assert [path.relative_to(out).as_posix() for path in everything] == [
        "masks/x.png", "overlays/x.jpg", "confidence/x.png", "disagreement/x.png",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(everything[0])), LABELS)
    np.testing.assert_array_equal(np.asarray(Image.open(everything[2])), np.where(LABELS == 1, 128, 191))
    np.testing.assert_array_equal(np.asarray(Image.open(everything[3])), np.where(LABELS == 1, 128, 191))
    second = made(other, source=str(tmp_path / "b" / "x.png"), name="x")
    assert second.save(out) == [out / "masks" / "x_2.png"]
    memory = [made(other, source=f"<array {number}>") for number in range(2)]
    names = [item.save(out)[0].name for item in (*memory, *memory)]
    assert names == ["image.png", "image_2.png", "image.png", "image_2.png"]
    assert first.save(out) == everything[:1]
    np.testing.assert_array_equal(np.asarray(Image.open(everything[0])), LABELS)
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["name"] for row in rows] == ["x", "x_2", "image", "image_2"]
    assert [row["input"] for row in rows[2:]] == ["<array 0>", "<array 1>"]
    assert {row["run"] + row["step"] + row["head"] for row in rows} == {"cracks12fused"}


def test_a_named_file_is_the_mask_or_the_overlay(tmp_path: Path) -> None:
    found = made()
    np.testing.assert_array_equal(np.asarray(Image.open(found.save(tmp_path / "new" / "m.png")[0])), LABELS)
    assert Image.open(found.save(tmp_path / "o.webp")[0]).mode == "RGB"
    named, bare = (Image.open(found.save(tmp_path / "o.jpg", legend=on)[0]).size for on in (True, False))
    assert bare == LABELS.shape[::-1]
    assert named[1] > bare[1]
    for target, options, says in (
        (tmp_path / "m.tif", {}, r"named \.png \(mask\)"),
        (tmp_path / "m.png", {"overlay": True}, "name a folder"),
    ):
        with pytest.raises(DataError, match=says):
            found.save(target, **options)
    with pytest.raises(DataError, match="has no disagreement"):
        made(agreement=None).save(tmp_path, disagreement=True)
    assert not (tmp_path / "predictions.csv").exists()


def test_notebooks_show_the_overlay_and_a_legend() -> None:
    found = made(np.kron(LABELS, np.ones((400, 400), np.uint8)))
    object.__setattr__(found, "load_image", lambda: photo(2, 1200, 1600))
    assert Image.open(io.BytesIO(found._repr_png_())).size == (640, 480)
    text = found._repr_html_()
    assert "crack &amp; &lt;b&gt;" in text
    assert "rgb(200, 30, 40)" in text
    assert re.findall(r"<td>([\d.]+%)</td>", text)[:3] == ["33.3%", "75.0%", "25.0%"]


def test_a_result_outlives_its_file() -> None:
    def gone() -> Any:
        raise DataError("image a.png not found")

    found = made()
    object.__setattr__(found, "load_image", gone)
    assert found._repr_html_()
    with pytest.raises(DataError, match=r"a\.png not found"):
        found.overlay()
