from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from serving.pixels.maps import class_pixels, keep_classes


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(0, 4)))
def test_pixels_match_numpy(labels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(class_pixels(labels, 5), np.bincount(labels.ravel(), minlength=5))


def test_kept_classes_and_ignore_value() -> None:
    labels = np.array([[0, 1, 2]], np.uint8)
    assert keep_classes(labels, frozenset({1}), 255).tolist() == [[255, 1, 255]]
    assert keep_classes(labels, None, 255) is labels
