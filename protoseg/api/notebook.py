"""How a result looks in a notebook: a small overlay, and a legend."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.palette import Color
from protoseg.draw.colours import as_rgb, overlay_picture, palette_picture

LONGEST_SIDE = 640
"""Of the picture shown, in pixels."""
Row = tuple[str, Color, tuple[float | None, ...]]


def small_overlay(
    image: NDArray[np.uint8] | None, labels: NDArray[Any], colors: Sequence[Color]
) -> Image.Image:
    """The overlay of ``(H, W, C)`` and ``(H, W)``, of at most ``LONGEST_SIDE``; without an image the mask."""
    height, width = labels.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # made smaller first: an overlay costs tens of bytes a pixel
    small = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    if image is None:
        return Image.fromarray(palette_picture(small, colors))
    return Image.fromarray(
        overlay_picture(np.asarray(Image.fromarray(as_rgb(image)).resize(size)), small, colors)
    )


def encode(picture: Image.Image, kind: str) -> bytes:
    """A picture as the bytes of a ``PNG`` or ``JPEG`` file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=90)
    return buffer.getvalue()


def legend_html(picture: Image.Image, name: str, rows: Sequence[Row]) -> str:
    """A picture above a table.

    Args:
        picture: The overlay.
        name: The image's.
        rows: Name and colour of a class, and its area, confidence and agreement in [0, 1].
    """
    data = base64.b64encode(encode(picture, "JPEG")).decode("ascii")
    lines = "".join(
        "<tr><td><span style='display:inline-block;width:1em;height:1em;border:1px solid #888;"
        f"background:rgb{color}'></span></td><td style='text-align:left'>{html.escape(label)}</td>"
        + "".join(f"<td>{'' if value is None else f'{value:.1%}'}</td>" for value in values)
        + "</tr>"
        for label, color, values in rows
    )
    return (
        f"<figure style='margin:0'><img alt='{html.escape(name, quote=True)}' "
        f"src='data:image/jpeg;base64,{data}'><table><tr><th></th><th>class</th><th>area</th>"
        f"<th>confidence</th><th>agreement</th></tr>{lines}</table></figure>"
    )
