"""The trainer on CUDA: precisions, memory format, compilation, resume. Needs a device."""

import pytest
from accelerate.state import AcceleratorState, GradientState
from tiny import tiny_config

from protoseg.checkpoint import load_checkpoint
from protoseg.loop import train
from protoseg.report import read_metrics

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fresh_accelerator():
    # accelerate keeps the precision of a process's first Accelerator
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(tmp_path, resume=False, **settings):
    config = tiny_config(
        run={"name": "gpu", "dir": str(tmp_path)},
        train={"max_steps": 6, "eval_every": 3, "save_every": 3, **settings},
    )
    assert train(config, resume=resume) == 0
    return tmp_path / "gpu"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixed_precision": "bf16", "channels_last": True},
        {"mixed_precision": "fp16"},
        {"compile": True},
        {"accumulate": 2},
    ],
    ids=lambda s: "-".join(s) or "fp32",
)
def test_precisions_and_layouts(tmp_path, settings):
    folder = run(tmp_path, **settings)
    records = [r for r in read_metrics(folder / "metrics.jsonl") if "loss/total" in r]
    assert all(r["loss/total"] is not None for r in records)
    assert records[-1]["time/memory_mib"] > 0
    assert load_checkpoint(folder).info.step == 6


def test_resume_is_close_to_the_straight_run(tmp_path):
    # atomics make CUDA sums order-dependent: equality to a tolerance, not to the bit
    straight = run(tmp_path / "a")
    other = run(tmp_path / "b")
    last = sorted((other / "state").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    run(tmp_path / "b", resume=True)
    one, two = (read_metrics(f / "metrics.jsonl")[-2]["loss/total"] for f in (straight, other))
    assert one == pytest.approx(two, rel=0.05)
