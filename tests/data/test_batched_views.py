"""Both ways to make views, run side by side on the CPU from the same draws."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from protoseg.config.data import ViewConfig
from protoseg.data.batched_views import make_views
from protoseg.data.views import apply_color, apply_geometry, draw_color, draw_geometry

FILL = (130, 120, 110, 100)


def picture(rng, channels, height, width):
    """Waves with edges and noise, over all grey levels."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (3 + c) + columns / (7 - c)) + (rows * 2 > columns) for c in range(channels)]
    values = 60 + 70 * np.stack(waves) + rng.normal(0, 6, (channels, height, width))
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


def both(config, sizes, channels, seed, label_planes=1, colors=1):
    """Views of pictures of ``sizes``: of each alone, and of all at once."""
    fill = torch.tensor(FILL[:channels], dtype=torch.uint8)
    images, geometries, draws, alone = [], [], [], []
    for number, (height, width) in enumerate(sizes):
        rng = np.random.default_rng([seed, number])
        image = picture(rng, channels, height, width)
        labels = torch.from_numpy(rng.integers(0, 256, (label_planes, height, width), np.uint8))
        geometry = draw_geometry(config, height, width, rng)
        own = [draw_color(config, rng) for _ in range(colors)]
        weak = apply_geometry(image, geometry, config.crop, fill)
        inside = torch.ones(1, height, width, dtype=torch.uint8)
        zero = torch.zeros(label_planes, dtype=torch.uint8)
        alone.append((
            weak,
            torch.stack([weak, *(apply_color(weak, draw) for draw in own)])[1:],
            apply_geometry(labels, geometry, config.crop, zero, nearest=True),
            apply_geometry(inside, geometry, config.crop, zero[:1], nearest=True)[0].bool(),
        ))  # fmt: skip
        images.append(torch.cat([image, labels]))
        geometries.append(geometry)
        draws.append(own)
    together = make_views(images, geometries, draws, config.crop, fill)
    return [torch.stack(part) for part in zip(*alone, strict=True)], together


def levels(one, two):
    """Differences in grey levels."""
    return (one.int() - two.int()).abs()


size = st.one_of(st.integers(1, 4), st.integers(1, 140))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(size, size), min_size=1, max_size=3),
    channels=st.sampled_from([1, 3, 4]),
    crop=st.tuples(st.integers(8, 48), st.integers(8, 48)),
    scale=st.tuples(st.floats(0.1, 1.0), st.floats(1.0, 4.0)),
    seed=st.integers(0, 2**31),
)
@example(sizes=[(40, 1), (1, 40), (1, 1)], channels=3, crop=(32, 40), scale=(0.5, 2.0), seed=0)
@example(sizes=[(400, 300), (30, 500)], channels=3, crop=(64, 48), scale=(0.1, 0.2), seed=1)
@example(sizes=[(48, 40)], channels=1, crop=(48, 40), scale=(1.0, 1.0), seed=2)  # nothing is resized
def test_geometry_is_that_of_single_images(sizes, channels, crop, scale, seed):
    """Masks, given labels and padding to the bit; images within one grey level."""
    config = ViewConfig(crop=crop, scale=scale)
    (weak, _, labels, valid), found = both(config, sizes, channels, seed, label_planes=3, colors=0)
    assert torch.equal(found.valid, valid)
    assert torch.equal(found.labels * found.valid[:, None], labels)
    padding = ~valid[:, None].expand_as(weak)
    assert torch.equal(found.weak[padding], weak[padding])
    assert levels(found.weak, weak).max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_are_those_of_single_images(channels):
    """But for a fraction that falls otherwise now and then, and what the operations behind it make of it."""
    config = ViewConfig(crop=(64, 64))
    (weak, strong, *_), found = both(config, [(90, 120), (50, 60)] * 12, channels, seed=3, colors=2)
    assert (levels(found.weak, weak) > 0).float().mean() < 1e-4
    off = levels(found.strong, strong)
    assert (off > 0).float().mean() < 1e-3
    assert (off > 1).float().mean() < 1e-4
    assert off.max() <= 8
    assert levels(strong, weak[:, None]).float().mean() > 10  # the colours are changed at all


@pytest.mark.parametrize("operation", ["jitter", "gray", "blur"])
def test_one_operation_alone(operation):
    config = ViewConfig(crop=(32, 32), scale=(1, 1), **{"jitter": 0, "gray": 0, "blur": 0, operation: 1})
    (_, strong, *_), found = both(config, [(32, 32)] * 8, 3, seed=4, colors=1)
    off = levels(found.strong, strong)
    assert off.max() <= {"jitter": 8, "gray": 0, "blur": 1}[operation]
    assert (off > 0).float().mean() < 1e-3


def test_without_colours_a_strong_view_is_the_weak_one():
    config = ViewConfig(crop=(32, 32), jitter=0, gray=0, blur=0)
    _, found = both(config, [(40, 50)] * 2, 3, seed=4, colors=2)
    assert torch.equal(found.strong, found.weak[:, None].expand_as(found.strong))


def test_a_view_does_not_depend_on_its_neighbours():
    config, sizes = ViewConfig(crop=(32, 32)), [(40, 50), (90, 33), (20, 64)]
    _, together = both(config, sizes, 3, seed=6, colors=2)
    _, first = both(config, sizes[:1], 3, seed=6, colors=2)
    assert levels(together.weak[:1], first.weak).max() <= 1
    assert torch.equal(together.labels[:1], first.labels)
    assert (levels(together.strong[:1], first.strong) > 0).float().mean() < 1e-3


def test_products_are_computed_in_whole_float32_and_the_setting_stays():
    seen = set()

    class Spy(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.conv2d):
                seen.add((function, product.allow_tf32, torch.backends.cudnn.allow_tf32))
            return function(*args, **(kwargs or {}))

    rng, config = np.random.default_rng(0), ViewConfig(crop=(32, 32), blur=1)
    geometry, draws = draw_geometry(config, 40, 50, rng), [draw_color(config, rng)]
    image, fill = picture(rng, 3, 40, 50), torch.tensor(FILL[:3], dtype=torch.uint8)
    product, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    product.allow_tf32 = True
    try:
        with Spy():
            make_views([image], [geometry], [draws], config.crop, fill)
        assert product.allow_tf32
    finally:
        product.allow_tf32 = before
    assert len(seen) == 2
    assert not any(matmul or cudnn for _, matmul, cudnn in seen)
