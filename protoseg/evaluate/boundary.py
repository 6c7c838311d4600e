"""The boundary F-score of a class (Perazzi et al., CVPR 2016), on the CPU. Needs numpy and OpenCV only.

A pixel is on the boundary of class c when it is of class c and its right, lower or lower right neighbour
is not, or the other way round. Precision is the share of predicted boundary pixels within a tolerance of a
target one of that class, recall the reverse, F their harmonic mean.

Shape legend: ``C`` classes, ``N`` label maps of one image, ``H W`` image.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Labels = NDArray[Any]

# fixed point, so that sums over images and processes do not depend on their order
ONE = 1 << 24
DEFAULT_TOLERANCE = 0.0075
NEIGHBOURS = ((0, 1), (1, 0), (1, 1))


def tolerance_pixels(height: int, width: int, tolerance: float = DEFAULT_TOLERANCE) -> int:
    """Distance in pixels within which boundaries match: the share of the diagonal, rounded up."""
    return math.ceil(tolerance * math.hypot(height, width))


def boundary_counts(
    labels_NHW: Labels,
    target_HW: Labels,
    num_classes: int,
    ignore_index: int,
    tolerance: float = DEFAULT_TOLERANCE,
) -> NDArray[np.int64]:
    """Boundary F-scores of one image, for several predictions of it.

    A class of the target without any boundary scores 1 if the prediction has it, also without a boundary,
    else 0. Ignored bands up to twice the tolerance wide, such as the outlines of VOC, are closed by growing
    the classes on both sides; in wider ignored areas there is no boundary.

    Args:
        labels_NHW: Predicted class ids in [0, C).
        target_HW: Class ids, or anything else for "not counted".
        num_classes: C.
        ignore_index: Value that is not counted.
        tolerance: Fraction of the image diagonal.

    Returns:
        (N, 2, C) int64: F-score in units of 2**-24, and 1 where the class is in the target (elsewhere
        both are 0).
    """
    valid = (target_HW >= 0) & (target_HW < num_classes) & (target_HW != ignore_index)
    counts = np.zeros((len(labels_NHW), 2, num_classes), np.int64)
    radius = tolerance_pixels(target_HW.shape[0], target_HW.shape[1], tolerance)
    present = np.unique(target_HW[valid])
    target, valid = close_ignored(target_HW, valid, radius)
    for class_id in present:
        wanted = edges(target == class_id, valid)
        reach = dilate(wanted, radius)
        for number, label in enumerate(labels_NHW):
            found = edges(label == class_id, valid)
            score = _f_score(wanted, reach, found, dilate(found, radius))
            if math.isnan(score):
                score = float(((label == class_id) & valid).any())
            counts[number, :, class_id] = np.rint(score * ONE), 1
    return counts


def boundary_f_per_class(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Summed (2, C) ``boundary_counts`` -> (C,) mean F over images; NaN for absent classes."""
    score, images = counts.astype(np.float64)
    return np.where(images > 0, score / ONE / np.maximum(images, 1), math.nan)


def edges(mask: Bools, valid: Bools) -> Mask:
    """(H, W) 1 on the boundary of a mask, looked for between valid pixels."""
    height, width = mask.shape
    found = np.zeros((height, width), np.uint8)
    for dy, dx in NEIGHBOURS:
        here, there = np.s_[: height - dy, : width - dx], np.s_[dy:, dx:]
        found[here] |= (mask[here] != mask[there]) & valid[here] & valid[there]
    return found


def dilate(mask: Mask, radius: int) -> Mask:
    """(H, W) 1 within ``radius`` pixels (a disc) of a 1."""
    offsets = np.arange(-radius, radius + 1) ** 2
    disc = (offsets[:, None] + offsets[None, :] <= radius**2).astype(np.uint8)
    import cv2  # a training measures no boundaries, and may run where OpenCV is not

    return cv2.dilate(mask, disc)  # type: ignore[return-value]


def _f_score(wanted: Mask, reach: Mask, found: Mask, found_reach: Mask) -> float:
    """F of boundary pixels and what is within reach of them; NaN when neither side has a boundary."""
    num_wanted, num_found = int(wanted.sum()), int(found.sum())
    if num_wanted == num_found == 0:
        return math.nan
    precision = int((found & reach).sum()) / max(num_found, 1)
    recall = int((wanted & found_reach).sum()) / max(num_wanted, 1)
    return 2 * precision * recall / max(precision + recall, 1e-12)


def close_ignored(target_HW: Labels, valid_HW: Bools, radius: int) -> tuple[Labels, Bools]:
    """Fill ignored bands up to ``2 * radius`` wide from both sides; wider areas stay ignored.

    Returns:
        Target and validity, (H, W) each.
    """
    if valid_HW.all():
        return target_HW, valid_HW
    target, known = target_HW, valid_HW
    for _ in range(radius):
        target, known = _grow(target, known)
    # what is left was deeper than the radius; grown back, with its corners, it is the ignored area
    # without thin bands
    thick = ~known
    for _ in range(2 * radius):
        thick = _grow(thick, thick)[1] & ~valid_HW
    return target, ~thick


def _grow(label: Labels, known: Bools) -> tuple[Labels, Bools]:
    """Give unknown pixels the label of a known one to the left, right, above or below."""
    grown, filled = label.copy(), known.copy()
    first, last = np.s_[1:], np.s_[:-1]
    for to, source in (
        (np.s_[:, first], np.s_[:, last]),
        (np.s_[:, last], np.s_[:, first]),
        (np.s_[first, :], np.s_[last, :]),
        (np.s_[last, :], np.s_[first, :]),
    ):
        take = known[source] & ~filled[to]
        grown[to] = np.where(take, label[source], grown[to])
        filled[to] |= take
    return grown, filled
