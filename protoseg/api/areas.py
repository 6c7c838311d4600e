"""What an image holds of each class: areas, mean scores, COCO's form. Torch-free.

Shape legend: ``H W`` image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.data.regions import rle_by_class
from protoseg.manifest import ClassInfo

Scores = NDArray[np.float32] | None


@dataclass(frozen=True)
class ClassArea:
    """What an image holds of one class."""

    id: int
    """Class id, as in ``Result.labels``."""
    name: str
    """Name."""
    color: tuple[int, int, int]
    """Colour, RGB in [0, 255]."""
    pixels: int
    """Pixels with this label."""
    fraction: float
    """Share of the image in [0, 1]."""
    confidence: float | None
    """Mean confidence of these pixels in [0, 1]."""
    agreement: float | None
    """Mean agreement of these pixels in [0, 1]."""


@dataclass(frozen=True)
class ModelInfo:
    """Which model a result is from."""

    name: str
    """Name of the run."""
    version: str
    """Optimiser step of a checkpoint, version of a bundle."""
    head: str
    """Head that labelled: ``linear``, ``prototype`` or ``fused``; empty if not known."""
    classes: tuple[ClassInfo, ...]
    """All classes by id, with names and colours."""


def class_areas(
    labels: NDArray[np.uint8], classes: Sequence[ClassInfo], confidence: Scores, agreement: Scores
) -> tuple[ClassArea, ...]:
    """The classes that are in an image, by id.

    Args:
        labels: ``(H, W)`` class ids.
        classes: All classes by id.
        confidence: ``(H, W)`` in [0, 1], or None.
        agreement: Likewise.
    """
    flat, count = labels.ravel(), len(classes)
    pixels = np.bincount(flat, minlength=count)[:count]

    def means(scores: Scores) -> list[float | None]:
        if scores is None:
            return [None] * count
        sums = np.bincount(flat, weights=scores.ravel(), minlength=count)
        return [float(total) / max(int(number), 1) for total, number in zip(sums, pixels, strict=False)]

    sure, agreed = means(confidence), means(agreement)
    return tuple(
        ClassArea(
            index, item.name, item.color, int(pixels[index]), int(pixels[index]) / flat.size,
            sure[index], agreed[index],
        )
        for index, item in enumerate(classes)
        if pixels[index]
    )  # fmt: skip


def coco_record(
    labels: NDArray[np.uint8],
    classes: Sequence[ClassInfo],
    areas: Sequence[ClassArea],
    name: str,
    image_id: int,
    first_id: int,
) -> dict[str, Any]:
    """See ``Result.to_coco``.

    Args:
        labels: ``(H, W)`` class ids.
        classes: All classes by id.
        areas: Those that are in the image.
        name: File name of the image.
        image_id: Its id.
        first_id: Id of the first annotation.
    """
    height, width = labels.shape
    runs = rle_by_class(labels)
    annotations = []
    for number, item in enumerate(areas):
        where = labels == item.id
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        annotations.append(
            {
                "id": first_id + number, "image_id": image_id, "category_id": item.id,
                "segmentation": {"size": [height, width], "counts": runs[item.id]},
                "area": item.pixels, "bbox": [int(value) for value in box], "iscrowd": 1,
            }
        )  # fmt: skip
    return {
        "images": [{"id": image_id, "file_name": name, "width": width, "height": height}],
        "categories": [
            {"id": index, "name": item.name, "color": list(item.color)} for index, item in enumerate(classes)
        ],
        "annotations": annotations,
    }
