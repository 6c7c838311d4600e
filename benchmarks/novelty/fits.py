"""Distances to what was labelled: fitted to features of labelled pixels, no gradient and no training.

Each is higher where a feature is less like them. ``cosine``: one minus the highest cosine with a prototype.
``mahalanobis``: squared distance to the nearest prototype's mean under the one covariance within prototypes
(Lee et al., arXiv 1807.03888, by prototype instead of by class). ``residual``: length of what a principal
subspace of the labelled features leaves over; with the energy of the logits it is ViM (Wang et al., arXiv
2203.10807). ``neighbours``: distance to the tenth nearest of 4,000 labelled features on the unit sphere
(Sun et al., arXiv 2204.06507).

Shape legend: ``N`` pixels, ``D`` channels, ``P`` prototypes of all classes, ``M`` kept features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protoseg.method.prototype_start import starting_prototypes
from protoseg.models.prototypes import unit

KEPT = 4_000
NEIGHBOUR = 10
# added to the covariance, as a part of its mean variance, so that it can be inverted
RIDGE = 1e-3


@dataclass(frozen=True)
class Distances:
    """What is kept of the labelled features of one place in the network."""

    prototypes: Tensor
    """(P, D) unit vectors."""
    whitening: Tensor
    """(D, D) with ``W W^T`` the inverse covariance within prototypes."""
    means: Tensor
    """(P, D) means of the prototypes' features, times ``whitening``."""
    origin: Tensor
    """(D,) point that the residual is measured from."""
    minor: Tensor
    """(D, R) orthonormal basis of what the principal subspace leaves over."""
    kept: Tensor
    """(M, D) unit vectors."""

    def __call__(self, features_ND: Tensor) -> dict[str, Tensor]:
        """Every distance of each feature: (N, D) -> (N,) each, by name."""
        features = features_ND.float()
        direction = unit(features)
        white = features @ self.whitening
        squares = white.square().sum(1, keepdim=True) - 2 * white @ self.means.t()
        similar = (direction @ self.kept.t()).topk(min(NEIGHBOUR, len(self.kept)), 1).values[:, -1]
        return {
            "cosine": 1 - (direction @ self.prototypes.t()).amax(1),
            "mahalanobis": (squares + self.means.square().sum(1)).amin(1).clamp(min=0),
            "residual": ((features - self.origin) @ self.minor).norm(dim=1),
            "neighbours": (2 - 2 * similar).clamp(min=0).sqrt(),
        }


def fit(
    features_ND: Tensor,
    class_N: Tensor,
    *,
    num_prototypes: int,
    rng: np.random.Generator,
    prototypes: Tensor | None = None,
    origin: Tensor | None = None,
) -> Distances:
    """Fit all distances to labelled features.

    Args:
        features_ND: (N, D).
        class_N: (N,) their classes.
        num_prototypes: Prototypes of each class, from spherical k-means.
        rng: Source of randomness.
        prototypes: (P, D) prototypes that there are already; None finds them.
        origin: (D,) origin of the residual; None takes the mean.
    """
    features = features_ND.float()
    if prototypes is None:
        of_class = {int(label): features[class_N == label] for label in class_N.unique()}
        found = starting_prototypes(of_class, num_prototypes, "kmeans", rng)
        prototypes = torch.cat(list(found.values()))
    prototypes = unit(prototypes)
    direction = unit(features)
    nearest = (direction @ prototypes.t()).argmax(1)
    exact = features.double()
    counts = torch.bincount(nearest, minlength=len(prototypes)).double()
    sums = torch.zeros(len(prototypes), features.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, nearest, exact) / counts.clamp(min=1)[:, None]
    whitening = inverse_root(covariance(exact - means[nearest]))
    start = exact.mean(0) if origin is None else origin.double()
    vectors = torch.linalg.eigh(covariance(exact - start)).eigenvectors
    # smallest first; half of the channels is the rule of the paper's code for features of this width
    minor = vectors[:, : features.shape[1] // 2]
    chosen = torch.from_numpy(rng.permutation(len(features))[:KEPT])
    won = counts > 0
    return Distances(
        prototypes, whitening.float(), (means[won] @ whitening).float(), start.float(), minor.float(),
        direction[chosen],
    )  # fmt: skip


def covariance(centred_ND: Tensor) -> Tensor:
    """(D, D) second moments with a small ridge."""
    found = centred_ND.t() @ centred_ND / max(len(centred_ND), 1)
    return found + RIDGE * found.diagonal().mean().clamp(min=1e-12) * torch.eye(len(found)).double()


def inverse_root(matrix: Tensor) -> Tensor:
    """``W`` with ``W W^T`` the inverse of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors / values.clamp(min=1e-12).sqrt()
