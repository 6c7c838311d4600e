"""Spherical k-means, which finds the starting prototypes of a class.

Shape legend: ``N`` points, ``D`` feature channels, ``k`` centres.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protoseg.models.prototypes import spread, unit


@torch.no_grad()
def spherical_kmeans(points_ND: Tensor, k: int, generator: torch.Generator, iterations: int = 25) -> Tensor:
    """Centres of unit vectors by Lloyd's iterations from a k-means++ start.

    Args:
        points_ND: (N, D) points on the CPU, N at least 1; normalised here.
        k: Number of centres.
        generator: CPU generator of the start.
        iterations: Largest number of iterations.

    Returns:
        (k, D) unit centres. With fewer than k distinct points: those, and jittered copies of them.

    Raises:
        ValueError: If there is no point.
    """
    if len(points_ND) == 0:
        raise ValueError("spherical_kmeans needs at least one point, got none")
    points = unit(points_ND)
    distinct = torch.unique(points, dim=0)
    if len(distinct) <= k:
        repeats = distinct[torch.arange(k) % len(distinct)]
        offsets = spread(k, points.shape[1], points.device)
        offsets[: len(distinct)] = 0
        return unit(repeats + offsets)

    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = 1 - points @ points[chosen[0]]
    for _ in range(k - 1):
        weight = nearest.clamp(min=0) ** 2
        pick = int(torch.multinomial(weight, 1, generator=generator)) if weight.sum() > 0 else 0
        chosen.append(pick)
        nearest = torch.minimum(nearest, 1 - points @ points[pick])
    centres = points[chosen].clone()
    labels = torch.full((len(points),), -1)
    for _ in range(iterations):
        similarity = points @ centres.t()
        best, new_labels = similarity.max(1)
        if torch.equal(new_labels, labels):
            break
        labels = new_labels
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        empty = torch.bincount(labels, minlength=k) == 0
        if empty.any():
            worst = best.argsort()[: int(empty.sum())]
            sums[empty] = points[worst]
        centres = unit(sums)
    return centres
