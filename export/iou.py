"""Intersection over union from label maps, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def confusion_matrix(first: Array, second: Array, classes: int) -> Array:
    """(C, C) counts of pixels by the labels of two maps."""
    index = first.astype(np.int64).ravel() * classes + second.astype(np.int64).ravel()
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def iou(confusion: Array) -> Array:
    """Per-class IoU of a (C, C) confusion matrix; NaN for a class that neither side has."""
    both = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - both
    return np.asarray(np.divide(both, union, out=np.full(len(both), np.nan), where=union > 0))


def mean_iou(confusion: Array) -> float | None:
    """Mean of ``iou`` over the classes that occur, or None."""
    values = iou(confusion)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
