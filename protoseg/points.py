"""Which pixels the prototype branch looks at, and their features.

Shape legend: ``B`` batch, ``N`` points of an image, ``D`` feature channels, ``H W`` image,
``Y X`` feature map.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def grid_points(rng: np.random.Generator, batch: int, grid: int, size: tuple[int, int]) -> Tensor:
    """One random pixel in each of ``grid`` x ``grid`` cells of the image [P].

    Args:
        rng: Source of randomness.
        batch: B.
        grid: Cells along a side.
        size: (H, W) in pixels; where a cell is smaller than a pixel, pixels repeat.

    Returns:
        (B, grid * grid) int64 flat pixel index ``row * W + column``.
    """
    height, width = size
    offsets = rng.random((2, batch, grid, grid))
    cells = np.arange(grid)
    rows = ((cells[:, None] + offsets[0]) * height / grid).astype(np.int64)
    columns = ((cells[None, :] + offsets[1]) * width / grid).astype(np.int64)
    flat = np.minimum(rows, height - 1) * width + np.minimum(columns, width - 1)
    return torch.from_numpy(flat.reshape(batch, grid * grid))


def balanced_points(uniform_BN: Tensor, target_BHW: Tensor, num_classes: int, balance: float) -> Tensor:
    """Pixels drawn with probability proportional to ``count(class of the pixel) ** -balance``.

    Counts are those of the pixel's own image, so that the draw does not depend on how images are
    spread over processes. Sampling is with replacement, by the inverse of the cumulated weights.

    Args:
        uniform_BN: Random numbers in [0, 1).
        target_BHW: Class ids; a value outside [0, num_classes) is never drawn, unless the image has
            nothing else.
        num_classes: C.
        balance: 0 is uniform over pixels with a class, 1 uniform over the classes present.

    Returns:
        (B, N) int64 flat pixel index.
    """
    flat = target_BHW.flatten(1)
    valid = (flat >= 0) & (flat < num_classes)
    own = torch.where(valid, flat, num_classes)
    counts = torch.zeros(len(flat), num_classes + 1, device=flat.device)
    counts.scatter_add_(1, own, torch.ones_like(own, dtype=counts.dtype))
    weight = counts.clamp(min=1).pow(-balance).gather(1, own) * valid
    edges = weight.double().cumsum(1)
    picked = torch.searchsorted(edges, uniform_BN.double() * edges[:, -1:], right=True)
    return picked.clamp(max=flat.shape[1] - 1)


def features_at(features_BDYX: Tensor, index_BN: Tensor, width: int, padded_size: tuple[int, int]) -> Tensor:
    """Features at image pixels, as if the map were upsampled bilinearly to the image first.

    Args:
        features_BDYX: Feature map of the padded image.
        index_BN: Flat pixel index ``row * width + column`` in the unpadded image.
        width: W of the unpadded image.
        padded_size: (H, W) of the image after padding, which the map covers.

    Returns:
        (B, N, D) float32. Equal to ``interpolate(..., align_corners=False)`` followed by indexing.
    """
    rows = torch.div(index_BN, width, rounding_mode="floor")
    columns = index_BN % width
    height, padded_width = padded_size
    x = (2 * columns + 1) / padded_width - 1
    y = (2 * rows + 1) / height - 1
    grid = torch.stack([x, y], -1)[:, None].float()
    sampled = F.grid_sample(
        features_BDYX.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[:, :, 0].transpose(1, 2)
