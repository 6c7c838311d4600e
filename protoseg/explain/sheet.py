"""The pictures: the atlas of a run, and why an image, or a pixel, was segmented as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from protoseg.draw.colours import (
    Picture,
    as_rgb,
    heat_picture,
    overlay_picture,
    palette_picture,
    prototype_colors,
)
from protoseg.draw.tiles import CELL, PAPER, Tile, draw_sheet, small
from protoseg.explain.atlas import Atlas, Prototype
from protoseg.explain.reasons import Grounds, Reason
from protoseg.manifest import ClassInfo

_DOUBT = (214, 40, 57)
_GAP = 2
_ACROSS = 3
_PATCH = 150
SHOWN_REGIONS, SHOWN_SHARE = 6, 0.005
"""Regions of a picture: at most so many, each at least this share of the image (but always the largest)."""
Thumbnails = Mapping[int, Sequence[Image.Image]]
"""By the prototype's index."""


def atlas_sheet(atlas: Atlas, thumbnails: Thumbnails, classes: Sequence[ClassInfo]) -> Image.Image:
    """A row for each class, a tile of six patches for each prototype; doubtful ones have a red frame."""
    doubtful = sum(bool(item.doubts) for item in atlas.prototypes)
    headline = (
        f"{atlas.name} at step {atlas.step}: the nearest patches of {atlas.num_images} labelled images to "
        f"{len(atlas.prototypes)} prototypes, {doubtful} of them doubtful (red)"
    )
    return draw_sheet(
        [_atlas_tile(item, thumbnails[item.index], atlas.classes) for item in atlas.prototypes], classes,
        columns=atlas.num_prototypes, headline=headline, hatched="",
    )  # fmt: skip


def _atlas_tile(item: Prototype, thumbnails: Sequence[Image.Image], classes: Sequence[str]) -> Tile:
    use = "not used" if item.use_share is None else f"use {item.use_share:.0%}"
    nearest = f", cosine {item.patches[0].cosine:.2f}" if item.patches else ""
    note = "; ".join(item.doubts) or f"{use}{nearest}"
    return Tile([_six(thumbnails, bool(item.doubts))], f"{classes[item.class_id]} {item.number}, {use}", note)


def _six(thumbnails: Sequence[Image.Image], doubtful: bool) -> Image.Image:
    """Up to six patches in two rows, as wide as a cell of a sheet."""
    side = (CELL - _GAP * (_ACROSS - 1)) // _ACROSS
    picture = Image.new("RGB", (CELL, 2 * side + _GAP), PAPER)
    for number, item in enumerate(thumbnails[: 2 * _ACROSS]):
        row, column = divmod(number, _ACROSS)
        picture.paste(item.resize((side, side)), (column * (side + _GAP), row * (side + _GAP)))
    if doubtful:
        ImageDraw.Draw(picture).rectangle((0, 0, CELL - 1, picture.height - 1), outline=_DOUBT, width=4)
    return picture


class Explained(NamedTuple):
    """A segmented image, and what it is explained by."""

    title: str
    """First line of the picture."""
    image: Picture
    """(H, W, C_in)."""
    labels: NDArray[np.uint8]
    """(H, W) predicted class ids."""
    grounds: Grounds
    """What it is explained by."""
    classes: Sequence[ClassInfo]
    """Names and colours."""


def reason_sheet(explained: Explained, regions: Sequence[Reason]) -> Image.Image:
    """What was predicted, what it resembles, and the largest regions with the patches that they resemble.

    Args:
        explained: The image.
        regions: Records of ``Reasons.regions``, the largest first.
    """
    title, image, labels, grounds, classes = explained
    nearest, count = grounds.nearest, grounds.num_prototypes
    colors = [item.color for item in classes]
    shades = [shade for color in colors for shade in prototype_colors(color, count)]
    cells = np.ix_(*nearest.cells(labels.shape))
    best = nearest.similarity.max(0)
    pictures = [
        small(as_rgb(image)),
        small(overlay_picture(image, labels, colors)),
        small(palette_picture(nearest.prototype[cells], shades), nearest=True),
        small(heat_picture(best[cells].astype(np.float32)), nearest=True),
    ]
    tiles = [Tile(pictures, title, "the image, its classes, the nearest prototype, and how similar it is")]
    for item in shown_regions(regions):
        text = f"{item['class']} ({item['share']:.0%} of the image)"
        tiles.append(_reason_tile(item, text, [_framed(image, item["box"])], grounds))
    return draw_sheet(
        tiles, classes, columns=1, headline="", key="cosine with the nearest prototype:",
        num_prototypes=count, hatched="",
    )  # fmt: skip


def point_sheet(explained: Explained, reason: Reason) -> Image.Image:
    """The image and its classes with a pixel marked, and the patches that the pixel resembles.

    Args:
        explained: The image.
        reason: Record of ``Reasons.at``, the pixel.
    """
    title, image, labels, grounds, classes = explained
    colors = [item.color for item in classes]
    place = reason["x"] + 0.5, reason["y"] + 0.5
    pictures = [_marked(picture, place) for picture in (image, overlay_picture(image, labels, colors))]
    text = f"x={reason['x']}, y={reason['y']}: {reason['class']}"
    tile = _reason_tile(reason, text, pictures, grounds)
    return draw_sheet([tile], classes, columns=1, headline=title, hatched="")


def _reason_tile(item: Reason, text: str, pictures: Sequence[Image.Image], grounds: Grounds) -> Tile:
    """Pictures of what is explained, beside the patches that it resembles."""
    name = f"{item['prototype_class']} {item['prototype'] % grounds.num_prototypes}"
    notes = [f"then {item['runner_up']}: {item['runner_up_similarity']:.2f}"] if item["runner_up"] else []
    known = grounds.prototypes.get(item["prototype"])
    patches = grounds.thumbnails(known.index)[:_ACROSS] if known is not None else ()
    if known is not None and known.doubts:
        notes.append(f"the prototype is doubtful: {', '.join(known.doubts)}")
    return Tile(
        [*pictures, *(patch.resize((_PATCH, _PATCH)) for patch in patches)],
        f"{text} resembles {name}: {item['similarity']:.2f}", "; ".join(notes),
    )  # fmt: skip


def shown_regions(regions: Sequence[Reason]) -> Sequence[Reason]:
    """The regions that a picture shows, of all, the largest first."""
    large = [item for item in regions if item["share"] >= SHOWN_SHARE]
    return (large or regions[:1])[:SHOWN_REGIONS]


def _framed(image: Picture, box: Sequence[int]) -> Image.Image:
    """The image with a frame around a region."""
    picture = small(as_rgb(image))
    down, across = picture.height / image.shape[0], picture.width / image.shape[1]
    top, left, bottom, right = box
    place = (left * across, top * down, right * across - 1, bottom * down - 1)
    draw = ImageDraw.Draw(picture)
    draw.rectangle(place, outline=(0, 0, 0), width=4)
    draw.rectangle(place, outline=(255, 255, 255), width=2)
    return picture


def _marked(image: Picture, place: tuple[float, float]) -> Image.Image:
    """The image with a ring around a point (x, y)."""
    picture = small(as_rgb(image))
    x, y = place[0] * picture.width / image.shape[1], place[1] * picture.height / image.shape[0]
    draw = ImageDraw.Draw(picture)
    for radius, color, width in ((8, (0, 0, 0), 4), (7, (255, 255, 255), 2)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=width)
    return picture
