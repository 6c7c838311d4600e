"""Fits one class to its cells while the others stay: a row of the linear head, and K prototypes.

Shape legend: ``N`` cells, ``D`` channels, ``C`` classes, ``K`` prototypes of a class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 30
CONVERGED = 1e-5
SHORTEST = 1e-4


def fit_row(
    features_ND: Tensor,
    share_N: Tensor,
    weight_N: Tensor,
    others_N: Tensor,
    prior_D1: Tensor,
    strength: float,
    *,
    parts: Sequence[int] | None = None,
) -> Tensor:
    """Weight and bias of one class in a softmax whose other classes stay as they are.

    With the others fixed, ``p = sigmoid(w z + b - logsumexp(others))``: a logistic regression with an offset.
    Its likelihood is concave, and Newton's method finds the maximum in a few products of (N, D + 1) matrices.

    Args:
        features_ND: What the row reads.
        share_N: Wanted probability of the class at each cell, in [0, 1].
        weight_N: How much a cell counts, at least 0.
        others_N: ``logsumexp`` of the other classes' scores.
        prior_D1: Weight and bias towards which the fit is drawn.
        strength: How strongly, in cells: squared distances count times the mean variance of a feature of the
            same part, so that the scale of the features does not matter.
        parts: Features of each part, D in sum; None: one.

    Returns:
        (D + 1,) weight, then bias.
    """
    x = torch.cat([features_ND, torch.ones_like(features_ND[:, :1])], 1)
    part = weight_N / weight_N.sum()
    variance = part @ (features_ND - part @ features_ND).square()
    groups = torch.split(variance, list(parts or [len(variance)]))
    spread = torch.cat([group.mean().clamp(min=1e-12).expand_as(group) for group in groups])
    y, offset, weight, prior = (t.double() for t in (share_N, others_N, weight_N, prior_D1))
    pull = strength * F.pad(spread, (0, 1), value=1e-3).double()  # the bias is free

    def score(row: Tensor) -> Tensor:
        # products in float32: rounding makes a step a little longer or shorter, and the next one mends it
        return (x @ row.float()).double() - offset

    def loss(row: Tensor) -> float:
        s = score(row)
        fit = weight @ (F.softplus(s) - y * s)
        return float(fit + 0.5 * (pull * (row - prior) ** 2).sum())

    row, best = prior.clone(), loss(prior)
    for _ in range(ITERATIONS):
        p = torch.sigmoid(score(row))
        gradient = (x.t() @ (weight * (p - y)).float()).double() + pull * (row - prior)
        curvature = (weight * p * (1 - p)).clamp(min=1e-9).float()
        hessian = ((x * curvature[:, None]).t() @ x).double() + pull.diag()
        step, length = torch.linalg.solve(hessian, gradient), 1.0
        while (value := loss(row - length * step)) > best and length > SHORTEST:
            length /= 2
        if value > best:
            break
        row, gain, best = row - length * step, best - value, value
        if gain < CONVERGED * (1 + abs(best)):
            break
    return row.float()
