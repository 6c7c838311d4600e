"""Ranking figures by hand and against torchmetrics."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from torchmetrics.functional import spearman_corrcoef

from benchmarks.trust.ranking import (
    auroc,
    average_precision,
    block_resamples,
    caught,
    coarse_places,
    counts_by_place,
    cross_validated,
    places,
    risk_coverage,
    spearman,
)

# score  0.9  0.7  0.7  0.7  0.4  0.1   (three share a place)
# wrong   x    x         x         x
SCORE = [0.9, 0.7, 0.7, 0.7, 0.4, 0.1]
WRONG = np.array([True, True, False, True, False, True])


def hand_counts():
    return counts_by_place(places(SCORE), WRONG)


def test_places_and_counts_by_hand():
    assert places(SCORE).tolist() == [0, 1, 1, 1, 2, 3]
    wrong, right = hand_counts()
    assert wrong.tolist() == [1, 2, 0, 1]
    assert right.tolist() == [0, 1, 1, 0]


def test_auroc_by_hand():
    # pairs (wrong, right): 0.9 beats both: 2; each 0.7 ties one and beats one: 2 * 1.5; 0.1 beats none
    assert auroc(*hand_counts()) == pytest.approx((2 + 3 + 0) / 8)


def test_average_precision_by_hand():
    # precision after the places: 1, 3/4, 3/5, 4/6; recall grows by 1/4, 2/4, 0, 1/4
    assert average_precision(*hand_counts()) == pytest.approx(1 / 4 + 3 / 4 * 2 / 4 + 4 / 6 * 1 / 4)


def test_caught_by_hand_cuts_a_tie_in_proportion():
    # two of six items: the first, and one third of the tie of three that holds two wrong ones
    assert caught(*hand_counts(), 2 / 6) == pytest.approx((1 + 2 / 3) / 4)
    assert caught(*hand_counts(), 1.0) == pytest.approx(1)


def test_risk_coverage_by_hand():
    coverage, risk = risk_coverage(*hand_counts())
    np.testing.assert_allclose(coverage, [1 / 6, 2 / 6, 5 / 6, 1])
    np.testing.assert_allclose(risk, [1, 1 / 2, 3 / 5, 4 / 6])


def test_spearman_by_hand():
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30, 5])) == pytest.approx(-0.2)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    assert spearman(np.array([0.0, 1, 1, 2]), np.array([0.0, 1, 2, 3])) == pytest.approx(
        4.5 / np.sqrt(4.5 * 5)
    )
    assert spearman(np.ones(3), np.arange(3.0)) == 0


@pytest.mark.parametrize("levels", [3, 50, 10**6])
def test_against_torchmetrics(levels):
    rng = np.random.default_rng(levels)
    score = rng.integers(0, levels, 2000) / levels
    wrong = rng.random(2000) < 0.1 + 0.5 * score
    counts = counts_by_place(places(score), wrong)
    inputs = torch.from_numpy(score), torch.from_numpy(wrong.astype(np.int64))
    assert auroc(*counts) == pytest.approx(float(reference.binary_auroc(*inputs)), abs=1e-6)
    expected = float(reference.binary_average_precision(*inputs))
    assert average_precision(*counts) == pytest.approx(expected, abs=1e-6)
    other = rng.random(2000)
    expected = float(spearman_corrcoef(inputs[0], torch.from_numpy(other)))
    assert spearman(score, other) == pytest.approx(expected, abs=1e-6)


def test_bins_keep_order_and_ties_and_hardly_change_the_area():
    rng = np.random.default_rng(0)
    score = np.round(rng.random(5000) ** 8, 4)
    wrong = rng.random(5000) < 0.05 + score
    fine = places(score)
    coarse = coarse_places(fine, 256)
    order = np.argsort(fine, kind="stable")
    assert (np.diff(coarse[order]) >= 0).all()
    assert coarse.max() < 256
    exact, binned = (float(auroc(*counts_by_place(p, wrong))) for p in (fine, coarse))
    assert binned == pytest.approx(exact, abs=1e-3)


def test_blocks_are_neighbours():
    index = block_resamples(images=7, block=3, resamples=5, seed=0)
    assert index.shape == (5, 7)
    assert index.min() >= 0
    assert index.max() <= 6
    assert (np.diff(index[:, :3]) % 7 == 1).all()
    assert np.array_equal(index, block_resamples(7, 3, 5, 0))
    assert not np.array_equal(index, block_resamples(7, 3, 5, 1))


def test_fit_finds_the_informative_score_on_images_it_has_not_seen():
    rng = np.random.default_rng(0)
    good, noise = rng.random((2, 4000)).astype(np.float32)
    wrong = rng.random(4000) < good**2
    image = np.repeat(np.arange(8), 500)
    chance = cross_validated(np.stack([noise, good]), wrong, image)
    assert float(auroc(*counts_by_place(places(chance), wrong))) > 0.95 * float(
        auroc(*counts_by_place(places(good), wrong))
    )
    other = wrong.copy()
    other[image >= 4] = ~other[image >= 4]
    changed = cross_validated(np.stack([noise, good]), other, image)
    assert np.array_equal(chance[image >= 4], changed[image >= 4]), "a half never sees its own labels"
    assert not np.array_equal(chance[image < 4], changed[image < 4])
