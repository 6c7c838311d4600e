"""What runs a bundle on a CPU: ONNX Runtime and OpenVINO, by precision, outputs, size and threads.

They take turns on the same image, in an order that moves on from round to round; then each loads in a process
of its own, which tells load time and memory. CPU time of one thread is the figure to trust on a machine that
does other work; wall times are in the result file. Labels are compared with ONNX Runtime's in fp32.
Contestants: the whole graph (labels, confidence, agreement), the graph of labels alone, and the scores at the
decoder's stride with enlarging and argmax in OpenCV. Example::

    python -m export.onnx RUN -o BUNDLE --precision fp32,int8-cpu --outputs agreement,logits_stride
    python -m benchmarks.cpu_runtimes BUNDLE --rounds 9
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import (
    EXPORT,
    RESULTS,
    ROOT,
    Answer,
    Block,
    Result,
    markdown_table,
    middle,
    parser,
    spread,
    write_result,
)
from export.runtime import Provider, load_runner
from protoseg.manifest import Manifest, read_manifest
from serving.model.upsample import argmax_planes, upsample

Call = Any
# name -> file, provider
CONTESTANTS: dict[str, tuple[str, Provider]] = {
    "ONNX Runtime fp32, all outputs": ("model.onnx", "cpu"),
    "ONNX Runtime fp32": ("model.labels.onnx", "cpu"),
    "ONNX Runtime fp32, argmax outside": ("model.logits_stride.onnx", "cpu"),
    "OpenVINO fp32": ("model.labels.onnx", "openvino"),
    "OpenVINO bf16": ("model.labels.onnx", "openvino-bf16"),
    "ONNX Runtime int8-cpu, all outputs": ("model.int8-cpu.onnx", "cpu"),
    "ONNX Runtime int8-cpu": ("model.int8-cpu.labels.onnx", "cpu"),
    "ONNX Runtime int8-cpu, argmax outside": ("model.int8-cpu.logits_stride.onnx", "cpu"),
    "OpenVINO int8-cpu": ("model.int8-cpu.labels.onnx", "openvino"),
    "OpenVINO int8-cpu, rest bf16": ("model.int8-cpu.labels.onnx", "openvino-bf16"),
}
REFERENCE, WHOLE = "ONNX Runtime fp32", "ONNX Runtime fp32, all outputs"


def open_contestant(bundle: Path, name: str, threads: int) -> Call:
    """Image (1, 3, H, W) -> labels (H, W)."""
    file, provider = CONTESTANTS[name]
    runner = load_runner(bundle, file, provider, intra_threads=threads, require_parity=False)

    def labels(image: NDArray[np.uint8]) -> NDArray[Any]:
        return np.asarray(runner(image)["labels"][0])

    def outside(image: NDArray[np.uint8]) -> NDArray[Any]:
        logits, size = runner(image)["logits_stride"][0], (image.shape[2], image.shape[3])
        return np.asarray(argmax_planes(lambda: upsample(logits, size, padded(size), size), False)[0])

    multiple = read_manifest(bundle).input.stride_multiple

    def padded(size: tuple[int, int]) -> tuple[int, int]:
        return size[0] + -size[0] % multiple, size[1] + -size[1] % multiple

    return outside if name.endswith("outside") else labels


def image_of(bundle: Path, manifest: Manifest, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The bundle's first sample at another size, (1, 3, H, W)."""
    source = Image.open(bundle / manifest.samples[0].image).convert("RGB")
    return np.ascontiguousarray(np.asarray(source.resize(size[::-1])).transpose(2, 0, 1)[None])


def peak_mib() -> float:
    """Largest memory of this process; ``getrusage`` would tell that of the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def alone(bundle: Path, name: str, threads: int, sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Time to the first answer and memory of one contestant; runs in a process of its own."""
    manifest = read_manifest(bundle)
    images = [image_of(bundle, manifest, size) for size in sizes]
    before, start, work = peak_mib(), time.perf_counter(), time.process_time()
    call = open_contestant(bundle, name, threads)
    call(images[0])
    found = {"ready_s": time.perf_counter() - start, "ready_cpu_s": time.process_time() - work}
    for image in images:
        for _ in range(2):
            call(image)
    return found | {"before_mib": before, "peak_mib": peak_mib()}


def in_process(bundle: Path, name: str, threads: int, sizes: Sequence[str]) -> dict[str, float]:
    """``alone`` in a process of its own.

    Raises:
        RuntimeError: With what it said when it failed.
    """
    command = [sys.executable, "-m", "benchmarks.cpu_runtimes", str(bundle), "--alone", name]
    command += ["--threads", str(threads), "--sizes", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def take_turns(calls: dict[str, Call], image: NDArray[np.uint8], rounds: int) -> dict[str, dict[str, Any]]:
    """Wall and CPU milliseconds of every contestant, and CPU time against the reference round by round."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(1 + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start, work = time.perf_counter(), time.process_time()
            calls[name](image)
            if number:
                wall[name].append(1000 * (time.perf_counter() - start))
                cpu[name].append(1000 * (time.process_time() - work))
    return {
        name: {
            "wall_ms": spread(wall[name]), "cpu_ms": spread(cpu[name]),
            "cpu_ratio": spread([a / b for a, b in zip(cpu[name], cpu[REFERENCE], strict=True)]),
            "cpu_ratio_to_all_outputs": spread([a / b for a, b in zip(cpu[name], cpu[WHOLE], strict=True)]),
        }
        for name in names
    }  # fmt: skip


def measure(bundle: Path, threads: int, sizes: Sequence[str], rounds: int) -> dict[str, Any]:
    """All sizes with one number of threads."""
    manifest = read_manifest(bundle)
    names = [name for name, (file, _) in CONTESTANTS.items() if (bundle / file).is_file()]
    calls = {name: open_contestant(bundle, name, threads) for name in names}
    result: dict[str, Any] = {}
    for size in sizes:
        image = image_of(bundle, manifest, parse_size(size))
        times = take_turns(calls, image, rounds)
        labels = {name: call(image) for name, call in calls.items()}
        for name, entry in times.items():
            entry["labels_equal"] = float((labels[name] == labels[REFERENCE]).mean())
            print(f"{size}, {threads} threads, {name}: CPU {middle(entry['cpu_ms'])} ms, shortest wall "
                  f"{entry['wall_ms']['min']:.0f} ms, {entry['cpu_ratio']['median']:.2f} of the reference, "
                  f"labels equal {entry['labels_equal']:.4f}", flush=True)  # fmt: skip
        result[size] = times
    return result


def parse_size(text: str) -> tuple[int, int]:
    """``HxW`` in pixels."""
    height, width = map(int, text.split("x"))
    return height, width


def table(result: Result) -> str:
    """CPU time by runtime and size, time to the first answer and memory."""
    one, *more = result["threads"]
    sizes = result["sizes"]
    rows = []
    for name, load in result["load"].items():
        cells = [name]
        for size in sizes:
            entry = result["threads"][one][size][name]
            cells.append(f"{middle(entry['cpu_ms'])}, {entry['cpu_ratio']['median']:.2f}")
        cells += [
            " / ".join(f"{result['threads'][n][size][name]['cpu_ratio']['median']:.2f}" for size in sizes)
            for n in more
        ]
        worst = min(result["threads"][one][size][name]["labels_equal"] for size in sizes)
        cells += [
            f"{100 * worst:.1f}", f"{load['ready_cpu_s']:.1f}", f"{load['peak_mib'] - load['before_mib']:.0f}"
        ]  # fmt: skip
        rows.append(cells)
    head = ["labels from", *sizes, *(f"ratios, {n} threads" for n in more), "equal labels, %",
            "ready, s", "MiB"]  # fmt: skip
    said = (
        f"One image, {result['network']['classes']} classes, head {result['network']['head']}. Processor "
        f"milliseconds on one thread (median and range of {result['rounds']} turns) and their ratio to ONNX "
        "Runtime's in fp32, on more threads too (the machine did other work: no wall times). Labels equal to "
        "those of ONNX Runtime in fp32; processor seconds from the file to the first answer; memory that "
        "loading and running all sizes took."
    )
    return f"{said}\n\n{markdown_table(head, rows)}"


ANSWERS = {
    "cpu_runtimes": Answer(
        "ONNX Runtime and OpenVINO on a CPU: fp32, bf16, int8; labels alone against all outputs",
        "python -m benchmarks.cpu_runtimes BUNDLE",
    )
}
BLOCKS = {"cpu_runtimes": Block(table, ("cpu_runtimes",), (*EXPORT, "openvino"))}


def main(argv: list[str] | None = None) -> int:
    """Measure and write ``results/NAME.json``."""
    command = parser(__doc__)
    add = command.add_argument
    add("bundle", type=Path, help="bundle with fp32 and int8-cpu, exported with logits_stride")
    add("--threads", type=int, nargs="+", default=[1, 2])
    add("--sizes", nargs="+", default=["360x480", "512x512", "1024x1024"], metavar="HxW")
    add("--rounds", type=int, default=9)
    add("--alone", choices=tuple(CONTESTANTS), help="load this one only and print what it took")
    add("--name", default="cpu_runtimes", help="name of the result file")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    args = command.parse_args(argv)
    if args.alone:
        sizes = [parse_size(size) for size in args.sizes]
        print(json.dumps(alone(args.bundle, args.alone, args.threads[0], sizes)))
        return 0
    manifest = read_manifest(args.bundle)
    measured = {n: measure(args.bundle, n, args.sizes, args.rounds) for n in args.threads}
    first = args.threads[0]
    load = {name: in_process(args.bundle, name, first, args.sizes) for name in measured[first][args.sizes[0]]}
    network = {"name": manifest.name, "head": manifest.graph.head, "classes": len(manifest.classes)}
    record = {
        "network": network,
        "rounds": args.rounds,
        "sizes": args.sizes,
        "load": load,
        "threads": measured,
    }
    print(write_result(args.name, record, args.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
