from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.novelty.__main__ import BASELINE, SHIPPED, beats, figures, fpr_at, table
from benchmarks.novelty.measure import (
    DROPPED,
    KNOWN,
    NOVEL,
    PLACES,
    Looker,
    Measured,
    fit_places,
    logits_origin,
    measure,
    with_combinations,
)
from protoseg.checkpoint import Checkpoint
from tests.tiny import tiny_info, tiny_segmenter


@pytest.fixture
def looker() -> Looker:
    return Looker(Checkpoint(tiny_segmenter(), tiny_info(), Path("tiny")))


def pictures(count: int) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 40, 50, 3), np.uint8)
    return [(image, np.arange(50, dtype=np.uint8)[None].repeat(40, 0) // 17) for image in images]


def test_cells_are_those_whose_centre_is_in_the_image(looker: Looker) -> None:
    seen = looker(pictures(1)[0][0])
    assert seen.padded == (64, 64)
    rows, columns = seen.centres("decoder")
    assert rows.tolist() == list(range(2, 40, 4))
    assert columns.tolist() == list(range(2, 50, 4))
    assert seen.maps["decoder"].shape[1:] == seen.logits.linear.shape[2:] == (16, 16)


def test_every_place_gives_every_distance_and_sum(looker: Looker) -> None:
    places = fit_places(looker, pictures(4), np.random.default_rng(0))
    assert set(places) == set(PLACES)
    bank = looker.segmenter.bank.prototypes.flatten(0, 1)
    torch.testing.assert_close(places["prototype space"].prototypes, bank)
    novel = np.full((40, 50), NOVEL, np.uint8)
    novel[:, :20] = DROPPED
    shown = [(image, np.zeros_like(mask)) for image, mask in pictures(4)] + [(pictures(5)[4][0], novel)]
    measured = with_combinations(measure(looker, places, shown, np.random.default_rng(0)))
    counts = np.bincount(measured.kind)
    assert counts[KNOWN] == 4 * 10 * 12
    # of 12 columns those at 2, 6, 10, 14 and 18 are dropped
    assert counts[NOVEL] == 10 * 7
    assert measured.calibration.sum() == 2 * 10 * 12
    assert not measured.calibration[measured.kind == NOVEL].any()
    for name, values in measured.scores.items():
        assert values.shape == measured.kind.shape, name
        assert np.isfinite(values).all(), name
    known = measured.scores[f"cosine, decoder + {BASELINE}"][measured.calibration]
    assert known.mean() == pytest.approx(0, abs=1e-6)


def test_logits_vanish_at_the_origin() -> None:
    head = tiny_segmenter().network.linear_head[-1]
    assert isinstance(head, torch.nn.Conv2d)
    at = head(logits_origin(head).float()[None, :, None, None])
    torch.testing.assert_close(at, torch.zeros_like(at), atol=1e-5, rtol=0)


def test_figures_by_hand() -> None:
    score = np.array([0.0, 1, 2, 3, 4, 5, 6, 7])
    kind = np.array([0, 0, 0, 0, 0, 1, 0, 1])
    calibration = np.array([True, True, False, False, False, False, False, False])
    row = figures(Measured({"score": score}, kind, calibration))["score"]
    # tested: known 2, 3, 4, 6 and novel 5, 7; seven of eight pairs are in order
    assert row["auroc"] == pytest.approx(7 / 8)
    assert row["fpr95"] == pytest.approx(1 / 4)
    assert row["found"] == 1
    assert row["false_alarms"] == 1


def test_fpr_counts_ties_as_found() -> None:
    assert fpr_at(0.5, np.array([1.0, 1.0]), np.array([3.0, 1.0])) == pytest.approx(0.75)


def run_of(**auroc: float) -> dict[str, Any]:
    auroc[SHIPPED] = 0.5
    scores = {
        name: {
            "auroc": value,
            "aupr": value / 2,
            "fpr95": 1 - value,
            "found": value / 3,
            "false_alarms": 0.05,
        }
        for name, value in auroc.items()
    }
    return {"scores": {BASELINE if name == "base" else name: row for name, row in scores.items()},
            "pixels": 10, "novel": 0.1}  # fmt: skip


def test_a_gain_must_exceed_its_spread() -> None:
    runs = [run_of(base=0.6, steady=0.7, wild=0.65), run_of(base=0.62, steady=0.73, wild=0.9)]
    assert beats(runs, "steady")
    assert not beats(runs, "wild")
    assert not beats(runs[:1], "steady")
    assert "| steady | 71.5 (70.0 to 73.0) |" in table({"runs": runs})
