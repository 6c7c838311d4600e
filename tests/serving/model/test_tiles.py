from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.model.tiles import Span, blend, spans


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 700), st.integers(32, 128))
def test_weights_add_up_to_one_everywhere(length: int, tile: int) -> None:
    total = np.zeros(length)
    found = spans(length, tile)
    for span in found:
        assert 0 <= span.start <= span.low < span.high <= span.stop <= length
        assert span.stop - span.start == min(tile, length)
        total[span.low : span.high] += span.weights()
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_two_tiles_by_hand() -> None:
    # 8 pixels of overlap asked for, 28 there: the ramp lies in their middle
    first, second = spans(36, 32)
    assert (first.start, first.high, second.start, second.low) == (0, 22, 4, 14)
    assert first.weights()[-8:].tolist() == pytest.approx([(15 - 2 * i) / 16 for i in range(8)])


@pytest.mark.parametrize("size", [(40, 40), (32, 100), (97, 133), (20, 15)])
def test_blending_equal_scores_changes_nothing(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3, *size), dtype=np.float32)
    result = np.full_like(scores, np.nan)

    def finish(top: int, left: int, block: NDArray[np.float32]) -> None:
        place = result[:, top : top + block.shape[1], left : left + block.shape[2]]
        assert np.isnan(place).all()
        place[...] = block

    def tile(row: Span, column: Span) -> NDArray[np.float32]:
        return scores[:, row.start : row.stop, column.start : column.stop]

    blend(spans(size[0], 32), spans(size[1], 32), tile, finish)
    np.testing.assert_allclose(result, scores, rtol=1e-5)


def test_a_seam_is_a_ramp() -> None:
    rows, columns = spans(32, 32), spans(56, 32)
    result = np.zeros((1, 32, 56), np.float32)

    def finish(top: int, left: int, block: NDArray[np.float32]) -> None:
        result[:, top : top + block.shape[1], left : left + block.shape[2]] = block

    blend(
        rows, columns, lambda row, column: np.full((1, 32, 32), float(column.start > 0), np.float32), finish
    )
    profile = result[0, 5]
    assert profile[:24].tolist() == [0] * 24
    assert profile[32:].tolist() == [1] * 24
    np.testing.assert_allclose(np.diff(profile[24:32]), 1 / 8, rtol=1e-5)
