"""What is counted on the device: confusion, calibration, boundaries.

Every accumulator is an int64 tensor that is summed over images and processes, so a result does not
depend on the order or on the number of processes: quantities with a fraction are kept in fixed point.

Shape legend: ``C`` classes, ``N`` label maps of one image, ``H W`` image, ``Q`` bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# fixed point: 2**24 holds every float32 in [0, 1] to its last bit from 0.5 up, and leaves room for
# 5e11 pixels in an int64
_ONE = 1 << 24
# class sets are packed into int64 words; the sign bit stays clear
_WORD = 62

DEFAULT_TOLERANCE = 0.0075
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
    valid = _valid(target, num_classes, ignore_index)
    index = torch.where(valid, target * num_classes + label, num_classes**2)
    # bincount waits for the largest value on CUDA, and is no faster on the CPU
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=index.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    return counts[:-1].view(num_classes, num_classes)


def _valid(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
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
        torch.ones_like(index), correct.flatten().long(), (confidence * _ONE).round().long()
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
    return float((right - confidence / _ONE).abs().sum()) / total if total else math.nan


def tolerance_pixels(height: int, width: int, tolerance: float = DEFAULT_TOLERANCE) -> int:
    """Distance in pixels within which boundaries match: the share of the diagonal, rounded up."""
    return math.ceil(tolerance * math.hypot(height, width))


def boundary_counts(
    labels_NHW: Tensor,
    target_HW: Tensor,
    num_classes: int,
    ignore_index: int,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Tensor:
    """Boundary F-scores of one image, for several predictions of it (Perazzi et al., CVPR 2016).

    A pixel is on the boundary of class c when it is of class c and its right, lower or lower right
    neighbour is not, or the other way round. Precision is the share of predicted boundary pixels within
    ``tolerance`` of a target one of that class, recall the reverse, F their harmonic mean. A class of
    the target without any boundary scores 1 if the prediction has it, also without a boundary, else 0.

    Ignored bands up to twice the tolerance wide, such as the outlines of VOC, are closed by growing the
    classes on both sides; in wider ignored areas there is no boundary.

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
    target = target_HW.long()
    valid = _valid(target, num_classes, ignore_index)
    present = torch.zeros(num_classes + 1, dtype=torch.bool, device=target.device)
    present[torch.where(valid, target, num_classes)] = True
    height, width = target.shape
    radius = tolerance_pixels(height, width, tolerance)
    target, valid = close_ignored(target, valid, radius)
    scores = []
    for first in range(0, num_classes, _WORD):
        size = min(_WORD, num_classes - first)
        wanted = _class_bits(target, valid, first, size)
        found = _class_bits(labels_NHW.long(), valid, first, size)
        scores.append(_boundary_f(wanted, found, valid, size, radius))
    one = present[:num_classes].long().expand(len(labels_NHW), -1)
    fixed = (torch.cat(scores, 1) * _ONE).round().long()
    return torch.stack([fixed.to(one.device) * one, one], 1)


def boundary_f_per_class(counts: Tensor) -> Tensor:
    """Summed (2, C) ``boundary_counts`` -> (C,) float64 mean F over images; NaN for absent classes."""
    score, images = counts.double()
    return torch.where(images > 0, score / _ONE / images.clamp(min=1), math.nan)


def _class_bits(label: Tensor, valid: Tensor, first: int, size: int) -> Tensor:
    """Bit c - first for a valid pixel of class c in [first, first + size), else 0."""
    inside = valid & (label >= first) & (label < first + size)
    one = torch.ones((), dtype=torch.int64, device=label.device)
    return torch.where(inside, one << (label - first).clamp(0, size - 1), 0)


def _boundary_f(wanted: Tensor, found: Tensor, valid: Tensor, size: int, radius: int) -> Tensor:
    """F by class: bits (H, W) of the target and (N, H, W) of predictions -> (N, size) float64 on the CPU."""
    target_edge, edge = _edges(wanted, valid), _edges(found, valid)
    num_target = _count_bits(target_edge[None], size)
    num_found = _count_bits(edge, size)
    precision = _count_bits(edge & dilate(target_edge, radius), size) / num_found.clamp(min=1)
    recall = _count_bits(target_edge & dilate(edge, radius), size) / num_target.clamp(min=1)
    score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    anywhere = _count_bits(found, size) > 0
    return torch.where((num_target == 0) & (num_found == 0), anywhere.double(), score)


def _edges(bits: Tensor, valid: Tensor) -> Tensor:
    height, width = bits.shape[-2:]
    edges = torch.zeros_like(bits)
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        rows, columns = height - dy, width - dx
        both = valid[:rows, :columns] & valid[dy:, dx:]
        edges[..., :rows, :columns] |= (bits[..., :rows, :columns] ^ bits[..., dy:, dx:]) * both
    return edges


def _count_bits(bits: Tensor, size: int) -> Tensor:
    """Pixels by class: (N, H, W) class sets -> (N, size) float64 on the CPU (not all devices have it)."""
    place = torch.arange(size, device=bits.device)
    counts = [((image[image != 0][:, None] >> place) & 1).sum(0) for image in bits]
    return torch.stack(counts).cpu().double()


def dilate(bits: Tensor, radius: int) -> Tensor:
    """Union of the class sets within ``radius`` pixels (a disc) of each pixel: (..., H, W) int64."""
    height, width = bits.shape[-2:]
    grown, wide, reached = torch.zeros_like(bits), bits.clone(), 0
    for dy in range(radius, -1, -1):
        half = min(math.isqrt(radius**2 - dy**2), width)
        while reached < half:
            reached += 1
            wide[..., reached:] |= bits[..., : width - reached]
            wide[..., : width - reached] |= bits[..., reached:]
        rows = max(height - dy, 0)
        grown[..., height - rows :, :] |= wide[..., :rows, :]
        grown[..., :rows, :] |= wide[..., height - rows :, :]
    return grown


def close_ignored(target_HW: Tensor, valid_HW: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Fill ignored bands up to ``2 * radius`` wide from both sides; wider areas stay ignored.

    Returns:
        Target and validity, (H, W) each.
    """
    if bool(valid_HW.all()):
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


def _grow(label: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Give unknown pixels the label of a known one to the left, right, above or below."""
    grown, filled = label.clone(), known.clone()
    everything = slice(None)
    for to, source in (
        ((everything, slice(1, None)), (everything, slice(None, -1))),
        ((everything, slice(None, -1)), (everything, slice(1, None))),
        ((slice(1, None), everything), (slice(None, -1), everything)),
        ((slice(None, -1), everything), (slice(1, None), everything)),
    ):
        take = known[source] & ~filled[to]
        grown[to] = torch.where(take, label[source], grown[to])
        filled[to] |= take
    return grown, filled
