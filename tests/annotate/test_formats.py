"""Drafts go through ``protoseg convert`` and come back as they were, in every format."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from protoseg.annotate.draft import NOTHING, Draft, Keep, names_of, skipped_ids
from protoseg.annotate.formats import label_studio
from protoseg.annotate.formats.cvat import mask_colors
from protoseg.annotate.formats.label_studio import encode_brush, prediction
from protoseg.annotate.formats.labelme import polygons
from protoseg.annotate.write import FORMATS, Options, write
from protoseg.convert.draw import Shape, draw_labels, outline
from protoseg.convert.rle import decode_label_studio
from protoseg.convert.write import Options as ConvertOptions
from protoseg.convert.write import convert
from protoseg.errors import UserError
from protoseg.manifest import ClassInfo

CLASSES = [
    ClassInfo(name="background", color=(0, 0, 0)),
    ClassInfo(name="cell & <wall>", color=(200, 10, 10)),
    ClassInfo(name="nucleus", color=(10, 10, 200)),
]
LABELS = arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 255])
)


def blobs(seed: int, height: int, width: int, classes: int = 3) -> np.ndarray:
    """Label maps with regions in regions, islands and single pixels."""
    coarse = np.random.default_rng(seed).integers(0, classes, (4, 5), dtype=np.uint8)
    labels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))
    labels[2:12, 2:12] = 1
    labels[4:10, 4:10] = 0
    labels[6:8, 6:8] = classes - 1
    labels[-1, -1] = labels[0, 0] = 1
    return labels


@pytest.fixture
def drafts(tmp_path):
    """Three images of different sizes, two of them in folders, with confidence."""
    found = []
    for number, name in enumerate(["a.png", "x/1 ü.png", "y/1 ü.jpg"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = 20 + number, 31 - number
        Image.fromarray(np.full((height, width, 3), 40 * number, np.uint8)).save(path)
        confidence = np.full((height, width), 0.5, np.float32)
        found.append(Draft(path, name, blobs(number, height, width), confidence))
    return found


def exported(drafts, tmp_path, name, **changed):
    """Drafts written, with what each tool does on the way to its export."""
    skip = changed.pop("skip", frozenset({0}))
    drafts = [Draft(d.path, d.name, Keep(skip).apply(d.labels, None), d.confidence) for d in drafts]
    options = Options(name, Keep(), simplify=0.0)
    out = tmp_path / "out"
    out.mkdir()
    line = write(out, iter(drafts), CLASSES, options, images=[d.path for d in drafts], model_version="m 1")
    assert line.startswith(f"drafts of 3 images in {out}")
    if name == "label-studio":
        tasks = json.loads((out / "label-studio" / "tasks.json").read_text())
        for number, task in enumerate(tasks, start=1):
            # what a person does who submits the draft as it is
            task |= {
                "id": number,
                "annotations": [{"id": number, "result": task["predictions"][0]["result"]}],
            }
        (out / "export.json").write_text(json.dumps(tasks))
        return out / "export.json"
    if name == "cvat":
        with zipfile.ZipFile(out / "cvat.zip") as archive:
            archive.extractall(out / "unpacked")
        return out / "unpacked"
    return out / FORMATS[name].PLACE


@pytest.mark.parametrize("name", FORMATS)
def test_the_way_back_gives_the_same_masks_to_the_pixel(drafts, tmp_path, name):
    source = exported(drafts, tmp_path, name)
    names = [item.name for item in CLASSES]
    options = ConvertOptions(images=tmp_path / "photos", classes=names, val="1", seed=1)
    result = convert(source, tmp_path / "back", options)
    assert result.table.names == names
    assert not result.notes.left_out
    for draft in drafts:
        mask = np.asarray(Image.open((tmp_path / "back" / "masks" / draft.name).with_suffix(".png")))
        np.testing.assert_array_equal(mask, draft.labels)


@pytest.mark.parametrize("name", ["label-studio", "coco", "labelme"])
def test_what_was_dropped_can_be_ignored_pixels(drafts, tmp_path, name):
    source = exported(drafts, tmp_path, name)
    names = [item.name for item in CLASSES[1:]]
    options = ConvertOptions(images=tmp_path / "photos", classes=names, ignore=["background"], val="1")
    result = convert(source, tmp_path / "back", options)
    assert result.table.names == names
    mask = np.asarray(Image.open(tmp_path / "back" / "masks" / "a.png"))
    wanted = np.choose(drafts[0].labels, np.array([255, 0, 1], np.uint8))
    np.testing.assert_array_equal(mask, wanted)


@given(arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_brush_regions_come_back(mask):
    assert (decode_label_studio(encode_brush(mask), *mask.shape) == mask).all()


@pytest.mark.parametrize("shape", [(1, 16384), (1, 16385), (300, 400)])
@pytest.mark.parametrize("value", [False, True])
def test_brush_regions_with_runs_longer_than_a_size_holds(shape, value):
    mask = np.full(shape, value)
    mask[0, 0] = True
    data = encode_brush(mask)
    assert set(data) <= set(range(256))
    assert (decode_label_studio(data, *shape) == mask).all()


def test_the_brush_code_is_that_of_the_tools_own_encoder():
    # by brush.mask2rle of label-studio-converter 0.0.59
    mask = np.zeros((5, 4), np.bool_)
    mask[1:3, 2] = mask[4, 0] = True
    wanted = [0, 0, 0, 80, 57, 27, 254, 23, 0, 143, 254, 216, 4, 127, 248, 76, 2, 63, 251, 96, 0]
    assert encode_brush(mask) == wanted


def redrawn(labels, simplify=0.0):
    shapes = [Shape(str(index), outline([ring]), "") for index, ring in polygons(labels, simplify)]
    ids = {"0": 0, "1": 1, "2": 2, "255": 255}
    return draw_labels(shapes, ids, *labels.shape, background=255, order="file", skipped=lambda *_: None)


@given(LABELS)
@settings(max_examples=80)
def test_polygons_drawn_over_one_another_give_the_labels(labels):
    np.testing.assert_array_equal(redrawn(labels), labels)


def test_simplified_polygons_stay_within_the_tolerance():
    y, x = np.mgrid[:200, :200]
    labels = np.where(np.hypot(y - 90, x - 110) < 70, np.uint8(1), np.uint8(255))
    labels[np.hypot(y - 90, x - 110) < 30] = 255
    exact, coarse = polygons(labels, 0.0), polygons(labels, 1.0)
    assert len(exact) == len(coarse) == 2
    assert sum(len(ring) for _, ring in coarse) < 0.2 * sum(len(ring) for _, ring in exact)
    wrong = redrawn(labels, 1.0) != labels
    assert 0 < wrong.sum() < 0.02 * labels.size
    distance = np.minimum(abs(np.hypot(y - 90, x - 110) - 70), abs(np.hypot(y - 90, x - 110) - 30))
    assert distance[wrong].max() < 2


def test_regions_are_dropped_by_size_and_confidence():
    labels = np.zeros((8, 8), np.uint8)
    labels[0, 0], labels[2:4, 2:4], labels[6:8, 4:8] = 1, 1, 2
    labels[4, 4] = 1  # touches the square by its corner
    confidence = np.full((8, 8), 0.9, np.float32)
    confidence[6:8, 4:8] = 0.4
    kept = Keep(frozenset({0}), min_pixels=5).apply(labels, confidence)
    assert kept[0, 0] == NOTHING
    assert (kept[2:4, 2:4] == 1).all()
    assert kept[4, 4] == 1
    assert (kept == 0).sum() == 0
    kept = Keep(min_confidence=0.5).apply(labels, confidence)
    assert (kept[6:8, 4:8] == NOTHING).all()
    assert (kept == NOTHING).sum() == 8
    assert (labels == NOTHING).sum() == 0, "the prediction itself stays"
    with pytest.raises(UserError, match=r"--min-confidence must be in \[0, 1\], got 50"):
        Keep(min_confidence=50)
    with pytest.raises(UserError, match=r"--min-pixels must be at least 0, got -1"):
        Keep(min_pixels=-1)


def test_classes_to_skip():
    assert skipped_ids(None, CLASSES) == {0}
    assert skipped_ids(None, CLASSES[1:]) == set()
    assert skipped_ids("", CLASSES) == set()
    assert skipped_ids("nucleus, background", CLASSES) == {0, 2}
    with pytest.raises(
        UserError, match=r"--skip names sky; the classes are background, cell & <wall>, nucleus"
    ):
        skipped_ids("sky", CLASSES)


def test_names_below_the_common_folder(tmp_path):
    paths = [tmp_path / "a" / "b" / "1.png", tmp_path / "a" / "c" / ".." / "2.png"]
    assert names_of(paths) == {paths[0]: "b/1.png", paths[1]: "2.png"}
    assert names_of(paths[:1]) == {paths[0]: "1.png"}
    assert names_of([]) == {}


def test_tasks_and_their_interface(drafts, tmp_path):
    exported(drafts, tmp_path, "label-studio")
    folder = tmp_path / "out" / "label-studio"
    text = (folder / "config.xml").read_text()
    assert 'value="cell &amp; &lt;wall&gt;" background="#c80a0a"' in text
    assert (folder / "classes.txt").read_text().splitlines() == [item.name for item in CLASSES]
    task = json.loads((folder / "tasks.json").read_text())[1]
    assert task["data"]["image"] == "/data/local-files/?d=photos/x/1%20%C3%BC.png"
    found = task["predictions"][0]
    assert (found["model_version"], found["score"]) == ("m 1", 0.5)
    labels = drafts[1].labels
    largest_first = sorted((1, 2), key=lambda index: -int((labels == index).sum()))
    names = [region["value"]["brushlabels"] for region in found["result"]]
    assert names == [[CLASSES[index].name] for index in largest_first]


def test_labels_of_an_interface_that_names_classes_otherwise(drafts):
    controls = label_studio.Controls("brush", "photo", "url")
    found = prediction(drafts[0], CLASSES, "m", controls, {"nucleus": "Kern"})
    assert [region["value"]["brushlabels"] for region in found["result"]] == [["Kern"]]
    assert (found["result"][0]["from_name"], found["result"][0]["to_name"]) == ("brush", "photo")


def test_an_image_outside_of_the_document_root_is_refused_and_nothing_is_written(drafts, tmp_path):
    options = Options("label-studio", Keep(), document_root=tmp_path / "photos" / "x")
    with pytest.raises(UserError, match=r"a\.png is not below --document-root"):
        write(tmp_path, drafts, CLASSES, options, images=[d.path for d in drafts], model_version="m")
    assert not list((tmp_path / "label-studio").iterdir())


@pytest.mark.parametrize("name", ["cvat", "labelme"])
def test_two_images_that_a_tool_cannot_tell_apart(tmp_path, capsys, name):
    labels = np.ones((3, 3), np.uint8)
    twins = [Draft(tmp_path / "a.png", "a.png", labels), Draft(tmp_path / "a.jpg", "a.jpg", labels)]
    line = write(
        tmp_path, twins, CLASSES, Options(name, Keep()), images=[d.path for d in twins], model_version=""
    )
    assert line.startswith("drafts of 1 images")
    assert "skipped: " in capsys.readouterr().err


def test_files_of_labelme_that_are_there_stay(drafts, tmp_path, capsys):
    (tmp_path / "labelme").mkdir()
    edited = tmp_path / "labelme" / "a.json"
    edited.write_text("edited")
    options = Options("labelme", Keep())
    write(tmp_path, drafts, CLASSES, options, images=[d.path for d in drafts], model_version="")
    assert edited.read_text() == "edited"
    assert f"{edited} is there already and stays" in capsys.readouterr().err
    assert (tmp_path / "labelme" / "labels.txt").read_text().startswith("__ignore__\nbackground\ncell")
    value = json.loads((tmp_path / "labelme" / "x" / "1 ü.json").read_text())
    assert (tmp_path / "labelme" / "x" / value["imagePath"]).resolve() == drafts[1].path


def test_colours_that_masks_can_hold():
    assert mask_colors(CLASSES)["nucleus"] == (10, 10, 200)
    black = [ClassInfo(name="sky", color=(0, 0, 0)), ClassInfo(name="road", color=(9, 9, 9))]
    found = mask_colors(black)
    assert found["background"] == (0, 0, 0)
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("name", FORMATS)
def test_an_error_on_the_way_leaves_what_was_there(drafts, tmp_path, name):
    def broken():
        yield drafts[0]
        raise OSError("the disk is gone")

    place = tmp_path / FORMATS[name].PLACE
    options = Options(name, Keep())
    if name in ("cvat", "coco"):
        place.write_text("before")
    with pytest.raises(OSError, match="gone"):
        write(tmp_path, broken(), CLASSES, options, images=[d.path for d in drafts], model_version="")
    left = sorted(p.name for p in tmp_path.iterdir())
    if name in ("cvat", "coco"):
        assert place.read_text() == "before"
        assert left == sorted([place.name, "photos"])
    elif name == "label-studio":
        assert not list(place.iterdir())
    else:
        assert (place / "a.json").is_file(), "each file is whole"


def test_run_lengths_are_those_of_pycocotools(drafts, tmp_path):
    mask_api = pytest.importorskip("pycocotools.mask")
    coco_api = pytest.importorskip("pycocotools.coco")
    file = exported(drafts, tmp_path, "coco", skip=frozenset())
    coco = coco_api.COCO(str(file))
    assert len(coco.imgs) == 3
    for image in coco.imgs.values():
        draft = next(d for d in drafts if d.name == image["file_name"])
        seen = np.full(draft.labels.shape, 255, np.uint8)
        for annotation in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(annotation).astype(bool)
            seen[mask] = annotation["category_id"] - 1
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == mask_api.toBbox(coco.annToRLE(annotation)).tolist()
        np.testing.assert_array_equal(seen, draft.labels)
