"""What is counted on the device: confusion and calibration.

Every accumulator is an int64 tensor that is summed over images and processes, so a result does not
depend on the order or on the number of processes: quantities with a fraction are kept in fixed point.

Shape legend: ``C`` classes, ``Q`` bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# fixed point: 2**24 holds every float32 in [0, 1] to its last bit from 0.5 up, and leaves room for
# 5e11 pixels in an int64
ONE = 1 << 24

DEFAULT_BINS = 15


def confusion_matrix(label: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count pixels by target and predicted class, without a host-device wait.

    Args:
        label: Predicted class ids in [0, C), any integer type.
        target: Class ids of the same shape; values that are ``ignore_index`` or outside [0, C) are
            left out.
        num_classes: C.
        ignore_index: Value that is not counted.

    Returns:
        (C, C) int64; rows are targets, columns predictions.

    Raises:
        ValueError: If the shapes differ.
    """
    if label.shape != target.shape:
        raise ValueError(f"label has shape {tuple(label.shape)}, target {tuple(target.shape)}")
    target, label = target.flatten().long(), label.flatten().long()
    valid = counted(target, num_classes, ignore_index)
    index = torch.where(valid, target * num_classes + label, num_classes**2)
    # bincount waits for the largest value on CUDA, and is no faster on the CPU
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=index.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    return counts[:-1].view(num_classes, num_classes)


def counted(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Pixels that have a class: bool of the shape of ``target``."""
    return (target >= 0) & (target < num_classes) & (target != ignore_index)


def calibration_counts(
    confidence: Tensor, correct: Tensor, valid: Tensor, bins: int = DEFAULT_BINS
) -> Tensor:
    """Sort pixels into equal bins of confidence.

    Args:
        confidence: Probability of the predicted class in [0, 1]; NaN counts as 0.
        correct: Bool of the same shape, whether the prediction is right.
        valid: Bool of the same shape, whether the pixel counts.
        bins: Q.

    Returns:
        (3, Q) int64: pixels, right pixels, and sum of confidences in units of 2**-24.
    """
    confidence = confidence.flatten().float().nan_to_num(nan=0.0).clamp(0, 1)
    index = (confidence * bins).long().clamp(max=bins - 1)
    index = torch.where(valid.flatten(), index, bins)
    values = torch.stack([
        torch.ones_like(index), correct.flatten().long(), (confidence * ONE).round().long()
    ])  # fmt: skip
    counts = torch.zeros(3, bins + 1, dtype=torch.int64, device=index.device)
    counts.scatter_add_(1, index.expand(3, -1), values)
    return counts[:, :bins]


def expected_calibration_error(counts: Tensor) -> float:
    """Summed ``calibration_counts`` -> ECE in [0, 1] (arXiv 1706.04599, eq. 3); NaN without pixels.

    The mean over bins, weighted by pixels, of |accuracy - mean confidence|.
    """
    pixels, right, confidence = counts.double()
    total = float(pixels.sum())
    return float((right - confidence / ONE).abs().sum()) / total if total else math.nan
