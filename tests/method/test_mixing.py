import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protoseg.config.data import ViewConfig
from protoseg.method.mixing import MixDraw, box_mask, draw_mix, mix
from protoseg.processes import Processes

FILL = torch.tensor([9], dtype=torch.uint8)


def batch_of(size=4):
    """Two images: all 10 with label 1, all 20 with label 2; the second one's last row is padding."""
    image = torch.stack([torch.full((1, size, size), 10), torch.full((1, size, size), 20)]).to(torch.uint8)
    label = torch.stack([torch.full((size, size), 1), torch.full((size, size), 2)])
    confidence = torch.stack([torch.full((size, size), 0.9), torch.full((size, size), 0.5)])
    valid = torch.ones(2, size, size, dtype=torch.bool)
    valid[1, -1] = False
    return image, label, confidence, valid


def draw_of(box, apply=(True, False), classes=((False,) * 3,) * 2):
    return MixDraw(torch.tensor(apply), torch.tensor([box, box]), torch.tensor(classes))


def test_cutmix_by_hand():
    drawn = draw_of([2, 0, 4, 2])
    mixed = mix(ViewConfig(mixing="cutmix"), drawn, *batch_of(), FILL)
    expected = torch.full((4, 4), 1)
    expected[2:, :2] = 2
    assert torch.equal(mixed.pseudo_label[0], expected)
    assert torch.equal(mixed.image[0, 0], torch.where(expected == 2, 20, 10).to(torch.uint8))
    assert torch.equal(mixed.confidence[0], torch.where(expected == 2, 0.5, 0.9))
    # padding of the partner stays padding: it never becomes a pseudo-label
    assert mixed.valid[0].tolist()[3] == [False, False, True, True]
    assert mixed.valid[0, :3].all()
    assert torch.equal(mixed.pseudo_label[1], batch_of()[1][1])  # the second image was not mixed


def test_cutout_fills_and_invalidates():
    mixed = mix(ViewConfig(mixing="cutout"), draw_of([0, 0, 1, 4]), *batch_of(), FILL)
    assert (mixed.image[0, 0, 0] == 9).all()
    assert not mixed.valid[0, 0].any()
    assert mixed.valid[0, 1:].all()
    assert (mixed.image[0, 0, 1:] == 10).all()


def test_classmix_pastes_chosen_classes_without_padding():
    classes = ((False, False, True), (False, False, False))
    mixed = mix(
        ViewConfig(mixing="classmix"), draw_of([0, 0, 4, 4], (True, True), classes), *batch_of(), FILL
    )
    assert (mixed.pseudo_label[0, :3] == 2).all()
    assert (mixed.pseudo_label[0, 3] == 1).all()  # the partner's padding is not pasted
    assert (mixed.pseudo_label[1] == 2).all()


def test_no_mixing_returns_the_batch():
    batch = batch_of()
    mixed = mix(ViewConfig(mixing="none"), draw_of([0, 0, 4, 4]), *batch, FILL)
    assert torch.equal(mixed.source[:, 0, 0], torch.arange(len(mixed.image)))
    for ours, given_ in zip(mixed[:4], batch, strict=True):
        assert torch.equal(ours, given_)


@pytest.mark.parametrize(("partner", "expected"), [("next", [1, 2, 0]), ("flip", [2, 1, 0])])
def test_partners(partner, expected):
    image = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    label = torch.arange(3).view(3, 1, 1).expand(3, 2, 2)
    drawn = MixDraw(
        torch.ones(3, dtype=torch.bool), torch.tensor([[0, 0, 2, 2]] * 3), torch.zeros(3, 3).bool()
    )
    config = ViewConfig(mixing_partner=partner)
    mixed = mix(config, drawn, image, label, label.float(), label >= 0, FILL)
    assert mixed.pseudo_label[:, 0, 0].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 2**31),
    st.floats(0.1, 0.9),
    st.sampled_from([1, 2]),
)
def test_boxes_stay_inside_and_cover_their_area(height, width, seed, area, world):
    config = ViewConfig(mixing_area=(area, area), mixing_probability=1.0)
    drawn = draw_mix(config, np.random.default_rng(seed), batch=3, num_classes=4, size=(height, width))
    top, left, bottom, right = drawn.boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= height).all()
    assert (right <= width).all()
    assert (bottom > top).all()
    assert (right > left).all()
    covered = box_mask(drawn.boxes, height, width).float().sum((1, 2))
    assert ((covered - area * height * width).abs() <= width + 0.5 * height + 1).all()


def test_processes_share_one_draw():
    config = ViewConfig(mixing_per_image=True)
    keywords = {"num_classes": 3, "size": (20, 30)}
    whole = draw_mix(config, np.random.default_rng(5), batch=4, **keywords)
    parts = [
        draw_mix(config, np.random.default_rng(5), batch=2, processes=Processes(r, 2), **keywords)
        for r in range(2)
    ]
    for index in range(3):
        assert torch.equal(whole[index], torch.cat([p[index] for p in parts]))
