"""The contact sheet of ``protoseg.suggest``: image, prediction and suspicion of each suggestion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from protoseg.draw.panel import class_legend, heat_picture
from protoseg.manifest import ClassInfo

_PAPER, _INK, _FAINT = (255, 255, 255), (38, 42, 48), (110, 116, 124)
_TILE, _GAP, _BETWEEN, _MARGIN, _LINE, _COLUMNS = 220, 4, 28, 20, 18, 2
_CELL = 3 * _TILE + 2 * _GAP
_TALLEST = 330

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """One suggestion, drawn small."""

    title: str
    """First line above the pictures."""
    note: str
    """Second line."""
    pictures: tuple[Image.Image, Image.Image, Image.Image]
    """Image, overlay and suspicion, of one size."""


def make_tile(
    title: str, note: str, image: Picture, overlay: Picture, suspicion: NDArray[np.float32]
) -> Tile:
    """Shrink the pictures of a suggestion.

    Args:
        title: First line.
        note: Second line.
        image: (H, W, 3).
        overlay: (H, W, 3), the prediction over the image.
        suspicion: (H, W) in [0, 1].
    """
    height, width = image.shape[:2]
    scale = min(_TILE / width, _TALLEST / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))

    def small(picture: Picture) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BILINEAR)

    return Tile(title, note, (small(image), small(overlay), small(heat_picture(suspicion))))


def draw_sheet(headline: str, tiles: Sequence[Tile], classes: Sequence[ClassInfo]) -> Image.Image:
    """Lay out the suggestions in reading order, two beside each other, with scale and legend."""
    columns = min(_COLUMNS, len(tiles))
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    heights = [2 * _LINE + 4 + max(tile.pictures[0].height for tile in row) for row in rows]
    width = 2 * _MARGIN + columns * _CELL + (columns - 1) * _BETWEEN
    legend = class_legend(classes, 0, width - 2 * _MARGIN)
    top = _MARGIN + 2 * _LINE + 18
    sheet = Image.new(
        "RGB", (width, top + sum(heights) + len(rows) * _BETWEEN + legend.height + _MARGIN // 2), _PAPER
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), _fitted(headline, width - 2 * _MARGIN, 15), _INK, _font(15))
    _key(sheet, draw, _MARGIN, _MARGIN + _LINE + 2)
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            _place(sheet, draw, tile, _MARGIN + column * (_CELL + _BETWEEN), top)
        top += height + _BETWEEN
    sheet.paste(legend, (_MARGIN, top))
    return sheet


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    draw.text((left, top), _fitted(tile.title, _CELL, 14), _INK, _font(14))
    draw.text((left, top + _LINE), _fitted(tile.note, _CELL, 12), _FAINT, _font(12))
    for number, picture in enumerate(tile.pictures):
        place = left + number * (_TILE + _GAP) + (_TILE - picture.width) // 2
        sheet.paste(picture, (place, top + 2 * _LINE + 4))


def _key(sheet: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
    """What the three pictures are, and the colours of the third from 0 to 1."""
    text = "image, prediction, and how likely each pixel is wrong:  0"
    draw.text((left, top + 1), text, _FAINT, _font(12))
    ramp = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (10, 1))
    place = left + round(_font(12).getlength(text)) + 5
    sheet.paste(Image.fromarray(heat_picture(ramp)), (place, top + 4))
    draw.text((place + 101, top + 1), "1", _FAINT, _font(12))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # the font inside Pillow, so that no machine's own fonts change the bytes
    return ImageFont.load_default(size)


def _fitted(text: str, width: int, size: int) -> str:
    """The text, or its beginning with dots, no wider than ``width`` pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
