"""How well a score tells wrong from right, from counts at each distinct score.

Everything takes ``wrong`` and ``right``: how many of each there are at each distinct value of the score, by
*decreasing* score, along the last axis. Equal scores share a place, so ties need no special case, and
further leading axes (resamples, say) come for free.

Shape legend: ``N`` items, ``G`` distinct scores (or bins of them), ``I`` images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def places(score: ArrayLike) -> Ints:
    """Place of each item by decreasing score, (N,) -> (N,) from 0; equal scores share one."""
    return np.unique(-np.asarray(score, np.float64), return_inverse=True)[1].astype(np.int64)


def coarse_places(place: Ints, bins: int) -> Ints:
    """Places merged into at most ``bins`` runs of about equally many items; the order is kept."""
    counts = np.bincount(place)
    middle = np.cumsum(counts) - counts / 2
    return np.unique((middle * bins / len(place)).astype(np.int64), return_inverse=True)[1][place]


def counts_by_place(place: Ints, wrong: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Wrong and right items at each place: (N,), (N,) -> (G,), (G,)."""
    size = int(place.max()) + 1
    return (
        np.bincount(place[wrong], minlength=size).astype(np.float64),
        np.bincount(place[~wrong], minlength=size).astype(np.float64),
    )


def counts_by_image(place: Ints, wrong: NDArray[np.bool_], image: Ints, images: int) -> Floats:
    """Wrong and right items at each place for each image: (N,) each -> (I, 2, G)."""
    size = int(place.max()) + 1
    index = (image * 2 + ~wrong) * size + place
    return np.bincount(index, minlength=2 * images * size).reshape(images, 2, size).astype(np.float64)


def auroc(wrong: Floats, right: Floats) -> Floats:
    """Probability that a wrong item has a higher score than a right one, a tie counting half."""
    lower = right.sum(-1, keepdims=True) - np.cumsum(right, -1)
    pairs = (wrong * (lower + right / 2)).sum(-1)
    return np.asarray(pairs / (wrong.sum(-1) * right.sum(-1)))


def average_precision(wrong: Floats, right: Floats) -> Floats:
    """Area under precision over recall, without interpolation: mean precision at the wrong items.

    The share of wrong items is what a score without any information gets.
    """
    found, taken = np.cumsum(wrong, -1), np.cumsum(wrong + right, -1)
    return np.asarray((wrong * found / np.maximum(taken, 1)).sum(-1) / wrong.sum(-1))


def caught(wrong: Floats, right: Floats, share: float) -> Floats:
    """Part of all wrong items among the ``share`` with the highest scores; a cut tie counts in part."""
    size = wrong + right
    before = np.cumsum(size, -1) - size
    wanted = share * size.sum(-1, keepdims=True)
    part = np.clip((wanted - before) / np.maximum(size, 1), 0, 1)
    return np.asarray((wrong * part).sum(-1) / wrong.sum(-1))


def risk_coverage(wrong: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Share of items kept, most trusted first, and the share of wrong ones among them: (G,) each."""
    kept = np.cumsum((wrong + right)[::-1])
    return kept / kept[-1], np.cumsum(wrong[::-1]) / np.maximum(kept, 1)


def mean_ranks(values: Floats) -> Floats:
    """Ranks from 1, (I,) -> (I,); equal values share their mean rank."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]


def spearman(first: Floats, second: Floats) -> float:
    """Correlation of ranks in [-1, 1], (I,) each; 0 when one side is constant."""
    a, b = mean_ranks(first), mean_ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def block_resamples(images: int, block: int, resamples: int, seed: int) -> Ints:
    """Indices of a circular block bootstrap: (resamples, I).

    Neighbours in a list are often frames of one video: drawing them one by one would give intervals that
    are too narrow (Politis and Romano, 1992).
    """
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, images, (resamples, -(-images // block)))
    index = (starts[..., None] + np.arange(block)) % images
    return index.reshape(resamples, -1)[:, :images]


def interval(values: Floats) -> list[float]:
    """Middle 95 % of resampled values."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]
