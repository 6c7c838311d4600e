"""Held-out data: masks of fewer and of all classes, and the table of what adding them is worth."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.adapt import draw, figures, table
from benchmarks.held_out import HELD_OUT, main, new_ids

NAMES = ["background", "bird", "bus", "car", "cat", "motorbike", "person", "sheep", "sofa"]


def test_held_out_classes_come_last_and_ids_stay_compact():
    order, ids = new_ids(NAMES)
    assert order == ["background", "bird", "car", "person", *HELD_OUT]
    assert [order[ids[old]] for old in range(len(NAMES))] == NAMES
    assert ids[255] == 255
    assert ids[9] == 255


def test_prepare(tmp_path, capsys):
    root = tmp_path / "voc"
    for folder in ("masks", "images", "splits"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    for split in ("train", "val", "val_fast"):
        (root / "splits" / f"{split}.txt").write_text(f"images/{split}.jpg masks/{split}.png\n")
    for split in ("train", "val"):
        Image.fromarray(np.array([[0, 1, 2, 3, 4, 8, 255]], np.uint8)).save(root / "masks" / f"{split}.png")
    assert main(["prepare", "--root", str(root), "--dir", str(tmp_path / "out")]) == 0
    data = tmp_path / "out" / "data"
    assert np.asarray(Image.open(data / "masks" / "val.png")).tolist() == [[0, 1, 0, 2, 0, 0, 255]]
    assert np.asarray(Image.open(data / "masks_all" / "val.png")).tolist() == [[0, 1, 4, 2, 5, 8, 255]]
    assert (data / "train_all.txt").read_text() == "images/train.jpg masks_all/train.png\n"
    assert (data / "classes.txt").read_text().split() == ["background", "bird", "car", "person"]
    assert (data / "images").resolve() == root / "images"


def test_draws_repeat_and_differ():
    lines = [f"{i}" for i in range(30)]
    assert draw(lines, 5, 0, 16) == draw(lines, 5, 0, 16)
    assert draw(lines, 5, 0, 16) == draw(lines, 10, 0, 16)[:5]
    assert draw(lines, 5, 0, 16) != draw(lines, 5, 1, 16)


def test_old_classes_are_measured_without_pixels_of_new_ones():
    counts = np.zeros((7, 7), np.int64)
    counts[0, 0], counts[1, 1] = 80, 30
    counts[1, 2] = 10  # an old class called new counts against it
    counts[2, 1] = 50  # a new one called old does not
    counts[2, 2] = 50
    found = figures(counts, 2)
    assert found["old"] == pytest.approx((1 + 0.75) / 2)
    assert found["bus"] == pytest.approx(50 / 110)


def test_table():
    def one(new, old):
        return {"linear": {"new": new, "old": old}}

    draws = [
        {"count": 5, "draw": i, "seconds": [1.0, 2.0], "adapt": one(0.1 + 0.02 * i, 0.37)} for i in (0, 1)
    ]
    result = {"images": 3, "before": one(0, 0.38), "draws": draws, "other_seconds": 4.0,
              "all_from_the_start": one(0.5, 0.42)}  # fmt: skip
    whole = {"draws": [{"count": 5, "all": one(0.2, 0.3)}], "all_seconds": 600.0}
    text = table(result, whole)
    assert "| 5 images, (b) all trained | 600 | 20.0 | 30.0 | -8.0 |" in text
    assert "| 5 images, adapt | - | 11.0 (10.0 to 12.0) | 37.0 (37.0 to 37.0) | -1.0 |" in text
    assert "| (c) trained with all classes | - | 50.0 | 42.0 | +4.0 |" in text
