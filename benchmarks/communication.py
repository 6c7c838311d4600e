"""How many bytes do the processes of a training exchange in a step, and what does that cost on a network?

    python -m benchmarks.communication

Each case trains a few steps in two CPU processes over gloo; the collectives of a step are counted by torch's
profiler, which sees those of DistributedDataParallel too. What a ring sends and receives over a link follows
from the counted bytes: ``2 (n - 1) / n`` of each summed byte for ``n`` processes.

Nothing is said about time on several GPUs: none was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, Answer, Block, Result, markdown_table, parser, write_result

CASES = {
    "EfficientNet-Lite0 + DeepLabV3+, protoseg": (
        "configs/quickstart.yaml",
        ["model.architecture=deeplabv3plus", "model.encoder=tf_efficientnet_lite0", "method.preset=protoseg"],
    ),
    "the same, fixmatch": (
        "configs/quickstart.yaml",
        ["model.architecture=deeplabv3plus", "model.encoder=tf_efficientnet_lite0", "method.preset=fixmatch"],
    ),
    "the paper's ResNet-101, prototype": (
        "configs/voc_183_pcr_resnet101.yaml",
        ["data.kind=synthetic", "data.classes=null", "data.labeled=null", "data.unlabeled=null",
         "data.val=null", "views.crop=[96, 128]", "train.accumulate=1", "train.epochs=null"],
    ),
}  # fmt: skip
SMALL = ["model.pretrained=none", "train.batch_size=2", "train.mixed_precision=no", "data.num_workers=0"]
"""Bytes do not depend on the images, so that a few small embedded ones serve."""
STEPS = 3
KINDS = ("gradients", "other sums", "broadcasts")
LINKS = {"8 GPUs of one machine, NVLink at 300 GB/s": (8, 300e9), "2 x 8 GPUs, 100 Gbit/s": (16, 12.5e9)}


def ring_bytes(summed: float, processes: int) -> float:
    """Bytes that each process sends to sum ``summed`` bytes over a ring."""
    return 2 * (processes - 1) / processes * summed


def table(result: Result) -> str:
    """What is exchanged, and how long the gradients take over a link that is fully used."""
    rows = []
    for name, case in result["cases"].items():
        rows.append([
            name, f"{case['parameters'] / 1e6:.1f} M",
            *(f"{case['bytes'][kind] / 1e6:.2f}" for kind in KINDS),
            str(case["calls"]),
            *(f"{1e3 * ring_bytes(case['bytes'][KINDS[0]], n) / rate:.1f}" for n, rate in LINKS.values()),
        ])  # fmt: skip
    head = ["case", "parameters", *(f"{kind}, MB" for kind in KINDS), "collectives",
            *(f"{name}: ms at least" for name in LINKS)]  # fmt: skip
    said = (
        "What one optimiser step exchanges, counted in two CPU processes (gloo, fp32), and how long a ring "
        "over more processes would take at least for the gradients on a link that is fully used: computed, "
        "not measured."
    )
    return f"{said}\n\n{markdown_table(head, rows)}"


ANSWERS = {
    "communication": Answer(
        "bytes that the processes of a training exchange in a step", "python -m benchmarks.communication"
    )
}
BLOCKS = {"communication": Block(table, ("communication",), ("torch", "accelerate"))}


def count(events: Any, gradients: int) -> dict[str, Any]:
    """Bytes by kind, and calls, of a step's collectives.

    Args:
        events: Those of the profiler.
        gradients: Parameters that are trained; what is summed beyond them is our own.

    Raises:
        RuntimeError: If less was summed than there are gradients.
    """
    summed = broadcasts = calls = 0
    for event in events:
        if not event.name.startswith(("gloo:", "nccl:")):
            continue
        numbers = sum(math.prod(shape) for shape in event.input_shapes)
        calls += 1
        if "broadcast" in event.name:
            broadcasts += numbers
        else:
            summed += numbers
    if summed < gradients:
        raise RuntimeError(f"{summed:,} numbers were summed, there are {gradients:,} gradients")
    parts = (gradients, summed - gradients, broadcasts)
    return {"bytes": {kind: 4 * n for kind, n in zip(KINDS, parts, strict=True)}, "calls": calls}


def work(config: str, overrides: list[str], out: Path) -> int:
    """One of the processes: train, and let the first write what a step exchanged."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.timed_steps import prepare

    torch.set_num_threads(1)
    run, step = prepare(config, [*overrides, *SMALL], "cpu", out.parent)
    for _ in range(STEPS):
        step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        step()
    gradients = sum(p.numel() for p in run.networks.network.parameters() if p.requires_grad)
    if run.processes.rank == 0:
        out.write_text(json.dumps({"parameters": gradients, **count(found.events(), gradients)}))
    return 0


def measure(config: str, overrides: list[str]) -> dict[str, Any]:
    """Train a case in two processes."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("localhost", 0))
        out = Path(folder) / "counted.json"
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file",
            "configs/accelerate/cpu_2.yaml", "--main_process_port", str(free.getsockname()[1]),
            "-m", "benchmarks.communication", "--work", config, "--out", str(out), *overrides,
        ]  # fmt: skip
        free.close()
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    commands = parser(__doc__)
    add = commands.add_argument
    add("--name", default="communication", help="name of the result file")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    add("--work", help=argparse.SUPPRESS)
    add("--out", type=Path, help=argparse.SUPPRESS)
    add("overrides", nargs="*", help=argparse.SUPPRESS)
    arguments = commands.parse_args(argv)
    if arguments.work:
        return work(arguments.work, arguments.overrides, arguments.out)
    cases = {}
    for name, (config, overrides) in CASES.items():
        cases[name] = measure(config, overrides)
        print(f"{name}: {cases[name]}", flush=True)
    print(write_result(arguments.name, {"processes": 2, "cases": cases}, arguments.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
