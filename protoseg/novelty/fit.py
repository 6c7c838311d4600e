"""Fits novelty to labelled images: prototypes of the encoder's features, then scale and threshold.

Shape legend: ``N`` pixels, ``D`` channels of the encoder's last stage, ``P`` prototypes of all classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoseg.data.images import resize_image, resize_mask
from protoseg.errors import DataError
from protoseg.inference import image_batch, inference
from protoseg.input_rule import ResizeConfig
from protoseg.method.prototype_start import starting_prototypes
from protoseg.models.novelty import NoveltyHead, NoveltyScale, deviations
from protoseg.models.segmenter import Segmenter

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
FIT_PIXELS = 24
"""Pixels of each class of an image that the distances are fitted to."""
VAL_PIXELS = 1000
"""Pixels of a validation image that scale and threshold come from."""


@dataclass(frozen=True)
class Fitted:
    """A head, and how it does on the images that set its threshold."""

    head: NoveltyHead
    """Ready to use."""
    false_alarms: dict[int, float]
    """Share of validation pixels called novel by class id; classes without pixels are left out."""


def labelled_features(
    segmenter: Segmenter, pairs: Iterable[Pair], resize: ResizeConfig, rng: np.random.Generator
) -> dict[int, Tensor]:
    """Features of the encoder's last stage at labelled pixels, up to 24 of each class an image.

    Args:
        segmenter: Network on its device.
        pairs: Images and masks at their own size.
        resize: How images are brought to the working size.
        rng: Source of randomness.

    Returns:
        Class id -> (N, D) float32 on the CPU.

    Raises:
        DataError: If no pixel has a class, or an image and its mask differ in size.
    """
    network, classes = segmenter.network, segmenter.bank.num_classes
    found: dict[int, list[Tensor]] = {}
    with inference(segmenter), network.giving_stage():
        for image, mask in pairs:
            small, target = _working(image, mask, resize)
            stage = network(image_batch([small], segmenter.bank.prototypes.device)).stage
            at = target[np.ix_(*_centres(stage, network.padded_size(*target.shape), target.shape))]
            for label in np.unique(at):
                if label < classes:
                    cells = np.argwhere(at == label)
                    y, x = cells[rng.permutation(len(cells))[:FIT_PIXELS]].T
                    found.setdefault(int(label), []).append(stage[0, :, y, x].t().float().cpu())
    if not found:
        raise DataError("no labelled pixel has a class; check the list and data.label_map")
    return {label: torch.cat(parts) for label, parts in sorted(found.items())}


def _working(image: NDArray[np.uint8], mask: NDArray[np.uint8], resize: ResizeConfig) -> Pair:
    if image.shape[:2] != mask.shape:
        raise DataError(
            f"an image is {image.shape[0]}x{image.shape[1]}, its mask {mask.shape[0]}x{mask.shape[1]} "
            "(height x width); they must be equal. `protoseg check` names it"
        )
    return resize_image(image, resize), resize_mask(mask, resize)


def _centres(
    found: Tensor, padded: tuple[int, int], size: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the image at the centres of a map's cells (B, D, y, x), without the padding's."""
    rows, columns = (
        ((np.arange(cells) + 0.5) * length / cells).astype(np.int64)
        for cells, length in zip(found.shape[-2:], padded, strict=True)
    )
    return rows[rows < size[0]], columns[columns < size[1]]


def fit_prototypes(features: dict[int, Tensor], num_prototypes: int, rng: np.random.Generator) -> Tensor:
    """Prototypes (P, D) from spherical k-means of each class.

    Args:
        features: Class id -> (N, D), N at least 1.
        num_prototypes: Prototypes of each class.
        rng: Source of randomness.
    """
    return torch.cat(list(starting_prototypes(features, num_prototypes, "kmeans", rng).values()))


def fit_scale(
    segmenter: Segmenter,
    head: NoveltyHead,
    pairs: Iterable[Pair],
    resize: ResizeConfig,
    false_alarms: float,
    rng: np.random.Generator,
) -> Fitted:
    """Scale and threshold of a head from labelled validation pixels.

    Args:
        segmenter: Network on its device.
        head: Its prototypes; its scale is not used.
        pairs: Validation images and masks at their own size.
        resize: How images are brought to the working size.
        false_alarms: Share of the pixels that lie above the threshold, in (0, 1).
        rng: Source of randomness.

    Raises:
        DataError: If no pixel has a class, or an image and its mask differ in size.
    """
    network, classes = segmenter.network, segmenter.bank.num_classes
    distances: list[Tensor] = []
    doubts: list[Tensor] = []
    labels: list[NDArray[np.uint8]] = []
    with inference(segmenter), network.giving_stage():
        for image, mask in pairs:
            small, target = _working(image, mask, resize)
            output = network(image_batch([small], segmenter.bank.prototypes.device))
            parts = head.parts(output.stage, output.linear_logits)
            rows, columns = _centres(parts[0], network.padded_size(*target.shape), target.shape)
            at = target[np.ix_(rows, columns)]
            cells = np.argwhere(at < classes)
            y, x = cells[rng.permutation(len(cells))[:VAL_PIXELS]].T
            labels.append(at[y, x])
            for kept, part in zip((distances, doubts), parts, strict=True):
                kept.append(part[0, 0, y, x].double().cpu())
    label = np.concatenate(labels) if labels else np.zeros(0, np.uint8)
    if len(label) == 0:
        raise DataError("no validation pixel has a class; check the list and data.label_map")
    distance, doubt = torch.cat(distances), torch.cat(doubts)
    moments = [(float(part.mean()), max(float(part.std(correction=0)), 1e-6)) for part in (distance, doubt)]
    score = deviations(distance, doubt, NoveltyScale(moments[0], moments[1], 0.0)).numpy()
    threshold = float(np.quantile(score, 1 - false_alarms))
    scale = NoveltyScale(moments[0], moments[1], threshold)
    counts = np.bincount(label, minlength=classes)
    novel = np.bincount(label[score > threshold], minlength=classes)
    alarms = {int(c): float(novel[c] / counts[c]) for c in np.flatnonzero(counts)}
    return Fitted(NoveltyHead(head.prototypes, scale), alarms)
