"""Weak and strong views of one image, from explicit generators.

Images are uint8 tensors (C, H, W). Every random number comes from the ``rng`` that is passed in, so
that a view depends on nothing but the run's seed and the position in the data stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T
from torchvision.transforms.v2.functional import InterpolationMode

from protoseg.config.sections import ViewConfig


@dataclass(frozen=True)
class Geometry:
    """One draw of scale, crop and flip, applied alike to an image and its mask."""

    top: int
    left: int
    height: int
    width: int
    """Window in the source image, pixels."""
    out_height: int
    out_width: int
    """Size of that window in the view, pixels; the rest of the crop is padding."""
    pad_top: int
    pad_left: int
    """Place of the window in the crop, pixels."""
    flip: bool


def draw_geometry(config: ViewConfig, height: int, width: int, rng: np.random.Generator) -> Geometry:
    """Random scale (half the draws shrink, half enlarge), crop or pad, horizontal flip.

    Args:
        config: View settings.
        height: Source height in pixels.
        width: Source width in pixels.
        rng: Source of randomness.
    """
    low, high = config.scale
    u, v = rng.random(2)
    if low < 1 < high:
        scale = low + (1 - low) * v if u < 0.5 else 1 + (high - 1) * v
    else:
        scale = low + (high - low) * v
    crop_height, crop_width = config.crop
    top, rows, pad_top, out_rows = _window(height, scale, crop_height, rng)
    left, columns, pad_left, out_columns = _window(width, scale, crop_width, rng)
    flip = bool(rng.random() < config.hflip)
    return Geometry(top, left, rows, columns, out_rows, out_columns, pad_top, pad_left, flip)


def _window(size: int, scale: float, crop: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Start and length in the source, offset and length in the crop, along one axis."""
    scaled = max(1, round(size * scale))
    place = rng.random()
    if scaled <= crop:
        return 0, size, int(place * (crop - scaled + 1)), scaled
    length = min(size, max(1, round(crop / scale)))
    return int(place * (size - length + 1)), length, 0, crop


def apply_geometry(
    image: Tensor, geometry: Geometry, crop: tuple[int, int], fill: Tensor, *, nearest: bool = False
) -> Tensor:
    """The view of an image or mask.

    Only the window is resized, not the whole image, so that the cost follows the crop's size.

    Args:
        image: (C, H, W) uint8.
        geometry: The draw.
        crop: (height, width) of the result in pixels.
        fill: (C,) uint8 value of padding.
        nearest: Nearest neighbour (masks) instead of antialiased bilinear.

    Returns:
        (C, crop height, crop width) uint8.
    """
    g = geometry
    window = image[:, g.top : g.top + g.height, g.left : g.left + g.width]
    mode = InterpolationMode.NEAREST_EXACT if nearest else InterpolationMode.BILINEAR
    size = [g.out_height, g.out_width]
    if list(window.shape[1:]) != size:
        # torch's antialiased resize of bytes fails an internal assertion on images one pixel wide
        thin = not nearest and 1 in (*window.shape[1:], *size)
        resized = T.resize(
            window.float() if thin else window, size, interpolation=mode, antialias=not nearest
        )
        window = resized.round().to(torch.uint8) if thin else resized
    if g.flip:
        window = window.flip(-1)
    if window.shape[1:] == crop:
        return window.contiguous()
    result = fill.view(-1, 1, 1).expand(len(fill), *crop).clone()
    result[:, g.pad_top : g.pad_top + g.out_height, g.pad_left : g.pad_left + g.out_width] = window
    return result


def color_view(image: Tensor, config: ViewConfig, rng: np.random.Generator) -> Tensor:
    """Strong view: colour jitter, grey, blur, each with its probability.

    Operations that mean nothing without three channels (saturation, hue, grey) are left out for
    other images; the numbers are drawn all the same.

    Args:
        image: (C, H, W) uint8.
        config: View settings.
        rng: Source of randomness.

    Returns:
        (C, H, W) uint8.
    """
    rgb = image.shape[0] == 3
    brightness, contrast, saturation, hue = config.jitter_strength
    apply_jitter, apply_gray, apply_blur = rng.random(3) < (config.jitter, config.gray, config.blur)
    factors = 1 + rng.uniform(-1, 1, 3) * (brightness, contrast, saturation)
    factors = np.maximum(factors, 0.0)
    shift = float(rng.uniform(-hue, hue))
    order = rng.permutation(4)
    sigma = float(rng.uniform(*config.blur_sigma))
    if apply_jitter:
        operations: list[Callable[[Tensor], Tensor]] = [
            lambda x: adjust_brightness(x, float(factors[0])),
            lambda x: adjust_contrast(x, float(factors[1])),
            lambda x: T.adjust_saturation(x, float(factors[2])) if rgb else x,
            lambda x: T.adjust_hue(x, shift) if rgb else x,
        ]
        for index in order:
            image = operations[index](image)
    if apply_gray and rgb:
        image = T.rgb_to_grayscale(image, num_output_channels=3)
    if apply_blur:
        radius = max(1, round(2 * sigma))
        image = T.gaussian_blur(image, [2 * radius + 1] * 2, [sigma, sigma])
    return image


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Multiply by ``factor``; any number of channels, uint8 in and out."""
    return (image.float() * factor).clamp_(0, 255).to(torch.uint8)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Scale about the mean grey level; any number of channels, uint8 in and out."""
    if image.shape[0] == 3:
        adjusted: Tensor = T.adjust_contrast(image, factor)
        return adjusted
    values = image.float()
    return ((values - values.mean()) * factor + values.mean()).clamp_(0, 255).to(torch.uint8)
