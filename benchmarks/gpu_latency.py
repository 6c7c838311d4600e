"""Latency of a bundle on a GPU: torch, ONNX Runtime on CUDA and TensorRT engines, interleaved.

All contestants take turns within one run; pixels come from the memory of the host, and labels, confidence and
agreement go back there, as in a service. Labels are compared with torch in fp32. Needs a CUDA device that
does nothing else. Engines of the bundle take part if they run here. Example::

    python -m export.onnx runs/camvid_46 -o runs/bundle_gpu --precision fp32,fp16
    python -m export.tensorrt runs/bundle_gpu --flavor rtx --precision fp16
    python -m benchmarks.gpu_latency runs/camvid_46 runs/bundle_gpu
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import write_result
from benchmarks.export_latency import Deployed, take_turns
from export.proof.samples import read_pixels
from export.runners.contract import RunnerError
from export.runtime import load_runner
from protoseg.checkpoint import load_checkpoint
from protoseg.manifest import Manifest, read_manifest

Call = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]
SIZES = ((1, 360, 480), (8, 360, 480), (1, 512, 512), (8, 512, 512))


def torch_call(module: torch.nn.Module, half: bool) -> Call:
    """``module`` on the GPU: ``half`` computes in fp16 where autocast allows it."""
    module = module.eval().cuda()

    def call(image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
            outputs = module(torch.from_numpy(image).cuda())
            labels, confidence, agreement = (value.cpu().numpy() for value in outputs)
        return {"labels": labels, "confidence": confidence, "agreement": agreement}

    return call


def contestants(run: Path, bundle: Path, manifest: Manifest) -> tuple[dict[str, Call], dict[str, str]]:
    """Everything that takes turns, by name; and files that do not run here, with the reason."""
    segmenter = load_checkpoint(run).segmenter
    module = Deployed(segmenter, manifest.graph.head)
    found: dict[str, Call] = {
        "torch fp32": torch_call(module, half=False),
        "torch fp16 autocast": torch_call(module, half=True),
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
    return found, left_out


def main(argv: list[str] | None = None) -> int:
    """Measure and write ``results/NAME.json``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder or checkpoint")
    parser.add_argument("bundle", type=Path, help="bundle of the same weights")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--name", default="gpu_latency", help="name of the result file")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: needs a CUDA device, and torch.cuda.is_available() is false", file=sys.stderr)
        return 1
    manifest = read_manifest(args.bundle)
    calls, left_out = contestants(args.run, args.bundle, manifest)
    for name, reason in left_out.items():
        print(f"{name} takes no part: {reason}")
    source = Image.fromarray(read_pixels(args.bundle / manifest.samples[0].image))
    results = {}
    for batch, height, width in SIZES:
        pixels = np.asarray(source.resize((width, height))).transpose(2, 0, 1)
        image = np.ascontiguousarray(np.broadcast_to(pixels, (batch, *pixels.shape)))
        reference = calls["torch fp32"](image)["labels"]
        times = take_turns(calls, image, args.rounds)
        equal = {name: float((call(image)["labels"] == reference).mean()) for name, call in calls.items()}
        results[f"{batch}x3x{height}x{width}"] = {"times": times, "labels_equal_to_torch_fp32": equal}
        for name, entry in times.items():
            wall = entry["wall_ms"]
            print(
                f"{batch}x{height}x{width} {name}: {wall['median']:.2f} ms ({wall['min']:.2f} to "
                f"{wall['max']:.2f}), labels {100 * equal[name]:.3f} % equal"
            )
    network = {"name": manifest.name, "head": manifest.graph.head, "classes": len(manifest.classes)}
    print(write_result(args.name, {"network": network, "left_out": left_out, "sizes": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
