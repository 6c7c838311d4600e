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


def split_image(column, height=12, width=20):
    """Class 0 left of ``column``, class 1 from there on."""
    label = torch.zeros(height, width, dtype=torch.int64)
    label[:, column:] = 1
    return label


def boundary_f(label, target, classes=2, tolerance=counting.DEFAULT_TOLERANCE):
    counts = counting.boundary_counts(label[None], target, classes, IGNORE, tolerance)[0]
    return counting.boundary_f_per_class(counts).tolist()


def test_tolerance_is_a_share_of_the_diagonal_rounded_up():
    assert counting.tolerance_pixels(300, 400) == 4  # 0.0075 * 500 = 3.75
    assert counting.tolerance_pixels(1, 1) == 1
    assert counting.tolerance_pixels(300, 400, 0.0) == 0


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
def test_a_shifted_boundary_counts_within_the_tolerance(shift, expected):
    # the diagonal is hypot(12, 20) = 23.3; 0.08 of it is 1.87, so 2 pixels
    found = boundary_f(split_image(10 + shift), split_image(10), tolerance=0.08)
    assert found == [expected, expected]


def test_boundary_f_by_hand():
    # the prediction has the target's line at column 10 and a second one at column 15 that is wrong:
    # class 1 occupies [10, 15). Boundary pixels lie in columns 9 and 14, 12 rows each.
    label = split_image(10)
    label[:, 15:] = 0
    # precision 12 / 24, recall 1: F = 2/3, for both classes
    assert boundary_f(label, split_image(10), tolerance=0.0) == pytest.approx([2 / 3, 2 / 3], abs=1e-6)


def test_boundary_f_of_a_class_without_a_boundary():
    whole = torch.zeros(4, 5, dtype=torch.int64)
    assert boundary_f(whole, whole)[0] == 1.0
    assert math.isnan(boundary_f(whole, whole)[1])
    assert boundary_f(whole + 1, whole)[0] == 0.0, "an absent class must not score 1 for having no boundary"
    assert boundary_f(split_image(2, 4, 5), whole)[0] == 0.0, "a boundary where there is none"


def test_boundary_f_on_one_pixel():
    one = torch.ones(1, 1, dtype=torch.int64)
    assert boundary_f(one, one)[1] == 1.0


def test_boundaries_are_looked_for_inside_thin_ignored_outlines():
    target = split_image(10, 40, 40)
    outlined = target.clone()
    outlined[:, 9:11] = IGNORE
    # 0.0354 of the diagonal 56.6: 2 pixels
    assert boundary_f(target, outlined, tolerance=0.0354) == [1.0, 1.0]
    far = split_image(20, 40, 40)
    assert boundary_f(far, outlined, tolerance=0.0354) == [0.0, 0.0]


def test_there_is_no_boundary_in_or_at_a_wide_ignored_area():
    target = torch.zeros(20, 20, dtype=torch.int64)
    target[5:15, 5:15] = IGNORE
    label = torch.zeros(20, 20, dtype=torch.int64)
    label[5:15, 5:15] = 1
    assert boundary_f(label, target, tolerance=0.01)[0] == 1.0


@given(label_maps(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_dilation_is_a_disc(maps, radius):
    label, _ = maps
    bits = torch.where(label == 0, 1, 0) << label
    grown = counting.dilate(bits, radius)
    height, width = label.shape
    for y in range(height):
        for x in range(width):
            near = [
                int(bits[v, u])
                for v in range(height)
                for u in range(width)
                if (v - y) ** 2 + (u - x) ** 2 <= radius**2
            ]
            assert int(grown[y, x]) == int(np.bitwise_or.reduce(near))


@given(label_maps())
@settings(max_examples=40, deadline=None)
def test_boundary_f_agrees_with_a_plain_loop(maps):
    label, target = maps
    # no ignored pixel, so that the loop below stays plain
    target = torch.where(target == IGNORE, 0, target)
    radius = counting.tolerance_pixels(*target.shape, 0.1)

    def edges(mask):
        height, width = mask.shape
        found = set()
        for y in range(height):
            for x in range(width):
                for v, u in ((y, x + 1), (y + 1, x), (y + 1, x + 1)):
                    if v < height and u < width and mask[y, x] != mask[v, u]:
                        found.add((y, x))
        return found

    def near(points, others):
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in points)

    found = boundary_f(label, target, classes=4, tolerance=0.1)
    for c in range(4):
        if not (target == c).any():
            assert math.isnan(found[c])
            continue
        wanted, got = edges(target == c), edges(label == c)
        if not wanted and not got:
            assert found[c] == float((label == c).any())
            continue
        precision = near(got, wanted) / max(len(got), 1)
        recall = near(wanted, got) / max(len(wanted), 1)
        total = precision + recall
        assert found[c] == pytest.approx(2 * precision * recall / total if total else 0.0, abs=1e-6)


def test_more_classes_than_bits_in_a_word():
    classes = 130
    target = torch.arange(classes).repeat_interleave(6).view(1, -1).repeat(6, 1)
    wrong = (target + 1) % classes
    counts = counting.boundary_counts(torch.stack([target, wrong]), target, classes, IGNORE, 0.0)
    assert counting.boundary_f_per_class(counts[0]).tolist() == [1.0] * classes
    assert counting.boundary_f_per_class(counts[1]).mean() < 1
    table = counting.confusion_matrix(target, target, classes, IGNORE)
    assert metrics.miou(table.numpy()) == 1.0


def test_boundary_scores_are_averaged_over_the_images_that_have_the_class():
    first = counting.boundary_counts(split_image(10)[None], split_image(10), 3, IGNORE)[0]
    second = counting.boundary_counts(split_image(16)[None], split_image(10), 3, IGNORE)[0]
    score = counting.boundary_f_per_class(first + second)
    assert score[:2].tolist() == [0.5, 0.5]
    assert math.isnan(score[2])


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
