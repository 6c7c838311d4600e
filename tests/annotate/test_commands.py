"""``protoseg predict --format`` and ``protoseg suggest --format``."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import photo, tiny_info, tiny_run, tiny_segmenter

from protoseg.checkpoint import save_checkpoint
from protoseg.convert.rle import decode_coco, decode_label_studio
from protoseg.predict.__main__ import main as predict
from protoseg.suggest.__main__ import main as suggest


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(photo(number, 40, 48 + number)).save(folder / f"{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(9)).save(folder / "more" / "turned.jpg", exif=exif)
    return folder


def coco_labels(path):
    """Label maps by file name, from a COCO file; 255 where nothing is proposed."""
    value = json.loads(path.read_text())
    maps = {}
    for image in value["images"]:
        labels = np.full((image["height"], image["width"]), 255, np.uint8)
        for item in value["annotations"]:
            if item["image_id"] == image["id"]:
                labels[decode_coco(item["segmentation"])] = item["category_id"] - 1
        maps[image["file_name"]] = labels
    return maps


def mask_of(out, name):
    with Image.open(out / "masks" / f"{name}.png") as picture:
        return np.array(picture)


def run(main, trained, *words, code=0):
    assert main([str(trained), *map(str, words), "--device", "cpu"]) == code


def test_predict_writes_drafts_of_this_call_and_of_those_before(trained, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(predict, trained, photos / "0.png", photos / "1.png", "-o", out)
    run(predict, trained, photos / "more", photos / "2.png", "-o", out, "--format", "coco")
    assert f"drafts of 4 images in {out / 'coco.json'}" in capsys.readouterr().out
    maps = coco_labels(out / "coco.json")
    assert sorted(maps) == ["0.png", "1.png", "2.png", "more/turned.jpg"]
    for name, labels in maps.items():
        stem = name.rpartition("/")[2].rpartition(".")[0]
        np.testing.assert_array_equal(labels, mask_of(out, stem))
    assert maps["more/turned.jpg"].shape == (48, 40), "upright"


def test_predict_leaves_out_what_another_run_predicted_and_what_is_gone(trained, photos, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    save_checkpoint(
        other / "checkpoint", tiny_segmenter(num_classes=2), tiny_info(2).model_copy(update={"step": 9})
    )
    run(predict, other, photos / "0.png", "-o", out)
    run(predict, trained, photos / "1.png", "-o", out)
    (photos / "1.png").unlink()
    run(predict, trained, photos / "2.png", "-o", out, "--format", "coco")
    assert list(coco_labels(out / "coco.json")) == ["2.png"]
    told = capsys.readouterr().err
    assert f"1 results of other runs or steps are in {out}" in told
    assert "1 images of earlier calls, or their masks, are gone" in told


def test_predict_drops_what_was_asked_to_be_dropped(trained, photos, tmp_path):
    out = tmp_path / "out"
    run(predict, trained, photos / "0.png", "-o", out, "--format", "coco", "--skip", "class1",
        "--min-pixels", 30, "--min-confidence", 0.4)  # fmt: skip
    labels, mask = coco_labels(out / "coco.json")["0.png"], mask_of(out, "0")
    assert ((labels == mask) | (labels == 255)).all()
    assert not (labels == 1).any()
    assert (labels == 255).sum() >= (mask == 1).sum()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--min-pixels", "3"], "--min-pixels needs --format label-studio|cvat|coco|labelme"),
        (["--format", "coco", "--document-root", "."], "--document-root needs --format label-studio"),
        (["--format", "coco", "--skip", "sky"], "--skip names sky; the classes are class0, class1, class2"),
        (["--format", "coco", "--min-confidence", "50"], "--min-confidence must be in [0, 1], got 50"),
        (["--format", "coco", "--min-confidence", "0.5", "--no-confidence"], "leave out --no-confidence"),
        (["--format", "labelme", "--simplify", "-1"], "--simplify must be at least 0, got -1"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_predicted(trained, photos, tmp_path, capsys, words, text):
    run(predict, trained, photos, "-o", tmp_path / "out", *words, code=1)
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_confidence_that_an_earlier_call_did_not_write(trained, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(predict, trained, photos / "0.png", "-o", out, "--no-confidence")
    words = (photos / "1.png", "-o", out, "--format", "coco", "--min-confidence", 0.3)
    run(predict, trained, *words, code=1)
    assert "predict it again without --no-confidence" in capsys.readouterr().err
    assert not (out / "coco.json").exists()


def test_suggest_writes_drafts_at_the_images_own_size(trained, photos, tmp_path, capsys):
    out, masks = tmp_path / "out", tmp_path / "masks"
    run(suggest, trained, photos, "-n", 2, "-o", out, "--format", "label-studio", "--min-distance", 0)
    assert f"drafts of 2 images in {out / 'label-studio'}" in capsys.readouterr().out
    tasks = json.loads((out / "label-studio" / "tasks.json").read_text())
    suggested = (out / "suggested.txt").read_text().splitlines()
    assert [f"{photos.as_posix()}/{task['data']['name']}" for task in tasks] == suggested
    run(predict, trained, photos, "-o", masks)
    for task in tasks:
        wanted = mask_of(masks, task["data"]["name"].rpartition(".")[0])
        for region in task["predictions"][0]["result"]:
            size = region["original_height"], region["original_width"]
            assert size == wanted.shape
            index = int(region["value"]["brushlabels"][0].removeprefix("class"))
            np.testing.assert_array_equal(decode_label_studio(region["value"]["rle"], *size), wanted == index)


def test_suggest_without_drafts_writes_what_it_did(trained, photos, tmp_path):
    out = tmp_path / "out"
    run(suggest, trained, photos, "-n", 1, "-o", out)
    assert sorted(p.name for p in out.iterdir()) == ["sheet.png", "suggested.json", "suggested.txt"]
    shutil.rmtree(out)
    run(suggest, trained, photos, "-o", out, "--skip", "class0", code=1)
    assert not out.exists()
