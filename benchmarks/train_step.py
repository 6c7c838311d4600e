"""How long does a training step take on one CPU thread or a GPU, and what do settings or other code change?

    python -m benchmarks.train_step                              # as the studies train
    python -m benchmarks.train_step --before TREE                # against other checkouts
    python -m benchmarks.train_step --variant bf16:train.mixed_precision=bf16,train.channels_last=true
    python -m benchmarks.train_step --device cuda --variant device:data.cache=device
    python -m benchmarks.train_step --peers                      # against the loops of peers

A step is what the trainer does: views, teacher, student forward and backward, optimiser, prototypes, moving
average; images are decoded beforehand, as with ``data.cache`` after the first pass. Every case runs in a
process of its own that waits for its turn, so that rounds are interleaved; ratios are taken within a round.
The machine may be shared, so milliseconds on a CPU are of processor time; wall time is given beside it. On a
GPU, ``busy_share`` is the part of the time in which it computes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import (
    RESULTS,
    ROOT,
    TRAINING,
    Answer,
    Block,
    Result,
    markdown_table,
    parser,
    spread,
    write_result,
)
from benchmarks.timed_steps import serve

ANSWERS = {
    "train_step": Answer(
        "how long a training step takes on one CPU thread, against earlier code and with bfloat16",
        "python -m benchmarks.train_step",
    ),
    "train_step_peers": Answer(
        "the same against the loops of UniMatch V2, U2PL (without its contrastive loss) and labels alone",
        "python -m benchmarks.train_step --peers --presets supervised fixmatch unimatch_v2 protoseg "
        "--name train_step_peers --variant bf16:train.mixed_precision=bf16,train.channels_last=true",
    ),
    "train_step_device": Answer(
        "whether views made batch by batch (`data.cache=device`) pay on a CPU: they do not",
        "python -m benchmarks.train_step --presets protoseg --rounds 4 --steps 4 --name train_step_device "
        "--variant device:data.cache=device",
    ),
}
CONFIG = "configs/voc_92_efficientnet_lite0.yaml"
PRESETS = ("fixmatch", "protoseg", "unimatch_v2")
PEERS = {"supervised": "labels", "fixmatch": "u2pl", "protoseg": "u2pl", "unimatch_v2": "unimatch_v2"}
"""The loop of ``benchmarks.peer_loops`` that has as many views as a preset."""


def peers_table(result: Result) -> str:
    """Each method against the loop of a peer with as many views."""
    rows = []
    for preset, cases in result["presets"].items():
        peer = next(name for name in cases if name.startswith("peer: "))
        for name, case in cases.items():
            ratio = case["with_data_ratio"]
            said = "" if name == peer else f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            own = {"now": "ours", peer: f"loop of {peer.removeprefix('peer: ')}"}.get(name, f"ours, {name}")
            rows.append([preset, own, f"{case['with_data_ms']['median']:.0f}", said])
    said = (
        "One step of `configs/voc_92_efficientnet_lite0.yaml` on one thread, views included: milliseconds of "
        "processor time (median of the rounds) and how many times faster than the peer's loop, which "
        "computes with our network, optimiser, images and views (median and range of the rounds' ratios)."
    )
    return f"{said}\n\n{markdown_table(['method', 'loop', 'ms', 'times faster'], rows)}"


BLOCKS = {"train_step_peers": Block(peers_table, ("train_step_peers",), TRAINING)}


class Child:
    """A case in a process of its own, which measures when it is told to."""

    def __init__(self, tree: Path, config: str, overrides: list[str], device: str, loop: str = "") -> None:
        command = [sys.executable, "-m", "benchmarks.train_step", "--child", "--config", config,
                   "--device", device, *(["--loop", loop] if loop else []), *overrides]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
        if device == "cpu":
            environment["ACCELERATE_USE_CPU"] = "true"
        self.process = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def summary(rounds: list[dict[str, list[float]]], base: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Milliseconds of a step over rounds (each the median of its steps), and ratios to the baseline's."""

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
    if "busy" in rounds[0]:
        found["busy_share"] = spread([r["busy"][0] for r in rounds])
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


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    commands = parser(__doc__)
    add = commands.add_argument
    add("--config", default=CONFIG, help="configuration to train with")
    add("--presets", nargs="+", default=list(PRESETS), help="methods")
    add("--variant", nargs="+", default=[], metavar="NAME:key=value,key=value",
        help="settings to compare with")  # fmt: skip
    add("--before", nargs="+", type=Path, default=[], metavar="TREE",
        help="other checkouts; the first is the baseline")  # fmt: skip
    add("--peers", action="store_true", help="compare each method with a peer's loop, which is the baseline")
    add("--rounds", type=int, default=5, help="interleaved rounds")
    add("--steps", type=int, default=6, help="steps of a round")
    add("--name", default="train_step", help="name of the result file; empty: none")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    add("--loop", default="", help=argparse.SUPPRESS)
    add("overrides", nargs="*", metavar="key.sub=value", help="settings of every case")
    return commands.parse_args(argv)


def interleaved(children: dict[str, Child], rounds: int, steps: int) -> dict[str, Any]:
    """The cases' figures; the first one is the baseline. The processes end."""
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in children}
    for child in children.values():
        child.measure(3)  # memory pools and convolution plans settle
    for _ in range(rounds):
        for name, child in children.items():
            found[name].append(child.measure(steps))
    for child in children.values():
        child.close()
    base = next(iter(found.values()))
    return {name: summary(part, base) for name, part in found.items()}


def line(preset: str, name: str, part: dict[str, Any]) -> str:
    """A case in a line of text."""
    busy = f"; busy {part['busy_share']['median']:.0%}" if "busy_share" in part else ""
    ratio = part["with_data_ratio"]
    return (
        f"{preset:<12} {name:<18} {part['with_data_ms']['median']:7.1f} ms a step, data "
        f"{part['data_ms']['median']:6.1f}, wall {part['wall_ms']['median']:7.1f}; "
        f"{ratio['median']:.3f} x faster ({ratio['min']:.3f} to {ratio['max']:.3f}){busy}"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    config, device = arguments.config, arguments.device
    if arguments.child:
        return serve(config, arguments.overrides, device, arguments.loop)
    cases: dict[str, tuple[Path, list[str]]] = {tree.name: (tree.resolve(), []) for tree in arguments.before}
    cases["now"] = (ROOT, [])
    for text in arguments.variant:
        name, _, settings = text.partition(":")
        cases[name] = (ROOT, settings.split(","))
    result: dict[str, Any] = {}
    for preset in arguments.presets:
        own = [f"method.preset={preset}", *arguments.overrides]
        children = {}
        if arguments.peers:
            children[f"peer: {PEERS[preset]}"] = Child(ROOT, config, own, device, PEERS[preset])
        for name, (tree, more) in cases.items():
            children[name] = Child(tree, config, [*own, *more], device)
        result[preset] = interleaved(children, arguments.rounds, arguments.steps)
        for name, part in result[preset].items():
            print(line(preset, name, part), flush=True)
    if arguments.name:
        # where another checkout lies says nothing; which commit it is does
        given = list(sys.argv[1:] if argv is None else argv)
        told = [Path(text).name if Path(text) in arguments.before else text for text in given]
        data = {
            "command": f"python -m benchmarks.train_step {shlex.join(told)}".strip(),
            "revisions": {name: revision(tree) for name, (tree, more) in cases.items() if not more},
            "config": config,
            "device": device,
            "overrides": arguments.overrides,
            "steps_a_round": arguments.steps,
            "cases": {name: more for name, (_, more) in cases.items()},
            "presets": result,
        }
        print(write_result(arguments.name, data, arguments.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
