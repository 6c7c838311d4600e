"""How unlike everything labelled a pixel is, from the encoder's last stage and the linear head's doubt.

The distance is one minus the cosine with the nearest prototype of the encoder's features, the doubt one minus
the largest probability (Hendrycks and Gimpel, arXiv 1610.02136). Each counts in deviations of labelled
validation pixels; docs/novelty.md has what else was measured.

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
    """What turns distance and doubt into a score, from labelled validation pixels."""

    distance: tuple[float, float]
    """Mean and deviation of the distance."""
    doubt: tuple[float, float]
    """Mean and deviation of the doubt."""
    threshold: float
    """Sum of both, in deviations, from which a pixel is called novel."""


class NoveltyHead(nn.Module):
    """Scores in [0, 1]; from 0.5 on a pixel is called novel.

    Args:
        prototypes: (P, D) unit vectors.
        scale: What a distance and a doubt are worth.
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
        """Distance and doubt at the decoder's stride: (B, D, y, x), (B, C, Y, X) -> (B, 1, Y, X) each."""
        logits = linear_logits.float()
        distance = F.interpolate(
            self.distance(stage), size=logits.shape[-2:], mode="bilinear", align_corners=False
        )
        return distance, 1 - logits.softmax(1).amax(1, keepdim=True)

    def forward(self, stage: Tensor, linear_logits: Tensor) -> Tensor:
        """Novelty at the decoder's stride: (B, D, y, x), (B, C, Y, X) -> (B, 1, Y, X) in [0, 1], float32."""
        # in float32 under autocast too: cosines lie close together
        with torch.autocast(stage.device.type, enabled=False):
            distance, doubt = self.parts(stage, linear_logits)
        return torch.sigmoid(deviations(distance, doubt, self.scale) - self.scale.threshold)


def deviations(distance: Tensor, doubt: Tensor, scale: NoveltyScale) -> Tensor:
    """Sum of distance and doubt, each less its mean and over its deviation."""
    return (distance - scale.distance[0]) / scale.distance[1] + (doubt - scale.doubt[0]) / scale.doubt[1]
