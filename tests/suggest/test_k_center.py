import numpy as np
import pytest

from protoseg.suggest.k_center import distance_to, pick_diverse


def directions(*degrees):
    angle = np.deg2rad(np.array(degrees, np.float32))
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


NONE = np.zeros((0, 2), np.float32)


def test_distance_by_hand():
    found = distance_to(directions(0, 60, 90, 180), directions(0)[0])
    np.testing.assert_allclose(found, [0, np.sqrt(0.5), 1, 1], atol=1e-3)


def test_highest_score_first_then_score_times_distance():
    scores = np.array([0.5, 0.9, 0.85, 0.3], np.float32)
    picks, repeats = pick_diverse(scores, directions(90, 0, 10, 45), NONE, 3, 0.0)
    # from 0 degrees: 0.5 * 1, 0.85 * 0.12, 0.3 * 0.54; then 0.85 * 0.12 (to 0) against 0.3 * 0.54
    assert [pick.index for pick in picks] == [1, 0, 3]
    assert picks[0].nearest is None
    assert picks[0].distance is None
    assert picks[1].nearest == 1
    assert picks[1].distance == pytest.approx(1)
    assert repeats == 0


def test_duplicates_are_never_both_chosen():
    embeddings = directions(0, 0, 40, 40.5, 90, 90)
    scores = np.array([0.9, 0.95, 0.5, 0.6, 0.8, 0.8], np.float32)
    picks, repeats = pick_diverse(scores, embeddings, NONE, 6, 0.05)
    assert [pick.index for pick in picks] == [1, 4, 3]
    assert repeats == 3


def test_labelled_images_push_suggestions_away():
    embeddings, scores = directions(0, 45, 90), np.array([0.9, 0.5, 0.6], np.float32)
    picks, repeats = pick_diverse(scores, embeddings, directions(1, 180), 2, 0.05)
    assert [(pick.index, pick.nearest) for pick in picks] == [(2, 3), (1, 3)]
    assert repeats == 1, "the first is a near duplicate of a labelled one, whatever its score"


def test_equal_images_are_taken_in_order():
    picks, _ = pick_diverse(np.ones(4, np.float32), directions(0, 90, 0, 90), NONE, 4, 0.0)
    assert [pick.index for pick in picks] == [0, 1, 2, 3]
