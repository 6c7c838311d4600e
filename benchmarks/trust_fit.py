"""Logistic regression of all scores, the upper reference of ``benchmarks.trust``.

Shape legend: ``S`` scores, ``N`` pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-3
ITERATIONS = 30


def design(pixel_SN: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores and their log-odds with a constant, (S, N) -> (N, 2 S + 1)."""
    values = pixel_SN.astype(np.float64).T
    inside = values.clip(1e-4, 1 - 1e-4)
    return np.concatenate([values, np.log(inside / (1 - inside)), np.ones((len(values), 1))], 1)


def fit(inputs: NDArray[np.float64], wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights of a logistic regression by Newton's steps with a small ridge, (N, F), (N,) -> (F,)."""
    weight = np.zeros(inputs.shape[1])
    ridge = RIDGE * len(inputs) * np.eye(inputs.shape[1]) / inputs.shape[1]
    for _ in range(ITERATIONS):
        chance = 1 / (1 + np.exp(-np.clip(inputs @ weight, -30, 30)))
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + ridge
        step = np.linalg.solve(curve, inputs.T @ (wrong - chance) - ridge @ weight)
        weight += step
        if np.abs(step).max() < 1e-6:
            break
    return weight


def cross_validated(
    pixel_SN: NDArray[np.float32], wrong_N: NDArray[np.bool_], image_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Chance of an error by weights that never saw the image, (N,) in [0, 1].

    Two folds: the first and the second half of the images in list order, because neighbours may be frames of
    one video. A half in which nothing, or everything, is wrong teaches its share of errors only.
    """
    inputs = design(pixel_SN)
    center, scale = inputs[:, :-1].mean(0), inputs[:, :-1].std(0)
    inputs[:, :-1] = (inputs[:, :-1] - center) / np.maximum(scale, 1e-9)
    first = image_N < (image_N.max() + 1) / 2
    chance = np.empty(len(wrong_N))
    for known in (first, ~first):
        if 0 < wrong_N[known].sum() < known.sum():
            weight = fit(inputs[known], wrong_N[known])
            chance[~known] = 1 / (1 + np.exp(-np.clip(inputs[~known] @ weight, -30, 30)))
        else:
            chance[~known] = wrong_N[known].mean() if known.any() else 0.5
    return chance
