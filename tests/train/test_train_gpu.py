"""The trainer on CUDA: precisions, memory format, compilation, resume. Needs a device."""

from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from small_step import batches, run_step, step_of
from tiny import tiny_config

from protoseg.checkpoint import load_checkpoint
from protoseg.errors import TrainingStoppedError
from protoseg.train.log import read_metrics
from protoseg.train.loop import train

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fresh_accelerator():
    # accelerate keeps the precision of a process's first Accelerator
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(tmp_path, resume=False, **settings):
    config = tiny_config(
        run={"name": "gpu", "dir": str(tmp_path)},
        train={"max_steps": 6, "eval_every": 3, "save_every": 3, "keep_states": 2, **settings},
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
    one, two = (
        [r["loss/total"] for r in read_metrics(f / "metrics.jsonl") if "loss/total" in r][-1]
        for f in (straight, other)
    )
    assert one == pytest.approx(two, rel=0.05)


def test_in_fp16_the_norm_of_the_gradient_is_logged(tmp_path):
    """Not the sum of the losses, which it once was: clipping keeps the norm it finds."""
    folder = run(tmp_path, mixed_precision="fp16")
    records = [r for r in read_metrics(folder / "metrics.jsonl") if r.get("grad_norm") is not None]
    assert any(abs(r["grad_norm"] - r["loss/total"]) > 1e-3 for r in records)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_run_that_diverges_stops_at_the_next_log_line(tmp_path, precision):
    config = tiny_config(
        run={"name": "gpu", "dir": str(tmp_path)},
        optim={"name": "sgd", "lr": 1e30},
        train={
            "max_steps": 40,
            "log_every": 5,
            "eval_every": 40,
            "save_every": 40,
            "mixed_precision": precision,
        },
    )
    with pytest.raises(
        TrainingStoppedError, match=r"not finite at step [2-5]: start anew with a lower optim.lr"
    ):
        train(config)


def one_step(device, **sections):
    """Losses, gradients and prototypes after one step from the same weights and images, on the CPU."""
    networks, method = step_of(pseudo_labels={"threshold": 0.0}, **sections)
    for part in (networks.network, networks.teacher, networks.bank, networks.thresholds):
        part.to(device)
    method = replace(method, fill=method.fill.to(device))
    labeled, unlabeled = ({key: value.to(device) for key, value in part.items()} for part in batches())
    result = run_step(networks, method, labeled, unlabeled)
    result.loss.backward()
    features, classes, similarity = result.points
    networks.bank.update(features, classes, momentum=0.5, similarity=similarity)
    gradient = torch.cat([p.grad.flatten().cpu() for p in networks.network.parameters()])
    return {k: float(v) for k, v in result.parts.items()}, gradient, networks.bank.prototypes.cpu()


@pytest.mark.parametrize("preset", ["prototype", "protoseg"])
def test_a_step_is_that_of_the_cpu(monkeypatch, preset):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    parts, gradient, prototypes = one_step("cpu", method={"preset": preset})
    parts_cuda, gradient_cuda, prototypes_cuda = one_step("cuda", method={"preset": preset})
    assert all(value > 0 for value in parts.values())
    assert parts_cuda == pytest.approx(parts, rel=1e-3)
    # one unit that crosses zero moves a tenth: weights that differ by 1e-5 did so on a CPU
    assert (gradient_cuda - gradient).norm() < 0.2 * gradient.norm()
    torch.testing.assert_close(prototypes_cuda, prototypes, atol=1e-3, rtol=0)
