"""How unlike everything labelled a pixel is, from the encoder's last stage and the linear head's energy.

The distance is Mahalanobis's to the nearest prototype of the encoder's features (Lee et al., arXiv
1807.03888, by prototype instead of by class), the energy ``-logsumexp`` of the logits (Liu et al., arXiv
2010.03759). Each counts in deviations of labelled validation pixels; docs/novelty.md has what else was
measured.

Shape legend: ``B`` batch, ``C`` classes, ``D`` channels of the stage, ``P`` prototypes of all classes,
``y x`` map of the stage, ``Y X`` map of the decoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        whitening: (D, D) with ``W W^T`` the inverse covariance within prototypes, over D: a pixel of a
            prototype has a squared distance of 1 on the average.
        means: (P, D) means of the prototypes' features, times ``whitening``.
        scale: What a distance and an energy are worth.
    """

    whitening: Tensor
    means: Tensor

    def __init__(self, whitening: Tensor, means: Tensor, scale: NoveltyScale) -> None:
        super().__init__()
        self.register_buffer("whitening", whitening.float().clone())
        self.register_buffer("means", means.float().clone())
        self.scale = scale

    def distance(self, stage: Tensor) -> Tensor:
        """Squared distance to the nearest prototype: (B, D, y, x) -> (B, 1, y, x), float32."""
        white = F.conv2d(stage.float(), self.whitening.t()[:, :, None, None])
        length = white.square().sum(1, keepdim=True)
        cross = F.conv2d(white, -2 * self.means[:, :, None, None], self.means.square().sum(1))
        return (length + cross.amin(1, keepdim=True)).clamp(min=0)

    def parts(self, stage: Tensor, linear_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Distance and energy at the decoder's stride: (B, D, y, x), (B, C, Y, X) -> (B, 1, Y, X) each."""
        logits = linear_logits.float()
        distance = F.interpolate(
            self.distance(stage), size=logits.shape[-2:], mode="bilinear", align_corners=False
        )
        return distance, -logits.logsumexp(1, keepdim=True)

    def forward(self, stage: Tensor, linear_logits: Tensor) -> Tensor:
        """Novelty at the decoder's stride: (B, D, y, x), (B, C, Y, X) -> (B, 1, Y, X) in [0, 1], float32."""
        # in float32 under autocast too: squares of many channels are added up
        with torch.autocast(stage.device.type, enabled=False):
            distance, energy = self.parts(stage, linear_logits)
        return torch.sigmoid(deviations(distance, energy, self.scale) - self.scale.threshold)


def deviations(distance: Tensor, energy: Tensor, scale: NoveltyScale) -> Tensor:
    """Sum of distance and energy, each less its mean and over its deviation."""
    return (distance - scale.distance[0]) / scale.distance[1] + (energy - scale.energy[0]) / scale.energy[1]
