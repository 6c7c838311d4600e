"""The batches that parity compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from export.proof.cases import NamedImage, dynamic_cases, make_cases, static_cases
from protoseg.errors import ExportError


def images_like(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_cases_cover_sizes_batches_and_extremes() -> None:
    image = NamedImage("a.png", images_like(64, 96), np.zeros((64, 96), np.uint8))
    cases = {c.name: c for c in dynamic_cases([image], (64, 96), 32)}
    assert cases["size-tile"].batch.shape == (1, 3, 32, 32)
    assert cases["size-odd"].batch.shape[2] % 2 == 1
    assert cases["size-tall"].batch.shape[2] > 3 * cases["size-tall"].batch.shape[3]
    assert cases["size-wide"].batch.shape[3] > 3 * cases["size-wide"].batch.shape[2]
    assert [len(cases[f"batch-{n}"].batch) for n in (2, 4)] == [2, 4]
    assert {"noise", "black", "white", "grey", "checkerboard", "ramp"} <= set(cases)
    assert cases["a.png"].mask is not None
    assert cases["size-multiple"].on_multiple(32)
    assert not cases["size-odd"].on_multiple(32)
    with pytest.raises(ExportError, match="at least one real image"):
        make_cases([], (64, 96), 32, None)
    fixed = static_cases([image], (2, 32, 48))
    assert {c.batch.shape for c in fixed} == {(2, 3, 32, 48)}
