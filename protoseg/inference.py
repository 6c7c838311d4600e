"""Logits of an image at its working size, whole or by windows: shared by evaluation, prediction and pictures.

Shape legend: ``B`` batch, ``C`` classes, ``h w`` working size, ``H W`` original size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from protoseg.config.training import EvalConfig
from protoseg.errors import UserError, guarded
from protoseg.manifest import Head
from protoseg.method.pseudo_labels import fuse
from protoseg.models.segmenter import Segmenter

HeadName = Head
HEADS: tuple[HeadName, ...] = ("linear", "prototype", "fused")
Autocast = Callable[[], AbstractContextManager[object]]


class HeadLogits(NamedTuple):
    """Scores of both heads, and novelty where it was fitted."""

    linear: Tensor
    """(B, C, h, w) float32."""
    prototype: Tensor | None
    """(B, C, h, w) float32; None while no class has prototypes."""
    novelty: Tensor | None = None
    """(B, 1, h, w) float32 in [0, 1]; None where nothing was fitted."""

    def of_image(self, index: int) -> HeadLogits:
        """Logits of one image of the batch, (1, C, h, w) each."""
        return self.each(lambda part: part[index : index + 1])

    def each(self, change: Callable[[Tensor], Tensor]) -> HeadLogits:
        """Every part that there is, changed."""
        return HeadLogits(change(self.linear), *(part if part is None else change(part) for part in self[1:]))


class Scored(NamedTuple):
    """What a head says about each pixel."""

    label: Tensor
    """(B, H, W) int64; the lowest class id among equals."""
    confidence: Tensor
    """(B, H, W) probability of that class in [0, 1], float32."""


def usable_device(name: str) -> torch.device:
    """The device called ``name``, after a try.

    Raises:
        UserError: If torch does not know it or cannot use it here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["unknown reason"])[0]
        raise UserError(f"device {name!r} cannot be used ({reason}); try --device cpu") from error
    return device


def guarded_on_device(body: Callable[[], int | None], cure: str = "use --device cpu") -> int:
    """``guarded`` for a command that computes with a network: a full device is one line, too.

    Args:
        body: Returns the exit code; None is 0.
        cure: What to do when the device's memory is full.

    Returns:
        The exit code.
    """

    def computing() -> int:
        try:
            return body() or 0
        except torch.OutOfMemoryError as error:
            raise UserError(f"the device's memory is full; {cure}") from error

    return guarded(computing, ValueError)


def image_batch(images: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """(h, w, C_in) uint8 images of one size -> (B, C_in, h, w) uint8."""
    stacked = np.stack([np.moveaxis(image, -1, 0) for image in images])
    return torch.from_numpy(stacked).to(device)


def available_heads(segmenter: Segmenter, heads: Sequence[HeadName] = HEADS) -> tuple[HeadName, ...]:
    """The heads that can be used: ``linear`` alone while there are no prototypes."""
    if bool(segmenter.bank.active.any()):
        return tuple(heads)
    return tuple(head for head in heads if head == "linear")


@contextmanager
def inference(segmenter: Segmenter) -> Iterator[None]:
    """Evaluation mode without gradients; the mode from before comes back."""
    training = segmenter.training
    segmenter.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        segmenter.train(training)


def whole_logits(
    segmenter: Segmenter, images: Tensor, autocast: Autocast = nullcontext, *, prototypes: bool = True
) -> HeadLogits:
    """(B, C_in, h, w) uint8 -> logits of that size in one forward pass; ``prototypes``: of that head, too."""
    if not prototypes:
        height, width = images.shape[-2:]
        low = stride_logits(segmenter, images, autocast, prototypes=False)
        return low.each(lambda part: segmenter.network.upsample(part, height, width))
    with autocast():
        if getattr(segmenter, "novelty", None) is None:
            output, novelty = segmenter(images), None
        else:
            output, novelty = segmenter.with_novelty(images)
    active = bool(segmenter.bank.active.any())
    prototype = output.prototype_logits.float() if active else None
    return HeadLogits(output.linear_logits.float(), prototype, novelty)


def stride_logits(
    segmenter: Segmenter, images: Tensor, autocast: Autocast = nullcontext, *, prototypes: bool = True
) -> HeadLogits:
    """As ``whole_logits``, but at the decoder's stride: ``segmenter.network.upsample`` makes those of these.

    Args:
        segmenter: Network and prototypes, in evaluation mode.
        images: (B, C_in, h, w) uint8.
        autocast: Gives the context of the forward pass.
        prototypes: Compute the scores of that head where it can be used.
    """
    wanted = prototypes and bool(segmenter.bank.active.any())
    with autocast():
        linear, prototype, novelty = segmenter.at_stride(images, prototypes=wanted)
    return HeadLogits(linear, None if prototype is None else prototype.float(), novelty)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last window ends at the border."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def sliding_logits(
    segmenter: Segmenter,
    image: Tensor,
    window: tuple[int, int],
    stride: float,
    batch_size: int = 1,
    autocast: Autocast = nullcontext,
    *,
    prototypes: bool = True,
) -> HeadLogits:
    """Logits of overlapping windows, averaged where they overlap.

    Args:
        segmenter: Network and prototypes.
        image: (1, C_in, h, w) uint8.
        window: Window (height, width) in pixels; a side longer than the image's is cut to it.
        stride: Step as a fraction of the window's side, in (0, 1].
        batch_size: Windows in a forward pass.
        autocast: Gives the context of the forward pass.
        prototypes: Compute the scores of that head, too.
    """
    height, width = image.shape[-2:]
    tall, wide = min(window[0], height), min(window[1], width)
    rows = window_starts(height, tall, max(1, round(tall * stride)))
    columns = window_starts(width, wide, max(1, round(wide * stride)))
    places = [(y, x) for y in rows for x in columns]
    if len(places) == 1:
        return whole_logits(segmenter, image, autocast, prototypes=prototypes)
    sums: HeadLogits | None = None
    times = torch.zeros(1, 1, height, width, device=image.device)
    for first in range(0, len(places), batch_size):
        chunk = places[first : first + batch_size]
        crops = torch.cat([image[..., y : y + tall, x : x + wide] for y, x in chunk])
        found = whole_logits(segmenter, crops, autocast, prototypes=prototypes)
        sums = sums or found.each(lambda part: part.new_zeros(1, part.shape[1], height, width))
        for index, (y, x) in enumerate(chunk):
            area = (..., slice(y, y + tall), slice(x, x + wide))
            times[area] += 1
            for total, part in zip(sums, found, strict=True):
                if total is not None and part is not None:
                    total[area] += part[index]
    assert sums is not None
    return sums.each(lambda total: total / times)


def image_logits(
    segmenter: Segmenter,
    images: Tensor,
    config: EvalConfig,
    crop: tuple[int, int],
    autocast: Autocast = nullcontext,
    *,
    prototypes: bool = True,
) -> HeadLogits:
    """Logits at the working size, in the way that ``config.mode`` says.

    Args:
        segmenter: Network and prototypes, in evaluation mode.
        images: (B, C_in, h, w) uint8; B = 1 for windows.
        config: Mode, window and stride.
        crop: Training crop, the default window.
        autocast: Gives the context of the forward pass.
        prototypes: Compute the scores of that head, too.
    """
    if config.mode == "whole":
        return whole_logits(segmenter, images, autocast, prototypes=prototypes)
    window = config.window or crop
    return sliding_logits(
        segmenter, images, window, config.window_stride, config.batch_size, autocast, prototypes=prototypes
    )


def upsample(logits: HeadLogits, height: int, width: int) -> HeadLogits:
    """Logits at another size: bilinear, half-pixel centres; unchanged at their own size."""
    return logits.each(lambda low: resized(low, height, width))


def resized(low: Tensor, height: int, width: int) -> Tensor:
    """(B, N, h, w) maps at another size, as ``upsample`` does."""
    if low.shape[-2:] == (height, width):
        return low
    return F.interpolate(low, size=(height, width), mode="bilinear", align_corners=False)


def check_head(head: HeadName, prototype: Tensor | None) -> None:
    """Refuse a head that cannot be used.

    Raises:
        UserError: If it needs prototypes and there are none.
    """
    if head != "linear" and prototype is None:
        raise UserError(f"head {head!r} needs prototypes, this network has none; use head 'linear'")


def score(logits: HeadLogits, head: HeadName) -> Scored:
    """Labels and confidences of one head.

    Raises:
        UserError: If the head needs prototypes and there are none.
    """
    if head == "linear":
        return _from_logits(logits.linear)
    check_head(head, logits.prototype)
    assert logits.prototype is not None
    if head == "prototype":
        return _from_logits(logits.prototype)
    # max, because argmax is six times slower on the CPU
    confidence, label = fuse(logits.linear, logits.prototype).max(1)
    return Scored(label, confidence)


def _from_logits(logits: Tensor) -> Scored:
    highest, label = logits.max(1)
    return Scored(label, (highest - logits.logsumexp(1)).exp().clamp(max=1.0))
