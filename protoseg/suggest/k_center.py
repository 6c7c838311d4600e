"""Which of many images to take: high scores, and no two alike.

Shape legend: ``N`` candidates, ``L`` images that count as taken already, ``E`` numbers of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def distance_to(embeddings_NE: Floats, one_E: Floats) -> Floats:
    """``sqrt(1 - cos)`` of unit vectors, clipped to [0, 1]; (N, E), (E,) -> (N,).

    For square roots of histograms this is their Hellinger distance.
    """
    # exactly 0 for copies, where 1 - cos would be off by the square root of an epsilon
    difference = np.linalg.norm(embeddings_NE - one_E, axis=1) / np.sqrt(2)
    clipped: Floats = np.minimum(difference, 1).astype(np.float32)
    return clipped


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
    total = len(scores_N)
    nearest = np.full(total, -1, np.int64)
    distance = np.full(total, np.inf, np.float32)
    free = np.ones(total, np.bool_)

    def take(place: int, vector: Floats) -> None:
        found = distance_to(embeddings_NE, vector)
        closer = found < distance
        nearest[closer], distance[closer] = place, found[closer]

    for place, vector in enumerate(taken_LE, start=total):
        take(place, vector)
    picks: list[Pick] = []
    while len(picks) < count:
        allowed = free & (distance >= min_distance)
        if not allowed.any():
            break
        value = scores_N if not np.isfinite(distance).any() else scores_N * distance
        index = int(np.argmax(np.where(allowed, value, -1)))
        known = int(nearest[index])
        picks.append(
            Pick(index, known if known >= 0 else None, float(distance[index]) if known >= 0 else None)
        )
        free[index] = False
        take(index, embeddings_NE[index])
    return picks, int((free & (distance < min_distance)).sum())
