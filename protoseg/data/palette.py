"""Colours of label maps."""

from __future__ import annotations

Color = tuple[int, int, int]


def voc_palette(count: int) -> list[Color]:
    """The first ``count`` (at most 256) colours of the VOC palette, RGB in [0, 255]."""
    colors = []
    for index in range(count):
        r = g = b = 0
        for bit in range(8):
            low = index >> (3 * bit)
            r |= (low & 1) << (7 - bit)
            g |= ((low >> 1) & 1) << (7 - bit)
            b |= ((low >> 2) & 1) << (7 - bit)
        colors.append((r, g, b))
    return colors
