import numpy as np
import pytest

from protoseg.suggest.choice import distance_to, pick_clustered, pick_diverse, pick_evenly


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


def test_one_of_each_cluster_and_the_largest_first():
    features = directions(0, 2, 5, 90, 91, 180)
    picks, repeats = pick_clustered(features, features, NONE, 3, 0.0)
    assert [(pick.index, pick.cluster_size) for pick in picks] == [(1, 3), (3, 2), (5, 1)]
    assert repeats == 0
    assert picks[0].nearest is None
    assert picks[1].nearest == 1
    assert picks[1].distance == pytest.approx(float(distance_to(features, features[1])[3]))
    again, _ = pick_clustered(features, features, NONE, 3, 0.0)
    assert again == picks


def test_clusters_have_no_near_duplicates_of_what_is_taken():
    features = directions(0, 2, 5, 89, 90, 91, 180)
    picks, repeats = pick_clustered(features, features, directions(180, 2), 2, 0.03)
    # 180 and 2 are labelled, 0 and 5 are at 0.025 and 0.037 from 2, 89 and 91 at 0.012 from 90
    assert [pick.index for pick in picks] == [4, 2]
    assert repeats == 5
    assert pick_clustered(features[:1], features[:1], features[:1], 3, 0.03) == ([], 1)


def test_what_is_least_like_the_chosen_fills_up():
    features = directions(0, 0, 0, 50, 90)
    copies = directions(0, 10, 20, 50, 90)
    picks, _ = pick_clustered(features, copies, NONE, 5, 0.0)
    assert sorted(pick.index for pick in picks) == [0, 1, 2, 3, 4]
    assert {pick.index for pick in picks[:3]} == {0, 3, 4}, (
        "of three copies one, then those of other clusters"
    )


def test_prototypes_are_taken_evenly():
    shares = np.array([[0.9, 0.1, 0], [0.8, 0, 0.2], [0.7, 0.3, 0], [0.7, 0.3, 0]], np.float32)
    taken = np.array([[0.5, 0.5, 0]], np.float32)
    picks, repeats = pick_evenly(np.sqrt(shares), np.sqrt(taken), 4, 0.01)
    # roots of 0.5, 0.5, 0 and what is added: 1.183 + 0.775, 1.140 + 0.707 + 0.447, 1.095 + 0.894
    assert [pick.index for pick in picks] == [1, 2, 0]
    assert repeats == 1, "the last image is a copy"
    assert picks[0].nearest == 4
    assert pick_evenly(np.sqrt(shares), np.sqrt(taken), 2, 0.01)[0] == picks[:2]
