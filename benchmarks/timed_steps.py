"""A training whose steps are timed in this process: the child of ``benchmarks.train_step``."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protoseg.train.training import Training


STEPS = 1_000_000


def prepare(
    config: str, overrides: list[str], device: str, folder: Path, loop: str = ""
) -> tuple[Training, Callable[[], tuple[float, float]]]:
    """A training on ``device`` with the run folder ``folder``, and a function that runs its next step.

    With ``loop`` it is the step of ``benchmarks.peer_loops``. The function gives seconds of the step without
    its data, and of its data: processor time on a CPU, else wall time.
    """
    import torch

    from benchmarks.peer_loops import LOOPS, PeerLoop
    from protoseg.config.load import load_config
    from protoseg.processes import Processes
    from protoseg.train import setup
    from protoseg.train.loop import change_phase, take_step
    from protoseg.train.monitor import FaultWatch
    from protoseg.train.training import open_training

    own = ["train.trackers=[]", "data.cache=true", f"train.max_steps={STEPS}", "train.warmup_steps=0"]
    settings = load_config(config, [*own, *overrides, f"run.dir={folder}", "run.name=run"])
    accelerator = setup.make_accelerator(settings.train, folder)
    assert accelerator.device.type == device, f"asked for {device}, got {accelerator.device}"
    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
    run = open_training(settings, accelerator, processes, resume=False, output="quiet")
    assert run is not None
    host = () if settings.data.cache == "device" else (run.data.labeled, run.data.unlabeled)
    for source in filter(None, host):
        for index in range(len(source)):
            source.image(index)
    faults, steps = FaultWatch(processes.device, run.states), iter(range(STEPS))
    peer = PeerLoop(run) if loop else None

    def step() -> tuple[float, float]:
        number, run.batches.waited = next(steps), 0.0
        began, cpu = time.perf_counter(), time.process_time()
        if peer is None:
            change_phase(run, number)
            take_step(run, number, faults)
        else:
            LOOPS[loop](peer, *run.batches.next(unlabeled=run.schedule.phase(number).unlabeled))
        if device == "cuda":
            torch.cuda.synchronize()
        wall = time.perf_counter() - began
        # the data are waited for in one thread of this process, so their wall time is processor time but for
        # what others take of the core, in proportion
        share = (time.process_time() - cpu) / wall if device == "cpu" else 1.0
        return share * (wall - run.batches.waited), share * run.batches.waited

    return run, step


def busy_share(step: Callable[[], object], steps: int) -> float:
    """Share of the wall time of ``steps`` steps in which kernels ran on the CUDA device, in [0, 1]."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    return sum(item.self_device_time_total for item in found.key_averages()) / 1e6 / wall


def serve(config: str, overrides: list[str], device: str, loop: str) -> int:
    """Measure steps in batches: a line with their number in, a line of JSON with their times in ms out."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        _, step = prepare(config, overrides, device, Path(folder), loop)
        for line in sys.stdin:
            times = [(time.perf_counter(), *step(), time.perf_counter()) for _ in range(int(line))]
            answer = {
                "network": [1e3 * t[1] for t in times],
                "data": [1e3 * t[2] for t in times],
                "wall": [1e3 * (t[3] - t[0]) for t in times],
            }
            if device == "cuda":
                answer["busy"] = [busy_share(step, int(line))]
            out.write(json.dumps(answer) + "\n")
            out.flush()
    return 0
