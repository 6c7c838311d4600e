"""How unlike everything labelled a pixel is, from the encoder's last stage and the linear head's energy.

The distance is one minus the cosine with the nearest prototype of the encoder's features, the energy
``-logsumexp`` of the logits (Liu et al., arXiv 2010.03759). Each counts in deviations of labelled validation
pixels; docs/novelty.md has what else was measured.

Shape legend: ``B`` batch, ``C`` classes, ``D`` channels of the stage, ``P`` prototypes of all classes,
``y x`` map of the stage, ``Y X`` map of the decoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.models.prototypes import unit


class NoveltyScale(NamedTuple):
    """What turns distance and energy into a score, from labelled validation pixels."""

    distance: tuple[float, float]
    """Mean and deviation of the distance."""
    energy: tuple[float, float]
    """Mean and deviation of the energy in nats."""
    threshold: float
    """Sum of both, in deviations, from which a pixel is called novel."""


class NoveltyHead(nn.Module):
    """Scores in [0, 1]; from 0.5 on a pixel is called novel.

    Args:
        prototypes: (P, D) unit vectors.
        scale: What a distance and an energy are worth.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, scale: NoveltyScale) -> None:
        super().__init__()
        self.register_buffer("prototypes", unit(prototypes))
        self.scale = scale

    def distance(self, stage: Tensor) -> Tensor:
        """One minus the largest cosine: (B, D, y, x) -> (B, 1, y, x) in [0, 2], float32."""
        features = F.normalize(stage.float(), dim=1, eps=1e-12)
        return 1 - F.conv2d(features, self.prototypes[:, :, None, None]).amax(1, keepdim=True)

    def parts(self, stage: Tensor, linear_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Distance and energy at the decoder's stride: (B, D, y, x), (B, C, Y, X) -> (B, 1, Y, X) each."""
        logits = linear_logits.float()
        distance = F.interpolate(
            self.distance(stage), size=logits.shape[-2:], mode="bilinear", align_corners=False
        )
        return distance, -logits.logsumexp(1, keepdim=True)

    def forward(self, stage: Tensor, linear_logits: Tensor) -> Tensor:
        """Novelty at the decoder's stride: (B, D, y, x), (B, C, Y, X) -> (B, 1, Y, X) in [0, 1], float32."""
        # in float32 under autocast too: cosines lie close together
        with torch.autocast(stage.device.type, enabled=False):
            distance, energy = self.parts(stage, linear_logits)
        return torch.sigmoid(deviations(distance, energy, self.scale) - self.scale.threshold)


def deviations(distance: Tensor, energy: Tensor, scale: NoveltyScale) -> Tensor:
    """Sum of distance and energy, each less its mean and over its deviation."""
    return (distance - scale.distance[0]) / scale.distance[1] + (energy - scale.energy[0]) / scale.energy[1]
