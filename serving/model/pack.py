"""Images as the graph wants them: padded to a static size, batched, in its layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.pixels.decode import Pixels

# requests are the unit of parallelism; OpenCV's own threads would fight over the cores
cv2.setNumThreads(1)


def pad(image: Pixels, size: tuple[int, int], mean: Sequence[float]) -> Pixels:
    """An image at the top left of ``size`` (height, width), filled up with the mean colour in [0, 1]."""
    padded = np.empty((*size, image.shape[2]), np.uint8)
    padded[:] = [round(255 * value) for value in mean]
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def pack(images: Sequence[Pixels], layout: str, number: int) -> NDArray[Any]:
    """A batch of equally sized images.

    Args:
        images: ``(H, W, C)`` uint8 each.
        layout: ``input_layout`` of the manifest.
        number: Batch axis; the rest is zeros.
    """
    height, width, channels = images[0].shape
    if layout == "uint8_nhwc":
        if number == 1:
            return images[0][None]
        batch = np.zeros((number, height, width, channels), np.uint8)
        for index, image in enumerate(images):
            batch[index] = image
        return batch
    planes = np.zeros((number, channels, height, width), np.uint8)
    for index, image in enumerate(images):
        # OpenCV splits channels ten times as fast as a strided numpy copy
        cv2.split(image, list(planes[index]))
    return planes.astype(np.float32) if layout == "float32_nchw" else planes
