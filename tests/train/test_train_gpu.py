"""The trainer on CUDA: precisions, memory format, compilation, resume. Needs a device."""

import warnings
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from small_step import batches, run_step, step_of
from tiny import tiny_config, tiny_segmenter

from protoseg.checkpoint import load_checkpoint
from protoseg.config.data import DataConfig, SyntheticConfig, ViewConfig
from protoseg.data.device_stream import make_device_stream
from protoseg.data.sources import CachedSource, open_source
from protoseg.data.stream import StreamSampler, make_stream
from protoseg.data.synthetic import synthetic_classes
from protoseg.errors import TrainingStoppedError
from protoseg.processes import Processes
from protoseg.train.log import read_metrics
from protoseg.train.loop import change_phase, take_step, train
from protoseg.train.monitor import FaultWatch
from protoseg.train.numerics import channels_last
from protoseg.train.optim import make_optimizer
from protoseg.train.setup import make_accelerator
from protoseg.train.training import open_training

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def fresh_accelerator():
    # accelerate keeps the precision of a process's first Accelerator
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(tmp_path, resume=False, cache=False, **settings):
    config = tiny_config(
        run={"name": "gpu", "dir": str(tmp_path)},
        data={"cache": cache},
        train={"max_steps": 6, "eval_every": 3, "save_every": 3, "keep_states": 2, **settings},
    )
    assert train(config, resume=resume) == 0
    return tmp_path / "gpu"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixed_precision": "no", "channels_last": False},
        {"mixed_precision": "fp16"},
        {"compile": True},
        {"accumulate": 2},
        {"cache": "device"},
    ],
    ids=lambda s: "-".join(s) or "chosen",
)
def test_precisions_and_layouts(tmp_path, settings):
    folder = run(tmp_path, **settings)
    records = [r for r in read_metrics(folder / "metrics.jsonl") if "loss/total" in r]
    assert all(r["loss/total"] is not None for r in records)
    assert records[-1]["time/memory_mib"] > 0
    assert load_checkpoint(folder).info.step == 6


def test_precision_and_layout_are_chosen_by_the_device(tmp_path):
    able = torch.cuda.get_device_capability() >= (8, 0)
    accelerator = make_accelerator(tiny_config().train, tmp_path)
    assert accelerator.mixed_precision == ("bf16" if able else "no")
    assert channels_last(None, accelerator.device) is able
    assert make_optimizer(tiny_segmenter().network.cuda(), tiny_config().optim).defaults["fused"]


@pytest.mark.parametrize("cache", [False, "device"])
@pytest.mark.parametrize("preset", ["unimatch_v2", "protoseg"])
def test_no_step_waits_for_the_device(tmp_path, preset, cache):
    """Between log lines, and once prototypes have started and memory is there."""
    config = tiny_config(
        run={"name": "gpu", "dir": str(tmp_path)}, method={"preset": preset}, data={"cache": cache},
        train={"max_steps": 40, "warmup_steps": 2},
    )  # fmt: skip
    accelerator = make_accelerator(config.train, config.run.path)
    processes = Processes(device=accelerator.device)
    opened = open_training(config, accelerator, processes, resume=False, output="quiet")
    faults = FaultWatch(processes.device, opened.states)

    def steps(numbers):
        for step in numbers:
            change_phase(opened, step)
            take_step(opened, step, faults)

    steps(range(8))
    torch.cuda.synchronize()
    torch.set_warn_always(True)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            steps(range(8, 24))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_warn_always(False)
    waits = {f"{item.filename}:{item.lineno}" for item in found if "synchronizing" in str(item.message)}
    assert waits == set()


@pytest.mark.parametrize("stream", ["labeled", "unlabeled"])
@pytest.mark.parametrize("tf32", [False, True])
def test_batches_made_there_are_those_of_the_cpu(monkeypatch, stream, tf32):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    data = DataConfig(synthetic=SyntheticConfig(num_labeled=8, num_unlabeled=8))
    views = ViewConfig(crop=(64, 80), strong_views=2, labeled_jitter=True)
    how = {"data": data, "views": views, "mean": [0.5] * 3}
    source = CachedSource(open_source(data, stream, synthetic_classes(data.synthetic)), data)
    draws = StreamSampler(len(source), 4, seed=0, stream=stream, start=0, stop=4)
    try:
        here = list(make_stream(source, draws, **how))
        there = list(make_device_stream(source, draws, device=torch.device("cuda", 0), **how))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for one, two in zip(here, there, strict=True):
        for key, value in one.items():
            off = (value.int() - two[key].cpu().int()).abs()
            if key == "weak":
                assert off.max() <= 1
                assert (off > 0).float().mean() < 1e-3
            elif key in ("image", "strong"):
                assert (off > 1).float().mean() < 1e-3
                assert off.max() <= 12
            else:
                assert off.max() == 0, key


def test_resume_is_close_to_the_straight_run(tmp_path):
    # atomics make CUDA sums order-dependent: equality to a tolerance, not to the bit
    straight = run(tmp_path / "a", mixed_precision="no")
    other = run(tmp_path / "b", mixed_precision="no")
    last = sorted((other / "state").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    run(tmp_path / "b", resume=True, mixed_precision="no")
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
