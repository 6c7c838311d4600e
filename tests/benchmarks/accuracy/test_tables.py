"""Tables of a study by hand."""

import pytest
from small_study import write_record, write_study

from benchmarks.accuracy import tables as blocks
from benchmarks.accuracy.records import Places
from benchmarks.accuracy.runs import plan, unique_runs
from benchmarks.accuracy.study import load_study
from benchmarks.accuracy.summary import find_records, summarize


@pytest.fixture
def summary(tmp_path):
    """Two methods at two label counts, one with three seeds; values by hand."""
    labels = [{"name": "4", "count": 4}, {"name": "8", "count": 8, "seeds": [0]}]
    budgets = [
        {"name": "steps", "title": "4 steps", "steps": 4},
        {"name": "cost", "title": "20 images", "encoder_images": 20, "labels": ["4"]},
    ]
    study = load_study(
        write_study(tmp_path, seeds=[0, 1, 2], labels=labels, budgets=budgets, baseline="protoseg")
    )
    cells = plan(study)
    places = Places(tmp_path / "runs", tmp_path / "records")
    values = {"supervised": (0.40, 0.43, 0.46), "protoseg": (0.44, 0.47, 0.53)}
    for run in unique_runs(cells):
        bonus = 0.1 if run.labels.name == "8" or run.steps != 4 else 0.0
        write_record(study, run, places, values[run.method.name][run.seed] + bonus)
    return summarize(study, cells, find_records(cells, places))


def rows(text):
    return [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_study_tables_by_hand(summary):
    head, supervised, protoseg = rows(blocks.by_method(summary))
    assert head[-2:] == ["at 20 images", "runs"]
    # 20 images pay for 10 supervised steps of 2; four steps of protoseg cost 2 + 3 x 6 = 20
    assert supervised == ["supervised", "**43.0 ± 3.0**", "", "", "53.0 ± 3.0 (10 steps)", "3"]
    # 44, 47, 53: mean 48, deviations -4, -1, 5, so sd = sqrt(42 / 2)
    assert protoseg == [
        "protoseg", "48.0 ± 4.6", "49.0 ± 4.6", "**50.0 ± 4.6**", "50.0 ± 4.6 (4 steps)", "3",
    ]  # fmt: skip
    head, supervised, protoseg = rows(blocks.by_labels(summary))
    assert head == ["method, head", "4 labels", "8 labels"]
    assert supervised == ["supervised, linear", "43.0 ± 3.0 (n = 3)", "50.0 (n = 1)"]
    # fused minus linear of the same seed: 6, 6, 9 points
    paired = rows(blocks.paired(summary))
    assert paired[1] == ["4 steps", "4", "supervised", "+7.0 ± 1.7", "3"]
    assert paired[2] == ["4 steps", "8", "supervised", "+6.0", "1"]
    assert paired[3] == ["20 images", "4", "supervised", "-3.0 ± 1.7", "3"]
    assert rows(blocks.by_class(summary))[1:] == [["sky", "43.0 ± 3.0", "50.0 ± 4.6"], ["car", "", ""]]
    assert "not finished" not in blocks.by_method(summary)
    assert "2 runs of this study are not finished" in blocks.by_method({**summary, "missing": ["a", "b"]})


def test_ablation_table_gives_differences_to_the_baseline(summary):
    summary["baseline"] = "supervised"
    head, baseline, variant = rows(blocks.ablations(summary))
    assert head[-1] == "difference, points"
    assert baseline == ["supervised", "43.0 ± 3.0", "", "", ""]
    assert variant == ["protoseg", "48.0 ± 4.6", "49.0 ± 4.6", "50.0 ± 4.6", "+7.0 ± 1.7"]


def difference(of, minus, mean, **other):
    return {
        "budget": "steps", "labels": "4", "of": of, "minus": minus, "mean": mean, "sd": 0.01, "n": 3, **other
    }  # fmt: skip


def test_gains_are_those_of_the_main_labels_at_the_first_budget(summary):
    summary["differences"] = [
        difference("fixmatch", "supervised", 0.9, labels="8"),
        difference("protoseg", "fixmatch", 0.9, budget="cost"),
        difference("fixmatch", "supervised", 0.02),
        difference("protoseg", "fixmatch", -0.005),
    ]
    _, row = rows(blocks.gains(summary))
    assert row[1:] == ["+2.0 ± 1.0", "-0.5 ± 1.0", "3"]


def test_studies_are_put_together_by_steps_and_labels(summary):
    longer = {**summary, "title": f"{summary['title']}, on a GPU", "start": {"steps": 1300, "miou": {}}}
    head, four, eight, *others = rows(blocks.together(summary, longer))
    assert head[:4] == ["steps", "labels", "labels alone", "fixmatch"]
    assert four == ["4 steps", "4", "43.0 ± 3.0 (n = 3)", "", "", "", "50.0 ± 4.6 (n = 3)"]
    assert eight[1:3] == ["8", "50.0 (n = 1)"]
    assert [row[0] for row in others] == ["1,300 supervised + 4 steps, on a GPU"] * 2


def test_the_headline_compares_with_the_most_labels(summary):
    _, row = rows(blocks.headline(summary))
    assert row[1:] == ["43.0 ± 3.0", "", "**50.0 ± 4.6**", "50.0 (8)", "3"]
    fewer = {**summary, "labels": [item for item in summary["labels"] if item["name"] == "4"]}
    assert rows(blocks.headline(fewer))[1][4] == "not run"
