"""Each way to choose does what its name says, on images whose numbers are given."""

import numpy as np
import pytest

from benchmarks.suggest_study.__main__ import ARMS
from benchmarks.suggest_study.choose import STRATEGIES, Looks, best_of_clusters
from benchmarks.suggest_study.tables import TITLES


def looks(count, seed, scores=("linear", "entropy", "margin", "confidence", "novelty", "far")):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(4), count).astype(np.float32)
    encoder = rng.normal(size=(count, 8)).astype(np.float32)
    return Looks(
        {name: rng.random(count, dtype=np.float32) for name in scores}, shares, shares / 3, np.sqrt(shares),
        encoder / np.linalg.norm(encoder, axis=1, keepdims=True),
    )  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_way_chooses_as_many_images_as_it_is_asked_for(name):
    chosen = STRATEGIES[name](looks(40, 0), looks(5, 1), 10, 0)
    assert len(chosen) == len(set(chosen)) == 10
    assert set(chosen) <= set(range(40))
    assert STRATEGIES[name](looks(40, 0), looks(5, 1), 10, 0) == chosen


def test_every_way_is_in_the_command_and_has_a_title():
    assert set(ARMS) == set(STRATEGIES)
    assert set(STRATEGIES) - set(TITLES) == {"random_2", "random_3", "random_4"}


def test_scores_take_the_highest():
    pool = looks(40, 0)
    for name in ("entropy", "margin", "confidence", "novelty", "far"):
        chosen = STRATEGIES[name](pool, looks(5, 1), 10, 0)
        assert min(pool.scores[name][chosen]) >= max(np.delete(pool.scores[name], chosen))


def test_an_image_of_each_cluster():
    points = np.array([[1, 0], [0.99, 0.1], [0.96, 0.2], [0, 1], [0.1, 0.99]], np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert best_of_clusters(points[:3], None, 1, 0) == [1], "the one in the middle"
    chosen = best_of_clusters(points, None, 2, 0)
    assert sorted(i >= 3 for i in chosen) == [False, True]
    scores = np.array([0, 0, 1, 0, 1], np.float32)
    assert sorted(best_of_clusters(points, scores, 2, 0)) == [2, 4]
