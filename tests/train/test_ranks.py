"""Two CPU processes against one with the same global batch."""

import subprocess
import sys

import pytest
import safetensors.torch
import torch
import yaml
from tiny import PROJECT_ROOT, TINY, quiet_environment

from protoseg.train.log import read_metrics

SCRIPT = PROJECT_ROOT / "tests" / "rank_script.py"


LEVERS = {
    "prototypes": {"consistency": 0.3, "update_from": "clean"},
    "pseudo_labels": {
        "held_out": 0.25,
        "target_precision": 0.5,
        "calibration": "class",
        "calibrate_every": 2,
    },
    "loss": {"unsupervised_start": 0.5, "unsupervised_ramp": 3},
    "train": {"rare_class_temperature": 0.1},
}


def write_config(path, batch_size, name, more=None):
    raw = {key: dict(value) for key, value in TINY.items()}
    raw["run"] = {"name": name, "dir": str(path.parent / "runs")}
    # nothing that works within one process's batch: batch statistics, dropout, mixing partners
    raw["model"] = {"architecture": "unet", "encoder": "test_resnet", "freeze_bn": True, "dropout": 0.0}
    raw["views"] |= {"mixing": "none"}
    raw["train"] |= {"batch_size": batch_size, "max_steps": 6, "eval_every": 3}
    raw["prototypes"] |= {"sampling": "balanced", "reseed_after": 2}
    for section, values in (more or {}).items():
        raw[section] = raw.get(section, {}) | values
    path.write_text(yaml.safe_dump(raw))
    return path


def run(processes, config, out):
    launcher = [sys.executable]
    environment = quiet_environment()
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment["ACCELERATE_USE_CPU"] = "true"
    out.mkdir()
    done = subprocess.run(
        [*launcher, str(SCRIPT), str(config), str(out)],
        cwd=PROJECT_ROOT, env=environment, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [safetensors.torch.load_file(p) for p in sorted(out.glob("rank*.safetensors"))]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, LEVERS], ids=["usual", "levers"])
def test_two_processes_equal_one(tmp_path, more):
    one = run(1, write_config(tmp_path / "one.yaml", 4, "one", more), tmp_path / "out1")
    two = run(2, write_config(tmp_path / "two.yaml", 2, "two", more), tmp_path / "out2")
    assert len(one) == 1
    assert len(two) == 2
    for key, value in two[0].items():
        assert torch.equal(value, two[1][key]), f"{key} differs between the processes"
    torch.testing.assert_close(two[0]["prototypes"], one[0]["prototypes"], atol=1e-3, rtol=1e-3)
    logs = [
        [r for r in read_metrics(tmp_path / "runs" / name / "metrics.jsonl") if "loss/total" in r]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1]) == 6
    for ours, theirs in zip(*logs, strict=True):
        for key in ours:
            if key.startswith("loss/"):
                assert ours[key] == pytest.approx(theirs[key], rel=2e-3, abs=2e-4), (ours["step"], key)
    val = [
        [r for r in read_metrics(tmp_path / "runs" / name / "metrics.jsonl") if "val/miou_linear" in r]
        for name in ("one", "two")
    ]
    assert val[0][-1]["val/miou_linear"] == pytest.approx(val[1][-1]["val/miou_linear"], abs=0.01)


@pytest.mark.slow
def test_two_processes_resume_together(tmp_path):
    config = write_config(tmp_path / "two.yaml", 2, "two")
    environment = quiet_environment() | {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "-m", "protoseg.train", "--config", str(config)]  # fmt: skip
    done = subprocess.run(
        [*command, "train.save_every=2", "train.keep_states=2", "run.name=first"],
        cwd=PROJECT_ROOT, env=environment, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = tmp_path / "runs" / "first" / "state"
    last = sorted(state.iterdir())
    assert [p.name for p in last] == ["step_00000004", "step_00000006"]
    expected = safetensors.torch.load_file(tmp_path / "runs" / "first" / "checkpoint" / "model.safetensors")
    subprocess.run(["rm", "-r", str(last[1])], check=True)
    done = subprocess.run(
        [*command, "train.save_every=2", "run.name=first", "--resume"],
        cwd=PROJECT_ROOT, env=environment, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    found = safetensors.torch.load_file(tmp_path / "runs" / "first" / "checkpoint" / "model.safetensors")
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
