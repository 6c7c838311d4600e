"""Latency of a bundle on a GPU: torch, ONNX Runtime on CUDA and TensorRT engines, interleaved.

All contestants take turns within one run; pixels come from the memory of the host, and labels, confidence and
agreement go back there, as in a service. Labels are compared with torch in fp32. Needs a CUDA device that
does nothing else. Engines of the bundle take part if they run here, and ONNX Runtime with each of
``CUDA_OPTIONS``; *bound* starts from an image in the GPU's memory. Example::

    python -m export.onnx runs/camvid_46 -o runs/bundle_gpu --precision fp32,fp16
    python -m export.tensorrt runs/bundle_gpu --flavor rtx --precision fp16
    python -m benchmarks.gpu_latency runs/camvid_46 runs/bundle_gpu
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import (
    EXPORT,
    RESULTS,
    Answer,
    Block,
    Result,
    markdown_table,
    middle,
    parser,
    write_result,
)
from benchmarks.export_latency import Call, batch_of, equal_labels, take_turns
from export.runners.contract import Runner, RunnerError
from export.runners.ort import OrtRunner
from export.runtime import load_runner
from protoseg.manifest import Manifest, read_manifest

# what ONNX Runtime's CUDA provider can be told; the figures say which of them becomes a default
CUDA_OPTIONS = {
    "NHWC": {"prefer_nhwc": "1"},
    "heuristic search": {"cudnn_conv_algo_search": "HEURISTIC"},
    "no TF32": {"use_tf32": "0"},
    "NHWC, heuristic search": {"prefer_nhwc": "1", "cudnn_conv_algo_search": "HEURISTIC"},
}
SIZES = ((1, 360, 480), (8, 360, 480), (1, 512, 512), (8, 512, 512))


def contestants(run: Path, bundle: Path, manifest: Manifest) -> tuple[dict[str, Call], dict[str, str]]:
    """Everything that takes turns, by name; and files that do not run here, with the reason."""
    from benchmarks.torch_service import Deployed, torch_call
    from protoseg.checkpoint import load_checkpoint

    segmenter = load_checkpoint(run).segmenter
    module = Deployed(segmenter, manifest.graph.head)
    found: dict[str, Call] = {
        "torch fp32": torch_call(module, "cuda"),
        "torch fp16 autocast": torch_call(module, "cuda", half=True),
    }
    left_out: dict[str, str] = {}
    for item in manifest.files:
        if item.kind == "onnx" and (item.cut_of or item.precision not in ("fp32", "fp16")):
            continue  # int8 files are for TensorRT or for CPUs, cuts for CPUs
        try:
            runner = load_runner(bundle, item.name, "cuda" if item.kind == "onnx" else "tensorrt")
        except RunnerError as error:
            left_out[item.name] = str(error)
        else:
            found[f"{item.kind} {item.precision}"] = runner
            for name, options in CUDA_OPTIONS.items() if item.kind == "onnx" else ():
                tuned = OrtRunner(bundle / item.name, "cuda", cuda_options=options)
                found[f"{item.kind} {item.precision}, {name}"] = tuned
            if item.kind == "onnx":
                found[f"{item.kind} {item.precision}, bound"] = on_device(runner)
    return found, left_out


def on_device(runner: Runner) -> Call:
    """The call with an image that is put into the GPU's memory once: IO binding without the upload."""
    import torch

    kept: dict[tuple[int, ...], torch.Tensor] = {}

    def call(image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        if image.shape not in kept:
            kept[image.shape] = torch.from_numpy(image).cuda()
        return runner(kept[image.shape])

    return call


def table(result: Result) -> str:
    """Milliseconds of a bundle and of torch on a GPU, and labels that differ from torch in fp32."""
    sizes = result["sizes"]
    contestants = list(next(iter(sizes.values()))["times"])
    rows = [
        [
            name.replace("onnx", "ONNX Runtime, CUDA,"),
            *(middle(size["times"][name]["wall_ms"], 1) for size in sizes.values()),
            f"{100 * min(size['labels_equal_to_torch_fp32'][name] for size in sizes.values()):.2f} %",
        ]
        for name in contestants
    ]
    head = ["", *(shape.replace("x3x", "x") for shape in sizes), "labels equal to torch fp32"]
    said = (
        "Milliseconds of a call on a GPU from pixels in the host's memory to labels, confidence and "
        "agreement there (batch x height x width), median and range of 50 turns; smallest share of equal "
        "labels over the shapes."
    )
    return f"{said}\n\n{markdown_table(head, rows)}"


ANSWERS = {
    "gpu_latency": Answer(
        "latency on a GPU: torch, ONNX Runtime on CUDA, fp32 and fp16",
        "python -m benchmarks.gpu_latency RUN BUNDLE",
    )
}
BLOCKS = {"gpu_latency": Block(table, ("gpu_latency",), EXPORT)}


def main(argv: list[str] | None = None) -> int:
    """Measure and write ``results/NAME.json``."""
    import torch

    command = parser(__doc__)
    add = command.add_argument
    add("run", type=Path, help="run folder or checkpoint")
    add("bundle", type=Path, help="bundle of the same weights")
    add("--rounds", type=int, default=50)
    add("--name", default="gpu_latency", help="name of the result file")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    args = command.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: needs a CUDA device, and torch.cuda.is_available() is false", file=sys.stderr)
        return 1
    manifest = read_manifest(args.bundle)
    calls, left_out = contestants(args.run, args.bundle, manifest)
    for name, reason in left_out.items():
        print(f"{name} takes no part: {reason}")
    results = {}
    for shape in SIZES:
        image = batch_of(args.bundle, manifest, shape)
        times = take_turns(calls, image, args.rounds)
        equal = equal_labels({name: call(image) for name, call in calls.items()}, "torch fp32")
        print(f"labels equal to torch fp32: {equal}")
        results["x".join(map(str, image.shape))] = {"times": times, "labels_equal_to_torch_fp32": equal}
    network = {"name": manifest.name, "head": manifest.graph.head, "classes": len(manifest.classes)}
    measured = {"network": network, "left_out": left_out, "sizes": results}
    print(write_result(args.name, measured, args.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
