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
    return _color_table(colors)[_places(labels, len(colors))]


def overlay_picture(
    image: Picture, labels: NDArray[Any], colors: Sequence[Color], opacity: float = OVERLAY_OPACITY
) -> Picture:
    """Label colours over the image, their outlines in full: (H, W, C_in), (H, W) -> (H, W, 3).

    A black class (the background, in most palettes) leaves the image as it is; ids without a colour are
    hatched.
    """
    table, places = _color_table(colors), _places(labels, len(colors))
    seen: NDArray[np.bool_] = np.asarray(table.any(1))
    share = opacity * seen[:, None, None]
    # every value that a pixel can have under every colour: 256 of them are fewer than the image has pixels
    mixed = np.round((1 - share) * np.arange(256)[:, None] + share * table[:, None]).astype(np.uint8)
    found, under, rows = np.empty((*labels.shape, 3), np.uint8), as_rgb(image), 256 * places
    for channel in range(3):
        found[..., channel] = mixed[..., channel].reshape(-1)[rows + under[..., channel]]
    edge = _outline(labels) & seen[places]
    found[edge] = table[places[edge]]
    return found


def _color_table(colors: Sequence[Color]) -> Picture:
    """(C + 2, 3) colours, those of the hatching last."""
    return np.array([*colors, *IGNORED], np.uint8)


def _places(labels: NDArray[Any], count: int) -> NDArray[np.intp]:
    """(H, W) ids -> rows of ``_color_table``."""
    places = labels.astype(np.intp)
    unknown = places >= count
    if unknown.any():
        rows, columns = np.nonzero(unknown)
        places[unknown] = count + (rows + columns) // 4 % 2
    return places


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
