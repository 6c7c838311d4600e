from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protoseg.errors import DataError
from protoseg.split.divide import divide, parse_amount

SETS = st.lists(st.frozensets(st.integers(0, 6), max_size=4), min_size=1, max_size=40)


@given(present=SETS, seed=st.integers(0, 2**32), data=st.data())
def test_every_class_is_labeled_and_every_image_used_once(
    present: list[frozenset[int]], seed: int, data: st.DataObject
) -> None:
    labeled = data.draw(st.integers(1, len(present)))
    val = data.draw(st.integers(0, len(present) - labeled))
    classes = frozenset().union(*present)
    try:
        parts = divide(present, labeled, val, seed)
    except DataError:
        if labeled >= len(classes):  # one image for each class is always a cover
            raise
        return
    assert (len(parts.labeled), len(parts.val)) == (labeled, val)
    assert sorted([*parts.labeled, *parts.unlabeled, *parts.val]) == list(range(len(present)))
    assert frozenset().union(*(present[i] for i in parts.labeled)) == classes
    assert divide(present, labeled, val, seed) == parts


def test_seed_changes_the_choice() -> None:
    present = [frozenset({0})] * 60
    parts = [divide(present, 10, 5, seed) for seed in (0, 1)]
    assert parts[0].labeled != parts[1].labeled
    assert parts[0].val != parts[1].val


def test_rarest_class_comes_first_and_a_cover_can_be_exact() -> None:
    # class 2 is only in image 3, which shows class 0 too; class 1 is in 0 and 1
    present = [frozenset({1}), frozenset({1, 0}), frozenset({0}), frozenset({2, 0})]
    for seed in range(10):
        parts = divide(present, 2, 1, seed)
        assert 3 in parts.labeled
        assert {0, 1} & set(parts.labeled)


def test_too_few_labels_say_how_many_are_needed() -> None:
    present = [frozenset({i}) for i in range(5)]
    with pytest.raises(DataError, match=r"2 labelled images cannot show all 5 classes.*--labeled 5"):
        divide(present, 2, 0, 0)
    with pytest.raises(DataError, match="4 labelled and 2 validation images do not fit a set of 5"):
        divide(present, 4, 2, 0)


@pytest.mark.parametrize(
    ("text", "count"),
    [("46", 46), ("0.1", 20), ("10%", 20), ("12.5%", 25), ("1.0", 200), (".5", 100), ("1", 1),
     ("0.0001", 1), ("0", 0), ("0%", 0)],
)  # fmt: skip
def test_amounts(text: str, count: int) -> None:
    assert parse_amount(text, 200, "--labeled") == count


@pytest.mark.parametrize("text", ["", "x", "-1", "1/8", "0.1%%", "201", "1.5"])
def test_bad_amounts(text: str) -> None:
    with pytest.raises(DataError, match="--labeled"):
        parse_amount(text, 200, "--labeled")
