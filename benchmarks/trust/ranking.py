"""How well a score tells wrong from right, from counts at each distinct score; and all scores together.

``wrong`` and ``right`` are how many of each there are at each distinct value of the score, by *decreasing*
score, (G,) each: a resample of the images is then a weighted sum of their counts. Needs the ``bench`` extra.

Shape legend: ``N`` items, ``G`` distinct scores (or bins of them), ``I`` images, ``S`` scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RIDGE = 1e-3


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


def _from_counts(name: str, wrong: Floats, right: Floats) -> float:
    """A ranking metric of scikit-learn, which takes the counts as weights of one item each."""
    from sklearn import metrics

    place = np.arange(len(wrong))
    label = np.repeat([1, 0], len(wrong))
    weight = np.concatenate([wrong, right])
    return float(getattr(metrics, name)(label, -np.tile(place, 2), sample_weight=weight))


def auroc(wrong: Floats, right: Floats) -> float:
    """Probability that a wrong item has a higher score than a right one, a tie counting half."""
    return _from_counts("roc_auc_score", wrong, right)


def average_precision(wrong: Floats, right: Floats) -> float:
    """Area under precision over recall, without interpolation: mean precision at the wrong items.

    The share of wrong items is what a score without any information gets.
    """
    return _from_counts("average_precision_score", wrong, right)


def caught(wrong: Floats, right: Floats, share: float) -> float:
    """Part of all wrong items among the ``share`` with the highest scores; a cut tie counts in part.

    (scikit-learn has no such figure.)
    """
    size = wrong + right
    before = np.cumsum(size) - size
    part = np.clip((share * size.sum() - before) / np.maximum(size, 1), 0, 1)
    return float((wrong * part).sum() / wrong.sum())


def risk_coverage(wrong: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Share of items kept, most trusted first, and the share of wrong ones among them: (G,) each."""
    kept = np.cumsum((wrong + right)[::-1])
    return kept / kept[-1], np.cumsum(wrong[::-1]) / np.maximum(kept, 1)


def spearman(first: Floats, second: Floats) -> float:
    """Correlation of ranks in [-1, 1], (I,) each; 0 when one side is constant."""
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)


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


def design(pixel_SN: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores and their log-odds with a constant, (S, N) -> (N, 2 S + 1)."""
    values = pixel_SN.astype(np.float64).T
    inside = values.clip(1e-4, 1 - 1e-4)
    return np.concatenate([values, np.log(inside / (1 - inside)), np.ones((len(values), 1))], 1)


def cross_validated(
    pixel_SN: NDArray[np.float32], wrong_N: NDArray[np.bool_], image_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Chance of an error by weights that never saw the image, (N,) in [0, 1].

    Two folds: the first and the second half of the images in list order, because neighbours may be frames of
    one video. A half in which nothing, or everything, is wrong teaches its share of errors only.
    """
    from sklearn.linear_model import LogisticRegression

    inputs = design(pixel_SN)
    center, scale = inputs[:, :-1].mean(0), inputs[:, :-1].std(0)
    inputs[:, :-1] = (inputs[:, :-1] - center) / np.maximum(scale, 1e-9)
    first = image_N < (image_N.max() + 1) / 2
    chance = np.empty(len(wrong_N))
    for known in (first, ~first):
        if 0 < wrong_N[known].sum() < known.sum():
            ridge = RIDGE * known.sum() / inputs.shape[1]
            model = LogisticRegression(C=1 / ridge, fit_intercept=False, solver="newton-cholesky", tol=1e-8)
            chance[~known] = model.fit(inputs[known], wrong_N[known]).predict_proba(inputs[~known])[:, 1]
        else:
            chance[~known] = wrong_N[known].mean() if known.any() else 0.5
    return chance
