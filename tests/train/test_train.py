"""The trainer as a user meets it: real processes, killed, resumed, interrupted, misused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from tiny import PROJECT_ROOT, TINY, quiet_environment

from protoseg.checkpoint import load_checkpoint
from protoseg.config.data import SyntheticConfig
from protoseg.data.synthetic import write_dataset
from protoseg.explain.atlas import fitting_atlas
from protoseg.train.__main__ import main
from protoseg.train.log import read_metrics


@pytest.fixture
def config_file(tmp_path):
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["run"] = {"name": "tiny", "dir": str(tmp_path / "runs")}
    raw["train"] |= {"max_steps": 8, "save_every": 1, "eval_every": 4}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def start(*arguments, launcher=(sys.executable, "-m"), **options):
    return subprocess.Popen(
        [*launcher, "protoseg.train", *map(str, arguments)],
        cwd=PROJECT_ROOT, env=quiet_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def wait_for(path, process, seconds=120):
    """Wait until a file exists, as long as the process lives."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def weights(run):
    return {
        name: safetensors.torch.load_file(run / "checkpoint" / name)
        for name in ("model.safetensors", "student.safetensors")
    }


def assert_same_run(one, two):
    """Weights to the bit, and every logged number but the timings."""
    for name, ours in weights(one).items():
        theirs = weights(two)[name]
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), f"{name}: {key} differs"
    logs = [
        [
            {k: v for k, v in record.items() if not k.startswith("time/")}
            for record in read_metrics(run / "metrics.jsonl")
        ]
        for run in (one, two)
    ]
    assert logs[0] == logs[1]


def test_a_run_from_start_to_checkpoint(config_file, run_module, tmp_path):
    done = run_module("protoseg.train", "--config", config_file, "train.atlas_images=2")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    atlas = fitting_atlas(run / "prototypes", load_checkpoint(run).info.weights_sha256)
    assert atlas is not None
    assert (atlas.num_images, atlas.step) == (2, 8)
    assert str(run / "prototypes" / "prototypes.png") in done.stdout
    for text in ("linear", "prototype", "fused", "background", f"python -m export.onnx {run}"):
        assert text in done.stdout
    for control in ("\r", "\x1b"):
        assert control not in done.stdout + done.stderr, "a log file has whole lines"
    assert "step 1 of 8: loss " in done.stdout
    assert len(list((run / "pictures").glob("*.png"))) == 2
    for name in ("views.png", "labels.png", "curves.png", "class_curves.png"):
        assert (run / name).stat().st_size > 1000
        assert str(run / name) in done.stdout
    info = load_checkpoint(run).info
    assert info.step == 8
    assert set(info.metrics["val"]["miou"]) == {"linear", "prototype", "fused"}
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["max_steps"] == 8
    steps = [r["step"] for r in read_metrics(run / "metrics.jsonl")]
    assert steps == sorted(steps)
    assert steps[-1] == 8


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_equals_the_straight_run(config_file, run_module, tmp_path):
    straight = run_module("protoseg.train", "--config", config_file, "run.name=straight")
    assert straight.returncode == 0, straight.stderr
    run = tmp_path / "runs" / "killed"
    arguments = ("--config", config_file, "run.name=killed")
    # killed in the supervised part, while a state is being written, and after the prototypes started
    moments = ["state/step_00000001", "state/step_00000003.partial", "state/step_00000006"]
    for moment in moments:
        process = start(*arguments, "--resume")
        wait_for(run / moment, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = run_module("protoseg.train", *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stdout
    assert_same_run(tmp_path / "runs" / "straight", run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_the_state_and_print_the_resume_command(config_file, run_module, tmp_path, number):
    run = tmp_path / "runs" / "tiny"
    process = start(
        "--config", config_file, "train.max_steps=500", "train.save_every=400", "train.eval_every=400",
        "data.num_workers=1", start_new_session=True,
    )  # fmt: skip
    wait_for(run / "metrics.jsonl", process)
    time.sleep(1)
    os.killpg(process.pid, number)  # as a terminal does; loader processes get it, too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.count("stopping after this step") == 1
    assert f"python -m protoseg.train --resume --config {config_file}" in out
    assert len(list((run / "state").glob("step_*"))) == 1


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(config_file, run_module, tmp_path):
    for name in ("one", "two"):
        done = run_module("protoseg.train", "--config", config_file, f"run.name={name}")
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    assert_same_run(one, two)
    pictures = [path.relative_to(one) for path in one.rglob("*.png")]
    assert len(pictures) == 6
    for picture in pictures:
        assert (one / picture).read_bytes() == (two / picture).read_bytes()


@pytest.mark.slow
def test_an_earlier_run_is_moved_aside(config_file, run_module, tmp_path):
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("precious")
    done = run_module("protoseg.train", "--config", config_file, "train.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny.1" / "config.yaml").read_text() == "precious"
    assert "moved the earlier run" in done.stdout


@pytest.mark.slow
def test_a_second_stage_starts_from_an_earlier_run(config_file, run_module, tmp_path):
    runs = tmp_path / "runs"
    arguments = ("--config", config_file)
    first = run_module("protoseg.train", *arguments, "run.name=first", "method.preset=supervised")
    assert first.returncode == 0, first.stderr
    second = (*arguments, "run.name=second", f"train.start_from={runs / 'first'}", "train.warmup_steps=null")
    # so slow that the result is the start
    still = run_module("protoseg.train", *second, "optim.lr=1e-12", "train.max_steps=1")
    assert still.returncode == 0, still.stderr
    assert f"start from {runs / 'first'} (first, step 8)" in still.stdout
    assert "0 of them supervised" in still.stdout
    one, two = weights(runs / "first"), weights(runs / "second")
    kept = [k for k in one["model.safetensors"] if not k.startswith("prototypes.") and "running" not in k
            and "num_batches" not in k]  # fmt: skip
    assert len(kept) > 20
    for key in kept:
        torch.testing.assert_close(
            two["model.safetensors"][key], one["model.safetensors"][key], rtol=0, atol=1e-6
        )

    # the earlier run's average goes on instead of being replaced by the student's first step
    moved = run_module("protoseg.train", *second, "run.name=moved", "train.max_steps=1")
    assert moved.returncode == 0, moved.stderr
    teacher, student = weights(runs / "moved").values()
    assert max((student[key] - one["model.safetensors"][key]).abs().max() for key in kept) > 1e-4
    for key in kept:
        expected = 0.99 * one["model.safetensors"][key] + 0.01 * student[key]
        torch.testing.assert_close(teacher[key], expected, rtol=1e-5, atol=1e-6)

    # a resumed run does not look at the start again
    process = start(*second, "train.max_steps=6", "train.save_every=2")
    wait_for(runs / "second" / "state" / "step_00000002", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (runs / "first").rename(runs / "gone")
    done = run_module("protoseg.train", *second, "train.max_steps=6", "train.save_every=2", "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert "student and teacher start" not in done.stdout

    own = run_module("protoseg.train", *arguments, "run.name=second", f"train.start_from={runs / 'second'}")
    assert own.returncode == 1
    assert "in the folder of this run" in own.stderr
    assert not (runs / "second.2").exists()


def test_a_run_that_diverges_stops_at_once_and_names_step_state_and_cure(config_file, capsys, tmp_path):
    arguments = ["--config", str(config_file), "optim.lr=1e25", "optim.name=sgd", "train.max_bad_steps=3"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    number = int(re.search(r"error: the loss or its gradient is not finite at step (\d+): ", said.err)[1])
    assert number > 1
    run = tmp_path / "runs" / "tiny"
    (last,) = [p for p in (run / "state").iterdir() if p.name == f"step_{number - 1:08d}"]
    assert f"{last} is from before that" in said.err
    assert "optim.max_grad_norm=1" in said.err
    assert "lower optim.lr" in said.err
    assert not (run / "state" / f"step_{number:08d}").exists(), "what has diverged is not worth a state"
    assert "train.max_bad_steps has no effect" in said.out


@pytest.mark.slow
def test_resume_with_other_settings(config_file, run_module, tmp_path):
    run = ("protoseg.train", "--config", config_file, "--resume")
    assert run_module(*run, "train.max_steps=4").returncode == 0
    before = (tmp_path / "runs" / "tiny" / "config.yaml").read_text()

    refused = run_module(*run, "train.max_steps=6", "optim.lr=1e-7")
    assert refused.returncode == 1
    assert "optim.lr was 0.0002, is now 1e-07" in refused.stderr
    assert "train.start_from" in refused.stderr
    shorter = run_module(*run, "train.max_steps=3")
    assert shorter.returncode == 0, shorter.stderr
    assert "already finished (step 4 of 3)" in shorter.stdout
    assert (tmp_path / "runs" / "tiny" / "config.yaml").read_text() == before

    longer = run_module(*run, "train.max_steps=6", "pseudo_labels.threshold=0.5")
    assert longer.returncode == 0, longer.stderr
    assert "another setting: pseudo_labels.threshold was 0.3, is now 0.5" in longer.stdout
    assert [line["step"] for line in read_metrics(tmp_path / "runs/tiny/metrics.jsonl")][-1] == 6

    # it is read in each step, and the cure that a run which diverged is given
    clipped = run_module(*run, "train.max_steps=7", "optim.max_grad_norm=1")
    assert clipped.returncode == 0, clipped.stderr
    assert "another setting: optim.max_grad_norm was None, is now 1.0" in clipped.stdout


@pytest.mark.slow
def test_a_validation_pair_that_does_not_fit_names_itself_and_loses_nothing(run_module, tmp_path):
    folder = tmp_path / "scenes"
    write_dataset(SyntheticConfig(num_labeled=4, num_unlabeled=6, num_val=9, height=40, width=48), folder)
    entry = (folder / "val.txt").read_text().splitlines()[5].split()
    with Image.open(folder / entry[1]) as mask:
        mask.crop((0, 0, 48, 30)).save(folder / entry[1])
    raw = {**TINY, "data": {"kind": "files", "root": str(folder), **lists_of(folder)}}
    raw["run"] = {"name": "tiny", "dir": str(tmp_path / "runs")}
    path = tmp_path / "files.yaml"
    path.write_text(yaml.safe_dump(raw))
    done = run_module("protoseg.train", "--config", path)
    assert done.returncode == 1
    assert f"validation image {Path(entry[0]).stem} is 40x48, its mask 30x48" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "runs" / "tiny" / "state").glob("step_*"))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_dataset(SyntheticConfig(num_labeled=4, num_unlabeled=6, num_val=2, height=40, width=48), folder)
    return folder


def files_config(folder):
    return [f"data={json.dumps({'kind': 'files', 'root': str(folder), **lists_of(folder)})}"]


def lists_of(folder):
    found = {}
    for split in ("labeled", "unlabeled", "val"):
        found[split] = next(str(p.relative_to(folder)) for p in sorted(folder.rglob(f"{split}.txt")))
    classes = next(folder.rglob("classes.txt"))
    return {**found, "classes": str(classes.relative_to(folder))}


@pytest.mark.slow
def test_own_images_from_lists(config_file, run_module, image_folder, tmp_path):
    done = run_module(
        "protoseg.train", "--config", config_file, "train.max_steps=3", *files_config(image_folder)
    )
    assert done.returncode == 0, done.stderr
    info = load_checkpoint(tmp_path / "runs" / "tiny").info
    assert info.data.root == str(image_folder)
    assert all(len(value) == 64 for value in info.data_hashes.values())


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_corrupt_image_in_the_middle(config_file, run_module, image_folder, tmp_path, on_error):
    root = tmp_path / "data"
    subprocess.run(["cp", "-r", str(image_folder), str(root)], check=True)
    lists = lists_of(root)
    # not among the few that are looked at before training
    names = (root / lists["unlabeled"]).read_text().split()
    victim = root / names[-2]
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2])
    done = run_module(
        "protoseg.train", "--config", config_file, *files_config(root), f"data.on_error={on_error}"
    )
    if on_error == "raise":
        assert done.returncode == 1
        assert victim.name in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "unreadable image(s) were passed over" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.max_stepz=3"], "train.max_stepz: unknown key"),
        (["model.encoder=resnet5000"], "timm has no model 'resnet5000'"),
        (["train.warmup_steps=8"], "leaves no step for unlabelled images"),
        (["model.pretrained=nowhere.safetensors"], "no such file"),
        (["data.kind=files"], "needs data.labeled"),
        (["train.start_from=nowhere"], "no checkpoint at nowhere"),
        (["train.batch_size=1"], "batch norm after its global pooling needs two images"),
    ],
)
def test_mistakes_end_with_one_readable_error(config_file, capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(config_file), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_mistake_ends_the_command_without_a_traceback(config_file, run_module):
    done = run_module("protoseg.train", "--config", config_file, "optim.learning_rate=1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "optim.learning_rate: unknown key" in done.stderr
    assert "Traceback" not in done.stderr


def test_under_a_launcher_an_error_says_how_to_end_with_it(config_file, capsys, monkeypatch):
    monkeypatch.setattr("os.getppid", lambda: -1)
    arguments = ["--config", str(config_file), "optim.learning_rate=1"]
    assert main(arguments) == 1
    assert "--quiet" not in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert main(arguments) == 1
    assert "accelerate launch --quiet -m" in capsys.readouterr().err.splitlines()[-1]


def test_help_explains_itself(run_module):
    done = run_module("protoseg.train", "--help")
    assert done.returncode == 0
    for word in ("--config", "--resume", "key.sub=value", "quickstart.yaml"):
        assert word in done.stdout
    settings = run_module("protoseg.train", "--settings")
    assert "prototypes.temperature=0.1" in settings.stdout


@pytest.mark.slow
def test_accelerate_launch_runs_the_module(config_file, tmp_path):
    process = start(
        "--config", config_file, "train.max_steps=3",
        launcher=(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"),
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "next: python -m export.onnx" in out


@pytest.mark.parametrize("quiet", [["--quiet"], pytest.param([], marks=pytest.mark.slow)])
def test_an_error_under_the_launcher(config_file, quiet):
    launcher = (
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        *quiet,
        "-m",
    )
    process = start("--config", config_file, "optim.learning_rate=1", launcher=launcher)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "optim.learning_rate: unknown key" in err
    if quiet:
        assert "unknown key" in err.splitlines()[-1]
        assert "Traceback" not in err
    else:
        # the launcher's traceback cannot be kept back from here; the cure is printed before it
        assert err.index("accelerate launch --quiet -m") < err.index("Traceback")


@pytest.mark.slow
def test_sigterm_to_the_launcher_reaches_the_trainer(config_file, tmp_path):
    run = tmp_path / "runs" / "tiny"
    process = start(
        "--config", config_file, "train.max_steps=500", "train.save_every=400", "train.eval_every=400",
        launcher=(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"),
    )  # fmt: skip
    wait_for(run / "metrics.jsonl", process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert "accelerate launch --quiet -m protoseg.train --resume" in out
    assert len(list((run / "state").glob("step_*"))) == 1


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_keeps_the_last_state(config_file, tmp_path):
    run = tmp_path / "runs" / "tiny"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from protoseg.train import state\nfrom protoseg.train.__main__ import main\n"
        "real = state.States.save\n"
        "def limited(self, **k):\n"
        "    if self.progress.step >= 4:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
        "    return real(self, **k)\n"
        "state.States.save = limited\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--config", str(config_file), "train.eval_every=8",
         "train.keep_states=2"],
        cwd=PROJECT_ROOT, env=quiet_environment(), text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "cannot write" in done.stderr
    states = sorted(p.name for p in (run / "state").iterdir())
    assert states == ["step_00000002", "step_00000003"]


@pytest.mark.slow
def test_grey_images_train_with_one_channel(config_file, run_module, image_folder, tmp_path):
    root = tmp_path / "grey"
    subprocess.run(["cp", "-r", str(image_folder), str(root)], check=True)
    for path in root.rglob("*"):
        if path.suffix in (".png", ".jpg") and "mask" not in str(path.parent.name):
            Image.open(path).convert("L").save(path)
    done = run_module(
        "protoseg.train",
        "--config",
        config_file,
        "train.max_steps=3",
        *files_config(root),
        "data.in_channels=1",
    )
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "runs" / "tiny").info.input.channels == 1
