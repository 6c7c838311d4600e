"""How long does a training step take on one CPU thread, and what do settings or other code change?

    python -m benchmarks.train_step                              # as the studies train
    python -m benchmarks.train_step --before TREE                # against other checkouts
    python -m benchmarks.train_step --variant bf16:train.mixed_precision=bf16,train.channels_last=true

A step is what the trainer does: views, teacher, student forward and backward, optimiser, prototypes, moving
average; images are decoded beforehand, as with ``data.cache`` after the first pass. Every case runs in a
process of its own that waits for its turn, so that rounds are interleaved; ratios are taken within a round.
The machine may be shared, so milliseconds are of processor time; wall time is given beside it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/voc_92_efficientnet_lite0.yaml"
PRESETS = ("fixmatch", "protoseg", "unimatch_v2")
STEPS = 1_000_000


class Child:
    """A case in a process of its own, which measures when it is told to."""

    def __init__(self, tree: Path, config: str, overrides: list[str]) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", "--config", config, *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self, steps: int) -> dict[str, list[float]]:
        """Times of ``steps`` steps, see ``serve``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a case ended with code {self.process.wait()}")
        answer: dict[str, list[float]] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def prepare(config: str, overrides: list[str]) -> Callable[[], tuple[float, float]]:
    """A function that runs the next training step.

    It returns seconds of processor time: those of the step without its data, and those of its data.
    """
    from protoseg.config import load_config
    from protoseg.data.datasets import make_stream
    from protoseg.loop import (
        Interval,
        build_context,
        make_accelerator,
        move_teacher,
        phase_at,
        run_step,
        start_prototypes,
        update_prototypes,
    )
    from protoseg.resume import Progress
    from protoseg.run import open_run_data

    settings = load_config(
        config,
        [
            "train.trackers=[]",
            "data.cache=true",
            f"train.max_steps={STEPS}",
            "train.warmup_steps=0",
            *overrides,
        ],
    )
    accelerator = make_accelerator(settings)
    data = open_run_data(settings, accelerator)
    for source in (data.labeled, data.unlabeled):
        for index in range(len(source) if source is not None else 0):
            assert source is not None
            source.image(index)
    context, (optimizer, scheduler) = build_context(settings, accelerator, data)
    place: dict[str, Any] = {"mean": data.mean, "rank": 0, "world": 1, "start": 0, "stop": STEPS}
    labeled = make_stream(settings, data.labeled, "labeled", **place)
    unlabeled = None
    if settings.method.unlabeled and data.unlabeled is not None:
        unlabeled = make_stream(settings, data.unlabeled, "unlabeled", **place)
    if settings.method.prototypes:
        start_prototypes(context, data, 0)
    progress, steps = Progress(), iter(range(STEPS))

    def step() -> tuple[float, float]:
        number, interval = next(steps), Interval()
        began, cpu = time.perf_counter(), time.process_time()
        phase = phase_at(settings, data.plan, number)
        _, points, _ = run_step(
            context, accelerator, optimizer, (labeled, unlabeled), phase, number, interval
        )
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        update_prototypes(context, points, number)
        move_teacher(context, progress)
        progress.teacher_updates += 1
        wall = time.perf_counter() - began
        # the data are waited for in one thread of this process, so their wall time is processor time but for
        # what others take of the core, in proportion
        share = (time.process_time() - cpu) / wall
        return share * (wall - interval.waited), share * interval.waited

    return step


def serve(config: str, overrides: list[str]) -> int:
    """Measure steps in batches: a line with their number in, a line of JSON with their times in ms out."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step = prepare(config, overrides)
    for line in sys.stdin:
        times = [(time.perf_counter(), *step(), time.perf_counter()) for _ in range(int(line))]
        answer = {
            "network": [1e3 * t[1] for t in times],
            "data": [1e3 * t[2] for t in times],
            "wall": [1e3 * (t[3] - t[0]) for t in times],
        }
        out.write(json.dumps(answer) + "\n")
        out.flush()
    return 0


def summary(rounds: list[dict[str, list[float]]], base: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Milliseconds of a step over rounds (each the median of its steps), and ratios to the baseline's."""
    from benchmarks.common import spread

    def medians(part: list[dict[str, list[float]]], *keys: str) -> list[float]:
        return [statistics.median(map(sum, zip(*(r[k] for k in keys), strict=True))) for r in part]

    kinds = {
        "with_data": ("network", "data"),
        "without_data": ("network",),
        "data": ("data",),
        "wall": ("wall",),
    }
    found: dict[str, Any] = {}
    for name, keys in kinds.items():
        own = medians(rounds, *keys)
        found[f"{name}_ms"] = spread(own)
        ratios = [b / o for o, b in zip(own, medians(base, *keys), strict=True)]
        found[f"{name}_ratio"] = spread(ratios)
    return found


def revision(tree: Path) -> str | None:
    """Commit of a checkout, or None where there is no git."""
    done = subprocess.run(
        ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=CONFIG, help="configuration to train with")
    add("--presets", nargs="+", default=list(PRESETS), help="methods")
    add(
        "--variant",
        nargs="+",
        default=[],
        metavar="NAME:key=value,key=value",
        help="settings to compare with",
    )
    add(
        "--before",
        nargs="+",
        type=Path,
        default=[],
        metavar="TREE",
        help="other checkouts; the first is the baseline",
    )
    add("--rounds", type=int, default=5, help="interleaved rounds")
    add("--steps", type=int, default=6, help="steps of a round")
    add("--name", default="train_step", help="name of the result file; empty: none")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    add("overrides", nargs="*", metavar="key.sub=value", help="settings of every case")
    arguments = parser.parse_args(argv)
    if arguments.child:
        return serve(arguments.config, arguments.overrides)

    cases: dict[str, tuple[Path, list[str]]] = {}
    for tree in arguments.before:
        cases[tree.name] = (tree.resolve(), [])
    cases["now"] = (ROOT, [])
    for text in arguments.variant:
        name, _, settings = text.partition(":")
        cases[name] = (ROOT, settings.split(","))
    result: dict[str, Any] = {}
    for preset in arguments.presets:
        own = [f"method.preset={preset}", *arguments.overrides]
        children = {n: Child(tree, arguments.config, [*own, *more]) for n, (tree, more) in cases.items()}
        rounds: dict[str, list[dict[str, list[float]]]] = {name: [] for name in cases}
        for child in children.values():
            child.measure(3)  # memory pools and convolution plans settle
        for _ in range(arguments.rounds):
            for name, child in children.items():
                rounds[name].append(child.measure(arguments.steps))
        for child in children.values():
            child.close()
        base = next(iter(rounds.values()))
        result[preset] = {name: summary(part, base) for name, part in rounds.items()}
        for name, part in result[preset].items():
            print(
                f"{preset:<12} {name:<12} {part['with_data_ms']['median']:7.1f} ms a step, data "
                f"{part['data_ms']['median']:6.1f}, wall {part['wall_ms']['median']:7.1f}; "
                f"{part['with_data_ratio']['median']:.3f} x faster "
                f"({part['with_data_ratio']['min']:.3f} to {part['with_data_ratio']['max']:.3f})",
                flush=True,
            )
    if arguments.name:
        from benchmarks.common import write_result

        own = list(sys.argv[1:] if argv is None else argv)
        # where another checkout lies says nothing; which commit it is does
        told = [Path(text).name if Path(text) in arguments.before else text for text in own]
        settings = {
            "command": f"python -m benchmarks.train_step {shlex.join(told)}".strip(),
            "revisions": {name: revision(tree) for name, (tree, more) in cases.items() if not more},
            "config": arguments.config,
            "overrides": arguments.overrides,
            "steps_a_round": arguments.steps,
        }
        variants = {name: more for name, (_, more) in cases.items()}
        print(
            write_result(arguments.name, {**settings, "cases": variants, "presets": result}).relative_to(ROOT)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
