from __future__ import annotations

import numpy as np
import pytest
from convert_exports import brush, coco_string, runs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from protoseg.convert.rle import decode_coco, decode_coco_string, decode_counts, decode_label_studio
from protoseg.errors import DataError

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(MASKS)
def test_counts_by_rows_and_columns(mask: NDArray[np.bool_]) -> None:
    height, width = mask.shape
    assert (decode_counts(runs(mask.ravel()), height, width, columns=False) == mask).all()
    assert (decode_counts(runs(mask.T.ravel()), height, width, columns=True) == mask).all()


@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=12))
def test_compressed_counts(counts: list[int]) -> None:
    assert decode_coco_string(coco_string(counts)) == counts


@given(MASKS)
def test_compressed_masks_agree_with_pycocotools(mask: NDArray[np.bool_]) -> None:
    reference = pytest.importorskip("pycocotools.mask")
    rle = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (decode_coco(rle) == mask).all()
    assert (decode_coco({**rle, "counts": rle["counts"].decode()}) == mask).all()
    assert (
        reference.decode({"size": list(mask.shape), "counts": coco_string(runs(mask.T.ravel()))}) == mask
    ).all()


@given(MASKS, st.booleans())
def test_brush_regions(mask: NDArray[np.bool_], raw: bool) -> None:
    assert (decode_label_studio(brush(mask, raw=raw), *mask.shape) == mask).all()


def test_brush_region_of_the_tools_own_encoder() -> None:
    # by brush.mask2rle of label-studio-converter 0.0.59
    data = [0, 0, 0, 80, 57, 27, 254, 23, 0, 143, 254, 216, 4, 127, 248, 76, 2, 63, 251, 96, 0]
    wanted = np.zeros((5, 4), np.bool_)
    wanted[1:3, 2] = wanted[4, 0] = True
    assert (decode_label_studio(data, 5, 4) == wanted).all()


@pytest.mark.parametrize("cut", [0, 3, 6, 9, -1])
def test_damaged_brush_regions_are_errors(cut: int) -> None:
    mask = np.random.default_rng(0).random((9, 9)) > 0.5
    with pytest.raises(DataError, match=r"brush region"):
        decode_label_studio(brush(mask)[:cut], 9, 9)
    with pytest.raises(DataError, match=r"expected 9 x 8 pixels"):
        decode_label_studio(brush(mask), 9, 8)


def test_damaged_counts_are_errors() -> None:
    with pytest.raises(DataError, match=r"cover 5 pixels, expected 2 x 3 = 6"):
        decode_counts([2, 3], 2, 3, columns=True)
    with pytest.raises(DataError, match=r"expected 2 x 3"):
        decode_counts([8, -2], 2, 3, columns=True)
    with pytest.raises(DataError, match=r"none of their characters"):
        decode_coco_string("a b")
    with pytest.raises(DataError, match=r"end within a number"):
        decode_coco_string("R")
