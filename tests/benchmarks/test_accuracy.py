"""Accuracy studies: costs, hashes, report maths by hand, and a real run that is stopped and goes on."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_study import write_record, write_study
from tiny import PROJECT_ROOT, quiet_environment, tiny_config

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.records import Clock, Final, Places, read_final, read_record
from benchmarks.accuracy.runner import claim, trainer_command
from benchmarks.accuracy.study import (
    STUDIES,
    Budget,
    StudyError,
    config_hash,
    cost_of,
    load_study,
    plan,
    steps_within,
    unique_runs,
)
from benchmarks.accuracy.summary import find_records, spread, summarize
from benchmarks.table_blocks import study_main
from protoseg.config import parse_config


def test_cost_counts_student_and_teacher_images():
    supervised = tiny_config(method={"preset": "supervised"}, train={"batch_size": 4})
    two_views = tiny_config(method={"preset": "unimatch_v2"}, train={"batch_size": 4, "accumulate": 2})
    protoseg = tiny_config(train={"batch_size": 4})
    assert cost_of(supervised, 600, 150) == (cost := cost_of(supervised, 600, 0))
    assert (cost.student, cost.teacher) == (2400, 0)
    cost = cost_of(protoseg, 600, 150)  # 150 x 4, then 450 x (4 + 4) and 450 x 4 of the teacher
    assert (cost.student, cost.teacher, cost.total) == (4200, 1800, 6000)
    cost = cost_of(two_views, 10, 4)  # 4 x 8, then 6 x (8 + 16) and 6 x 8 of the teacher
    assert (cost.student, cost.teacher) == (176, 48)


@pytest.mark.parametrize("images", [6000, 5999, 6001, 1234, 400])
@pytest.mark.parametrize("preset", ["supervised", "protoseg", "unimatch_v2"])
def test_steps_within_a_budget_are_the_most_it_pays_for(images, preset):
    config = tiny_config(method={"preset": preset}, train={"batch_size": 4})
    budget = Budget(name="b", title="b", encoder_images=images)
    steps = steps_within(budget, config, 0.25)

    def total(count):
        return cost_of(config, count, math.floor(count * 0.25 + 0.5)).total

    assert total(steps) <= images < total(steps + 1)


def test_equal_cost_gives_supervised_training_its_steps():
    budget = Budget(name="b", title="b", encoder_images=6000)
    steps = {
        preset: steps_within(budget, tiny_config(method={"preset": preset}, train={"batch_size": 4}), 0.25)
        for preset in ("supervised", "fixmatch", "protoseg", "unimatch_v2")
    }
    assert steps == {"supervised": 1500, "fixmatch": 600, "protoseg": 600, "unimatch_v2": 462}
    with pytest.raises(StudyError, match="3 encoder images do not pay for a step of 12"):
        steps_within(
            Budget(name="b", title="b", encoder_images=3), tiny_config(train={"batch_size": 4}), 0.25
        )


def test_hash_follows_what_can_change_a_figure():
    base = config_hash(tiny_config())
    assert config_hash(tiny_config(run={"name": "other", "dir": "elsewhere"}, data={"cache": True})) == base
    assert config_hash(tiny_config(prototypes={"temperature": 0.1})) == base  # the default, spelled out
    assert config_hash(tiny_config(prototypes={"temperature": 0.2})) != base
    assert config_hash(tiny_config(train={"seed": 1})) != base
    # what configures a part that is off changes nothing
    plain = config_hash(tiny_config(method={"preset": "supervised"}))
    off = {"prototypes": {"temperature": 0.2}, "pseudo_labels": {"threshold": 0.95}}
    off["views"] = {"crop": [32, 32], "blur": 0.0, "jitter_strength": [0, 0, 0, 0], "mixing_probability": 1}
    assert config_hash(tiny_config(method={"preset": "supervised"}, **off)) == plain
    off["views"]["labeled_jitter"] = True
    assert config_hash(tiny_config(method={"preset": "supervised"}, **off)) != plain
    del off["views"]
    linear_only = config_hash(tiny_config(method={"preset": "fixmatch"}))
    assert (
        config_hash(tiny_config(method={"preset": "fixmatch"}, prototypes=off["prototypes"])) == linear_only
    )
    assert config_hash(tiny_config(method={"preset": "fixmatch"}, **off)) != linear_only
    # a hash that a change of code alters makes every record stale: it must be meant
    assert config_hash(parse_config({"method": {"preset": "supervised"}})) == "723831d5755ea08b"


def test_studies_of_the_project_are_valid():
    for path in sorted(STUDIES.glob("*.yaml")):
        study = load_study(path)
        assert study.name == path.stem
        runs = unique_runs(plan(study))
        assert len({run.hash for run in runs}) == len(runs), f"{path.name}: two runs are the same training"


def test_seeds_reach_list_and_training_and_budgets_share_runs():
    cells = plan(load_study("camvid"))
    by_name = {cell.run.name: cell.run.config for cell in cells}
    config = by_name["protoseg_46_seed2_200"]
    assert config.train.seed == 2
    assert config.data.labeled == "splits/46/seed2/labeled.txt"
    assert config.data.unlabeled == "splits/46/seed2/unlabeled.txt"
    assert (config.train.warmup_steps, config.train.eval_every) == (0, 100)
    shared = [cell.budget.name for cell in cells if cell.run.name == "protoseg_46_seed2_200"]
    assert shared == ["steps", "cost"]
    assert by_name["supervised_46_seed0_600"].train.eval_every == 300


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sedes": [0]}, "sedes: unknown key"),
        ({"seeds": []}, "seeds: List should have at least 1 item"),
        ({"budgets": [{"name": "a", "title": "a"}]}, "give exactly one of steps and encoder_images"),
        ({"baseline": "best"}, "baseline 'best' is no method"),
        ({"labels": [{"name": "4", "count": 4}] * 2}, "4 is there twice"),
        ({"labels": [{"name": "4", "count": 4, "overrides": {"train.seed": 3}}]},
         "train.seed cannot be overridden"),
        ({"methods": [{"name": "m", "label": "m", "head": "linear", "labels": ["5"]}]},
         r"m: unknown labels \['5'\]"),
        ({"methods": [{"name": "m", "label": "m", "head": "best"}]}, "methods.0.head: Input should be"),
        ({"overrides": {"prototypes.tmperature": 1}}, "prototypes.tmperature: unknown key"),
        ({"config": "configs/none.yaml"}, "configs/none.yaml not found"),
        ({"budgets": [{"name": "a", "title": "a", "steps": 1}], "warmup_share": 0.6},
         "leave none for unlabelled images"),
    ],
)  # fmt: skip
def test_faults_in_a_study_are_one_readable_error(tmp_path, capsys, changes, text):
    path = write_study(tmp_path, **changes)
    assert main([str(path), "--dry-run", "--runs", str(tmp_path), "--results", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(error)


def test_spread_by_hand():
    three = spread({0: 0.40, 1: 0.43, 2: 0.46})
    assert three["mean"] == pytest.approx(0.43)
    assert three["sd"] == pytest.approx(0.03)  # sqrt((0.03^2 + 0 + 0.03^2) / 2)
    assert (three["n"], list(three["by_seed"])) == (3, ["0", "1", "2"])
    assert spread({5: 0.4}) == {"mean": 0.4, "sd": None, "n": 1, "by_seed": {"5": 0.4}}


def three_seeds(tmp_path):
    study = load_study(write_study(tmp_path, seeds=[0, 1, 2]))
    cells = plan(study)
    places = Places(tmp_path / "runs", tmp_path / "results" / "accuracy" / "small")
    values = {"supervised": (0.40, 0.43, 0.46), "protoseg": (0.42, 0.41)}  # seed 2 is missing
    for run in unique_runs(cells):
        if run.seed < len(values[run.method.name]):
            write_record(study, run, places, values[run.method.name][run.seed])
    return study, cells, places


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


STAGES = {"start": {"steps": 6, "overrides": {"method.preset": "supervised", "optim.lr": 0.001}}}


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


def test_a_first_stage_is_trained_once_for_each_seed_and_known_by_its_settings(tmp_path):
    study = load_study(write_study(tmp_path, seeds=[0, 1], warmup_share=0.0, **STAGES))
    runs = unique_runs(plan(study))
    first = runs[0].name
    assert re.fullmatch(r"start_4_seed0_6_[0-9a-f]{6}", first)
    assert [run.name.split("_seed")[0] for run in runs] == ["start_4", "supervised_4", "protoseg_4"] * 2
    for run in runs[1:3]:
        assert run.start == runs[0]
        assert Path(run.config.train.start_from) == Path(first)
    assert runs[4].start == runs[3]
    assert runs[0].config.optim.lr == 0.001
    assert runs[1].config.optim.lr != 0.001
    assert runs[0].cost.total == 12  # two images a step
    command = trainer_command(study, runs[1], tmp_path / "runs", resume=False)
    assert f"train.start_from={tmp_path / 'runs' / first}" in command
    # the folder of the runs does not matter, the settings of the first stage do
    moved = runs[1].config.model_copy(
        update={"train": runs[1].config.train.model_copy(update={"start_from": f"/elsewhere/{first}"})}
    )
    assert config_hash(moved) == runs[1].hash
    changed = {"steps": 6, "overrides": {"method.preset": "supervised", "optim.lr": 0.002}}
    other = unique_runs(plan(load_study(write_study(tmp_path, warmup_share=0.0, start=changed))))
    assert other[1].name == runs[1].name
    assert other[1].hash != runs[1].hash


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
    text = study_main(summary)
    assert "start from the same supervised training of 6 steps, which reached 32.0 ± 2.8" in text


@pytest.mark.slow
def test_a_study_with_a_first_stage_trains_it_first(tmp_path):
    path = write_study(tmp_path, warmup_share=0.0, **STAGES)
    places = Places(tmp_path / "runs" / "small", tmp_path / "results" / "accuracy" / "small")
    command = [
        sys.executable, "-m", "benchmarks.accuracy", str(path), "--runs", str(tmp_path / "runs"),
        "--results", str(tmp_path / "results"), "--only", "protoseg_*", "--jobs", "2",
    ]  # fmt: skip

    def run():
        return subprocess.run(
            command, cwd=PROJECT_ROOT, env=quiet_environment(), text=True, capture_output=True, timeout=600
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    (start,) = places.records.glob("start_*.json")
    log = places.log("protoseg_4_seed0_4").read_text()
    assert f"start from {places.runs / start.stem} ({start.stem}, step 6)" in log
    assert not list(places.records.glob("supervised_*"))
    # records that came without folders: the first stage is needed again, what has its record is not
    shutil.rmtree(places.runs)
    assert "all 2 runs are finished" in run().stdout
    (places.records / "protoseg_4_seed0_4.json").unlink()
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{start.stem}: started" in done.stdout
    # a first stage that fails is told, and what needs it is not trained
    (places.records / "protoseg_4_seed0_4.json").unlink()
    shutil.rmtree(places.runs)
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["optim"] = {"max_grad_norm": 1e-30, "lr": 1e30, "decoder_lr_factor": 1e9}
    base["train"]["max_bad_steps"] = 1
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    study = yaml.safe_load(path.read_text())
    study["start"]["overrides"]["optim.lr"] = 1e30
    path.write_text(yaml.safe_dump(study))
    done = run()
    assert done.returncode == 1
    assert "protoseg_4_seed0_4: not trained, its first stage" in done.stdout


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


def test_records_of_other_settings_are_told_and_kept(tmp_path, capsys):
    study, cells, places = three_seeds(tmp_path)
    run = unique_runs(cells)[0]
    write_record(study, run, places, 0.5, config_hash="0" * 16, settings={"train.ema_decay": 0.9})
    common = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--dry-run"]
    assert main([str(tmp_path / "small.yaml"), *common]) == 0
    out = capsys.readouterr().out
    assert "train.ema_decay 0.9 there, default here" in out
    assert "1 of 6 to train" in out
    assert main([str(tmp_path / "small.yaml"), *common, "--redo", "--only", "supervised_*"]) == 0
    assert "1 of 3 to train" in capsys.readouterr().out
    assert find_records(cells, places).other_settings == [run.name]
    places.record(run.name).write_text("{}")
    assert main([str(tmp_path / "small.yaml"), *common]) == 1
    assert "is not a record" in capsys.readouterr().err


def test_a_lock_is_held_once(tmp_path):
    held = claim(tmp_path / "a.lock")
    assert held is not None
    assert claim(tmp_path / "a.lock") is None
    held.close()
    again = claim(tmp_path / "a.lock")
    assert again is not None
    again.close()


def test_clock_adds_attempts_and_ends_those_of_a_killed_runner(tmp_path):
    log = tmp_path / "run.log"
    clock = Clock(tmp_path / "clock.json", log)
    clock.begin(100.0, afresh=True)
    clock.end(130.0)
    clock.begin(200.0, afresh=False)  # killed: never ended
    log.write_text("")
    os.utime(log, (207.0, 207.0))
    found = Clock(tmp_path / "clock.json", log)
    found.settle()
    assert found.seconds() == 37.0
    again = Clock(tmp_path / "clock.json", log)
    again.begin(300.0, afresh=False)
    again.end(305.0)
    assert (again.attempts, again.seconds()) == (3, 42.0)
    again.begin(400.0, afresh=True)
    again.end(401.0)
    assert (again.attempts, again.seconds()) == (1, 1.0)


@pytest.mark.slow
def test_a_stopped_study_goes_on_and_a_killed_one_keeps_its_claim(tmp_path):
    path = write_study(tmp_path, budgets=[{"name": "steps", "title": "t", "steps": 40}])
    places = Places(tmp_path / "runs" / "small", tmp_path / "results" / "accuracy" / "small")
    command = [
        sys.executable, "-m", "benchmarks.accuracy", str(path), "--runs", str(tmp_path / "runs"),
        "--results", str(tmp_path / "results"),
    ]  # fmt: skip

    def start(*extra):
        return subprocess.Popen(
            [*command, *extra], cwd=PROJECT_ROOT, env=quiet_environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_for(file, process):
        end = time.monotonic() + 600
        while not file.exists():
            assert time.monotonic() < end, f"{file} did not appear"
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)

    # killed outright: its trainer goes on, and another runner leaves that run alone
    process = start("--only", "supervised_*")
    wait_for(places.runs / "supervised_4_seed0_40.log", process)
    process.kill()
    process.communicate()
    out, _ = start("--only", "supervised_*").communicate(timeout=600)
    assert "1 are being trained by another runner: supervised_4_seed0_40" in out
    while (lock := claim(places.runs / "supervised_4_seed0_40.lock")) is None:
        time.sleep(0.1)
    lock.close()

    # interrupted: the first run is complete and gets its record, the second is stopped and goes on
    process = start()
    wait_for(places.runs / "protoseg_4_seed0_40" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 130, out
    assert "the same command goes on" in out.lower()
    assert read_record(places.record("supervised_4_seed0_40")).wall_seconds > 1

    process = start()
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    record = read_record(places.record("protoseg_4_seed0_40"))
    assert record.steps == 40
    assert set(record.miou) == {"linear", "prototype", "fused"}
    assert list(record.miou_by_step["fused"]) == [20, 40]
    assert record.miou_by_step["fused"][40] == record.miou["fused"]
    assert record.best["fused"].miou >= record.miou["fused"]
    assert (record.student_encoder_images, record.teacher_encoder_images) == (140, 60)
    assert record.settings["prototypes.projection"] == "mlp"
    assert record.pseudo_labels.step == 40
    assert sum(record.pseudo_labels.class_share.values()) <= 1.0 + 1e-6
    config = yaml.safe_load((places.runs / "protoseg_4_seed0_40" / "config.yaml").read_text())
    assert config["data"]["cache"] is True
    assert "resumed from" in places.log("protoseg_4_seed0_40").read_text()
    assert not (places.runs / "protoseg_4_seed0_40" / "state").exists()

    out, _ = start().communicate(timeout=60)
    assert "all 2 runs are finished" in out
