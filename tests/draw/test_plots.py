from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from protoseg.draw.plots import class_curves, confusion_picture, curves, label_histogram, spread
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

CLASSES = [
    ClassInfo(name=name, color=color)
    for name, color in (("background", (0, 0, 0)), ("sky", (10, 40, 250)), ("tree", (20, 250, 30)))
]


def test_curves_and_confusion_have_the_same_bytes_twice(tmp_path):
    records = []
    for step in (10, 20, 30):
        losses = {"loss/total": 3 / step, "loss/sup_linear": 2 / step, "pseudo_label/rate": None}
        records += [{"step": step, **losses}, {"step": step, "val/miou_linear": step / 100}]
    table = {"linear": torch.tensor([[5, 1, 0], [0, 9, 1], [0, 0, 0]])}
    for name in ("a", "b"):
        curves(records, tmp_path / name / "curves.png")
        confusion_picture(table, ["background", "sky", "tree"], tmp_path / name / "confusion.png")
    for file in ("curves.png", "confusion.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        with Image.open(tmp_path / "a" / file) as picture:
            assert picture.info.get("Software") is None
            assert np.asarray(picture).std() > 5


def test_curves_of_an_empty_log(tmp_path):
    curves([], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "curves.png").mkdir()
    with pytest.raises(DataError, match=r"curves\.png cannot be written"):
        curves([], tmp_path / "curves.png")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def near(sheet, color):
    return int((np.abs(sheet - color).max(-1) < 30).sum())


def test_class_curves_have_a_line_for_each_class_that_was_measured(tmp_path):
    records = [{"step": step, "val/iou_linear": [0.9, step / 100, None]} for step in (20, 40)]
    class_curves([*records, {"step": 50, "loss/total": 1.0}], CLASSES, "linear", tmp_path / "a.png")
    sheet = pixels(tmp_path / "a.png")
    assert near(sheet, CLASSES[1].color) > 300
    assert near(sheet, CLASSES[2].color) == 0, "no target has it"
    class_curves([], CLASSES, "linear", tmp_path / "b.png")
    assert (tmp_path / "b.png").is_file()


def test_names_at_the_ends_keep_their_order_and_distance():
    assert spread([0.9, 0.5, 0.1], 0.1, 0, 1) == [0.9, 0.5, 0.1]
    for values in ([0.5, 0.5, 0.49, 0.48], [1.0, 1.0, 0.99], [0.01, 0.0, 0.0], [0.3] * 30):
        places = spread(values, 0.1, 0, 1)
        apart = min(0.1, 1 / (len(values) - 1))
        assert all(a - b >= apart - 1e-9 for a, b in pairwise(places)), values
        assert max(places) <= 1 + 1e-9
        assert min(places) >= -1e-9
    assert spread([], 0.1, 0, 1) == []


def test_label_histogram_has_a_bar_for_what_is_there(tmp_path):
    shares = {"labelled": [0.98, 0.02, 0.0], "validation": [0.0, 0.0, 1.0]}
    images = {"labelled": [4, 1, 0], "validation": [0, 0, 3]}
    label_histogram(shares, images, CLASSES, tmp_path / "a.png")
    label_histogram({"labelled": [1.0, 0.0, 0.0]}, {"labelled": [4, 0, 0]}, CLASSES, tmp_path / "b.png")
    both, one = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    blue, orange = (47, 111, 179), (217, 130, 43)
    assert near(both, orange) > 3000
    assert near(one, orange) == 0
    assert near(one, blue) > 3000
