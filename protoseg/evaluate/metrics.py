"""The one rule of IoU and mIoU, for training, evaluation, export and benchmarks. Needs numpy only.

Shape legend: ``C`` classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def confusion_matrix(label: NDArray[Any], target: NDArray[Any], num_classes: int) -> Counts:
    """Count pixels by target and predicted class.

    Args:
        label: Predicted class ids in [0, C), any integer type.
        target: Class ids of the same shape; values outside [0, C), such as an ignore index, are left out.
        num_classes: C.

    Returns:
        (C, C) int64; rows are targets, columns predictions.

    Raises:
        ValueError: If the shapes differ.
    """
    if label.shape != target.shape:
        raise ValueError(f"label has shape {label.shape}, target {target.shape}")
    flat = target.astype(np.int64).ravel()
    valid = (flat >= 0) & (flat < num_classes)
    index = flat[valid] * num_classes + label.astype(np.int64).ravel()[valid]
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_per_class(confusion: Counts) -> NDArray[np.float64]:
    """(C, C) counts -> (C,) intersection over union in [0, 1].

    NaN for a class without a target pixel: it is left out of the mean. (Pixels wrongly predicted as
    such a class still count against the classes they belong to.)
    """
    hits = np.diagonal(confusion).astype(np.float64)
    in_target = confusion.sum(1)
    union = in_target + confusion.sum(0) - np.diagonal(confusion)
    return np.where(in_target > 0, hits / np.maximum(union, 1), math.nan)


def miou(confusion: Counts) -> float:
    """Mean IoU in [0, 1] over the classes present in the targets; NaN when nothing was counted."""
    return mean_of_present(iou_per_class(confusion))


def mean_of_present(values: NDArray[np.float64]) -> float:
    """Mean of the values that are numbers; NaN when none is."""
    present = values[np.isfinite(values)]
    return float(present.mean()) if len(present) else math.nan


def pixel_accuracy(confusion: Counts) -> float:
    """Share of counted pixels with the right class, in [0, 1]; NaN when nothing was counted."""
    total = int(confusion.sum())
    return int(np.trace(confusion)) / total if total else math.nan
