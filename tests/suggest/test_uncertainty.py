import numpy as np
import pytest
import torch

from protoseg.inference import HeadLogits
from protoseg.suggest.uncertainty import SCORES, suspicion


def one_pixel(linear, prototype=None):
    def column(values):
        return torch.tensor(values).log().view(1, -1, 1, 1)

    return HeadLogits(column(linear), None if prototype is None else column(prototype))


def test_scores_by_hand():
    logits = one_pixel([0.7, 0.2, 0.1], [0.1, 0.8, 0.1])
    found = {name: float(suspicion(logits, name, "fused", 0.1)) for name in SCORES}
    # fused 0.4, 0.5, 0.1 gives class 1, in which the linear head believes with 0.2
    entropy = -sum(p * np.log(p) for p in (0.4, 0.5, 0.1)) / np.log(3)
    assert found == pytest.approx(
        {"linear": 0.8, "confidence": 0.5, "entropy": entropy, "margin": 0.9, "disagreement": 0.6,
         "distance": (1 - 0.1 * np.log(0.8)) / 2},
        abs=1e-6,
    )  # fmt: skip
    assert float(suspicion(logits, "linear", "linear", 0.1)) == pytest.approx(0.3)
    assert float(suspicion(logits, "confidence", "prototype", 0.1)) == pytest.approx(0.2)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("head", ["linear", "prototype", "fused"])
def test_scores_stay_in_range(name, head):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4, 5, 6)
    # the last class has no prototypes
    prototype = 10 * (2 * torch.rand(shape, generator=generator) - 1)
    prototype[:, 3] -= 40
    logits = HeadLogits(30 * torch.randn(shape, generator=generator), prototype)
    found = suspicion(logits, name, head, 0.1)
    assert found.shape == (2, 5, 6)
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6
    assert found.std() > 0


def test_without_prototypes_only_some_scores_exist():
    logits = one_pixel([0.7, 0.3])
    assert float(suspicion(logits, "linear", "linear", 0.1)) == pytest.approx(0.3)
    for name in ("disagreement", "distance"):
        with pytest.raises(ValueError, match="use score 'linear'"):
            suspicion(logits, name, "linear", 0.1)
    with pytest.raises(ValueError, match="use head 'linear'"):
        suspicion(logits, "entropy", "fused", 0.1)
