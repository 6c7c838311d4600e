"""Figures of a study by hand, and its report."""

import json
import math

import pytest
from small_study import STAGES, three_seeds, write_record, write_study

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.records import Final, Places, read_final
from benchmarks.accuracy.runs import plan, unique_runs
from benchmarks.accuracy.study import StudyError, load_study
from benchmarks.accuracy.summary import find_records, spread, summarize
from benchmarks.accuracy.tables import by_method


def test_spread_by_hand():
    three = spread({0: 0.40, 1: 0.43, 2: 0.46})
    assert three["mean"] == pytest.approx(0.43)
    assert three["sd"] == pytest.approx(0.03)  # sqrt((0.03^2 + 0 + 0.03^2) / 2)
    assert (three["n"], list(three["by_seed"])) == (3, ["0", "1", "2"])
    assert spread({5: 0.4}) == {"mean": 0.4, "sd": None, "n": 1, "by_seed": {"5": 0.4}}


def test_summary_by_hand(tmp_path):
    study, cells, places = three_seeds(tmp_path)
    found = find_records(cells, places)
    assert found.missing == ["protoseg_4_seed2_4"]
    summary = summarize(study, cells, found)
    supervised, protoseg = summary["cells"]
    assert supervised["miou"]["linear"]["mean"] == pytest.approx(0.43)
    assert supervised["miou"]["linear"]["sd"] == pytest.approx(0.03)
    assert supervised["best"]["linear"]["mean"] == pytest.approx(0.53)
    assert protoseg["miou"]["fused"]["mean"] == pytest.approx(0.435)
    assert protoseg["miou"]["fused"]["n"] == 2
    assert protoseg["iou"]["fused"]["sky"]["mean"] == pytest.approx(0.435)
    assert protoseg["iou"]["fused"]["car"] is None
    assert protoseg["pseudo_label_class_share"]["sky"]["mean"] == 0.75
    assert supervised["pseudo_label_rate"] is None
    first, last = protoseg["curve"]["fused"]  # batch 2, one supervised step of four
    assert (first["step"], first["encoder_images"]) == (1, 2)
    assert (last["step"], last["encoder_images"]) == (4, 2 + 3 * 6)
    assert last["mean"] == pytest.approx(0.435)
    # fused 0.44 and 0.43 against linear 0.40 and 0.43 of the same seeds
    (difference,) = summary["differences"]
    assert (difference["of"], difference["minus"], difference["n"]) == ("protoseg", "supervised", 2)
    assert difference["by_seed"] == {"0": pytest.approx(0.04), "1": pytest.approx(0.0)}
    assert difference["mean"] == pytest.approx(0.02)
    assert difference["sd"] == pytest.approx(0.04 / math.sqrt(2))
    assert len(summary["machines"]) == 1  # the load differs, the machine does not


def test_summary_of_a_study_with_a_first_stage(tmp_path):
    study = load_study(write_study(tmp_path, seeds=[0, 1], warmup_share=0.0, **STAGES))
    cells = plan(study)
    places = Places(tmp_path / "runs", tmp_path / "results" / "accuracy" / "small")
    values = {"start": (0.30, 0.34), "supervised": (0.36, 0.37), "protoseg": (0.40, 0.41)}
    for run in unique_runs(cells):
        write_record(study, run, places, values[run.method.name][run.seed])
    summary = summarize(study, cells, find_records(cells, places))
    assert [cell["method"] for cell in summary["cells"]] == ["supervised", "protoseg"]
    assert summary["start"]["steps"] == 6
    assert summary["start"]["miou"]["4"]["mean"] == pytest.approx(0.32)
    before = summary["cells"][1]["curve"]["fused"][0]
    assert (before["step"], before["encoder_images"], before["n"]) == (0, 0, 2)
    assert before["mean"] == pytest.approx(0.32)
    text = by_method(summary)
    assert "start from the same supervised training of 6 steps, which reached 32.0 ± 2.8" in text


def test_report_writes_summary_and_plots_and_names_what_is_missing(tmp_path, capsys):
    three_seeds(tmp_path)
    arguments = [
        str(tmp_path / "small.yaml"), "--report", "--runs", str(tmp_path / "runs"),
        "--results", str(tmp_path / "results"), "--assets", str(tmp_path / "assets"),
    ]  # fmt: skip
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "missing: protoseg_4_seed2_4" in out
    assert "5 of 6 runs" in out
    path = tmp_path / "results" / "accuracy_small.json"
    first = path.read_bytes()
    summary = json.loads(first)
    assert summary["date"] == "2026-01-02"
    assert summary["machine"]["processor"] == "Some CPU"
    picture = tmp_path / "assets" / "accuracy_small_steps.svg"
    drawn = picture.read_bytes()
    assert drawn.startswith(b"<?xml")
    assert main(arguments) == 0
    assert path.read_bytes() == first
    assert picture.read_bytes() == drawn


def test_runs_on_other_images_are_not_compared(tmp_path):
    study, cells, places = three_seeds(tmp_path)
    run = unique_runs(cells)[-1]
    write_record(study, run, places, 0.5, data_hashes={"labeled": "l42", "val": "other"})
    with pytest.raises(StudyError, match="were trained with different val images"):
        find_records(cells, places)


def test_figures_of_a_study_with_a_longer_validation_list_are_those_on_it(tmp_path):
    study = load_study(write_study(tmp_path, final_val="splits/val.txt"))
    cells, places = plan(study), Places(tmp_path / "runs", tmp_path / "records")
    for run in unique_runs(cells):
        heads = ["linear", "prototype", "fused"] if run.config.method.prototypes else ["linear"]
        final = Final(val="splits/val.txt", data_hash="f", images=1449, miou=dict.fromkeys(heads, 0.4),
                      iou={head: {"sky": 0.4, "car": None} for head in heads})  # fmt: skip
        write_record(study, run, places, 0.5, final=final)
    cell = summarize(study, cells, find_records(cells, places))["cells"][0]
    assert cell["miou"]["linear"]["mean"] == pytest.approx(0.4)
    assert cell["iou"]["linear"]["sky"]["mean"] == pytest.approx(0.4)
    assert cell["curve"]["linear"][-1]["mean"] == pytest.approx(0.5), "on the way it is the shorter list"


def test_a_final_evaluation_is_read_as_the_evaluator_writes_it(tmp_path):
    path = tmp_path / "final_val.json"
    found = {
        "list_sha256": "f",
        "num_images": 3,
        "miou": {"linear": 0.4},
        "per_class": {"linear": {"sky": 0.4}},
    }
    path.write_text(json.dumps(found))
    assert read_final("val.txt", path) == Final(
        val="val.txt", data_hash="f", images=3, miou={"linear": 0.4}, iou={"linear": {"sky": 0.4}}
    )
