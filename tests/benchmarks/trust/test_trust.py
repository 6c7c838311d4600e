"""Scores by hand, and the command."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_info, tiny_segmenter

from benchmarks.trust.__main__ import main, resampled
from benchmarks.trust.ranking import auroc, average_precision, counts_by_image, counts_by_place, places
from benchmarks.trust.scores import scores
from protoseg.checkpoint import save_checkpoint
from protoseg.config.data import DataConfig, SyntheticConfig
from protoseg.data.synthetic import write_dataset
from protoseg.inference import HeadLogits


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
