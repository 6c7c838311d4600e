"""Mixing strong views: CutMix and friends on a batch.

Shape legend: ``B`` batch, ``C`` classes, ``H W`` image. Images, pseudo-labels, confidences and validity
are mixed with one mask, so that a pixel keeps what belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protoseg.config.data import ViewConfig
from protoseg.processes import ALONE, Processes, sent


class MixDraw(NamedTuple):
    """The random part of mixing, for the images of one process."""

    apply: Tensor
    """(B,) bool: images that are mixed at all."""
    boxes: Tensor
    """(B, 4) top, left, bottom, right in pixels, int64."""
    classes: Tensor
    """(B, C) bool: classes that ClassMix pastes."""


class Mixed(NamedTuple):
    """A mixed batch."""

    image: Tensor
    """(B, C_in, H, W) uint8."""
    pseudo_label: Tensor
    """(B, H, W) int64."""
    confidence: Tensor
    """(B, H, W) float."""
    valid: Tensor
    """(B, H, W) bool: image and not padding."""
    source: Tensor
    """(B, H, W) int64: image of the batch that a pixel is from; mixing keeps its place."""


def draw_mix(
    config: ViewConfig,
    rng: np.random.Generator,
    *,
    batch: int,
    num_classes: int,
    size: tuple[int, int],
    processes: Processes = ALONE,
) -> MixDraw:
    """Draw mixing for the global batch and keep this process's part.

    The same global batch is mixed alike on any number of processes (partners stay within a process).
    Box: area uniform in ``mixing_area`` of the image, width uniform in [area, 1] of the image width.

    Args:
        config: View settings.
        rng: Generator that every process seeds alike.
        batch: Images of this process.
        num_classes: C.
        size: (height, width) in pixels.
        processes: Who shares the global batch.
    """
    height, width = size
    total = batch * processes.world
    draws = rng.random((total, 5))
    keep = rng.random((total, num_classes)) < 0.5
    per_image = draws[:, 0] < config.mixing_probability
    apply = per_image if config.mixing_per_image else np.repeat(per_image[0], total)
    low, high = config.mixing_area
    area = low + (high - low) * draws[:, 1]
    fraction = area + (1 - area) * draws[:, 2]
    box_width = np.maximum(1, np.round(fraction * width)).astype(np.int64)
    box_height = np.maximum(1, np.round(area * width * height / box_width)).astype(np.int64)
    box_height = np.minimum(box_height, height)
    top = (draws[:, 3] * (height - box_height + 1)).astype(np.int64)
    left = (draws[:, 4] * (width - box_width + 1)).astype(np.int64)
    boxes = np.stack([top, left, top + box_height, left + box_width], 1)
    part = slice(processes.rank * batch, (processes.rank + 1) * batch)
    drawn = (apply[part], boxes[part], keep[part])
    return MixDraw(*(sent(torch.from_numpy(values), processes.device) for values in drawn))


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """(B, 4) boxes -> (B, H, W) bool, true inside."""
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    top, left, bottom, right = boxes[:, :, None, None].unbind(1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def mix(
    config: ViewConfig,
    drawn: MixDraw,
    image: Tensor,
    pseudo_label: Tensor,
    confidence: Tensor,
    valid: Tensor,
    fill: Tensor,
) -> Mixed:
    """Mix a batch.

    Args:
        config: View settings (kind and partner).
        drawn: The draws, on the images' device.
        image: (B, C_in, H, W) uint8.
        pseudo_label: (B, H, W) int64.
        confidence: (B, H, W) float.
        valid: (B, H, W) bool.
        fill: (C_in,) uint8, what ``cutout`` leaves behind.

    Returns:
        The mixed batch; a pasted pixel brings its label, confidence and validity along. With
        ``cutout`` the box is filled and no longer valid.
    """
    batch, _, height, width = image.shape
    own = torch.arange(batch, device=image.device)
    source = own[:, None, None].expand(batch, height, width)
    if config.mixing == "none":
        return Mixed(image, pseudo_label, confidence, valid, source)
    if config.mixing == "cutout":
        hole = box_mask(drawn.boxes, height, width) & drawn.apply[:, None, None]
        filled = torch.where(hole[:, None], fill.view(1, -1, 1, 1), image)
        return Mixed(filled, pseudo_label, confidence, valid & ~hole, source)
    partner = own.flip(0) if config.mixing_partner == "flip" else own.roll(-1)
    if config.mixing == "cutmix":
        paste = box_mask(drawn.boxes, height, width)
    else:
        # the classes of image i that go into it from its partner
        rows = torch.arange(batch, device=image.device)[:, None, None]
        paste = drawn.classes[rows, pseudo_label[partner]] & valid[partner]
    paste = paste & drawn.apply[:, None, None]
    return Mixed(
        torch.where(paste[:, None], image[partner], image),
        torch.where(paste, pseudo_label[partner], pseudo_label),
        torch.where(paste, confidence[partner], confidence),
        torch.where(paste, valid[partner], valid),
        torch.where(paste, source[partner], source),
    )


def mix_views(
    config: ViewConfig,
    strong: Tensor,
    pseudo_label: Tensor,
    confidence: Tensor,
    valid: Tensor,
    fill: Tensor,
    *,
    num_classes: int,
    draw: Callable[[int], np.random.Generator],
    processes: Processes = ALONE,
) -> Mixed:
    """Mix every strong view on its own; see ``mix`` and ``draw_mix``.

    Args:
        config: View settings.
        strong: (B, V, C_in, H, W) uint8.
        pseudo_label: (B, H, W) int64, of the weak view.
        confidence: Likewise, float.
        valid: Likewise, bool.
        fill: (C_in,) uint8.
        num_classes: C.
        draw: Gives the generator of a view; alike on every process.
        processes: Who shares the global batch.

    Returns:
        The views one after another: V*B images.
    """
    size, views = (strong.shape[3], strong.shape[4]), []
    for view in range(strong.shape[1]):
        drawn = draw_mix(config, draw(view), batch=len(strong), num_classes=num_classes, size=size,
                         processes=processes)  # fmt: skip
        views.append(mix(config, drawn, strong[:, view], pseudo_label, confidence, valid, fill))
    return Mixed(*(torch.cat(parts) for parts in zip(*views, strict=True)))
