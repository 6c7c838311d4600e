from __future__ import annotations

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from protoseg.manifest import Manifest
from serving.pixels.png import encode_png, make_palette, scores_to_bytes


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(0, 255)))
def test_png_reads_back(labels: NDArray[np.uint8]) -> None:
    grey = Image.open(io.BytesIO(encode_png(labels)))
    assert grey.mode == "L"
    np.testing.assert_array_equal(np.asarray(grey), labels)
    palette = bytes(range(256)) * 3
    indexed = Image.open(io.BytesIO(encode_png(labels, palette)))
    assert indexed.mode == "P"
    np.testing.assert_array_equal(np.asarray(indexed), labels)
    assert bytes(indexed.getpalette() or ()) == palette


def test_palette_holds_class_colours(manifest: Manifest) -> None:
    palette = make_palette(manifest)
    assert len(palette) == 768
    assert palette[3:6] == bytes(manifest.classes[1].color)
    assert palette[765:] == bytes((224, 224, 192))


def test_scores_are_rounded_to_bytes() -> None:
    scores = np.array([[0.0, 0.5, 1.0, 1.2, -0.1, 1 / 255]], np.float32)
    assert scores_to_bytes(scores).tolist() == [[0, 128, 255, 255, 0, 1]]
