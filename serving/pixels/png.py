"""Writes maps as PNG: class ids with a palette, or grey."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from isal import isal_zlib

from protoseg.manifest import Manifest
from serving.pixels.maps import Labels, Scores

_FILTER_UP = 2
_SPARE_COLOR = (224, 224, 192)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def encode_png(image: Labels, palette: bytes | None = None) -> bytes:
    """Write an 8-bit PNG: every row as difference to the one above, deflated by isa-l.

    Args:
        image: ``(H, W)`` uint8.
        palette: RGB bytes of the values from 0 on (at most 256 colours), or None for grey.
    """
    height, width = image.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0] = _FILTER_UP
    rows[0, 1:] = image[0]
    np.subtract(image[1:], image[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 3 if palette else 0, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", palette) if palette else b"",
            _chunk(b"IDAT", isal_zlib.compress(rows, 1)),
            _chunk(b"IEND", b""),
        )
    )


def make_palette(manifest: Manifest) -> bytes:
    """RGB bytes of 256 colours: the classes', then a pale one for the ignore value and the rest."""
    colors = [tuple(item.color) for item in manifest.classes]
    colors += [_SPARE_COLOR] * (256 - len(colors))
    return bytes(channel for color in colors for channel in color)


def scores_to_bytes(scores: Scores) -> Labels:
    """[0, 1] as uint8, rounded."""
    return np.asarray(cv2.convertScaleAbs(np.clip(scores, 0, 1), alpha=255), np.uint8)
