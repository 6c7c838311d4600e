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

from protoseg.config.data import ViewConfig


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
        window = (
            _resize_thin(window, size)
            if thin
            else T.resize(window, size, interpolation=mode, antialias=not nearest)
        )
    if g.flip:
        window = window.flip(-1)
    if window.shape[1:] == crop:
        return window.contiguous()
    result = fill.view(-1, 1, 1).expand(len(fill), *crop).clone()
    result[:, g.pad_top : g.pad_top + g.out_height, g.pad_left : g.pad_left + g.out_width] = window
    return result


def _resize_thin(image: Tensor, size: list[int]) -> Tensor:
    if size[1] == 1 < size[0]:  # torch 2.14 gives every row of a result one pixel wide the value of the first
        return _resize_thin(image.mT, size[::-1]).mT
    resized: Tensor = T.resize(image.float(), size, antialias=True)
    return resized.round().to(torch.uint8)


@dataclass(frozen=True)
class ColorDraw:
    """One draw of the strong view's colour operations."""

    jitter: bool
    gray: bool
    blur: bool
    factors: tuple[float, float, float]
    """Of brightness, contrast and saturation, at least 0."""
    shift: float
    """Of the hue, in turns."""
    order: tuple[int, int, int, int]
    """In which brightness (0), contrast (1), saturation (2) and hue (3) are changed."""
    sigma: float
    """Standard deviation of the blur, pixels."""

    @property
    def radius(self) -> int:
        """Pixels to each side that the blur takes in."""
        return max(1, round(2 * self.sigma))


def draw_color(config: ViewConfig, rng: np.random.Generator) -> ColorDraw:
    """Colour jitter, grey and blur, each with its probability; all numbers are drawn whatever happens.

    Args:
        config: View settings.
        rng: Source of randomness.
    """
    brightness, contrast, saturation, hue = config.jitter_strength
    jitter, gray, blur = map(bool, rng.random(3) < (config.jitter, config.gray, config.blur))
    factors = 1 + rng.uniform(-1, 1, 3) * (brightness, contrast, saturation)
    first, second, third = map(float, np.maximum(factors, 0.0))
    shift = float(rng.uniform(-hue, hue))
    a, b, c, d = map(int, rng.permutation(4))
    sigma = float(rng.uniform(*config.blur_sigma))
    return ColorDraw(jitter, gray, blur, (first, second, third), shift, (a, b, c, d), sigma)


def apply_color(image: Tensor, draw: ColorDraw) -> Tensor:
    """The strong view of an image.

    Operations that mean nothing without three channels (saturation, hue, grey) are left out for
    other images.

    Args:
        image: (C, H, W) uint8.
        draw: The draw.

    Returns:
        (C, H, W) uint8.
    """
    rgb = image.shape[0] == 3
    if draw.jitter:
        brightness, contrast, saturation = draw.factors
        operations: list[Callable[[Tensor], Tensor]] = [
            lambda x: adjust_brightness(x, brightness),
            lambda x: adjust_contrast(x, contrast),
            lambda x: T.adjust_saturation(x, saturation) if rgb else x,
            lambda x: T.adjust_hue(x, draw.shift) if rgb else x,
        ]
        for index in draw.order:
            image = operations[index](image)
    if draw.gray and rgb:
        image = T.rgb_to_grayscale(image, num_output_channels=3)
    if draw.blur:
        image = T.gaussian_blur(image, [2 * draw.radius + 1] * 2, [draw.sigma, draw.sigma])
    return image


def color_view(image: Tensor, config: ViewConfig, rng: np.random.Generator) -> Tensor:
    """Strong view (C, H, W) of an image by the next numbers of ``rng``; see the two parts."""
    return apply_color(image, draw_color(config, rng))


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
