"""Sides of a comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from export.proof.prove import at_stride
from protoseg.manifest import Head

LINEAR = np.log([[[[0.6]], [[0.3]], [[0.1]]]]).astype(np.float32)
PROTOTYPE = np.log([[[[0.1]], [[0.5]], [[0.4]]]]).astype(np.float32)


@pytest.mark.parametrize(("head", "label"), [("linear", 0), ("prototype", 1), ("fused", 1)])
def test_labels_at_the_stride_come_from_the_chosen_head(head: Head, label: int) -> None:
    """Of the probabilities 0.6, 0.3, 0.1 and 0.1, 0.5, 0.4; their mean is 0.35, 0.4, 0.25."""
    outputs: dict[str, Any] = {"linear_logits_stride": LINEAR, "prototype_logits_stride": PROTOTYPE}
    image = np.zeros((1, 3, 4, 4), np.uint8)
    assert at_stride(lambda _: outputs, head)(image)["labels"].tolist() == [[[label]]]
    own = {**outputs, "logits_stride": LINEAR[:, ::-1]}
    assert at_stride(lambda _: own, head)(image)["labels"].tolist() == [[[2]]]
