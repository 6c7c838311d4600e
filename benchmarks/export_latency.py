"""CPU latency of a bundle: torch eager, torch.compile, ONNX Runtime fp32 and int8-cpu, interleaved.

All contestants take turns within one run and give labels, confidence and agreement for the same image. Also
compares upsampling and argmax inside the graph with OpenCV outside of it (labels and confidence from logits
at the decoder's stride). Wall time and CPU time of each call. Needs a quiet machine. Example::

    python -m export.onnx RUN -o runs/linear --head linear --precision fp32,int8-cpu
    python -m benchmarks.export_latency RUN --bundle runs/linear --rounds 30 --threads 2
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import (
    EXPORT,
    Answer,
    Block,
    Result,
    markdown_table,
    middle,
    parser,
    spread,
    write_result,
)
from export.graph.edit import probe, prune, to_bytes
from export.proof.samples import read_pixels
from export.runners.ort import OrtRunner
from export.runtime import load_runner
from protoseg.manifest import Manifest, read_manifest
from serving.model.upsample import argmax_planes, upsample

Call = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]
SIZES = ((360, 480), (512, 512))
WARM_UP = 3


def outside_call(model: onnx.ModelProto, manifest: Manifest, threads: int) -> Call:
    """Logits at the decoder's stride from the graph, the rest in OpenCV."""
    name = f"{manifest.graph.head}_logits_stride"
    probed = prune(probe(model, [name]), [name])
    runner = OrtRunner(to_bytes(probed), intra_threads=threads)
    stride = manifest.graph.decoder_stride

    def call(image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        size = (image.shape[2], image.shape[3])
        logits = runner(image)[name][0]
        through = (round(logits.shape[1] * stride), round(logits.shape[2] * stride))
        labels, confidence = argmax_planes(lambda: upsample(logits, size, through, size), True)
        assert confidence is not None
        return {"labels": labels[None], "confidence": confidence[None]}

    return call


def contestants(run: Path, bundle: Path, threads: int, compiled: bool) -> dict[str, Call]:
    """Everything that takes turns, by name."""
    # the table needs no torch
    import torch

    from benchmarks.torch_service import Deployed, torch_call
    from protoseg.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    manifest = read_manifest(bundle)
    segmenter, head = load_checkpoint(run).segmenter, manifest.graph.head
    found: dict[str, Call] = {"torch eager": torch_call(Deployed(segmenter, head))}
    if compiled:
        found["torch.compile"] = torch_call(torch.compile(Deployed(segmenter, head), dynamic=False))
    found["onnxruntime fp32"] = load_runner(bundle, "model.onnx", "cpu", intra_threads=threads)

    def cut(name: str, *outputs: str) -> OrtRunner:
        pruned = prune(onnx.load(str(bundle / name)), outputs)
        return OrtRunner(to_bytes(pruned), intra_threads=threads)

    if any(item.precision == "int8-cpu" for item in manifest.files):
        name = "model.int8-cpu.onnx"
        found["onnxruntime int8-cpu"] = load_runner(
            bundle, name, "cpu", intra_threads=threads, require_parity=False
        )
        found["int8-cpu, labels+confidence"] = cut(name, "labels", "confidence")
    found["fp32, labels+confidence in the graph"] = cut("model.onnx", "labels", "confidence")
    if manifest.graph.head != "fused":  # the mean of two heads needs both at full size
        model = onnx.load(str(bundle / "model.onnx"))
        found["fp32, labels+confidence outside"] = outside_call(model, manifest, threads)
    found["fp32, labels only in the graph"] = cut("model.onnx", "labels")
    return found


def batch_of(bundle: Path, manifest: Manifest, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The bundle's first sample as (batch, channels, height, width)."""
    batch, height, width = shape
    source = Image.fromarray(read_pixels(bundle / manifest.samples[0].image))
    pixels = np.asarray(source.resize((width, height))).transpose(2, 0, 1)
    return np.ascontiguousarray(np.broadcast_to(pixels, (batch, *pixels.shape)))


def take_turns(
    calls: dict[str, Call], image: NDArray[np.uint8], rounds: int, *, title: str | None = None
) -> dict[str, Any]:
    """Wall and CPU milliseconds of every contestant, which are printed after ``title`` (the image's shape).

    On a machine that does other work ``cpu_ms`` of one thread is the one to trust.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + rounds):
        for name, call in calls.items():
            start, work = time.perf_counter(), time.process_time()
            call(image)
            if number >= WARM_UP:
                wall[name].append(1000 * (time.perf_counter() - start))
                cpu[name].append(1000 * (time.process_time() - work))
    times = {name: {"wall_ms": spread(wall[name]), "cpu_ms": spread(cpu[name])} for name in calls}
    for name, entry in times.items():
        figures = ", ".join(f"{clock} {middle(value, 2)}" for clock, value in entry.items())
        print(f"{title or 'x'.join(map(str, image.shape))} {name}: {figures}")
    return times


def equal_labels(outputs: dict[str, dict[str, NDArray[Any]]], reference: str) -> dict[str, float]:
    """Share of the labels of every contestant that equal those of one of them."""
    labels = outputs[reference]["labels"]
    return {name: float((output["labels"] == labels).mean()) for name, output in outputs.items()}


def differences(calls: dict[str, Call], image: NDArray[np.uint8]) -> dict[str, Any]:
    """Labels of every contestant against torch eager, and outside against inside."""
    outputs = {name: call(image) for name, call in calls.items()}
    shares = equal_labels(outputs, "torch eager")
    inside = outputs["fp32, labels+confidence in the graph"]
    outside = outputs.get("fp32, labels+confidence outside")
    if outside is None:
        return {"labels_equal_to_eager": shares}
    return {
        "labels_equal_to_eager": shares,
        "outside_vs_inside": {
            "labels_different": int((inside["labels"] != outside["labels"]).sum()),
            "pixels": int(inside["labels"].size),
            "largest_confidence_difference": float(
                np.abs(inside["confidence"] - outside["confidence"]).max()
            ),
        },
    }


def table(result: Result) -> str:
    """Milliseconds of the exported files against torch."""
    shown = {
        "torch eager": "torch, eager",
        "torch.compile": "torch.compile",
        "onnxruntime fp32": "ONNX Runtime, fp32",
        "onnxruntime int8-cpu": "ONNX Runtime, int8-cpu",
    }
    rows = []
    for size, measured in result["sizes"].items():
        eager = measured["times"]["torch eager"]["wall_ms"]["median"]
        for key, name in shown.items():
            wall = measured["times"][key]["wall_ms"]
            equal = measured["labels_equal_to_eager"][key]
            ratio = f"{eager / wall['median']:.2f}x"
            rows.append([size, name, middle(wall), ratio, f"{100 * equal:.1f}"])
    said = (
        f"One image, head {result['network']['head']}, {result['threads']} threads, interleaved rounds: "
        "milliseconds (median and range), speed against eager torch, labels equal to eager torch in %."
    )
    return f"{said}\n\n{markdown_table(['input', 'runtime', 'ms', 'speed', 'equal labels'], rows)}"


COMMAND = "python -m benchmarks.export_latency RUN --bundle BUNDLE"
ANSWERS = {
    "export_latency": Answer("latency on a CPU: torch, ONNX Runtime fp32 and int8", COMMAND),
    "export_latency_avx2": Answer("the same on a processor without VNNI, an earlier network", COMMAND),
}
BLOCKS = {name: Block(table, (name,), EXPORT) for name in ANSWERS}


def main(argv: list[str] | None = None) -> int:
    """Measure and write ``results/NAME.json``."""
    command = parser(__doc__)
    add = command.add_argument
    add("run", type=Path, help="run folder (checkpoint, and bundle with fp32 and int8-cpu)")
    add("--bundle", type=Path, help="bundle folder (default: RUN/bundle)")
    add("--rounds", type=int, default=30)
    add("--threads", type=int, default=2)
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--name", default="export_latency", help="name of the result file")
    args = command.parse_args(argv)
    bundle = args.bundle or args.run / "bundle"
    manifest = read_manifest(bundle)
    calls = contestants(args.run, bundle, args.threads, not args.no_compile)
    results = {}
    for height, width in SIZES:
        image = batch_of(bundle, manifest, (1, height, width))
        times = take_turns(calls, image, args.rounds)
        results[f"1x3x{height}x{width}"] = {"times": times, **differences(calls, image)}
    network = {
        "name": manifest.name, "head": manifest.graph.head, "classes": len(manifest.classes),
        "version": manifest.version,
    }  # fmt: skip
    print(write_result(args.name, {"network": network, "threads": args.threads, "sizes": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
