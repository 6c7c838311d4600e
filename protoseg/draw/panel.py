"""The panel that an evaluation leaves behind.

Shape legend: ``C`` classes, ``K`` prototypes for each class, ``H W`` image, ``Y X`` feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from protoseg.config.training import EvalConfig
from protoseg.data.images import resize_image, resize_mask, save_whole
from protoseg.draw.colours import Picture, as_rgb, heat_picture, palette_picture, prototype_colors
from protoseg.draw.tiles import Tile, draw_sheet, small
from protoseg.inference import image_batch, image_logits, inference, score
from protoseg.input_rule import ResizeConfig
from protoseg.manifest import ClassInfo
from protoseg.method.pseudo_labels import head_distance
from protoseg.models.segmenter import Segmenter


@dataclass(frozen=True)
class PanelRow:
    """What a picture shows of one image, all at the working size ``H W``."""

    image: Picture
    """(H, W, 3)."""
    target: Picture
    """(H, W) class ids and ignore_index."""
    linear: Picture
    """(H, W) class ids of the linear head."""
    prototype: Picture | None
    """(H, W) class ids of the prototype head; None while there are no prototypes."""
    head_distance: NDArray[np.float32] | None
    """(H, W) total variation distance of the heads' probabilities, in [0, 1]."""
    winner: NDArray[np.int64] | None
    """(H, W) flat index ``c * K + k`` of the prototype that won within the predicted class."""


def panel_row(
    segmenter: Segmenter,
    image: Picture,
    mask: Picture,
    *,
    resize: ResizeConfig,
    config: EvalConfig,
    crop: tuple[int, int],
) -> PanelRow:
    """Run the network, on the device it is on, on one image for a picture.

    Args:
        segmenter: Network and prototypes; its mode is restored.
        image: (H, W, C_in) uint8 at its own size.
        mask: (H, W) uint8 class ids at its own size.
        resize: Working size rule.
        config: Whole image or windows.
        crop: Training crop, the default window.
    """
    small = resize_image(image, resize)
    shown, target = as_rgb(small), resize_mask(mask, resize)
    batch = image_batch([small], segmenter.bank.prototypes.device)
    with inference(segmenter):
        logits = image_logits(segmenter, batch, config, crop)
        labels = _ids(score(logits, "linear").label)
        if logits.prototype is None:
            return PanelRow(shown, target, labels, None, None, None)
        chosen = score(logits, "prototype").label
        distance = head_distance(logits.linear, logits.prototype)[0]
        winner = winning_prototypes(segmenter, batch, chosen)[0]
    return PanelRow(shown, target, labels, _ids(chosen), distance.cpu().numpy(), winner.cpu().numpy())


def winning_prototypes(segmenter: Segmenter, images: Tensor, label_BHW: Tensor) -> Tensor:
    """The prototype of the predicted class that is most similar to each pixel's feature.

    Args:
        segmenter: Network and prototypes.
        images: (B, C_in, H, W) uint8.
        label_BHW: Predicted class ids.

    Returns:
        (B, H, W) int64 flat indices ``c * K + k``.
    """
    height, width = images.shape[-2:]
    network, bank = segmenter.network, segmenter.bank
    best = bank.similarity_map(network(images).features).argmax(2).float()
    best = F.interpolate(best, size=network.padded_size(height, width), mode="nearest")
    own = best[..., :height, :width].long().gather(1, label_BHW[:, None])[:, 0]
    return label_BHW * bank.num_prototypes + own


def _ids(label: Tensor) -> Picture:
    return label[0].cpu().numpy().astype(np.uint8)


def panel(
    path: Path,
    segmenter: Segmenter,
    samples: Sequence[tuple[Picture, Picture]],
    classes: Sequence[ClassInfo],
    *,
    ignore_index: int,
    resize: ResizeConfig,
    config: EvalConfig,
    crop: tuple[int, int],
) -> None:
    """Write the evaluation picture, whole or not at all.

    A row for each image, with the columns image, target, linear, prototype, distance of the heads,
    and the prototype that won (the hue of its class, a shade for each); below, the legend. Without
    prototypes there are three columns.

    Args:
        path: PNG file; its folder is made.
        segmenter: Network and prototypes.
        samples: (H, W, C_in) images and (H, W) masks at their own size.
        classes: Names and colours.
        ignore_index: Mask value without a class.
        resize: Working size rule.
        config: Whole image or windows.
        crop: Training crop, the default window.

    Raises:
        DataError: If the file cannot be written.
    """
    rows = [
        panel_row(segmenter, image, mask, resize=resize, config=config, crop=crop) for image, mask in samples
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, draw_panel(rows, classes, ignore_index, segmenter.bank.num_prototypes))


def draw_panel(
    rows: Sequence[PanelRow], classes: Sequence[ClassInfo], ignore_index: int, num_prototypes: int
) -> Image.Image:
    """Lay out the panel; see ``panel``."""
    colors = [item.color for item in classes]
    shades = [shade for color in colors for shade in prototype_colors(color, num_prototypes)]
    tiles = [_tile(row, colors, shades, ignore_index) for row in rows]
    titles, key = ["image", "target", "linear head"], ""
    if any(row.prototype is not None for row in rows):
        titles += ["prototype head", "head distance", "winning prototype"]
        key = "head distance, how far the two heads' probabilities are apart:"
    return draw_sheet(
        tiles, classes, columns=1, key=key, titles=titles, num_prototypes=num_prototypes if key else 0
    )


def _tile(
    row: PanelRow,
    colors: Sequence[tuple[int, int, int]],
    shades: Sequence[tuple[int, int, int]],
    ignore_index: int,
) -> Tile:
    """Pictures of a row with their captions."""
    known = (row.target != ignore_index) & (row.target < len(colors))

    def right(labels: Picture) -> str:
        return f"{(labels == row.target)[known].mean():.1%} of pixels right" if known.any() else "no target"

    def labeled(labels: NDArray[Any], palette: Sequence[tuple[int, int, int]] = colors) -> Image.Image:
        return small(palette_picture(labels, palette), nearest=True)

    height, width = row.target.shape
    pictures = [small(row.image), labeled(row.target), labeled(row.linear)]
    captions = [f"{width} x {height}", f"{1 - known.mean():.1%} ignored", right(row.linear)]
    if row.prototype is not None and row.head_distance is not None and row.winner is not None:
        pictures += [
            labeled(row.prototype),
            small(heat_picture(row.head_distance), nearest=True),
            labeled(row.winner, shades),
        ]
        captions += [
            right(row.prototype),
            f"mean {row.head_distance.mean():.3f} of 1",
            f"{len(np.unique(row.winner))} of {len(shades)} prototypes",
        ]
    return Tile(pictures, captions=captions)
