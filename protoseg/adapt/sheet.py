"""The picture of a change: each image with its mask and what the network says before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from protoseg.adapt.given import IGNORED, OF_CLASS, Given
from protoseg.checkpoint import Checkpoint
from protoseg.draw.colours import as_rgb, overlay_picture
from protoseg.draw.tiles import Tile, draw_sheet, small
from protoseg.inference import HeadName
from protoseg.predict.images import predict_image

TITLES = ("image", "mask that was given", "before", "after")
MOST = 12
"""Images that are drawn at most."""


def change_sheet(
    headline: str, given: Sequence[Given], label: int, before: Checkpoint, after: Checkpoint, head: HeadName
) -> Image.Image:
    """Draw the change on the images that were given.

    Args:
        headline: First line.
        given: Images at the working size and their masks.
        label: Id of the class in the network after the change.
        before: The network as it was.
        after: The network as it is now.
        head: Head that labels.
    """
    colors = [item.color for item in after.info.classes]
    tiles = []
    for item in given[:MOST]:
        mask = np.where(item.state == OF_CLASS, label, 0).astype(np.uint8)
        only = [(0, 0, 0)] * label + [colors[label]]
        mask = np.where(item.state == IGNORED, 255, mask).astype(np.uint8)
        pictures = [small(as_rgb(item.image)), small(overlay_picture(item.image, mask, only))]
        for network in (before, after):
            found = predict_image(network.segmenter, item.image, network.info.input, head=head)
            own = [entry.color for entry in network.info.classes]
            pictures.append(small(overlay_picture(item.image, found.labels, own)))
        tiles.append(Tile(pictures, item.name))
    return draw_sheet(tiles, after.info.classes, columns=1, headline=headline, titles=TITLES)
