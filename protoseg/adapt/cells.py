"""What both heads see at the cells of the feature map, and which part of a cell a class has.

Shape legend: ``N`` cells, ``D`` channels of the linear head's last layer, ``S`` and ``T`` channels of the
encoder's last two stages, ``P`` channels of the prototype head, ``H W`` image, ``Y X`` feature map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from protoseg.checkpoint import Checkpoint
from protoseg.inference import image_batch, inference, window_starts
from protoseg.models.segmenter import NUM_ROW_STAGES, SegmentationNetwork, sized_like

Pixels = NDArray[np.uint8]
Shares = NDArray[np.float32]


@dataclass(frozen=True)
class Cells:
    """Cells of the feature maps of some images, on the CPU."""

    linear: Tensor
    """(N, D) float32: what the last layer of the linear head reads."""
    stage3: Tensor
    """(N, S) float32: the encoder's last stage but one, which a row may read beside it."""
    stage4: Tensor
    """(N, T) float32: its last stage, likewise."""
    prototype: Tensor
    """(N, P) float32: what the prototype head reads."""
    share: Tensor
    """(N,) part of the cell's valid pixels that are of the class, in [0, 1]."""
    weight: Tensor
    """(N,) how many cells it stands for, each by its part that is image and not ignored."""

    def __len__(self) -> int:
        return len(self.share)

    @property
    def row_input(self) -> Tensor:
        """(N, D + S + T) what a row of the linear scores reads."""
        return torch.cat([self.linear, self.stage3, self.stage4], 1)

    @property
    def row_parts(self) -> tuple[int, ...]:
        """D, S and T."""
        return self.linear.shape[1], self.stage3.shape[1], self.stage4.shape[1]

    def take(self, index: Tensor) -> Cells:
        """Some of them, by (n,) numbers or an (N,) mask."""
        return Cells(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def thinned(self, most: int) -> Cells:
        """At most that many cells with a part of the class and as many without; they weigh as much as all."""
        kept = []
        for stratum in (self.share > 0, self.share == 0):
            found = stratum.nonzero()[:, 0]
            if len(found) > most:
                found = found[torch.linspace(0, len(found) - 1, most, dtype=torch.float64).round().long()]
            part = self.take(found)
            factor = self.weight[stratum].sum() / part.weight.sum().clamp(min=1e-12)
            kept.append(replace(part, weight=part.weight * factor))
        return joined(kept)


def joined(parts: Iterable[Cells]) -> Cells:
    """Cells of several images."""
    found = list(parts)
    return Cells(*(torch.cat([getattr(part, name) for part in found]) for name in Cells.__dataclass_fields__))


def last_layer(network: SegmentationNetwork) -> nn.Conv2d:
    """The 1x1 convolution that gives the linear scores: a row of it is a class."""
    layer = network.linear_head[-1]
    assert isinstance(layer, nn.Conv2d)
    return layer


@contextmanager
def reads(network: SegmentationNetwork) -> Iterator[list[list[Tensor]]]:
    """What rows read while the block runs: each time maps of D, S and T channels, (B, channels, Y, X)."""
    seen: list[list[Tensor]] = []

    def of_backbone(_module: nn.Module, _inputs: object, output: tuple[Tensor, list[Tensor]]) -> None:
        seen.append(output[1][-NUM_ROW_STAGES:])

    def of_head(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen[-1] = [inputs[0], *(sized_like(stage, inputs[0]) for stage in seen[-1])]

    handles = [network.backbone.register_forward_hook(of_backbone),
               last_layer(network).register_forward_pre_hook(of_head)]  # fmt: skip
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def image_cells(source: Checkpoint, image: Pixels, share: Shares, valid: Shares, most: int) -> Cells:
    """Cells of an image, whole or by windows as the network is used.

    Args:
        source: The network, and how it is used.
        image: (H, W, C_in) uint8 at the working size.
        share: (H, W) how much a pixel is of the class, in [0, 1].
        valid: (H, W) 1 where that is known, 0 where a pixel is ignored.
        most: Cells that are kept of those with the class, and of the others.
    """
    segmenter, config, (tall, wide) = source.segmenter, source.info.eval, image.shape[:2]
    height, width = tall, wide
    if config.mode == "sliding":
        window = config.window or source.info.input.crop
        tall, wide = min(window[0], height), min(window[1], width)
    found = []
    device = segmenter.bank.prototypes.device
    with inference(segmenter), reads(segmenter.network) as seen:
        for y in window_starts(height, tall, tall):
            for x in window_starts(width, wide, wide):
                part = (slice(y, y + tall), slice(x, x + wide))
                output = segmenter.network(image_batch([image[part]], device))
                maps = (*seen.pop(), output.features)
                found.append(
                    _cells(maps, share[part], valid[part], segmenter.network.padded_size(tall, wide))
                )
    return joined(found).thinned(most)


def _cells(maps: tuple[Tensor, ...], share: Shares, valid: Shares, padded: tuple[int, int]) -> Cells:
    """Cells of (1, channels, Y, X) maps of a padded image."""
    size = maps[-1].shape[-2:]
    height, width = share.shape
    masks = torch.from_numpy(np.stack([share * valid, valid])).float()
    masks = F.pad(masks, (0, padded[1] - width, 0, padded[0] - height))
    of_class, weight = F.interpolate(masks[None], size=size, mode="area")[0].flatten(1)
    seen = weight > 0
    linear, stage3, stage4, prototype = (part[0].float().flatten(1).t().cpu()[seen] for part in maps)
    part = (of_class[seen] / weight[seen]).clamp(0, 1)
    return Cells(linear, stage3, stage4, prototype, part, weight[seen])
