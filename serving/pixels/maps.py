"""Label and score maps: their types, and what is counted and filtered in them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]


def keep_classes(labels: Labels, classes: frozenset[int] | None, other: int) -> Labels:
    """Labels with every class that is not in ``classes`` set to ``other``."""
    if classes is None:
        return labels
    table = np.full(256, other, np.uint8)
    for index in classes:
        table[index] = index
    return table[labels]


def class_pixels(labels: Labels, num_classes: int) -> NDArray[np.int64]:
    """Pixels of each class."""
    histogram = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256])
    # float32 counts are exact up to 2**24
    if labels.size <= 2**24:
        return histogram.ravel()[:num_classes].astype(np.int64)
    return np.bincount(labels.ravel(), minlength=num_classes)[:num_classes]
