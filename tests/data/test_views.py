import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protoseg.config.data import ViewConfig
from protoseg.data.views import (
    Geometry,
    adjust_brightness,
    adjust_contrast,
    apply_geometry,
    color_view,
    draw_geometry,
)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**31))
@example(height=2, width=1, seed=2)  # one pixel wide
def test_image_mask_and_validity_share_one_geometry(height, width, seed):
    config = ViewConfig(crop=(32, 40))
    geometry = draw_geometry(config, height, width, np.random.default_rng(seed))
    image = torch.full((3, height, width), 100, dtype=torch.uint8)
    mask = torch.full((1, height, width), 7, dtype=torch.uint8)
    view = apply_geometry(image, geometry, (32, 40), torch.tensor([1, 2, 3], dtype=torch.uint8))
    target = apply_geometry(mask, geometry, (32, 40), torch.tensor([255], dtype=torch.uint8), nearest=True)
    assert view.shape == (3, 32, 40)
    inside = target[0] == 7
    assert ((target[0] == 255) == ~inside).all()
    assert (view[:, inside] == 100).all()
    assert (view[:, ~inside] == torch.tensor([[1], [2], [3]])).all()
    assert inside.any()


def test_geometry_by_hand():
    image = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    geometry = Geometry(1, 0, 2, 2, 2, 2, 1, 0, True)
    view = apply_geometry(image, geometry, (3, 3), torch.tensor([99], dtype=torch.uint8), nearest=True)
    assert view[0].tolist() == [[99, 99, 99], [5, 4, 99], [9, 8, 99]]


@pytest.mark.parametrize("turned", [False, True])
def test_a_view_one_pixel_wide_by_hand(turned):
    image = torch.tensor([[[10], [20], [60], [80]]], dtype=torch.uint8)
    geometry = Geometry(0, 0, 4, 1, 2, 1, 0, 0, False)
    if turned:
        image, geometry = image.mT, Geometry(0, 0, 1, 4, 1, 2, 0, 0, False)
    view = apply_geometry(image, geometry, (2, 2), torch.tensor([0], dtype=torch.uint8))
    # triangles of width 4 about 1 and 3: weights 3, 3, 1 of seven, and their mirror image
    assert view[view > 0].tolist() == [round(150 / 7), round(440 / 7)]


def test_half_the_scales_shrink():
    config = ViewConfig(crop=(1000, 1000), scale=(0.5, 2.0))
    rng = np.random.default_rng(0)
    rows = np.array([draw_geometry(config, 100, 100, rng).out_height for _ in range(600)])
    assert rows.min() >= 50
    assert rows.max() <= 200
    assert 0.43 < (rows < 100).mean() < 0.57


def test_views_depend_on_the_generator_alone():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    config = ViewConfig()
    first = color_view(image, config, np.random.default_rng([1, 2]))
    torch.manual_seed(123)
    assert torch.equal(first, color_view(image, config, np.random.default_rng([1, 2])))
    assert not torch.equal(first, color_view(image, config, np.random.default_rng([1, 3])))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_strong_views_of_any_number_of_channels(channels):
    image = torch.randint(0, 256, (channels, 16, 16), dtype=torch.uint8)
    config = ViewConfig(jitter=1, gray=1, blur=1)
    view = color_view(image, config, np.random.default_rng(0))
    assert view.shape == image.shape
    assert view.dtype == torch.uint8


def test_probability_zero_changes_nothing():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    config = ViewConfig(jitter=0, gray=0, blur=0)
    assert torch.equal(color_view(image, config, np.random.default_rng(0)), image)


def test_brightness_and_contrast_by_hand():
    image = torch.tensor([[[10, 200]]], dtype=torch.uint8)
    assert adjust_brightness(image, 1.5).tolist() == [[[15, 255]]]
    assert adjust_contrast(image, 0.5).tolist() == [[[57, 152]]]  # about the mean 105
