"""What the networks are given at the start of a run: augmented images and their labels.

Shape legend: ``B`` images of this process, ``V`` strong views, ``H W`` crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protoseg.data.images import save_whole
from protoseg.data.stream import Sample
from protoseg.draw.colours import Picture, as_rgb, palette_picture
from protoseg.draw.tiles import Tile, draw_sheet, small
from protoseg.manifest import ClassInfo
from protoseg.method.labelling import StrongViews

IMAGES = 4
"""Images of a batch that are shown at most."""
NOTHING = 255
"""Id without a colour: hatched. Classes have at most 255 ids, 0 to 254."""


def labeled_views(path: Path, sample: Sample, classes: Sequence[ClassInfo], step: int) -> None:
    """Write a picture of labelled images as the network is given them, with their labels.

    Args:
        path: PNG file; its folder is made.
        sample: ``image`` (B, C_in, H, W) uint8 and ``target`` (B, H, W).
        classes: Names and colours.
        step: Optimiser steps done, for the headline.

    Raises:
        DataError: If the file cannot be written.
    """
    tiles = []
    for index in range(min(IMAGES, len(sample["image"]))):
        target = _ids(sample["target"][index], len(classes))
        captions = ("labelled image", f"its labels, {(target == NOTHING).mean():.1%} ignored")
        tiles.append(Tile([_photo(sample["image"][index]), _map(target, classes)], captions=captions))
    headline = f"Labelled images of step {step}, as the student is given them"
    sheet = draw_sheet(tiles, classes, columns=2, headline=headline, hatched="ignored, or no image")
    _write(path, sheet)


def first_mixed(sample: Sample, strong: StrongViews) -> int | None:
    """The first strong view that mixing changed, by its number from 0; None if there is none."""
    count, views = sample["strong"].shape[:2]
    for view in range(views):
        if not torch.equal(sample["strong"][:, view], strong.image[view * count : (view + 1) * count]):
            return view
    return None


def unlabeled_views(
    path: Path, sample: Sample, strong: StrongViews, classes: Sequence[ClassInfo], step: int
) -> None:
    """Write a picture of unlabelled images as the networks are given them.

    A row for each image: weak view, strong views, one of them mixed, its pseudo-labels, and those that are
    believed.

    Args:
        path: PNG file; its folder is made.
        sample: ``weak`` (B, C_in, H, W) and ``strong`` (B, V, C_in, H, W) uint8.
        strong: The mixed views and their pseudo-labels.
        classes: Names and colours.
        step: Optimiser steps done, for the headline.

    Raises:
        DataError: If the file cannot be written.
    """
    count, views = sample["strong"].shape[:2]
    mixed = first_mixed(sample, strong) or 0
    tiles = []
    for index in range(min(IMAGES, count)):
        place = mixed * count + index
        label, valid, trusted = strong.label[place], strong.valid[place], strong.believed[place]
        share = float(trusted.sum()) / max(float(valid.sum()), 1.0)
        same = torch.equal(strong.image[place], sample["strong"][index, mixed])
        pictures = [
            _photo(sample["weak"][index]),
            *(_photo(view) for view in sample["strong"][index]),
            _photo(strong.image[place]),
            _map(_ids(torch.where(valid, label, NOTHING), len(classes)), classes),
            _map(_ids(torch.where(trusted, label, NOTHING), len(classes)), classes),
        ]
        captions = ["the teacher labels it", *[""] * views, "not mixed this time" if same else ""]
        captions += ["the teacher's, mixed alike", f"{share:.1%} of the pixels"]
        tiles.append(Tile(pictures, captions=captions))
    names = [f"strong view {view + 1}" for view in range(views)] if views > 1 else ["strong view"]
    titles = ["weak view", *names, f"{names[mixed]}, mixed", "its pseudo-labels", "believed"]
    headline = f"Unlabelled images of step {step}: the student learns the believed labels on the mixed view"
    sheet = draw_sheet(
        tiles, classes, columns=1, headline=headline, titles=titles, hatched="not believed, or no image"
    )
    _write(path, sheet)


def _write(path: Path, sheet: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, sheet)


def _photo(image: Tensor) -> Image.Image:
    return small(as_rgb(image.permute(1, 2, 0).cpu().numpy()))


def _map(ids: Picture, classes: Sequence[ClassInfo]) -> Image.Image:
    return small(palette_picture(ids, [item.color for item in classes]), nearest=True)


def _ids(label: Tensor, num_classes: int) -> Picture:
    """(H, W) class ids; ``NOTHING`` where there is none."""
    ids = label.cpu().numpy()
    return np.where((ids >= 0) & (ids < num_classes), ids, NOTHING).astype(np.uint8)
