"""One vector for an image: which prototypes its pixels are like, and how many.

Shape legend: ``C`` classes, ``K`` prototypes for each class, ``D`` feature channels, ``Y X`` feature map,
``h w`` working size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from protoseg.inference import HeadLogits
from protoseg.models.segmenter import Segmenter


@dataclass(frozen=True)
class Look:
    """What one forward pass says about an image."""

    logits: HeadLogits
    """(1, C, h, w) scores of both heads."""
    embedding: NDArray[np.float32]
    """Unit vector, (C * K,) with prototypes, else (D,)."""
    encoder: NDArray[np.float32]
    """Direction of the mean feature of the encoder's last stage, (D',) of length 1."""


def look(segmenter: Segmenter, image: Tensor) -> Look:
    """Scores and embedding of an image from one forward pass.

    Args:
        segmenter: Network and prototypes, in evaluation mode.
        image: (1, C_in, h, w) uint8.
    """
    network, bank = segmenter.network, segmenter.bank
    height, width = image.shape[-2:]
    with network.giving_stage():
        output = network(image)
    assert output.stage is not None
    features, linear = output.features.float(), output.linear_logits.float()
    tall, wide = network.padded_size(height, width)

    def inside(found: Tensor) -> Tensor:
        # rows and columns of a map that are image, not padding
        rows = max(1, round(found.shape[-2] * height / tall))
        columns = max(1, round(found.shape[-1] * width / wide))
        return found[0, ..., :rows, :columns]

    stage = mean_feature(inside(output.stage.float()))
    full = network.upsample(linear, height, width)
    if not bool(bank.active.any()):
        return Look(HeadLogits(full, None), mean_feature(inside(features)), stage)
    similarity = bank.similarity_map(features)
    prototype = bank.pool(similarity.movedim(2, -1).movedim(1, -2)).movedim(-1, 1)
    shares = prototype_shares(inside(similarity), bank.active, bank.temperature)
    return Look(HeadLogits(full, network.upsample(prototype, height, width)), shares, stage)


def prototype_shares(similarity_CKYX: Tensor, active_C: Tensor, temperature: float) -> NDArray[np.float32]:
    """Square roots of the part of the image that each prototype explains.

    A pixel counts for all prototypes by ``softmax(cos / T)``: whole pixels for the nearest one would make two
    encodings of one picture twice as different, compared with other pictures. Roots, so that the vector has
    length 1 and distances are Hellinger's, in which rare classes count.

    Args:
        similarity_CKYX: Cosines with all prototypes.
        active_C: Classes that have prototypes, at least one.
        temperature: T, that of the prototype head.

    Returns:
        (C * K,) float32 of length 1.
    """
    scaled = similarity_CKYX.flatten(2) / temperature
    scaled = scaled.masked_fill(~active_C[:, None, None], float("-inf"))
    shares = scaled.flatten(0, 1).softmax(0).mean(1)
    roots: NDArray[np.float32] = (shares / shares.sum()).sqrt().cpu().numpy()
    return roots


def mean_feature(features_DYX: Tensor) -> NDArray[np.float32]:
    """Direction of the mean of unit features: (D, Y, X) -> (D,) float32 of length 1 (0 for no direction)."""
    mean = F.normalize(features_DYX, dim=0).mean((1, 2))
    direction: NDArray[np.float32] = F.normalize(mean, dim=0).cpu().numpy()
    return direction
