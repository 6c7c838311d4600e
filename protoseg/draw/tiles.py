"""One layout for every sheet of pictures: tiles in rows, a header above, the classes below.

The same inputs give the same bytes: no time stamp, and the font inside Pillow, not the machine's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from protoseg.draw.colours import IGNORED, Picture, heat_picture, prototype_colors
from protoseg.manifest import ClassInfo

PAPER, INK, FAINT = (255, 255, 255), (38, 42, 48), (115, 121, 129)
CELL, TALLEST, LINE = 220, 330, 18
"""Largest width and height of a picture, and height of a line of text, in pixels."""
_GAP, _BETWEEN, _MARGIN = 4, 28, 18


@dataclass(frozen=True)
class Tile:
    """Pictures that belong together, side by side, and their texts."""

    pictures: Sequence[Image.Image]
    """At most ``CELL`` x ``TALLEST`` pixels each."""
    title: str = ""
    """First line above the pictures."""
    note: str = ""
    """Second line."""
    captions: Sequence[str] = ()
    """A line below each picture."""


def small(picture: Picture, *, nearest: bool = False) -> Image.Image:
    """(H, W, 3) -> the largest picture that fits a cell; ``nearest`` keeps the colours of label maps."""
    height, width = picture.shape[:2]
    scale = min(CELL / width, TALLEST / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resample = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return Image.fromarray(np.ascontiguousarray(picture)).resize(size, resample)


def draw_sheet(
    tiles: Sequence[Tile],
    classes: Sequence[ClassInfo],
    *,
    columns: int,
    headline: str = "",
    key: str = "",
    titles: Sequence[str] = (),
    num_prototypes: int = 0,
    hatched: str = "ignored",
) -> Image.Image:
    """Lay out tiles in reading order.

    Args:
        tiles: At least one; all have places for as many pictures as the one with the most.
        classes: Names and colours for the legend.
        columns: Tiles in a row, fewer when there are fewer tiles.
        headline: First line of the sheet.
        key: What the pictures show, ending in what a scale of heat colours from 0 to 1 stands for.
        titles: A title above each picture of the first row.
        num_prototypes: Shades to show beside each class colour.
        hatched: What the legend calls hatched pixels.
    """
    places = max(len(tile.pictures) for tile in tiles)
    span = places * (CELL + _GAP) - _GAP
    columns = min(columns, len(tiles))
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    width = 2 * _MARGIN + columns * (span + _BETWEEN) - _BETWEEN
    legend = class_legend(classes, width - 2 * _MARGIN, num_prototypes=num_prototypes, hatched=hatched)
    above = LINE * max(bool(tile.title) + bool(tile.note) for tile in tiles)
    below = LINE * any(tile.captions for tile in tiles)
    between = 2 * _GAP if below else _BETWEEN
    tall = [max(picture.height for tile in row for picture in tile.pictures) for row in rows]
    header = (LINE + 4) * (bool(headline) + bool(key) + bool(titles)) + 8 * bool(above and key)
    height = 2 * _MARGIN + header + sum(above + rise + below + between for rise in tall) + legend.height
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN - 4
    if headline:
        draw.text((_MARGIN, top), _fitted(headline, width - 2 * _MARGIN, 15), INK, _font(15))
        top += LINE + 4
    if key:
        _heat_key(sheet, key, _MARGIN, top)
        top += LINE + 4
    for place, title in enumerate(titles):
        draw.text((_MARGIN + place * (CELL + _GAP), top), title, INK, _font(14))
    top = _MARGIN + header
    for row, rise in zip(rows, tall, strict=True):
        for column, tile in enumerate(row):
            _place(sheet, draw, tile, _MARGIN + column * (span + _BETWEEN), top, above, rise, span)
        top += above + rise + below + between
    sheet.paste(legend, (_MARGIN, top))
    return sheet


def _place(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, above: int, rise: int,
    span: int,
) -> None:  # fmt: skip
    draw.text((left, top - 4), _fitted(tile.title, span, 14), INK, _font(14))
    draw.text((left, top + LINE - 4), _fitted(tile.note, span, 12), FAINT, _font(12))
    for number, picture in enumerate(tile.pictures):
        place = left + number * (CELL + _GAP)
        sheet.paste(picture, (place + (CELL - picture.width) // 2, top + above))
        if tile.captions:
            draw.text((place, top + above + rise + 1), tile.captions[number], FAINT, _font(12))


def _heat_key(sheet: Image.Image, text: str, left: int, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    text += "  0"
    draw.text((left, top + 1), text, FAINT, _font(12))
    ramp = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (10, 1))
    place = left + round(_font(12).getlength(text)) + 5
    sheet.paste(Image.fromarray(heat_picture(ramp)), (place, top + 4))
    draw.text((place + 101, top + 1), "1", FAINT, _font(12))


def class_legend(
    classes: Sequence[ClassInfo],
    width: int,
    *,
    num_prototypes: int = 0,
    hatched: str = "",
    scale: float = 1.0,
) -> Image.Image:
    """Class colours with names, ``width`` pixels wide and as high as it needs to be.

    Args:
        classes: Names and colours.
        width: Pixels; a name that is longer is cut short with dots.
        num_prototypes: Shades that follow each colour.
        hatched: What hatched pixels are called, last; empty: there are none.
        scale: Enlarges it.
    """
    size = round(13 * scale)
    font, swatch, shade, gap = _font(size), round(14 * scale), round(9 * scale), round(4 * scale)
    step, entries = round((LINE + 4) * scale), list(classes)
    if hatched:
        entries.append(ClassInfo(name=hatched, color=IGNORED[0]))
    places: list[tuple[int, int, str, ClassInfo, list[tuple[int, int, int]]]] = []
    left, line = 0, 0
    for number, item in enumerate(entries):
        shades = prototype_colors(item.color, num_prototypes) if number < len(classes) else []
        strip = swatch + gap + (len(shades) * shade + gap if shades else 0)
        name = _fitted(item.name, width - strip, size)
        wide = strip + math.ceil(font.getlength(name))
        if left and left + wide > width:
            left, line = 0, line + 1
        places.append((left, line * step + round(3 * scale), name, item, shades))
        left += wide + round(20 * scale)
    legend = Image.new("RGB", (width, (line + 1) * step), PAPER)
    draw = ImageDraw.Draw(legend)
    for left, top, name, item, shades in places:
        draw.rectangle((left, top, left + swatch, top + swatch), item.color, FAINT)
        left += swatch + gap
        for color in shades:
            draw.rectangle((left, top, left + shade - 1, top + swatch), color)
            left += shade
        draw.text((left + (gap if shades else 0), top - round(2 * scale)), name, INK, font)
    return legend


def with_legend(picture: Image.Image, labels: Picture, classes: Sequence[ClassInfo]) -> Image.Image:
    """An overlay with the classes that it shows below it, the largest first, with their shares.

    The pixels of the overlay stay as they are, at the top left; text grows with the picture. A black class,
    which leaves the image as it is, has an empty box.

    Args:
        picture: The overlay.
        labels: (H, W) class ids.
        classes: Names and colours of all classes.
    """
    pixels = np.bincount(labels.reshape(-1), minlength=len(classes))[: len(classes)]
    shown = [int(i) for i in np.argsort(-pixels, kind="stable") if pixels[i]]
    entries = [
        ClassInfo(
            name=f"{classes[i].name} {pixels[i] / labels.size:.1%}",
            color=classes[i].color if any(classes[i].color) else PAPER,
        )
        for i in shown
    ]
    scale = max(1.0, picture.width / 900)
    margin = round(6 * scale)
    width = max(picture.width, CELL)
    legend = class_legend(entries, width - 2 * margin, scale=scale)
    sheet = Image.new("RGB", (width, picture.height + legend.height + 2 * margin), PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(legend, (margin, picture.height + margin))
    return sheet


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, width: int, size: int) -> str:
    """The text, or its beginning with dots, no wider than ``width`` pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
