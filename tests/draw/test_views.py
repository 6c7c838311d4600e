import numpy as np
import pytest
import torch
from PIL import Image

from protoseg.draw.tiles import CELL
from protoseg.draw.views import first_mixed, labeled_views, unlabeled_views
from protoseg.manifest import ClassInfo
from protoseg.method.labelling import StrongViews

CLASSES = [ClassInfo(name="sky", color=(10, 20, 250)), ClassInfo(name="tree", color=(20, 250, 30))]
SIDE = 20


def area(sheet, color):
    return int((sheet == color).all(-1).sum())


@pytest.fixture
def views():
    """Two images of even grey and two strong views; the second view of the first image is mixed."""
    grey = torch.tensor([40, 80], dtype=torch.uint8).view(2, 1, 1, 1)
    weak = grey.expand(2, 3, SIDE, SIDE).clone()
    strong = torch.stack([weak + 10, weak + 20], 1)
    image = strong.transpose(0, 1).flatten(0, 1).clone()
    image[2, :, : SIDE // 2] = 200
    label = torch.zeros(4, SIDE, SIDE, dtype=torch.int64)
    label[2, : SIDE // 2] = 1
    believed = torch.zeros(4, SIDE, SIDE, dtype=torch.bool)
    believed[2, :, : SIDE // 2] = True
    valid = torch.ones_like(believed)
    valid[3, :, -5:] = False
    return {"weak": weak, "strong": strong}, StrongViews(image, label, believed, valid, None, label, None)


def test_unlabelled_views_show_what_the_student_learns(tmp_path, views):
    assert first_mixed(*views) == 1
    unlabeled_views(tmp_path / "new" / "views.png", *views, CLASSES, 7)
    with Image.open(tmp_path / "new" / "views.png") as picture:
        sheet = np.asarray(picture)
    assert sheet.shape[1] > 6 * CELL, "weak view, two strong ones, mixed, labels, believed"
    cell = CELL * CELL
    for grey in (40, 50, 60, 80, 90, 100, 200):
        assert area(sheet, (grey, grey, grey)) >= 0.45 * cell, grey
    # of the first image half of either is believed; of the second nothing is, and a quarter is padding
    sky, tree = (area(sheet, item.color) for item in CLASSES)
    assert tree == pytest.approx(cell * (1 / 2 + 1 / 4), rel=0.02)
    assert sky == pytest.approx(cell * (1 / 2 + 1 / 4 + 3 / 4), rel=0.02)


def test_views_that_are_not_mixed_are_known(tmp_path, views):
    sample, strong = views
    plain = strong._replace(image=sample["strong"].transpose(0, 1).flatten(0, 1))
    assert first_mixed(sample, plain) is None
    unlabeled_views(tmp_path / "views.png", sample, plain, CLASSES, 7)
    assert (tmp_path / "views.png").is_file()


def test_labelled_views_show_images_and_targets(tmp_path):
    image = torch.full((6, 1, SIDE, SIDE), 77, dtype=torch.uint8)
    target = torch.ones(6, SIDE, SIDE, dtype=torch.int64)
    target[:, : SIDE // 2] = 200
    labeled_views(tmp_path / "views.png", {"image": image, "target": target}, CLASSES, 0)
    with Image.open(tmp_path / "views.png") as picture:
        sheet = np.asarray(picture)
    assert area(sheet, (77, 77, 77)) == 4 * CELL * CELL, "four of the six"
    assert area(sheet, CLASSES[1].color) == pytest.approx(2 * CELL * CELL, rel=0.02)
