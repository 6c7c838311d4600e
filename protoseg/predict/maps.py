"""From scores at the decoder's stride to maps of the image's own size: on a CPU class by class.

There the maps of all classes are larger than the caches, and it is the passes over them that cost: an argmax
with its indices takes longer than the enlarging. Labels are to the bit those of ``protoseg.inference.score``.

Shape legend: ``C`` classes, ``y x`` as the network gives them, ``H W`` image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from protoseg.config.training import EvalConfig
from protoseg.inference import (
    Autocast,
    HeadLogits,
    HeadName,
    check_head,
    image_logits,
    resized,
    score,
    stride_logits,
)
from protoseg.method.pseudo_labels import label_probability
from protoseg.models.segmenter import Segmenter

AT_ONCE_BYTES = 2**26
"""Up to here the enlarged scores of all classes are kept; beyond, each class is enlarged when it is needed,
twice for probabilities."""
Planes = Callable[[], Iterable[Tensor]]


class SmallLogits(NamedTuple):
    """Scores of one image before they are enlarged."""

    logits: HeadLogits
    """(1, C, y, x) each; no prototypes where the head needs none."""
    enlarge: Callable[[Tensor], Tensor]
    """(1, N, y, x) -> (1, N, H, W), for any N."""


class Maps(NamedTuple):
    """What a head says about each pixel."""

    label: Tensor
    """(H, W) class ids of an integer type; the lowest among equals."""
    confidence: Tensor | None
    """(H, W) probability of that class in [0, 1], float32."""
    label_probability: Tensor | None
    """(H, W) probability that the linear head gives to it, in [0, 1], float32."""


def small_logits(
    segmenter: Segmenter,
    image: Tensor,
    size: tuple[int, int],
    head: HeadName,
    config: EvalConfig,
    crop: tuple[int, int],
    autocast: Autocast,
) -> SmallLogits:
    """Scores of an image, and how they are enlarged.

    Args:
        segmenter: Network and prototypes, in evaluation mode.
        image: (1, C_in, h, w) uint8 at the working size.
        size: (H, W) of the image itself.
        head: Head that labels; ``linear`` alone can do without prototypes.
        config: Whole image or windows.
        crop: Training crop, the default window.
        autocast: Gives the context of the forward pass.
    """
    prototypes = head != "linear"
    if config.mode != "whole":
        low = image_logits(segmenter, image, config, crop, autocast, prototypes=prototypes)
        return SmallLogits(low, lambda part: resized(part, *size))
    height, width = image.shape[-2:]
    low = stride_logits(segmenter, image, autocast, prototypes=prototypes)
    return SmallLogits(low, lambda part: resized(segmenter.network.upsample(part, height, width), *size))


def maps_of(small: SmallLogits, head: HeadName, *, scores: bool) -> Maps:
    """Labels, and with ``scores`` both probabilities, at the image's size.

    Raises:
        UserError: If the head needs prototypes and there are none.
    """
    (linear, prototype, _), enlarge = small
    check_head(head, prototype)
    if linear.device.type != "cpu":
        logits = small.logits.each(enlarge)
        found = score(logits, head)
        believed = label_probability(logits.linear, found.label)[0] if scores else None
        return Maps(found.label[0], found.confidence[0] if scores else None, believed)
    if head == "linear":
        label, confidence = label_planes(planes_of(linear, enlarge), confidence=scores)
        return Maps(label, confidence, confidence)
    assert prototype is not None
    if head == "prototype":
        label, confidence = label_planes(planes_of(prototype, enlarge), confidence=scores)
        probs = enlarge(linear).softmax(1) if scores else None
    else:
        probs = enlarge(linear).softmax(1)
        fused = enlarge(prototype).softmax(1).add_(probs).div_(2)
        confidence, label = highest(fused[0])
    believed = None if probs is None or not scores else probs[0].gather(0, label.long()[None])[0]
    return Maps(label, confidence if scores else None, believed)


def planes_of(low: Tensor, enlarge: Callable[[Tensor], Tensor], at_once: int = AT_ONCE_BYTES) -> Planes:
    """The enlarged scores of each class, as often as they are called for.

    Args:
        low: (1, C, y, x).
        enlarge: See ``SmallLogits``.
        at_once: Bytes up to which they are kept.
    """
    first = enlarge(low[:, :1])[0]
    if first.nbytes * low.shape[1] <= at_once:
        whole = enlarge(low)[0]
        return lambda: whole
    return lambda: (enlarge(low[:, number : number + 1])[0, 0] for number in range(low.shape[1]))


def label_planes(planes: Planes, *, confidence: bool) -> tuple[Tensor, Tensor | None]:
    """(H, W) uint8 class of the largest score, and with ``confidence`` its probability, float32."""
    best, label = highest(planes())
    if not confidence:
        return label, None
    total, share = torch.zeros_like(best), torch.empty_like(best)
    for plane in planes():
        total += torch.sub(plane, best, out=share).exp_()
    return label, total.reciprocal_()


def highest(planes: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Largest of the (H, W) planes at each pixel, and the first that has it, uint8."""
    rest = iter(planes)
    best = next(rest).clone(memory_format=torch.contiguous_format)
    label = torch.zeros(best.shape, dtype=torch.uint8)
    for number, plane in enumerate(rest, 1):
        # numbers rise: the largest that ever won is the last
        won = (plane > best).view(torch.uint8).mul_(number)
        torch.maximum(label, won, out=label)
        torch.maximum(best, plane, out=best)
    return best, label
