"""The contact sheet of ``protoseg.suggest``: image, prediction and suspicion of each suggestion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.draw.colours import Picture, as_rgb, heat_picture, overlay_picture
from protoseg.draw.tiles import Tile, draw_sheet, small
from protoseg.manifest import ClassInfo

COLUMNS = 2
KEY = "image, prediction, and how likely each pixel is wrong:"


def make_tile(
    title: str,
    score: float,
    distance: float | None,
    doubtful: Mapping[str, float],
    image: Picture,
    labels: Picture,
    suspicion: NDArray[np.float32],
    classes: Sequence[ClassInfo],
) -> Tile:
    """The pictures of a suggestion and what there is to say about it.

    Args:
        title: First line.
        score: Mean suspicion.
        distance: To the nearest image taken before, or None.
        doubtful: Classes by their part of the suspicion.
        image: (H, W, C_in).
        labels: (H, W) predicted class ids.
        suspicion: (H, W) in [0, 1].
        classes: Names and colours.
    """
    note = f"score {score:.3f}"
    if distance is not None:
        note += f"    {distance:.2f} from the nearest"
    if doubtful:
        note += "    doubt in " + ", ".join(f"{name} {part:.0%}" for name, part in doubtful.items())
    overlay = overlay_picture(image, labels, [item.color for item in classes])
    return Tile([small(as_rgb(image)), small(overlay), small(heat_picture(suspicion))], title, note)


def suggestion_sheet(headline: str, tiles: Sequence[Tile], classes: Sequence[ClassInfo]) -> Image.Image:
    """Suggestions in reading order, two beside each other, with scale and legend."""
    return draw_sheet(tiles, classes, columns=COLUMNS, headline=headline, key=KEY)
