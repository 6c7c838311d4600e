"""Which of many images to take: all prototypes evenly, one of each cluster, or high scores and no two alike.

Shape legend: ``N`` candidates, ``L`` images that count as taken already, ``E`` numbers of an embedding,
``D`` channels of the encoder's last stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protoseg.models.kmeans import spherical_kmeans

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pick:
    """One chosen candidate."""

    index: int
    """Place among the candidates."""
    nearest: int | None
    """The image taken before that is most like it: a candidate's index, or ``N + l`` for image l of those
    taken already; None for the very first."""
    distance: float | None
    """How far that one is, in [0, 1]."""
    cluster_size: int | None = None
    """Images in the cluster that it stands for; None without clusters."""


def distance_to(embeddings_NE: Floats, one_E: Floats) -> Floats:
    """``sqrt(1 - cos)`` of unit vectors, clipped to [0, 1]; (N, E), (E,) -> (N,).

    For square roots of histograms this is their Hellinger distance.
    """
    # exactly 0 for copies, where 1 - cos would be off by the square root of an epsilon
    difference = np.linalg.norm(embeddings_NE - one_E, axis=1) / np.sqrt(2)
    clipped: Floats = np.minimum(difference, 1).astype(np.float32)
    return clipped


class _Taken:
    """What is taken, and how far the nearest of it is from each candidate."""

    def __init__(self, embeddings_NE: Floats, taken_LE: Floats, min_distance: float) -> None:
        total = len(embeddings_NE)
        self.embeddings, self.min_distance = embeddings_NE, min_distance
        self.nearest = np.full(total, -1, np.int64)
        self.distance = np.full(total, np.inf, np.float32)
        self.free = np.ones(total, np.bool_)
        for place, vector in enumerate(taken_LE, start=total):
            self._add(place, vector)

    def _add(self, place: int, vector: Floats) -> None:
        found = distance_to(self.embeddings, vector)
        closer = found < self.distance
        self.nearest[closer], self.distance[closer] = place, found[closer]

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """(N,) candidates that are neither taken nor near duplicates."""
        return self.free & (self.distance >= self.min_distance)

    @property
    def repeats(self) -> int:
        """Candidates that are left out as near duplicates."""
        return int((self.free & (self.distance < self.min_distance)).sum())

    def take(self, index: int, cluster_size: int | None = None) -> Pick:
        """Choose a candidate."""
        place, distance = int(self.nearest[index]), float(self.distance[index])
        self.free[index] = False
        self._add(index, self.embeddings[index])
        known = place >= 0
        return Pick(index, place if known else None, distance if known else None, cluster_size)


def pick_clustered(
    features_ND: Floats, embeddings_NE: Floats, taken_LE: Floats, count: int, min_distance: float
) -> tuple[list[Pick], int]:
    """One image of each of ``count`` clusters, those of the largest clusters first.

    Clusters are those of spherical k-means over all candidates that are no near duplicates of what is taken;
    the image is the one nearest the centre. Where that gives fewer images, the candidates that are least like
    what is taken follow. Depends on the input and its order only.

    Args:
        features_ND: Unit vectors that make the clusters.
        embeddings_NE: Unit vectors that near duplicates are found by.
        taken_LE: Those of labelled images, none or more.
        count: Most images to choose.
        min_distance: A candidate nearer than this to any image taken is a near duplicate and never chosen.

    Returns:
        At most ``count`` picks in order, fewer when the rest are near duplicates; and how many of the others
        are near duplicates.
    """
    taken = _Taken(embeddings_NE, taken_LE, min_distance)
    candidates = np.flatnonzero(taken.allowed)
    picks: list[Pick] = []
    if len(candidates):
        points = torch.from_numpy(features_ND[candidates])
        centres = spherical_kmeans(points, min(count, len(points)), torch.Generator().manual_seed(0))
        likeness, number = (part.numpy() for part in (points @ centres.t()).max(1))
        sizes = np.bincount(number, minlength=len(centres))
        for cluster in np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]:
            inside = np.flatnonzero(number == cluster)
            order = candidates[inside[np.argsort(-likeness[inside], kind="stable")]]
            usable = order[taken.allowed[order]]
            if len(usable):
                picks.append(taken.take(int(usable[0]), int(sizes[cluster])))
    while len(picks) < count and taken.allowed.any():
        picks.append(taken.take(int(np.argmax(np.where(taken.allowed, taken.distance, -1))), 1))
    return picks, taken.repeats


def pick_evenly(
    embeddings_NE: Floats, taken_LE: Floats, count: int, min_distance: float
) -> tuple[list[Pick], int]:
    """Greedily the image that adds most to the sum over prototypes of the square root of what was taken.

    What was taken of a prototype is the sum of its shares of the images, labelled ones included. The root
    makes a prototype that few of them show worth more than one that all have. The lowest index wins among
    equals, and each beginning of the result is what fewer images would be.

    Args:
        embeddings_NE: Square roots of the shares, unit vectors.
        taken_LE: Those of labelled images, none or more.
        count: Most images to choose.
        min_distance: A candidate nearer than this to any image taken is a near duplicate and never chosen.

    Returns:
        At most ``count`` picks in order, fewer when the rest are near duplicates; and how many of the others
        are near duplicates.
    """
    taken = _Taken(embeddings_NE, taken_LE, min_distance)
    shares = np.square(embeddings_NE, dtype=np.float64)
    total = np.square(taken_LE, dtype=np.float64).sum(0)
    picks: list[Pick] = []
    while len(picks) < count and taken.allowed.any():
        gain = np.sqrt(total + shares).sum(1)
        picks.append(taken.take(int(np.argmax(np.where(taken.allowed, gain, -1)))))
        total += shares[picks[-1].index]
    return picks, taken.repeats


def pick_diverse(
    scores_N: Floats, embeddings_NE: Floats, taken_LE: Floats, count: int, min_distance: float
) -> tuple[list[Pick], int]:
    """Greedy choice: each time the largest ``score * distance to the nearest image taken so far``.

    This is k-center greedy (arXiv 1708.00489, algorithm 1) with the distance weighted by the score: an image
    is taken for being wrong and for being unlike what is labelled. While nothing is taken the score alone
    decides. The lowest index wins among equals, so the result depends on the input only. Cost: one pass
    over (N, E) for each image taken.

    Args:
        scores_N: Expected error, 0 or more.
        embeddings_NE: Unit vectors.
        taken_LE: Unit vectors of labelled images, none or more.
        count: Most images to choose.
        min_distance: A candidate nearer than this to any image taken is a near duplicate and never chosen.

    Returns:
        At most ``count`` picks in order, fewer when the rest are near duplicates; and how many of the others
        are near duplicates.
    """
    taken = _Taken(embeddings_NE, taken_LE, min_distance)
    picks: list[Pick] = []
    while len(picks) < count and taken.allowed.any():
        known = np.isfinite(taken.distance).any()
        value = scores_N * taken.distance if known else scores_N
        picks.append(taken.take(int(np.argmax(np.where(taken.allowed, value, -1)))))
    return picks, taken.repeats
