from __future__ import annotations

import io

import numpy as np
from PIL import Image

from protoseg.manifest import Manifest
from serving.pixels.overlay import encode_overlay
from serving.pixels.png import make_palette


def test_overlay_blends(manifest: Manifest) -> None:
    image = np.full((16, 16, 3), 100, np.uint8)
    labels = np.zeros((16, 16), np.uint8)
    labels[:, 8:] = 1
    palette = make_palette(manifest)
    jpeg = encode_overlay(image, labels, palette, 0.5, frozenset({1}))
    shown = np.asarray(Image.open(io.BytesIO(jpeg)), np.int16)
    assert np.abs(shown[8, 2] - 100).max() <= 4
    assert np.abs(shown[8, 14] - np.array([160, 70, 70])).max() <= 6
    grey = encode_overlay(image[..., :1], labels, palette, 0.0, None)
    assert np.abs(np.asarray(Image.open(io.BytesIO(grey)), np.int16) - 100).max() <= 3
