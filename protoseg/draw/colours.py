"""Labels, probabilities and prototypes as colours. Needs numpy only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.data.palette import Color

Picture = NDArray[np.uint8]

IGNORED: tuple[Color, Color] = ((224, 226, 230), (200, 203, 208))
"""The hatching of pixels without a class."""
OVERLAY_OPACITY = 0.5
# dark where all is well, bright where it is not
_HEAT = ((13, 8, 40), (86, 20, 110), (180, 48, 92), (244, 120, 40), (252, 236, 150))


def as_rgb(image: Picture) -> Picture:
    """(H, W, C_in) -> (H, W, 3) for the eye: grey is repeated, further channels are dropped."""
    return np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]


def prototype_colors(color: Color, count: int) -> list[Color]:
    """Shades of a class colour, dark to light, one for each of its prototypes."""
    hue, _, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    low, high = 0.24, 0.80
    shades = []
    for k in range(count):
        light = low + (high - low) * k / (count - 1) if count > 1 else (low + high) / 2
        rgb = colorsys.hls_to_rgb(hue, light, saturation)
        shades.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return shades


def palette_picture(labels: NDArray[Any], colors: Sequence[Color]) -> Picture:
    """(H, W) ids -> (H, W, 3) colours; ids without a colour are hatched in light grey."""
    table = np.array([*colors, (0, 0, 0)], np.uint8)
    known = labels < len(colors)
    rgb = table[np.where(known, labels, len(colors))]
    rows, columns = np.indices(labels.shape)
    hatch = np.array(IGNORED, np.uint8)[((rows + columns) // 4) % 2]
    return np.where(known[..., None], rgb, hatch)


def overlay_picture(
    image: Picture, labels: NDArray[Any], colors: Sequence[Color], opacity: float = OVERLAY_OPACITY
) -> Picture:
    """Label colours over the image, their outlines in full: (H, W, C_in), (H, W) -> (H, W, 3).

    A black class (the background, in most palettes) leaves the image as it is; ids without a colour are
    hatched.
    """
    rgb, mask = as_rgb(image).astype(np.float32), palette_picture(labels, colors).astype(np.float32)
    share = np.where(_outline(labels), 1.0, opacity)[..., None] * mask.any(2, keepdims=True)
    return np.round((1 - share) * rgb + share * mask).astype(np.uint8)


def _outline(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels with another label to the left, right, above or below."""
    edge = np.zeros(labels.shape, np.bool_)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def heat_picture(values: NDArray[np.float32]) -> Picture:
    """(H, W) in [0, 1] -> (H, W, 3), dark to bright."""
    anchors = np.array(_HEAT, np.float64)
    place = np.linspace(0, 1, len(anchors))
    table = np.stack([np.interp(np.linspace(0, 1, 256), place, anchors[:, c]) for c in range(3)], 1)
    index = np.round(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.int64)
    return np.round(table[index]).astype(np.uint8)
