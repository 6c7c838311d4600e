from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.model.upsample import argmax_planes, upsample


def torch_upsampled(
    logits: NDArray[np.float32], sizes: list[tuple[int, int]], crop: tuple[int, int]
) -> NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(logits)[None]
    for index, size in enumerate(sizes):
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        if index == 0:
            x = x[:, :, : crop[0], : crop[1]]
    return np.asarray(x[0].numpy())


@pytest.mark.parametrize("size", [(50, 70), (23, 31), (200, 90)])
def test_upsampling_is_torchs(size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 12, 16)).astype(np.float32)
    expected = torch_upsampled(logits, [(48, 64), size], (45, 61))
    planes = list(upsample(logits, size, (48, 64), (45, 61)))
    np.testing.assert_allclose(np.stack(planes), expected, atol=2e-5)
    labels, confidence = argmax_planes(lambda: upsample(logits, size, (48, 64), (45, 61)), True)
    assert np.mean(labels == expected.argmax(0)) > 0.9999
    exponentials = np.exp(expected - expected.max(0))
    np.testing.assert_allclose(confidence, 1 / exponentials.sum(0), atol=1e-4)


def test_first_class_wins_a_tie() -> None:
    labels, _ = argmax_planes(lambda: iter(np.ones((3, 2, 2), np.float32)), False)
    assert labels.tolist() == [[0, 0], [0, 0]]
