import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_segmenter

from protoseg.config.training import EvalConfig
from protoseg.draw.panel import draw_panel, panel, panel_row, winning_prototypes
from protoseg.draw.tiles import CELL
from protoseg.input_rule import ResizeConfig
from protoseg.manifest import ClassInfo

CLASSES = [
    ClassInfo(name="background", color=(0, 0, 0)),
    ClassInfo(name="sky", color=(0, 0, 128)),
    ClassInfo(name="tree", color=(0, 128, 0)),
]


@pytest.fixture(scope="module")
def segmenter():
    return tiny_segmenter(num_classes=3)


def scene(height=40, width=56, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2], mask[0] = 1, 255
    return image, mask


SETTINGS = {"resize": ResizeConfig(), "config": EvalConfig(), "crop": (32, 32)}


def test_panel_is_written_whole_and_with_the_same_bytes_twice(tmp_path, segmenter):
    samples = [scene(), scene(33, 70, seed=1)]
    for name in ("a", "b"):
        panel(tmp_path / name / "p.png", segmenter, samples, CLASSES, ignore_index=255, **SETTINGS)
    first, second = (tmp_path / name / "p.png" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert [p.name for p in first.parent.iterdir()] == ["p.png"]
    with Image.open(first) as picture:
        width, height = picture.size
        pixels = np.asarray(picture)
    assert width > 6 * CELL
    assert height > 300
    assert (pixels == CLASSES[1].color).all(-1).any(), "the sky colour of the target must be there"


def test_panel_without_prototypes_has_three_columns(segmenter):
    bare = tiny_segmenter(num_classes=3)
    bare.bank.active.fill_(False)
    row = panel_row(bare, *scene(), **SETTINGS)
    assert (row.prototype, row.head_distance, row.winner) == (None, None, None)
    with_heads = draw_panel([panel_row(segmenter, *scene(), **SETTINGS)], CLASSES, 255, 2)
    without = draw_panel([row], CLASSES, 255, 4)
    assert without.width < with_heads.width * 0.55


def test_panel_row_is_what_the_network_says(segmenter):
    image, mask = scene()
    row = panel_row(segmenter, image, mask, **SETTINGS)
    with torch.no_grad():
        output = segmenter(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert np.array_equal(row.linear, output.linear_logits[0].argmax(0).numpy())
    assert np.array_equal(row.prototype, output.prototype_logits[0].argmax(0).numpy())
    assert np.array_equal(row.winner // 2, row.prototype)
    assert row.head_distance.min() >= -1e-6
    assert row.head_distance.max() <= 1


def test_the_winner_is_the_nearest_prototype_of_the_predicted_class(segmenter):
    image = torch.from_numpy(scene(32, 32)[0]).permute(2, 0, 1)[None]
    label = torch.full((1, 32, 32), 2)
    with torch.no_grad():
        winner = winning_prototypes(segmenter, image, label)
        nearest = segmenter.bank.similarity_map(segmenter.network(image).features)[0, 2].argmax(0)
    step = 32 // nearest.shape[0]
    assert torch.equal(winner[0, ::step, ::step], 2 * 2 + nearest)


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 3), (3, 200, 3)])
def test_panel_of_odd_shapes(tmp_path, segmenter, height, width, channels):
    samples = [scene(height, width, channels)]
    panel(tmp_path / "p.png", segmenter, samples, CLASSES, ignore_index=255, **SETTINGS)
    assert (tmp_path / "p.png").stat().st_size > 0
