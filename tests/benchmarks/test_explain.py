"""The deletion test on a network whose features are the colours of the image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from explain.test_search import BLUE, RED, Colours, Network, picture
from torch import Tensor

from benchmarks.explain import Counts, image_counts, ratio


class Upsampling(Colours):
    def upsample(self, low: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(low, size=self.padded_size(height, width), mode="nearest")[..., :height, :width]


def counted(image: Any, mask: Any, doubtful: set[int]) -> Counts:
    segmenter = Network()
    segmenter.network = Upsampling()
    counts = Counts()
    checkpoint: Any = SimpleNamespace(segmenter=segmenter, info=SimpleNamespace(ignore_index=255))
    image_counts(checkpoint, image, mask, doubtful, counts)
    return counts


def test_only_the_named_prototype_decides() -> None:
    # red is nearest to prototype 0 of class 0, and next to yellow of class 1; blue has no such neighbour
    image, mask = picture((0, 0, RED, 0), (0, 8, BLUE, 1), height=8, width=16)
    counts = counted(image, mask, doubtful={2})
    assert counts.pixels == [128.0]
    assert counts.changed["named"] == [64.0]  # red turns to class 1; blue is as far from all others
    assert counts.changed["other"] == counts.changed["second"] == [0.0]
    assert counts.by_class[0]["named"] == 64.0
    assert counts.by_class[1]["named"] == 0.0
    assert counts.known == {"clear": [64.0], "doubtful": [64.0]}
    assert counts.wrong == {"clear": [0.0], "doubtful": [0.0]}


def test_errors_are_those_of_the_named_prototype() -> None:
    image, mask = picture((0, 0, RED, 1), (0, 8, BLUE, 255), height=8, width=16)
    counts = counted(image, mask, doubtful={0})
    assert counts.known == {"clear": [0.0], "doubtful": [64.0]}  # what is ignored does not count
    assert counts.wrong["doubtful"] == [64.0]


def test_a_share_with_its_interval() -> None:
    found = ratio([1.0, 3.0], [4.0, 4.0])
    assert found is not None
    assert found["share"] == 0.5
    assert (found["low"], found["high"]) == pytest.approx((0.25, 0.75))
    assert ratio([0.0], [0.0]) is None
    assert np.isclose(ratio([0.0, 2.0], [0.0, 4.0])["share"], 0.5)  # type: ignore[index]
