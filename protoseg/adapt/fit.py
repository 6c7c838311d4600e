"""Fits one class to its cells while the others stay: a row of the linear head, and K prototypes.

Shape legend: ``N`` cells, ``D`` channels, ``C`` classes, ``K`` prototypes of a class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ITERATIONS = 30
CONVERGED = 1e-4


def fit_row(
    features_ND: Tensor,
    share_N: Tensor,
    weight_N: Tensor,
    others_N: Tensor,
    prior_D1: Tensor,
    strength: float,
) -> Tensor:
    """Weight and bias of one class in a softmax whose other classes stay as they are.

    With the others fixed, ``p = sigmoid(w z + b - logsumexp(others))``: a logistic regression with an offset. Its
    likelihood is concave, and Newton's method finds the maximum in a few products of (N, D + 1) matrices.

    Args:
        features_ND: What the head's last layer reads.
        share_N: Wanted probability of the class at each cell, in [0, 1].
        weight_N: How much a cell counts, at least 0.
        others_N: ``logsumexp`` of the other classes' scores.
        prior_D1: Weight and bias towards which the fit is drawn.
        strength: How strongly: the sum of cell weights that a unit of squared distance outweighs.

    Returns:
        (D + 1,) weight, then bias.
    """
    x = torch.cat([features_ND, torch.ones_like(features_ND[:, :1])], 1).double()
    y, offset, prior = share_N.double(), others_N.double(), prior_D1.double()
    weight = weight_N.double()
    pull = torch.full_like(prior, strength)
    pull[-1] *= 1e-3  # the bias is free
    row = prior.clone()

    def loss(candidate: Tensor) -> Tensor:
        score = x @ candidate - offset
        value = weight @ (F.softplus(score) - y * score)
        return value + 0.5 * (pull * (candidate - prior) ** 2).sum()

    best = loss(row)
    for _ in range(ITERATIONS):
        p = torch.sigmoid(x @ row - offset)
        gradient = x.t() @ (weight * (p - y)) + pull * (row - prior)
        curvature = (weight * p * (1 - p)).clamp(min=1e-9)
        hessian = (x * curvature[:, None]).t() @ x + pull.diag()
        step = torch.linalg.solve(hessian, gradient)
        length = 1.0
        while length > 1e-4:
            value = loss(row - length * step)
            if value <= best:
                break
            length /= 2
        else:
            break
        row = row - length * step
        if best - value < CONVERGED * (1 + abs(best)):
            break
        best = value
    return row.float()
