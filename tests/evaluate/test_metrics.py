import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from protoseg.evaluate import counts as counting
from protoseg.evaluate import metrics

IGNORE = 255


def label_maps(max_side=7, classes=4):
    def build(height, width, seed):
        rng = np.random.default_rng(seed)
        label = torch.from_numpy(rng.integers(0, classes, (height, width)))
        target = torch.from_numpy(rng.integers(0, classes + 1, (height, width)))
        return label, torch.where(target == classes, IGNORE, target)

    side = st.integers(1, max_side)
    return st.builds(build, side, side, st.integers(0, 10_000))


def test_confusion_rows_are_targets_and_ignored_pixels_are_left_out():
    target = torch.tensor([[0, 0, 1], [1, 2, IGNORE]])
    label = torch.tensor([[0, 1, 1], [0, 2, 2]])
    table = counting.confusion_matrix(label, target, 3, IGNORE)
    assert table.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert table.dtype == torch.int64


def test_ignore_index_inside_the_class_range_and_strange_targets_are_left_out():
    target = torch.tensor([0, 1, 2, 7, -1])
    table = counting.confusion_matrix(torch.zeros(5, dtype=torch.uint8), target, 3, ignore_index=1)
    assert table.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_confusion_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        counting.confusion_matrix(torch.zeros(2, 2), torch.zeros(2, 3), 2, IGNORE)


@given(label_maps())
@settings(max_examples=30, deadline=None)
def test_confusion_agrees_with_torchmetrics(maps):
    label, target = maps
    expected = multiclass_confusion_matrix(label, target, 4, ignore_index=IGNORE)
    assert torch.equal(counting.confusion_matrix(label, target, 4, IGNORE), expected)


def test_iou_by_hand_with_an_absent_class():
    # class 0: 3 right, 1 lost to class 1, 0 gained: 3/4. class 1: 2 right, gained 1, lost 1 to class 2:
    # 2/4. class 2 has no target pixel: left out, although it was predicted once.
    table = torch.tensor([[3, 1, 0], [0, 2, 1], [0, 0, 0]])
    iou = metrics.iou_per_class(table.numpy())
    assert iou[:2].tolist() == [0.75, 0.5]
    assert math.isnan(iou[2])
    assert metrics.miou(table.numpy()) == 0.625
    assert metrics.pixel_accuracy(table.numpy()) == 5 / 7


def test_a_class_that_is_never_found_scores_zero_not_nan():
    table = torch.tensor([[4, 0], [3, 0]])
    assert metrics.iou_per_class(table.numpy()).tolist() == [4 / 7, 0.0]


def test_nothing_counted_is_nan():
    table = torch.zeros(2, 2, dtype=torch.int64)
    assert math.isnan(metrics.miou(table.numpy()))
    assert math.isnan(metrics.pixel_accuracy(table.numpy()))
    assert math.isnan(counting.expected_calibration_error(torch.zeros(3, 15, dtype=torch.int64)))


def test_calibration_by_hand():
    confidence = torch.tensor([0.55, 0.65, 0.95, 0.85, 1.0, 0.1])
    correct = torch.tensor([True, False, True, True, False, True])
    valid = torch.tensor([True, True, True, True, True, False])
    counts = counting.calibration_counts(confidence, correct, valid, bins=2)
    assert counts[0].tolist() == [0, 5]
    assert counts[1].tolist() == [0, 3]
    # one bin holds all: |3/5 - 4/5|
    assert counting.expected_calibration_error(counts) == pytest.approx(0.2, abs=1e-6)
    # bins of width 0.2: 0.55 in [.4, .6) |1 - .55|; .65 in [.6, .8) |0 - .65|; the others |2/3 - 2.8/3|
    counts = counting.calibration_counts(confidence, correct, valid, bins=5)
    assert counts[0].tolist() == [0, 0, 1, 1, 3]
    expected = (0.45 + 0.65 + abs(2 - 2.8)) / 5
    assert counting.expected_calibration_error(counts) == pytest.approx(expected, abs=1e-6)


def test_calibration_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(3)
    probs = torch.randn(500, 5, generator=generator).softmax(1)
    target = torch.randint(0, 5, (500,), generator=generator)
    confidence, label = probs.max(1)
    counts = counting.calibration_counts(confidence, label == target, torch.ones(500, dtype=torch.bool))
    expected = multiclass_calibration_error(probs, target, 5, n_bins=15)
    assert counting.expected_calibration_error(counts) == pytest.approx(float(expected), abs=1e-5)


def test_calibration_survives_confidences_that_are_not_numbers():
    confidence = torch.tensor([math.nan, math.inf, 2.0])
    counts = counting.calibration_counts(confidence, torch.ones(3).bool(), torch.ones(3).bool())
    assert counts[0].sum() == 3
    assert (counts[0][0], counts[0][-1]) == (1, 2)


def test_the_rule_is_the_same_on_the_device_and_in_numpy():
    target = torch.tensor([[0, 0, 1], [1, 2, IGNORE]])
    label = torch.tensor([[0, 1, 1], [0, 2, 2]])
    there = counting.confusion_matrix(label, target, 3, IGNORE).numpy()
    here = metrics.confusion_matrix(label.numpy(), target.numpy(), 3)
    assert (there == here).all()


def test_a_class_that_is_predicted_and_in_no_target_is_left_out_of_the_mean():
    # 100 pixels of class 0, 10 of them given to a class that no target has; 50 of class 1, all right
    table = np.array([[90, 0, 10], [0, 50, 0], [0, 0, 0]])
    assert metrics.miou(table) == pytest.approx((0.9 + 1) / 2)
