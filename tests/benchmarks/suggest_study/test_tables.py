"""Figures of a choice by hand, and the table of them."""

import json

import numpy as np
import pytest

from benchmarks.common import RESULTS
from benchmarks.suggest_study.figures import figures, rare_classes
from benchmarks.suggest_study.tables import camvid_table, differences, draw, miou, noise, voc_table
from protoseg.suggest.results import FITTED, TRAINED


def test_figures_by_hand():
    pixels = np.array([[50, 50, 0, 0], [70, 10, 20, 0]])
    assert rare_classes(np.array([9, 5, 1, 0, 7, 8])) == [3, 2]
    found = figures([0.9, 0.5, 0.3, 0.1], pixels, [2, 3])
    assert found["rare_iou"] == pytest.approx(0.2)
    assert found["bought"] == pytest.approx({"classes": 1.5, "objects": 0.4, "rare": 0.1})


def arm(value):
    return {"miou": {"linear": value}, "rare_iou": value / 2,
            "bought": {"classes": 1.0, "objects": 0.5, "rare": 0.1}}  # fmt: skip


@pytest.fixture
def result():
    return {"count": 46, "seeds": {
        "0": {"first": arm(0.2), "random": arm(0.3), "random_2": arm(0.32), "clusters": arm(0.35),
              "suggested": arm(0.3), "start_random": arm(0.2), "start_clusters": arm(0.19)},
        "1": {"first": arm(0.2), "random": arm(0.3), "random_2": arm(0.3), "clusters": arm(0.33),
              "suggested": arm(0.31), "start_random": arm(0.2), "start_clusters": arm(0.22)},
    }}  # fmt: skip


def test_differences_are_to_the_mean_of_the_random_choices_of_a_seed(result):
    assert differences(result, "clusters", miou) == pytest.approx([0.04, 0.03])
    assert differences(result, "start_clusters", miou) == pytest.approx([-0.01, 0.02])
    assert noise(result, "random") == pytest.approx(np.sqrt(2e-4 / 2))


def test_table(result):
    lines = voc_table(result).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:4]] == [
        "| random",
        "| one of each cluster of encoder features",
        "| linear head's doubt x distance (`--score linear`)",
    ]
    assert "| +3.5 (+3.0 to +4.0) | 2 of 2 |" in rows[2]
    assert "| +0.5 (-1.0 to +2.0) | 1 of 2 |" in rows[-1]
    assert "| 1 | 20.0 | 31.0 | 30.0 | +1.0 |" in camvid_table(
        {**result, "seeds": {"1": {**result["seeds"]["1"], "first": {**arm(0.2), "steps": 400}}}}
    )


ARMS = {"prototypes": "rare_prototypes", "linear": "suggested", "first images": "start_clusters"}


def test_the_command_says_what_was_measured():
    files = ("suggest_probe_voc", "suggest_voc", "suggest_voc_default")
    fitted, alone, default = (json.loads((RESULTS / f"{name}.json").read_text()) for name in files)
    assert len(fitted["seeds"]) == 10
    for way, said in FITTED.items():
        gains = differences(fitted, ARMS.get(way, way), miou)
        assert said == (round(100 * float(np.mean(gains)), 1), sum(gain > 0 for gain in gains))
    for doubt in ("entropy", "margin", "confidence"):
        assert np.mean(differences(fitted, doubt, miou)) < -0.01, "as DOUBT_ALONE says"
    for method, result in {"the default method": default, "labels alone": alone}.items():
        assert len(result["seeds"]) == 3
        for way, said in TRAINED[method].items():
            gains = [100 * gain for gain in differences(result, ARMS.get(way, way), miou)]
            assert said == tuple(
                round(float(value), 1) + 0.0 for value in (np.mean(gains), min(gains), max(gains))
            )


def test_plot(result, tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(result))
    assert draw(path, tmp_path / "plots") == 0
    text = (tmp_path / "plots" / "some.svg").read_text()
    assert draw(path, tmp_path / "plots") == 0
    assert (tmp_path / "plots" / "some.svg").read_text() == text
