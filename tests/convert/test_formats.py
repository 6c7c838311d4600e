"""Small exports as the tools write them, compared pixel for pixel with other implementations."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from convert_exports import brush, png_bytes, runs
from numpy.typing import NDArray
from PIL import Image

from protoseg.errors import DataError

TRIANGLE = [[2.3, 1.2], [17.6, 3.4], [6.1, 10.8]]
SQUARE = [[1, 1], [5, 1], [5, 5], [1, 5]]
Inside = Callable[..., NDArray[np.bool_]]


def flat(points: Any) -> list[float]:
    return [float(value) for point in points for value in point]


# --- COCO --------------------------------------------------------------------------------------


def coco(source: Any, annotations: list[dict[str, Any]], images: int = 3, **more: Any) -> dict[str, Any]:
    for i in range(images):
        source.image(f"images/{i}.jpg")
    value = {
        "info": {}, "licenses": [],
        "images": [{"id": 7 + i, "file_name": f"{i}.jpg", "height": 12, "width": 20} for i in range(images)],
        "categories": [
            {"id": 3, "name": "crack", "supercategory": ""},
            {"id": 90, "name": "spall", "supercategory": ""}
        ],
        "annotations": [
            {"id": 100 + i, "iscrowd": 0, "bbox": [0, 0, 1, 1], **a} for i, a in enumerate(annotations)
        ],
        **more,
    }  # fmt: skip
    source.json("annotations/instances_default.json", value)
    return value


def test_coco_masks_are_those_of_pycocotools(source: Any, converted: Any, tmp_path: Path) -> None:
    reference = pytest.importorskip("pycocotools.mask")
    coco_module = pytest.importorskip("pycocotools.coco")
    rng = np.random.default_rng(0)
    blob = np.zeros((12, 20), np.uint8)
    blob[2:9, 3:14] = rng.random((7, 11)) > 0.4
    compressed = reference.encode(np.asfortranarray(blob))
    stripe = np.zeros((12, 20), bool)
    stripe[:, 15:17] = True
    box = [2, 2, 10, 2, 10, 9, 2, 9]
    coco(
        source,
        [
            {"image_id": 7, "category_id": 3, "segmentation": [box, [12, 5, 18, 5, 18, 11, 12, 11]]},
            {"image_id": 7, "category_id": 90, "segmentation": [[4, 4, 7, 4, 7, 7, 4, 7]]},
            {"image_id": 8, "category_id": 90,
             "segmentation": {**compressed, "counts": compressed["counts"].decode()}},
            {"image_id": 8, "category_id": 3, "iscrowd": 1,
             "segmentation": {"size": [12, 20], "counts": runs(stripe.T.ravel())}},
        ],
    )  # fmt: skip
    result = converted()
    theirs = coco_module.COCO(str(source.root / "annotations/instances_default.json"))
    for number, name in [(7, "0"), (8, "1")]:
        items = theirs.loadAnns(theirs.getAnnIds(imgIds=number))
        wanted = np.zeros((12, 20), np.uint8)
        for item in sorted(items, key=lambda a: (not a["iscrowd"], -theirs.annToMask(a).sum())):
            wanted[theirs.annToMask(item) > 0] = (
                255 if item["iscrowd"] else {3: 1, 90: 2}[item["category_id"]]
            )
        assert (result.mask(f"images/{name}.png") == wanted).all()
    assert (result.result.format, result.result.table.names) == ("coco", ["background", "crack", "spall"])
    assert result.list("unlabeled") == ["2.jpg"]
    assert sorted(result.list("labeled") + result.list("val")) == ["0.jpg", "1.jpg"]
    objects = converted(out="objects", crowd="object").mask("images/1.png")
    assert (objects[:, 15] == 1).all()


def test_coco_needs_outlines(source: Any, converted: Any) -> None:
    coco(source, [{"image_id": 7, "category_id": 3, "segmentation": []}])
    with pytest.raises(DataError, match=r"1 boxes and no outlines; export segmentation"):
        converted()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 4}, "annotation 100: image 7 or category 4 is not in the file"),
        ({"image_id": 1}, "annotation 100: image 1 or"),
        ({"segmentation": [[1, 2, "x", 4, 5, 6]]}, "annotation 100: coordinates are not pairs"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "annotation 100: coordinates are not pairs"),
        ({"segmentation": {"counts": [240], "size": [20, 12]}}, r"run lengths are for \[20, 12\]"),
        ({"segmentation": {"counts": [9], "size": [12, 20]}}, "annotation 100: run lengths cover 9 pixels"),
        ({"segmentation": {"counts": "~~~~", "size": [12, 20]}}, "annotation 100: compressed"),
        ({"segmentation": {"size": [12, 20]}}, "annotation 100: 'counts'"),
        ({"segmentation": 5}, "annotation 100"),
    ],
)
def test_damaged_coco_names_the_annotation(
    source: Any, converted: Any, change: dict[str, Any], message: str
) -> None:
    coco(source, [{"image_id": 7, "category_id": 3, "segmentation": [flat(SQUARE)], **change}])
    with pytest.raises(DataError, match=message):
        converted()


def test_coco_of_roboflow_has_a_grouping_category_and_parts(source: Any, converted: Any) -> None:
    categories = [
        {"id": 0, "name": "damage", "supercategory": "none"},
        {"id": 1, "name": "crack", "supercategory": "damage"}
    ]  # fmt: skip
    for part, count in (("train", 3), ("valid", 2), ("test", 1)):
        for i in range(count):
            source.image(f"{part}/{part}{i}_jpg.rf.abc{i}.jpg")
        source.json(f"{part}/_annotations.coco.json", {
            "categories": categories,
            "images": [{"id": i, "file_name": f"{part}{i}_jpg.rf.abc{i}.jpg", "height": 12, "width": 20}
                       for i in range(count)],
            "annotations": [{"id": i, "image_id": i, "category_id": 1, "segmentation": [flat(SQUARE)]}
                            for i in range(count)],
        })  # fmt: skip
    result = converted()
    assert result.result.table.names == ["background", "crack"]
    assert [len(result.list(part)) for part in ("labeled", "val", "test", "unlabeled")] == [3, 2, 1, 0]
    assert "1 categories that only group others" in result.notes
    # --val divides anew, and leaves test alone
    again = converted(out="again", val="1")
    assert [len(again.list(part)) for part in ("labeled", "val", "test")] == [4, 1, 1]


# --- labelme -----------------------------------------------------------------------------------


def labelme(shapes: list[dict[str, Any]], image: str, **more: Any) -> dict[str, Any]:
    base = {"group_id": None, "description": "", "flags": {}, "mask": None}
    return {
        "version": "5.5.0", "flags": {}, "shapes": [{**base, **shape} for shape in shapes],
        "imagePath": image,
        "imageData": None, "imageHeight": 12, "imageWidth": 20, **more,
    }  # fmt: skip


def test_labelme(source: Any, converted: Any, inside: Inside) -> None:
    blob = np.zeros((4, 6), bool)
    blob[1:, 2:] = True
    shapes = [
        {"label": "crack", "shape_type": "polygon", "points": TRIANGLE},
        {"label": "spall", "shape_type": "rectangle", "points": [[18, 11], [12, 6]]},
        {"label": "spall", "shape_type": "circle", "points": [[4, 8], [4, 10.5]]},
        {"label": "crack", "shape_type": "mask", "points": [[13, 1], [18, 4]],
         "mask": base64.b64encode(png_bytes(blob.astype(np.uint8) * 255)).decode()},
        {"label": "crack", "shape_type": "linestrip", "points": [[0, 0], [5, 5]]},
        {"label": "__ignore__", "shape_type": "rectangle", "points": [[0, 10], [20, 12]]},
    ]  # fmt: skip
    source.image("a/0.jpg")
    source.image("a/1.jpg")
    source.json("a/json/0.json", labelme(shapes, "..\\0.jpg"))
    source.json("a/json/2.json", labelme([], "../1.jpg"))
    # the image within the JSON only
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12)).save(buffer, "JPEG")
    data = base64.b64encode(buffer.getvalue()).decode()
    source.json("a/json/3.json", labelme(shapes[:1], "gone.jpg", imageData=data))
    result = converted(val="1")
    y, x = np.mgrid[:12, :20] + 0.5
    wanted = np.zeros((12, 20), np.uint8)
    wanted[inside(TRIANGLE)] = 1
    wanted[6:11, 12:18] = 2
    wanted[(x - 4) ** 2 + (y - 8) ** 2 < 2.5**2] = 2
    wanted[2:5, 15:19] = 1
    wanted[10:] = 255
    assert (result.mask("a/0.png") == wanted).all()
    assert (result.mask("a/json/3.png") == inside(TRIANGLE)).all()
    assert (result.out / "images/a/json/3.jpg").read_bytes() == buffer.getvalue()
    assert result.result.table.names == ["background", "crack", "spall"]
    assert result.list("unlabeled") == ["1.jpg"]
    assert (
        "1 lines and points, which have no area and are not drawn, as a/json/0.json, shape 5" in result.notes
    )
    assert "1 images whose annotation holds no object are unlabelled" in result.notes
    empty = converted(out="empty", val="1", empty="background")
    assert not empty.mask("a/1.png").any()


def test_labelme_class_order_comes_from_its_labels_file(source: Any, converted: Any) -> None:
    source.image("0.jpg")
    source.image("1.jpg")
    for i in range(2):
        source.json(f"{i}.json", labelme([{"label": "b", "points": SQUARE}], f"{i}.jpg"))
    source.text("labels.txt", "__ignore__\n_background_\nz\nb\n")
    result = converted()
    assert result.result.table.names == ["background", "z", "b"]
    assert (result.mask("0.png")[1:5, 1:5] == 2).all()


# --- Label Studio ------------------------------------------------------------------------------


def region(kind: str, label: str, **value: Any) -> dict[str, Any]:
    return {
        "original_width": 20, "original_height": 12, "image_rotation": 0, "from_name": "my-tag",
        "to_name": "image",
        "id": f"{kind}{len(value)}", "type": f"{kind}labels", "origin": "manual",
        "value": {**value, f"{kind}labels": [label]},
    }  # fmt: skip


def task(number: int, image: str, *annotations: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {
        "id": number, "data": {"image": image}, "predictions": [],
        "annotations": [
            {"id": 50 + number + i, "result": result or [], "was_cancelled": result is None,
             "ground_truth": False,
             "updated_at": f"2025-01-0{i + 1}T00:00:00Z", "completed_by": 1}
            for i, result in enumerate(annotations)
        ],
    }  # fmt: skip


def test_label_studio(source: Any, converted: Any, inside: Inside) -> None:
    for name in ("0.jpg", "1.jpg", "two three.jpg", "3.jpg", "4.jpg"):
        source.image(f"media/{name}")
    mask = np.zeros((12, 20), bool)
    mask[3:7, 5:11] = mask[10, 19] = True
    percent = (np.array(TRIANGLE) / (20, 12) * 100).tolist()
    source.json("project-1.json", [
        task(1, "/data/upload/1/0a1b2c3d-0.jpg", [
            region("polygon", "crack", points=percent, closed=True),
            region("rectangle", "spall", x=50, y=50, width=25, height=25, rotation=0),
            {**region("keypoint", "crack", x=3, y=3, width=0.3)},
        ]),
        task(2, "http://host/media/1.jpg?token=3", [region("brush", "spall", format="rle", rle=brush(mask))]),
        {**task(3, "/image3", None), "file_upload": "0a1b2c3d-two three.jpg"},
        task(4, "s3://bucket/media/3.jpg",
             [region("brush", "crack", format="rle", rle=brush(mask))],
             [region("ellipse", "spall", x=50, y=50, radiusX=25, radiusY=25, rotation=0)]),
    ])  # fmt: skip
    result = converted(val="1")
    wanted = inside(TRIANGLE).astype(np.uint8)
    wanted[6:9, 10:15] = 2
    assert (result.mask("media/0.png") == wanted).all()
    assert (result.mask("media/1.png") == mask * 2).all()
    y, x = np.mgrid[:12, :20] + 0.5
    assert (result.mask("media/3.png") == 2 * (((x - 10) / 5) ** 2 + ((y - 6) / 3) ** 2 < 1)).all()
    assert result.list("unlabeled") == ["two three.jpg", "4.jpg"]
    assert "1 tasks with several annotations" in result.notes
    assert "1 regions without an area" in result.notes


def test_label_studio_separate_labels_bitmasks_and_turned_views(source: Any, converted: Any) -> None:
    for i in range(3):
        source.image(f"{i}.png")
    mask = np.zeros((12, 20), bool)
    mask[2:5, 2:9] = True
    url = "data:image/png;base64," + base64.b64encode(png_bytes(mask.astype(np.uint8) * 255)).decode()
    drawn = {**region("brush", "x", format="rle", rle=brush(mask)), "id": "r1", "type": "brush"}
    drawn["value"].pop("brushlabels")
    named = {**region("", "crack", format="rle"), "id": "r1"}
    turned = {**region("brush", "crack", format="rle", rle=brush(mask)), "image_rotation": 90}
    source.json("export.json", [
        task(1, "0.png", [drawn, named]), task(2, "1.png", [region("bitmask", "crack", imageDataURL=url)]),
        task(3, "2.png", [turned]),
    ])  # fmt: skip
    result = converted(val="1")
    assert (result.mask("0.png") == mask).all()
    assert (result.mask("1.png") == mask).all()
    assert "left out: 1 images annotated while their view was turned" in result.notes


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_label_studio_json_min_and_exported_masks(source: Any, converted: Any, kind: str) -> None:
    masks = {}
    tasks = []
    for i in range(2):
        source.image(f"images/{i}.jpg")
        mask = np.zeros((12, 20), bool)
        mask[i : i + 4, 3:9] = True
        masks[i] = mask
        item = {"format": "rle", "rle": brush(mask), "brushlabels": ["big-crack"], "original_width": 20,
                "original_height": 12}  # fmt: skip
        tasks.append({"id": i, "image": f"/data/upload/1/0000000{i}-{i}.jpg", "tag": [item], "annotator": 1,
                      "annotation_id": 5 + i})  # fmt: skip
    source.json("project-min.json", tasks)
    plain = converted(val="1")
    assert plain.result.format == "label-studio"
    for i, mask in masks.items():
        assert (plain.mask(f"images/{i}.png") == mask).all()
        name = f"masks/task-{i}-annotation-{5 + i}-by-me@example.org-tag-big-crack-0.{kind}"
        grey = mask[::-1].astype(np.uint8) * 255
        if kind == "png":
            source.png(name, grey)
        else:
            np.save(source.file(name), grey)
    exported = converted(out="exported", val="1")
    assert exported.result.table.names == ["background", "big-crack"]
    for i, mask in masks.items():
        assert (exported.mask(f"images/{i}.png") == mask[::-1]).all()
    (source.root / "project-min.json").unlink()
    with pytest.raises(DataError, match=r"do not name their images: export JSON-MIN"):
        converted(out="x")


# --- CVAT --------------------------------------------------------------------------------------

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>1</id><labels>
<label><name>crack</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
<label><name>spall</name><color>#00ff7f</color><type>any</type><attributes></attributes></label>
</labels></task></meta>
<image id="0" name="sub/frame_000000" width="20" height="12">
  <mask label="spall" source="manual" rle="{rle}" left="3" top="2" width="7" height="5" z_order="1"></mask>
  <polygon label="crack" source="manual" occluded="0" points="{points}" z_order="0"></polygon>
  <box label="spall" source="manual" xtl="14.00" ytl="6.00" xbr="18.00" ybr="8.00" rotation="90" z_order="2">
  </box>
  <polyline label="crack" source="manual" occluded="0" points="1.00,1.00;5.00,5.00" z_order="0"></polyline>
  <tag label="crack" source="manual"></tag>
</image>
<image id="1" name="sub/frame_000001" width="20" height="12">
  <ellipse label="crack" source="manual" cx="10.00" cy="6.00" rx="5.00" ry="3.00" z_order="0"></ellipse>
</image>
<image id="2" name="sub/frame_000002" width="20" height="12"></image>
</annotations>
"""


def test_cvat(source: Any, converted: Any, inside: Inside) -> None:
    for i in range(3):
        source.image(f"images/sub/frame_00000{i}.PNG")
    blob = np.random.default_rng(1).random((5, 7)) > 0.5
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in TRIANGLE)
    rle = ", ".join(map(str, runs(blob.ravel())))
    source.text("annotations.xml", CVAT.format(rle=rle, points=points))
    result = converted(val="1")
    wanted = inside(TRIANGLE).astype(np.uint8)
    wanted[2:7, 3:10][blob] = 2
    wanted[5:9, 15:17] = 2
    assert (result.mask("images/sub/frame_000000.png") == wanted).all()
    y, x = np.mgrid[:12, :20] + 0.5
    assert (
        result.mask("images/sub/frame_000001.png") == (((x - 10) / 5) ** 2 + ((y - 6) / 3) ** 2 < 1)
    ).all()
    assert result.list("unlabeled") == ["frame_000002.PNG"]
    assert result.result.settings["palette"] == [[0, 0, 0], [255, 0, 0], [0, 255, 127]]
    assert "1 <polyline>, which has no area" in result.notes
    assert "frames of one video" in result.notes


def test_cvat_for_video_and_unsafe_or_damaged_xml_are_refused(source: Any, converted: Any) -> None:
    source.image("0.png")
    source.text("annotations.xml", '<annotations><track id="0" label="a"></track></annotations>')
    with pytest.raises(DataError, match=r"export the task as `CVAT for images 1.1`"):
        converted()
    source.text("annotations.xml", '<!DOCTYPE a [<!ENTITY x "y">]>\n<annotations>&x;</annotations>')
    with pytest.raises(DataError, match=r"annotations.xml has a DOCTYPE \(a\)"):
        converted()
    source.text("annotations.xml", '<annotations>\n<image id="0"\n</annotations>')
    with pytest.raises(DataError, match=r"annotations.xml, line 3: damaged XML"):
        converted()
    source.text("annotations.xml", '<annotations><image id="0" name="0.png" width="20" height="12">'
                '<polygon label="a" points="1,2;x,4;5,6"/></image></annotations>')  # fmt: skip
    with pytest.raises(DataError, match=r"image 0.png, polygon 1: coordinates"):
        converted()


# --- label maps: VOC, Roboflow, Cityscapes, ADE20K, KITTI --------------------------------------


def test_voc_palette_masks_and_lists(source: Any, converted: Any) -> None:
    values = np.zeros((12, 20), np.uint8)
    values[2:6, 2:9] = 15
    values[6, 2:9] = 255
    for name in ("2007_000001", "2007_000002", "2007_000003", "2007_000004"):
        source.image(f"VOC2012/JPEGImages/{name}.jpg")
    for name in ("2007_000001", "2007_000002", "2007_000003"):
        source.png(f"VOC2012/SegmentationClass/{name}.png", values, palette=[0, 0, 0] * 256)
        source.png(f"VOC2012/SegmentationObject/{name}.png", values, palette=[0, 0, 0] * 256)
        source.text(f"VOC2012/Annotations/{name}.xml", "<annotation></annotation>")
    source.text("VOC2012/ImageSets/Segmentation/train.txt", "2007_000001\n2007_000003\n")
    source.text("VOC2012/ImageSets/Segmentation/val.txt", "2007_000002\n")
    result = converted()
    assert result.result.format == "voc"
    assert (result.mask("VOC2012/JPEGImages/2007_000001.png") == values).all()
    assert result.list("labeled") == ["2007_000001.jpg", "2007_000003.jpg"]
    assert result.list("val") == ["2007_000002.jpg"]
    assert result.list("unlabeled") == ["2007_000004.jpg"]
    assert result.result.table.names[15] == "person"


def test_voc_colours_of_cvat(source: Any, converted: Any) -> None:
    source.text(
        "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nwall:10,200,30::\ncrack:250,50,83::\n",
    )
    rgb = np.zeros((12, 20, 3), np.uint8)
    rgb[3:8, 4:9] = (250, 50, 83)
    rgb[0, :] = (10, 200, 30)
    for i in range(2):
        source.image(f"JPEGImages/{i}.jpg")
        source.png(f"SegmentationClass/{i}.png", rgb)
    result = converted()
    wanted = np.zeros((12, 20), np.uint8)
    wanted[3:8, 4:9] = 2
    wanted[0] = 1
    assert (result.mask("JPEGImages/0.png") == wanted).all()
    assert result.result.settings["palette"][1:] == [[10, 200, 30], [250, 50, 83]]
    source.png("SegmentationClass/1.png", wanted)
    assert (converted(out="grey").mask("JPEGImages/1.png") == wanted).all()
    rgb[5, 5] = (1, 2, 3)
    source.png("SegmentationClass/0.png", rgb)
    with pytest.raises(DataError, match=r"colours that no label names: 1,2,3"):
        converted(out="x")


def test_voc_labels_of_one_colour_are_an_error(source: Any, converted: Any) -> None:
    source.text("labelmap.txt", "background:0,0,0::\na:1,2,3::\nb:1,2,3::\n")
    source.image("JPEGImages/0.jpg")
    source.png("SegmentationClass/0.png", np.zeros((12, 20, 3)))
    with pytest.raises(DataError, match=r"labelmap.txt: two labels have the same colour"):
        converted()


def test_voc_boxes_are_refused(source: Any, converted: Any) -> None:
    source.image("JPEGImages/0.jpg")
    source.text("Annotations/0.xml", "<annotation><object><bndbox/></object></annotation>")
    with pytest.raises(DataError, match=r"Annotations/0.xml has boxes only: VOC XML holds no outlines"):
        converted()


def test_roboflow(source: Any, converted: Any) -> None:
    values = np.zeros((12, 20), np.uint8)
    values[3:8, 4:9] = 2
    for part in ("train", "valid"):
        source.text(f"{part}/_classes.csv", "Pixel Value, Class\n0, background\n1, crack\n2, spall\n")
        for i in range(2):
            stem = f"{part}/{i}_png.rf.0123abcd{part}"
            source.image(f"{stem}.jpg")
            source.png(f"{stem}_mask.png", values)
    source.image("train/plain.jpg")
    result = converted()
    assert (result.mask("train/0_png.rf.0123abcdtrain.png") == values).all()
    assert result.result.table.names == ["background", "crack", "spall"]
    assert [len(result.list(part)) for part in ("labeled", "val", "unlabeled")] == [2, 2, 1]
    values[0, 0] = 9
    source.png("train/0_png.rf.0123abcdtrain_mask.png", values)
    with pytest.raises(DataError, match=r"0_png.*values without a class: 9 \(1 pixels\); named are 0 to 2"):
        converted(out="x")


CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_cityscapes_label_ids(source: Any, converted: Any) -> None:
    values = (np.arange(240) % 34).reshape(12, 20).astype(np.uint8)
    for part, city, number in [("train", "aachen", 0), ("train", "bochum", 0), ("val", "lindau", 0)]:
        stem = f"{city}_00000{number}_000019"
        source.image(f"leftImg8bit/{part}/{city}/{stem}_leftImg8bit.png")
        source.png(f"gtFine/{part}/{city}/{stem}_gtFine_labelIds.png", values)
        source.png(f"gtFine/{part}/{city}/{stem}_gtFine_instanceIds.png", values)
    source.image("leftImg8bit/train_extra/x/x_0_0_leftImg8bit.png")
    result = converted()
    wanted = np.full(256, 255)
    wanted[CITYSCAPES_IDS] = range(19)
    mask = result.mask("leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png")
    assert (mask == wanted[values]).all()
    assert [len(result.list(part)) for part in ("labeled", "val", "unlabeled")] == [2, 1, 1]
    assert result.result.table.names[:3] == ["road", "sidewalk", "building"]
    assert result.result.settings["palette"][0] == [128, 64, 128]


def test_cityscapes_polygons_are_drawn_in_order(source: Any, converted: Any) -> None:
    objects = [
        {"label": "road", "polygon": [[0, 0], [19, 0], [19, 11], [0, 11]]},
        {"label": "cargroup", "polygon": [[3, 3], [9, 3], [9, 8], [3, 8]]},
        {"label": "license plate", "polygon": [[4, 4], [6, 4], [6, 6], [4, 6]]},
        {"label": "static", "polygon": [[15, 0], [19, 0], [19, 4], [15, 4]]},
        {"label": "sky", "deleted": 1, "polygon": [[0, 0], [19, 0], [19, 11], [0, 11]]},
    ]
    for i in range(2):
        source.image(f"leftImg8bit/train/a/a_{i}_0_leftImg8bit.png")
        source.json(f"gtFine/train/a/a_{i}_0_gtFine_polygons.json",
                    {"imgHeight": 12, "imgWidth": 20, "objects": objects})  # fmt: skip
    result = converted()
    wanted = np.zeros((12, 20), np.uint8)
    wanted[3:9, 3:10] = 13
    wanted[0:5, 15:] = 255
    assert (result.mask("leftImg8bit/train/a/a_0_0_leftImg8bit.png") == wanted).all()


def test_ade20k(source: Any, converted: Any) -> None:
    rows = [(1, "wall"), (2, "building, edifice"), (3, "screen, silver screen"), (4, "screen, CRT screen")]
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    source.text("ADE/objectInfo150.txt", table + "".join(f"{i}\t0.1\t1\t1\t1\t{name}\n" for i, name in rows))
    values = (np.arange(240) % 5).reshape(12, 20).astype(np.uint8)
    for part, number in [("training", 1), ("training", 2), ("validation", 1)]:
        short = "train" if part == "training" else "val"
        source.image(f"ADE/images/{part}/ADE_{short}_0000000{number}.jpg")
        source.png(f"ADE/annotations/{part}/ADE_{short}_0000000{number}.png", values)
    result = converted()
    mask = result.mask("ADE/images/training/ADE_train_00000001.png")
    assert (mask == np.where(values == 0, 255, values.astype(int) - 1)).all()
    assert result.result.table.names == ["wall", "building", "screen, silver screen", "screen, CRT screen"]
    assert (result.list("val"), len(result.list("labeled"))) == (["ADE_val_00000001.jpg"], 2)


def test_kitti(source: Any, converted: Any) -> None:
    values = (np.arange(240) % 34).reshape(12, 20).astype(np.uint8)
    for i in range(3):
        source.image(f"training/image_2/00000{i}_10.png")
        source.png(f"training/semantic/00000{i}_10.png", values)
        source.png(f"training/semantic_rgb/00000{i}_10.png", values)
    source.image("testing/image_2/000000_10.png")
    result = converted(val="1")
    wanted = np.full(256, 255)
    wanted[CITYSCAPES_IDS] = range(19)
    assert (result.mask("training/image_2/000000_10.png") == wanted[values]).all()
    assert [len(result.list(part)) for part in ("labeled", "val", "unlabeled")] == [2, 1, 0]
    assert "left out: 1 test images without an annotation" in result.notes


# --- Supervisely, YOLO -------------------------------------------------------------------------


def test_supervisely(source: Any, converted: Any) -> None:
    source.json("project/meta.json", {"classes": [
        {"title": "crack", "shape": "bitmap", "color": "#FF00AA", "id": 1},
        {"title": "spall", "shape": "polygon", "color": "#00FF00", "id": 2},
    ], "tags": [], "projectType": "images"})  # fmt: skip
    blob = np.random.default_rng(2).random((4, 6)) > 0.5
    data = base64.b64encode(zlib.compress(png_bytes(blob))).decode()
    outer, hole = [[1, 1], [9, 2], [8, 10], [2, 9]], [[4, 4], [6, 4], [6, 6]]
    objects = [
        {"classTitle": "spall", "geometryType": "polygon", "points": {"exterior": outer, "interior": [hole]}},
        {"classTitle": "crack", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [12, 3]}},
        {
            "classTitle": "crack",
            "geometryType": "rectangle",
            "points": {"exterior": [[15, 9], [18, 10]], "interior": []},
        },
        {
            "classTitle": "crack",
            "geometryType": "line",
            "points": {"exterior": [[0, 0], [3, 3]], "interior": []},
        },
    ]
    for dataset in ("ds1", "ds2"):
        source.image(f"project/{dataset}/img/0.png")
        source.json(f"project/{dataset}/ann/0.png.json",
                    {"tags": [], "size": {"height": 12, "width": 20}, "objects": objects})  # fmt: skip
    source.image("project/ds1/img/1.png")
    source.json(
        "project/ds1/ann/1.png.json", {"tags": [], "size": {"height": 12, "width": 20}, "objects": []}
    )
    result = converted()
    # the SDK draws with cv2.fillPoly, the hole after the outline
    wanted = np.zeros((12, 20), np.uint8)
    cv2.fillPoly(wanted, [np.array(outer, np.int32)], 2)
    cv2.fillPoly(wanted, [np.array(hole, np.int32)], 0)
    wanted[3:7, 12:18][blob] = 1
    wanted[9:11, 15:19] = 1
    for dataset in ("ds1", "ds2"):
        assert (result.mask(f"project/{dataset}/img/0.png") == wanted).all()
    assert result.result.settings["palette"] == [[0, 0, 0], [255, 0, 170], [0, 255, 0]]
    assert result.list("unlabeled") == ["1.png"]
    assert "1 lines, points and the like" not in result.notes
    assert "2 lines, points and the like" in result.notes


@pytest.mark.parametrize("names", [["crack", "spall"], {0: "crack", 1: "spall"}])
def test_yolo(source: Any, converted: Any, inside: Inside, names: Any) -> None:
    shares = " ".join(f"{value:.6f}" for value in flat(np.array(TRIANGLE) / (20, 12)))
    for part in ("train", "val"):
        for i in range(2):
            source.image(f"images/{part}/{i}.jpg")
            source.text(f"labels/{part}/{i}.txt", f"1 {shares}\n0 0.5 0.5 0.9 0.5 0.9 0.75 0.5 0.75\n")
    source.image("images/train/9.jpg")
    source.text("labels/train/9.txt", "")
    source.image("images/train/10.jpg")
    source.text("data.yaml", f"path: ../datasets/x\ntrain: images/train\nval: images/val\nnames: {names}\n")
    result = converted()
    wanted = inside(TRIANGLE) * 2
    wanted[6:9, 10:18] = 1
    assert (result.mask("images/train/0.png") == wanted).all()
    assert [len(result.list(part)) for part in ("labeled", "val")] == [2, 2]
    assert result.list("unlabeled") == ["9.jpg", "10.jpg"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1 0.1", "boxes and no polygons: this is YOLO detection"),
        ("7 0.1 0.1 0.2 0.2 0.3 0.1", r"0.txt, line 1: class 7, but data.yaml names \[0\]"),
        ("0 0.1 0.1 0.2 0.2 0.3", "0.txt, line 1: 5 coordinates, expected pairs"),
        ("0 0.1 x 0.2 0.2 0.3 0.3", "0.txt, line 1: not of the expected form"),
    ],
)
def test_damaged_yolo_names_the_line(source: Any, converted: Any, line: str, message: str) -> None:
    source.image("images/0.jpg")
    source.text("labels/0.txt", line + "\n")
    source.text("data.yaml", "names: [crack]\n")
    with pytest.raises(DataError, match=message):
        converted()


# --- Hugging Face ------------------------------------------------------------------------------


def test_parquet(source: Any, converted: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = [np.full((12, 20), i, np.uint8) for i in range(3)]
    pictures = [png_bytes(np.full((12, 20, 3), i, np.uint8)) for i in range(4)]
    rows = {
        "image": [{"bytes": data, "path": "same.png"} for data in pictures],
        "label": [*({"bytes": png_bytes(v), "path": None} for v in values), None],
    }
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(rows, schema=pa.schema([("image", kind), ("label", kind)]))
    parquet.write_table(table, source.file("data/train-00000-of-00001-abc.parquet"))
    with pytest.raises(DataError, match=r"give --classes a,b,c in the order of their ids .*hold 0, 1, 2\)"):
        converted(out="x")
    result = converted(classes=["a", "b", "c"], val="1")
    for i, value in enumerate(values):
        name = f"train-00000-of-00001-abc/{i:06d}.png"
        assert (result.mask(name) == value).all() or i not in (0, 1, 2)
        assert (result.out / "images" / name).read_bytes() == pictures[i]
    assert result.list("unlabeled") == ["000003.png"]
    assert result.result.table.names == ["a", "b", "c"]
    source.file("data/broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"broken.parquet is no readable parquet file"):
        converted(out="y", classes=["a", "b", "c"])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_image_folder(source: Any, converted: Any, kind: str) -> None:
    values = np.zeros((12, 20), np.uint8)
    values[3:8, 4:9] = 1
    for part in ("train", "validation"):
        for i in range(2):
            source.image(f"{part}/{i}.jpg")
            source.png(f"{part}/{i}.seg.png", values)
        if kind == "csv":
            source.text(
                f"{part}/metadata.csv", "file_name,mask_file_name\n0.jpg,0.seg.png\n1.jpg,1.seg.png\n"
            )
        else:
            lines = [f'{{"file_name": "{i}.jpg", "mask_file_name": "{i}.seg.png"}}\n' for i in range(2)]
            source.text(f"{part}/metadata.jsonl", "".join(lines))
    source.json("id2label.json", {"0": "wall", "1": "crack"})
    result = converted()
    assert (result.mask("train/0.png") == values).all()
    assert result.result.table.names == ["wall", "crack"]
    assert [len(result.list(part)) for part in ("labeled", "val", "unlabeled")] == [2, 2, 0]
