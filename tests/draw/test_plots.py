import numpy as np
import pytest
import torch
from PIL import Image

from protoseg.draw.plots import confusion_picture, curves
from protoseg.errors import DataError


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
