"""Sizes of images, and whether an annotation was drawn on the image as stored or turned upright.

Cameras note in a tag (EXIF orientation) how the stored pixels are to be turned. Training reads images
upright, so masks are written upright, whatever the annotation tool looked at.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.pictures import DECODE_ERRORS
from protoseg.errors import DataError

Orientation = Literal["auto", "upright", "stored"]
Size = tuple[int, int]
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Frame:
    """Height and width of the stored pixels, and the orientation tag (1 to 8; 1: upright)."""

    stored: Size
    tag: int = 1

    @property
    def upright(self) -> Size:
        """Height and width once the image is turned."""
        return (self.stored[1], self.stored[0]) if self.tag >= 5 else self.stored


def look(image: Path | bytes) -> Frame:
    """Read an image's size and tag without decoding its pixels.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        if isinstance(image, Path) and image.suffix.lower() == ".npy":
            shape = np.load(image, mmap_mode="r", allow_pickle=False).shape
            return Frame((int(shape[0]), int(shape[1])))
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            try:
                tag = int(opened.getexif().get(_ORIENTATION_TAG, 1))
            except DECODE_ERRORS:
                # broken metadata says nothing about the pixels
                tag = 1
            return Frame((opened.height, opened.width), tag if 1 <= tag <= 8 else 1)
    except DECODE_ERRORS as error:
        raise DataError(str(error)) from error


def annotated_frame(
    frame: Frame, size: Size | None, choice: Orientation
) -> tuple[Literal["upright", "stored"], bool]:
    """What an annotation of ``size`` (height, width) was drawn on, and whether that is a guess.

    Raises:
        DataError: If the size is neither the stored nor the upright one.
    """
    fits_upright = size is None or size == frame.upright
    fits_stored = size is None or size == frame.stored
    if not fits_upright and not fits_stored:
        assert size is not None
        raise DataError(f"{size[1]} x {size[0]}, the image {frame.upright[1]} x {frame.upright[0]}")
    if frame.tag == 1:
        return "upright", False
    if choice != "auto":
        if not (fits_upright if choice == "upright" else fits_stored):
            raise DataError(f"{size}, which is not the {choice} size")
        return choice, False
    if fits_upright and fits_stored:
        return "upright", True
    return ("upright" if fits_upright else "stored"), False


def turn_upright(labels: NDArray[np.uint8], tag: int) -> NDArray[np.uint8]:
    """Labels ``(H, W)`` of stored pixels, turned as the tag says."""
    if tag in (5, 6, 7, 8):
        labels = labels.T
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    return np.ascontiguousarray(np.flip(labels, flips.get(tag, ())))
