import math

import pytest
import torch

from protoseg.method import losses
from protoseg.method.losses import (
    Mean,
    over_processes,
    pseudo_label_cross_entropy,
    unsupervised_denominator,
)


def cross_entropy(*arguments, **settings):
    found = losses.cross_entropy(*arguments, **settings)
    return found.total, found.count


def ohem_cross_entropy(*arguments, **settings):
    found = losses.ohem_cross_entropy(*arguments, **settings)
    return found.total, found.count


def logits_for(probabilities):
    """(1, 2, 1, N) logits whose softmax gives these probabilities of class 1."""
    p = torch.tensor(probabilities)
    return torch.stack([(1 - p).log(), p.log()])[None, :, None, :]


def test_cross_entropy_by_hand():
    total, count = cross_entropy(logits_for([0.5, 0.25, 0.9]), torch.tensor([[[1, 0, 255]]]))
    torch.testing.assert_close(total, torch.tensor(math.log(2) - math.log(0.75)))
    assert count == 2


def test_cross_entropy_with_a_weight_for_each_pixel():
    weights = torch.tensor([[[2.0, 4.0, 8.0]]])
    logits, target = logits_for([0.5, 0.25, 0.9]), torch.tensor([[[1, 0, 255]]])
    total, count = cross_entropy(logits, target, weights=weights)
    assert float(total) == pytest.approx(-2 * math.log(0.5) - 4 * math.log(0.75))
    assert float(count) == 6
    total, count = cross_entropy(logits, target, weights=weights, class_weights=torch.tensor([0.5, 3.0]))
    assert float(total) == pytest.approx(-6 * math.log(0.5) - 2 * math.log(0.75))
    assert float(count) == 8


def test_cross_entropy_of_nothing_is_zero_and_attached():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    total, count = cross_entropy(logits, torch.full((1, 2, 2), 255))
    (total / count.clamp(min=1)).backward()
    assert total == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_class_weights_scale_sum_and_count():
    weights = torch.tensor([1.0, 3.0])
    total, count = cross_entropy(
        logits_for([0.5, 0.5, 0.5]), torch.tensor([[[1, 0, 255]]]), class_weights=weights
    )
    torch.testing.assert_close(total, torch.tensor(4 * math.log(2)))
    assert count == 4


def test_ohem_keeps_pixels_below_the_threshold():
    # probabilities of the right class 0.9, 0.6, 0.2; threshold 0.7 keeps the last two
    logits, target = logits_for([0.9, 0.6, 0.2]), torch.ones(1, 1, 3, dtype=torch.int64)
    total, count = ohem_cross_entropy(logits, target, threshold=0.7, min_kept=1)
    assert count == 2
    torch.testing.assert_close(total, torch.tensor(-math.log(0.6) - math.log(0.2)))


def test_ohem_keeps_at_least_min_kept():
    logits, target = logits_for([0.99, 0.95, 0.9, 0.8]), torch.ones(1, 1, 4, dtype=torch.int64)
    total, count = ohem_cross_entropy(logits, target, threshold=0.7, min_kept=3)
    # the third smallest probability is 0.95: 0.8, 0.9 and 0.95 are kept
    assert count == 3
    torch.testing.assert_close(total, torch.tensor(-math.log(0.8) - math.log(0.9) - math.log(0.95)))


def test_ohem_never_keeps_ignored_pixels():
    logits = logits_for([0.1, 0.1, 0.99])
    total, count = ohem_cross_entropy(logits, torch.tensor([[[255, 1, 1]]]), threshold=0.5, min_kept=100_000)
    assert count == 2
    torch.testing.assert_close(total, torch.tensor(-math.log(0.1) - math.log(0.99)))


def test_pseudo_label_loss_by_hand():
    logits = logits_for([0.5, 0.25, 0.9, 0.2])
    label = torch.tensor([[[1, 0, 1, 7]]])  # the last label is outside and must not be looked at
    believed = torch.tensor([[[True, True, False, False]]])
    total = pseudo_label_cross_entropy(logits, label, believed)
    torch.testing.assert_close(total, torch.tensor(math.log(2) - math.log(0.75)))


def test_pseudo_label_loss_takes_the_weight_of_the_label():
    logits = logits_for([0.5, 0.25])
    label = torch.tensor([[[1, 0]]])
    believed = torch.ones(1, 1, 2, dtype=torch.bool)
    total = pseudo_label_cross_entropy(logits, label, believed, torch.tensor([3.0, 0.5]))
    torch.testing.assert_close(total, torch.tensor(0.5 * math.log(2) - 3 * math.log(0.75)))


@pytest.mark.parametrize(("mode", "expected"), [("masked", 10.0), ("valid", 40.0), ("u2pl", 2.5)])
def test_denominators(mode, expected):
    assert unsupervised_denominator(torch.tensor(10.0), torch.tensor(40.0), mode) == expected


@pytest.mark.parametrize("mode", ["masked", "valid", "u2pl"])
def test_nothing_believed_gives_a_zero_loss(mode):
    logits = torch.randn(1, 2, 1, 3, requires_grad=True)
    nothing = torch.zeros(1, 1, 3, dtype=torch.bool)
    total = pseudo_label_cross_entropy(logits, torch.zeros(1, 1, 3, dtype=torch.int64), nothing)
    loss = total / unsupervised_denominator(torch.tensor(0.0), torch.tensor(3.0), mode)
    loss.backward()
    assert loss == 0


def test_means_of_two_processes_average_to_the_mean_of_one():
    """DDP averages over processes, which then gives the mean over all pixels: 12 / 6, not (3/1 + 9/5) / 2."""

    def mean(total, count):
        return Mean(torch.tensor(float(total)), torch.tensor(float(count)))

    shares = [{"a": mean(3, 1), "b": mean(1, 0)}, {"a": mean(9, 5), "b": mean(2, 0)}]
    calls = []

    def reduce(value):
        calls.append(value)
        return torch.tensor([6.0, 0.0])

    found = [over_processes(share, reduce, 2) for share in shares]
    assert len(calls) == 2, "one collective for all means of a process"
    assert float(sum(share["a"].value for share in found) / 2) == pytest.approx(12 / 6)
    assert float(found[1]["b"].value) == 4.0, "nothing to divide by is not divided"
