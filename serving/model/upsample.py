"""Class maps from small logits: bilinear upsampling fused with argmax and softmax, plane by plane."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import cv2
import numpy as np

from serving.pixels.maps import Labels, Scores


def upsample(
    logits: Scores, size: tuple[int, int], through: tuple[int, int] | None, crop: tuple[int, int]
) -> Iterable[Scores]:
    """Bilinear upsampling of one class after the other, half-pixel centres.

    Args:
        logits: ``(K, h, w)`` float32.
        size: Wanted (height, width).
        through: Size of an intermediate upsampling (the padded working size), or None.
        crop: Part of the (intermediate) map that shows the image, (height, width).
    """
    for plane in logits:
        if through is not None and through != plane.shape:
            plane = cv2.resize(plane, through[::-1], interpolation=cv2.INTER_LINEAR)
        plane = plane[: crop[0], : crop[1]]
        if plane.shape != size:
            plane = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
        yield np.ascontiguousarray(plane)


def argmax_planes(planes: Callable[[], Iterable[Scores]], confidence: bool) -> tuple[Labels, Scores | None]:
    """Class of the largest logit, the first among equals, and its probability.

    Args:
        planes: Gives the ``(H, W)`` logits of each class; called a second time for confidence.
        confidence: Compute the probability too.
    """
    best: Scores | None = None
    labels: Labels = np.empty(0, np.uint8)
    for index, plane in enumerate(planes()):
        if best is None:
            best, labels = plane.copy(), np.zeros(plane.shape, np.uint8)
            continue
        labels[cv2.compare(plane, best, cv2.CMP_GT) > 0] = index
        cv2.max(plane, best, dst=best)
    assert best is not None
    if not confidence:
        return labels, None
    total = np.zeros_like(best)
    for plane in planes():
        cv2.add(total, cv2.exp(cv2.subtract(plane, best)), dst=total)
    return labels, np.asarray(1.0 / total, np.float32)


def softmax(logits: Scores) -> Scores:
    """Probabilities over the first axis."""
    shifted = logits - logits.max(axis=0)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=0)
    return np.asarray(shifted, np.float32)
