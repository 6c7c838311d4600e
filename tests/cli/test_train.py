from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import TINY, quiet_environment

from protoseg.cli import train
from protoseg.errors import UserError


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """What the trainer and the launcher are given; neither runs."""
    calls = []
    for name in (*train._LAUNCHERS, train.STARTED_AS, "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        # set first, so that what the code under test sets is taken back, too
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(sys, "argv", ["protoseg train"])
    real = train.main_of(train.TRAINER)

    def stand_in(argv):
        if argv == []:
            return real(argv)  # the parser is asked for
        calls.append(("here", argv))
        return 0

    stand_in.__module__ = real.__module__
    monkeypatch.setattr("protoseg.train.__main__.main", stand_in)
    monkeypatch.setattr(train, "launch", lambda flags, own: calls.append((tuple(flags), own)) or 5)
    monkeypatch.setattr(train, "num_gpus", lambda: 0)
    return calls


ARGUMENTS = ["--config", "quickstart", "train.max_steps=3", "--resume"]


def test_one_process_trains_here(trainer):
    assert train.main(ARGUMENTS) == 0
    assert train.main([*ARGUMENTS, "--processes", "1"]) == 0
    assert train.main(["--processes=1", *ARGUMENTS]) == 0
    assert trainer == [("here", ARGUMENTS)] * 3


def test_several_processes_and_several_gpus_are_launched(trainer, monkeypatch, capsys):
    assert train.main(["--config", "quickstart", "--processes", "3", "--resume"]) == 5
    ((flags, own),) = trainer
    assert own == ["--config", "quickstart", "--resume"]
    assert flags[flags.index("--num_processes") + 1] == "3"
    assert "--multi_gpu" in flags
    assert train.os.environ["ACCELERATE_USE_CPU"] == "true"
    assert train.os.environ[train.STARTED_AS] == "protoseg train --processes 3"
    assert "3 processes" in capsys.readouterr().err
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr(train, "num_gpus", lambda: 4)
    assert train.main(ARGUMENTS) == 5
    flags, own = trainer[1]
    assert (flags[flags.index("--num_processes") + 1], own) == ("4", ARGUMENTS)
    assert "ACCELERATE_USE_CPU" not in train.os.environ
    assert train.main(["--processes", "5", *ARGUMENTS]) == 1
    assert "4 GPU(s) are visible" in capsys.readouterr().err


def test_under_a_launcher_nothing_is_launched(trainer, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(train, "num_gpus", lambda: 4)
    assert train.main(ARGUMENTS) == 0
    assert trainer == [("here", ARGUMENTS)]


def test_what_accelerate_config_wrote_counts(trainer, tmp_path):
    (tmp_path / "hf" / "accelerate").mkdir(parents=True)
    (tmp_path / "hf" / "accelerate" / "default_config.yaml").write_text("num_processes: 2\n")
    assert train.main(ARGUMENTS) == 5
    assert train.main([*ARGUMENTS, "--processes", "1"]) == 0
    assert trainer == [((), ARGUMENTS), ("here", ARGUMENTS)]


@pytest.mark.parametrize("count", ["0", "-2"])
def test_a_wrong_count_is_refused(trainer, count, capsys):
    assert train.main(["--processes", count]) == 1
    assert f"--processes must be at least 1, got {count}" in capsys.readouterr().err
    assert not trainer


def test_the_trainer_says_nothing_of_a_launcher_that_is_ours(monkeypatch, capsys):
    from protoseg.train.__main__ import _explain_launcher

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(train.STARTED_AS, raising=False)
    # whatever started the tests may have a -q of its own
    monkeypatch.setattr("os.getppid", lambda: 0)
    _explain_launcher()
    assert "what follows is the launcher's" in capsys.readouterr().err
    monkeypatch.setenv(train.STARTED_AS, "protoseg train")
    _explain_launcher()
    assert not capsys.readouterr().err


def test_devices_are_counted_without_torch(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert train.num_gpus() == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert train.num_gpus() == 0


def test_flags_say_everything_that_the_launcher_would_advise_on():
    flags = train._launcher_flags(2, 2)
    for name in ("--num_processes", "--num_machines", "--mixed_precision", "--dynamo_backend"):
        assert name in flags
    with pytest.raises(UserError, match="1 GPU"):
        train._launcher_flags(2, 1)


def start(folder, *words, command=("protoseg", "train")):
    return subprocess.run(
        [sys.executable, "-m", *command, *words],
        cwd=folder, env=quiet_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def digests(run: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (run / "checkpoint").glob("*.safetensors")
    }


@pytest.mark.slow
def test_the_same_to_the_byte_as_the_launcher(tmp_path):
    """In this process, through the launcher, and the -m form."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({key: dict(value) for key, value in TINY.items()}))
    launcher = ("accelerate.commands.launch", "--quiet", "-m", "protoseg.train")
    for name, form in {"a": ("protoseg", "train"), "b": launcher, "c": ("protoseg.train",)}.items():
        done = start(tmp_path, "--config", "tiny.yaml", f"run.name={name}", command=form)
        assert done.returncode == 0, done.stderr
        if name == "a":
            assert "values were not passed" not in done.stderr
    found = digests(tmp_path / "runs" / "a")
    assert len(found) == 2
    assert found == digests(tmp_path / "runs" / "b") == digests(tmp_path / "runs" / "c")


@pytest.mark.slow
def test_two_processes_train_and_an_error_is_the_last_line(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({key: dict(value) for key, value in TINY.items()}))
    done = start(tmp_path, "--processes", "2", "--config", "tiny.yaml", "run.name=two")
    assert done.returncode == 0, done.stderr
    assert "x 2" in done.stdout + done.stderr
    assert (tmp_path / "runs" / "two" / "checkpoint" / "model.safetensors").is_file()
    assert not re.search(r"Traceback|values were not passed", done.stderr)
    done = start(tmp_path, "--processes", "2", "--config", "tiny.yaml", "data.kind=files")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-2:] == [
        "error: tiny.yaml: 1 problem(s)",
        "  data: data.kind=files needs data.labeled, data.val, data.classes",
    ]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_stopped_run_says_how_to_go_on(tmp_path):
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["train"] |= {"max_steps": 100_000, "save_every": 1, "eval_every": 100_000}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    process = subprocess.Popen(
        [sys.executable, "-m", "protoseg", "train", "--config", "tiny.yaml"],
        cwd=tmp_path, env=quiet_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/state/step_*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "protoseg train --resume --config tiny.yaml" in out + err
