"""A draft: what the network proposes for one image, without what would be more work to mend than to draw.

Torch-free. Shape legend: ``H W`` image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoseg.errors import UserError
from protoseg.manifest import ClassInfo

NOTHING = 255
"""Label of a pixel for which nothing is proposed."""
BACKGROUND_NAMES = ("background", "_background_", "__background__")
Labels = NDArray[np.uint8]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Draft:
    """The proposal for an image, upright and at the image's own size."""

    path: Path
    """The image's file."""
    name: str
    """How tools call it: its path, with ``/``, below the folder that holds all images of the call."""
    labels: Labels
    """``(H, W)`` class ids, 255 where nothing is proposed."""
    confidence: Scores | None = None
    """``(H, W)`` probability of the label in [0, 1]."""

    def classes(self) -> list[int]:
        """Ids of the classes proposed, ascending."""
        return [index for index in np.unique(self.labels).tolist() if index != NOTHING]

    def mean_confidence(self, index: int | None = None) -> float | None:
        """Mean confidence of a class's pixels, or of all; None where it is not known or there is no pixel."""
        if self.confidence is None:
            return None
        values = self.confidence if index is None else self.confidence[self.labels == index]
        return float(values.mean(dtype=np.float64)) if values.size else None


@dataclass(frozen=True)
class Keep:
    """What of a prediction becomes a draft.

    Args:
        skip: Class ids that are not proposed.
        min_pixels: Smaller regions are dropped.
        min_confidence: Regions whose mean confidence is lower are dropped, in [0, 1].
    """

    skip: frozenset[int] = frozenset()
    min_pixels: int = 0
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        if self.min_pixels < 0:
            raise UserError(f"--min-pixels must be at least 0, got {self.min_pixels}")
        if not 0 <= self.min_confidence <= 1:
            raise UserError(f"--min-confidence must be in [0, 1], got {self.min_confidence:g}")

    def apply(self, labels: Labels, confidence: Scores | None) -> Labels:
        """Labels with 255 where nothing is proposed.

        A region is what is connected of one class, diagonals included.

        Args:
            labels: ``(H, W)`` class ids.
            confidence: ``(H, W)`` in [0, 1]; needed for ``min_confidence`` above 0.

        Returns:
            ``(H, W)`` uint8, another array.
        """
        kept = labels.copy()
        if self.skip:
            kept[np.isin(kept, sorted(self.skip))] = NOTHING
        if self.min_pixels <= 1 and not self.min_confidence:
            return kept
        import cv2  # not everything that predicts has it

        for index in np.unique(kept).tolist():
            if index == NOTHING:
                continue
            count, regions = cv2.connectedComponents((kept == index).astype(np.uint8), connectivity=8)
            pixels = np.bincount(regions.ravel(), minlength=count)
            small = pixels < self.min_pixels
            if self.min_confidence:
                assert confidence is not None
                sums = np.bincount(regions.ravel(), confidence.ravel(), minlength=count)
                small |= sums < self.min_confidence * pixels
            small[0] = False
            kept[small[regions]] = NOTHING
        return kept


def skipped_ids(text: str | None, classes: Sequence[ClassInfo]) -> frozenset[int]:
    """Ids of the classes that are not proposed.

    Args:
        text: Names, split by commas; "" for none; None for the background, where a class is called that.
        classes: All, by id.

    Raises:
        UserError: If a name is none of them.
    """
    known = {item.name: index for index, item in enumerate(classes)}
    if text is None:
        return frozenset(i for name, i in known.items() if name.casefold() in BACKGROUND_NAMES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--skip names {', '.join(unknown)}; the classes are {', '.join(known)}")
    return frozenset(known[name] for name in names)


def common_folder(images: Iterable[Path]) -> Path:
    """The deepest folder that holds all images, at least one."""
    return Path(os.path.commonpath([normal(image).parent for image in images]))


def names_of(images: Sequence[Path]) -> dict[Path, str]:
    """How tools call images: paths, with ``/``, below the deepest folder that holds all of them."""
    common = common_folder(images) if images else Path()
    return {image: normal(image).relative_to(common).as_posix() for image in images}


def normal(path: Path) -> Path:
    """The absolute path without ``..``; links stay, because users know their names."""
    return Path(os.path.normpath(path.absolute()))
