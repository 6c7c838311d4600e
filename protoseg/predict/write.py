"""Writes the pictures of a prediction. Torch-free: a bundle's results are written so too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.images import save_map, save_mask, save_whole
from protoseg.draw.colours import overlay_picture
from protoseg.draw.tiles import with_legend
from protoseg.errors import DataError
from protoseg.manifest import NOVEL, ClassInfo

Scores = NDArray[np.float32] | None


def save_part(
    path: Path,
    part: str,
    labels: NDArray[np.uint8],
    classes: Sequence[ClassInfo],
    *,
    legend: bool = True,
    image: NDArray[np.uint8] | None = None,
    confidence: Scores = None,
    label_probability: Scores = None,
    novelty: Scores = None,
) -> None:
    """Write one of the pictures, whole or not at all; its folder is made.

    Args:
        path: The file.
        part: ``masks``, ``overlays``, ``confidence``, ``disagreement`` or ``novelty``.
        labels: (H, W) class ids.
        classes: Names and colours by id.
        legend: Name the colours below an overlay.
        image: (H, W, C), for an overlay.
        confidence: (H, W) in [0, 1], for that picture.
        label_probability: (H, W) in [0, 1], for the disagreement.
        novelty: (H, W) in [0, 1], for that picture.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent} cannot be made: {error}") from error
    colors = [item.color for item in classes]
    if part == "masks":
        save_mask(path, labels, colors)
    elif part == "overlays":
        assert image is not None
        overlay = Image.fromarray(overlay_picture(image, labels, colors))
        save_whole(path, with_legend(overlay, labels, classes) if legend else overlay)
    else:
        scores = {"confidence": confidence, "novelty": novelty}.get(part, label_probability)
        assert scores is not None
        save_map(path, Image.fromarray(to_grey(1 - scores if part == "disagreement" else scores)))


def novel_share(novelty: Scores) -> float | None:
    """Share of the pixels that are called novel; None without scores."""
    return None if novelty is None else float((novelty >= NOVEL).mean())


def to_grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] -> 0 to 255, rounded."""
    # fmax: of a number and no number the number
    grey = np.fmax(values, 0)
    np.minimum(grey, 1, out=grey)
    return np.rint(np.multiply(grey, 255, out=grey), out=grey).astype(np.uint8)
