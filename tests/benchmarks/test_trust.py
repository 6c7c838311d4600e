import json

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from tiny import tiny_info, tiny_segmenter
from torchmetrics.functional import spearman_corrcoef

from benchmarks.trust.__main__ import main, resampled
from benchmarks.trust.ranking import (
    auroc,
    average_precision,
    block_resamples,
    caught,
    coarse_places,
    counts_by_image,
    counts_by_place,
    cross_validated,
    places,
    risk_coverage,
    spearman,
)
from benchmarks.trust.scores import scores
from protoseg.checkpoint import save_checkpoint
from protoseg.config.sections import DataConfig, SyntheticConfig
from protoseg.data.synthetic import write_dataset
from protoseg.inference import HeadLogits

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


def test_a_resample_is_the_figure_of_the_images_drawn():
    rng = np.random.default_rng(1)
    score, wrong = rng.integers(0, 20, 300) / 20, rng.random(300) < 0.3
    image = np.repeat(np.arange(3), 100)
    counts = counts_by_image(places(score), wrong, image, 3)
    found = resampled(counts, np.array([[2.0, 0, 1]]))
    drawn = np.concatenate([np.flatnonzero(image == i) for i in (0, 0, 2)])
    expected = counts_by_place(places(score[drawn]), wrong[drawn])
    assert found["auroc"][0] == pytest.approx(float(auroc(*expected)))
    assert found["aupr"][0] == pytest.approx(float(average_precision(*expected)))


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


def test_candidates_by_hand():
    linear = torch.tensor([0.7, 0.2, 0.1]).log().view(1, 3, 1, 1)
    prototype = torch.tensor([0.1, 0.8, 0.1]).log().view(1, 3, 1, 1)
    found = {k: float(v) for k, v in scores(HeadLogits(linear, prototype), "fused", 0.1).items()}
    # fused 0.4, 0.5, 0.1: class 1; the heads share 0.1 + 0.2 + 0.1
    assert found["fused_confidence"] == pytest.approx(0.5)
    assert found["fused_confidence_and_agreement"] == pytest.approx(1 - 0.5 * 0.4)
    assert found["mean_of_doubt_and_disagreement"] == pytest.approx((0.5 + 0.6) / 2)
    assert found["both_heads_weakest"] == pytest.approx(1 - 0.2)
    assert found["label_disagreement"] == 1
    entropy = [
        -sum(p * np.log(p) for p in row) for row in ((0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.4, 0.5, 0.1))
    ]
    assert found["jensen_shannon"] == pytest.approx(
        (entropy[2] - (entropy[0] + entropy[1]) / 2) / np.log(2), abs=1e-6
    )
    assert found["fused_entropy"] == pytest.approx(entropy[2] / np.log(3), abs=1e-6)
    cosine = 0.1 * np.log(0.8)
    assert found["linear_or_distance"] == pytest.approx(1 - 0.2 * (1 - (1 - cosine) / 2), abs=1e-6)
    alone = scores(HeadLogits(linear, None), "linear", 0.1)
    assert list(alone) == ["linear", "confidence", "entropy", "margin"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on files whose unlabelled images have masks in a full list."""
    folder = tmp_path_factory.mktemp("trust")
    scenes = SyntheticConfig(num_labeled=6, num_unlabeled=2, num_val=4, height=40, width=48)
    section = write_dataset(scenes, folder / "data")
    lines = (folder / "data" / "labeled.txt").read_text().splitlines(keepends=True)
    (folder / "data" / "train.txt").write_text("".join(lines))
    (folder / "data" / "labeled.txt").write_text("".join(lines[:2]))
    segmenter = tiny_segmenter(num_classes=5)
    info = tiny_info(5).model_copy(update={"data": DataConfig.model_validate(section)})
    save_checkpoint(folder / "run" / "checkpoint", segmenter, info)
    segmenter.bank.active.fill_(False)
    save_checkpoint(folder / "bare" / "checkpoint", segmenter, info)
    return folder


def test_command(trained, tmp_path):
    arguments = [
        trained / "run", trained / "bare", "--name", "trust_tiny", "--pixels", 200,
        "--resamples", 4, "--results", tmp_path, "--figures", tmp_path / "assets",
    ]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    record = json.loads((tmp_path / "trust_tiny.json").read_text())
    with_prototypes, bare = record["runs"]
    assert list(with_prototypes["heads"]) == ["fused", "linear"]
    assert list(bare["heads"]) == ["linear"]
    assert (tmp_path / "assets" / "trust_tiny.png").stat().st_size > 5000
    fused = with_prototypes["heads"]["fused"]
    assert fused["pixels"] == 4 * 200
    assert 0 < fused["base_rate"] < 1
    for name, row in fused["scores"].items():
        low, high = row["interval"]["auroc"]
        assert 0 <= low <= high <= 1, name
        assert 0 <= row["aupr"] <= 1
    assert set(fused["scores"]["linear"]["minus"]) == {"confidence", "disagreement"}
    again = bare["heads"]["linear"]["scores"]
    assert again["linear"]["auroc"] == again["confidence"]["auroc"], "the same score for the linear head"
    assert again["linear"]["minus"]["confidence"]["auroc"] == [0, 0, 0]


def test_pool_leaves_out_labelled_images(trained, tmp_path, capsys):
    arguments = [str(trained / "run"), "--name", "pool", "--pixels", "50", "--resamples", "5"]
    arguments += ["--head", "linear", "--results", str(tmp_path), "--figures", str(tmp_path)]
    assert main([*arguments, "--pool", "train.txt"]) == 0
    (run,) = json.loads((tmp_path / "pool.json").read_text())["runs"]
    assert run["images"] == 4
    assert "4 images" in capsys.readouterr().out
    assert main([*arguments, "--pool", "labeled.txt"]) == 1
    assert "only images that are in data.labeled" in capsys.readouterr().err
