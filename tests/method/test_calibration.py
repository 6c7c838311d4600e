"""Temperatures and thresholds, against numbers worked out by hand."""

import math

import pytest
import torch

from protoseg.errors import CheckpointError
from protoseg.method.calibration import FEW_PIXELS, TEMPERATURES, Calibration, Evidence, describe, judge


def evidence_of(rows, num_classes=2):
    """Evidence of ``(scores, true class, pixels)`` rows."""
    found = Evidence(num_classes, torch.device("cpu"))
    for scores, target, count in rows:
        logits = torch.tensor(scores).view(1, -1, 1, 1).expand(1, num_classes, 1, count)
        found.add(logits, torch.full((1, 1, count), target))
    return found


def test_one_temperature_by_hand():
    # sure of odds 9 to 1, right in three of four: at temperature 2 the odds are 3 to 1
    scores = [2 * math.log(3), 0.0]
    verdict = judge(evidence_of([(scores, 0, 75), (scores, 1, 25)]), "one", None)
    assert verdict.temperature == [2.0, 2.0]
    assert verdict.threshold is None
    assert judge(evidence_of([(scores, 0, 75), (scores, 1, 25)]), "none", None).temperature == [1.0, 1.0]


def test_a_temperature_for_each_class_that_has_enough_pixels():
    one, two = [2 * math.log(3), 0.0, 0.0], [0.0, 2 * math.log(3), 0.0]
    few = [0.0, 0.0, 8.0]
    # true classes that keep the odds of the two others even
    rows = [(one, 0, 4 * FEW_PIXELS), (two, 1, 600), (two, 0, 200), (two, 2, 200), (few, 1, FEW_PIXELS - 1)]
    verdict = judge(evidence_of(rows, 3), "class", None)
    assert verdict.temperature[0] == min(TEMPERATURES), "always right"
    assert verdict.temperature[1] == pytest.approx(2.0)
    together = judge(evidence_of(rows, 3), "one", None).temperature[0]
    assert verdict.temperature[2] == together


def test_the_lowest_threshold_that_is_precise_enough():
    def sure(share):
        return [math.log(share / (1 - share)), 0.0]

    rows = [(sure(0.955), 0, 10), (sure(0.855), 0, 8), (sure(0.855), 1, 2), (sure(0.655), 0, 5),
            (sure(0.655), 1, 5)]  # fmt: skip
    verdict = judge(evidence_of(rows), "none", 0.9)
    # above 0.65 there are 20 pixels, 18 of them right
    assert verdict.threshold == 0.66
    assert verdict.precision == pytest.approx(0.9)
    assert verdict.coverage == pytest.approx(20 / 30)
    assert verdict.reached
    assert judge(evidence_of(rows), "none", 0.95).threshold == 0.86
    assert judge(evidence_of(rows), "none", 0.75).threshold == 0.0
    assert "90.0% of 66.7% are right" in describe(verdict, 0.9)


def test_where_no_threshold_will_do_the_strictest_is_taken():
    verdict = judge(evidence_of([([8.0, 0.0], 1, 10)]), "none", 0.9)
    assert verdict.threshold == 0.99
    assert not verdict.reached
    assert "no threshold reaches 90.0%" in describe(verdict, 0.9)
    assert judge(evidence_of([]), "class", 0.9).threshold == 0.99


def test_ignored_pixels_say_nothing():
    found = Evidence(2, torch.device("cpu"))
    found.add(torch.zeros(1, 2, 1, 4), torch.tensor([[[255, -1, 0, 1]]]))
    assert found.counts[0, :, :, 0].sum() == 2


def test_two_halves_are_the_whole():
    rows = [([2.0, 0.0], 0, 7), ([0.5, 1.0], 1, 4), ([1.0, 0.0], 1, 3)]
    whole, halves = evidence_of(rows), [evidence_of(rows[:1]), evidence_of(rows[1:])]
    one = halves[0].reduced(
        lambda value: value + (halves[1].nll if value.shape == halves[1].nll.shape else halves[1].counts)
    )
    assert judge(one, "class", 0.5) == judge(whole, "class", 0.5)


def test_calibration_is_saved_with_the_teacher_it_is_of():
    made = Calibration(2, 0.8, "abc")
    made.set(judge(evidence_of([([2 * math.log(3), 0.0], 0, 3), ([2 * math.log(3), 0.0], 1, 1)]), "one", 0.7))
    again = Calibration(2, 0.8, "abc")
    again.load_state_dict(made.state_dict())
    assert again.temperature.tolist() == [2.0, 2.0]
    assert again.threshold == made.threshold
    with pytest.raises(CheckpointError, match="the state was made with"):
        Calibration(2, 0.8, "other").load_state_dict(made.state_dict())
    made.set(None)
    assert (made.threshold.item(), made.temperature.tolist()) == (0.8, [1.0, 1.0])
