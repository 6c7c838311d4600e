"""Real runs that are stopped and go on, locks and clocks."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from small_study import STAGES, three_seeds, write_record, write_study
from tiny import PROJECT_ROOT, quiet_environment

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.records import Clock, Places, read_record
from benchmarks.accuracy.runner import claim
from benchmarks.accuracy.runs import unique_runs
from benchmarks.accuracy.summary import find_records


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
    assert "protoseg_4_seed0_4: not trained, start_4_seed0_6" in done.stdout


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
    # the log is there a moment before the trainer
    wait_for(places.runs / "supervised_4_seed0_40.log", process)
    while not psutil.Process(process.pid).children():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
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
