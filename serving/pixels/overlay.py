"""Class colours over the image, as JPEG."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from serving.pixels.maps import Labels


def encode_overlay(
    image: Labels, labels: Labels, palette: bytes, alpha: float, classes: frozenset[int] | None
) -> bytes:
    """Blend class colours over the image and write a JPEG.

    Args:
        image: ``(H, W, C)`` uint8; grey is shown as RGB, a fourth channel is dropped.
        labels: ``(H, W)`` uint8 class ids.
        palette: RGB bytes of 256 colours.
        alpha: Share of the colour in [0, 1].
        classes: Classes that are coloured; None for all.
    """
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    rgb = np.ascontiguousarray(rgb)
    colors = cv2.LUT(cv2.merge([labels] * 3), np.frombuffer(palette, np.uint8).reshape(1, 256, 3))
    blended = cv2.addWeighted(rgb, 1 - alpha, colors, alpha, 0)
    if classes is not None:
        table = np.zeros(256, np.uint8)
        table[list(classes)] = 1
        cv2.copyTo(rgb, 1 - table[labels], blended)
    data: bytes = simplejpeg.encode_jpeg(blended, quality=85, colorspace="RGB")
    return data
