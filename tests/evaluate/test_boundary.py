"""The boundary F-score by hand, and against a plain loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protoseg.evaluate import boundary

IGNORE = 255


def label_maps(max_side=7, classes=4):
    def build(height, width, seed):
        rng = np.random.default_rng(seed)
        return rng.integers(0, classes, (height, width)), rng.integers(0, classes, (height, width))

    side = st.integers(1, max_side)
    return st.builds(build, side, side, st.integers(0, 10_000))


def split_image(column, height=12, width=20):
    """Class 0 left of ``column``, class 1 from there on."""
    label = np.zeros((height, width), np.int64)
    label[:, column:] = 1
    return label


def boundary_f(label, target, classes=2, tolerance=boundary.DEFAULT_TOLERANCE):
    counts = boundary.boundary_counts(label[None], target, classes, IGNORE, tolerance)[0]
    return boundary.boundary_f_per_class(counts).tolist()


def test_tolerance_is_a_share_of_the_diagonal_rounded_up():
    assert boundary.tolerance_pixels(300, 400) == 4  # 0.0075 * 500 = 3.75
    assert boundary.tolerance_pixels(1, 1) == 1
    assert boundary.tolerance_pixels(300, 400, 0.0) == 0


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
    whole = np.zeros((4, 5), np.int64)
    assert boundary_f(whole, whole)[0] == 1.0
    assert math.isnan(boundary_f(whole, whole)[1])
    assert boundary_f(whole + 1, whole)[0] == 0.0, "an absent class must not score 1 for having no boundary"
    assert boundary_f(split_image(2, 4, 5), whole)[0] == 0.0, "a boundary where there is none"


def test_boundary_f_on_one_pixel():
    one = np.ones((1, 1), np.int64)
    assert boundary_f(one, one)[1] == 1.0


def test_boundaries_are_looked_for_inside_thin_ignored_outlines():
    target = split_image(10, 40, 40)
    outlined = target.copy()
    outlined[:, 9:11] = IGNORE
    # 0.0354 of the diagonal 56.6: 2 pixels
    assert boundary_f(target, outlined, tolerance=0.0354) == [1.0, 1.0]
    far = split_image(20, 40, 40)
    assert boundary_f(far, outlined, tolerance=0.0354) == [0.0, 0.0]


def test_there_is_no_boundary_in_or_at_a_wide_ignored_area():
    target = np.zeros((20, 20), np.int64)
    target[5:15, 5:15] = IGNORE
    label = np.zeros((20, 20), np.int64)
    label[5:15, 5:15] = 1
    assert boundary_f(label, target, tolerance=0.01)[0] == 1.0


@given(label_maps(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_dilation_is_a_disc(maps, radius):
    label, _ = maps
    mask = (label == 0).astype(np.uint8)
    grown = boundary.dilate(mask, radius)
    height, width = label.shape
    for y in range(height):
        for x in range(width):
            near = [
                int(mask[v, u])
                for v in range(height)
                for u in range(width)
                if (v - y) ** 2 + (u - x) ** 2 <= radius**2
            ]
            assert int(grown[y, x]) == max(near)


@given(label_maps())
@settings(max_examples=40, deadline=None)
def test_boundary_f_agrees_with_a_plain_loop(maps):
    label, target = maps
    radius = boundary.tolerance_pixels(*target.shape, 0.1)

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


def test_many_classes():
    classes = 130
    target = np.tile(np.arange(classes).repeat(6), (6, 1))
    wrong = (target + 1) % classes
    counts = boundary.boundary_counts(np.stack([target, wrong]), target, classes, IGNORE, 0.0)
    assert boundary.boundary_f_per_class(counts[0]).tolist() == [1.0] * classes
    assert boundary.boundary_f_per_class(counts[1]).mean() < 1


def test_boundary_scores_are_averaged_over_the_images_that_have_the_class():
    first = boundary.boundary_counts(split_image(10)[None], split_image(10), 3, IGNORE)[0]
    second = boundary.boundary_counts(split_image(16)[None], split_image(10), 3, IGNORE)[0]
    score = boundary.boundary_f_per_class(first + second)
    assert score[:2].tolist() == [0.5, 0.5]
    assert math.isnan(score[2])
