"""What a bundle holds and what this machine can run: ``python -m export.inspect BUNDLE``.

Every statement comes from loading a file and running a sample, never from a list of built-in providers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle import adapt, read_pixels, weight_note
from export.errors import ExportError, guarded
from export.runners.contract import Runner, RunnerError, check_hash
from export.runners.ort import Provider, load_runner, onnxruntime_distributions
from protoseg.errors import ManifestError
from protoseg.manifest import ArtifactFile, Manifest, read_manifest

ENGINE_TIMEOUT = 300


@dataclass(frozen=True)
class Attempt:
    """One file tried on one provider."""

    file: str
    """File name."""
    provider: str
    """Provider."""
    runs: bool
    """Whether it loaded and answered."""
    detail: str
    """Runtime, time and agreement with the sample, or why it does not run."""


def first_sample(bundle: Path, manifest: Manifest) -> tuple[Any, Any]:
    """A batch for the graph and the labels that torch gave for it, or None for both without samples."""
    if not manifest.samples:
        return None, None
    from PIL import Image

    sample = manifest.samples[0]
    pixels = read_pixels(bundle / sample.image)
    size = manifest.graph.static_shape[0] if manifest.graph.static_shape else 1
    batch = np.repeat(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), size, 0)
    with Image.open(bundle / sample.labels) as image:
        labels = np.asarray(image)
    return adapt(batch, manifest.graph.input_layout), labels


def try_file(bundle: Path, manifest: Manifest, item: ArtifactFile, provider: Provider) -> Attempt:
    """Load a file, run a sample and compare its labels."""
    try:
        start = time.perf_counter()
        runner: Runner = load_runner(bundle, item.name, provider, require_parity=False)
        with runner:
            loaded = time.perf_counter() - start
            batch, labels = first_sample(bundle, manifest)
            if batch is None:
                return Attempt(item.name, provider, False, "loads, but the bundle has no sample to run")
            runner(batch)
            start = time.perf_counter()
            found = runner(batch)["labels"][0]
            ms = 1000 * (time.perf_counter() - start)
            share = float((found == labels).mean())
            text = (
                f"{runner.description}: loads in {loaded:.2f} s, {ms:.1f} ms, {share:.4%} of labels as torch"
            )
            return Attempt(item.name, provider, True, text)
    except (ExportError, ManifestError) as error:
        return Attempt(item.name, provider, False, str(error))


def try_engine(bundle: Path, item: ArtifactFile) -> Attempt:
    """``try_file`` in a process of its own: TensorRT's runtime can crash without a driver."""
    command = [sys.executable, "-m", "export.inspect", str(bundle.resolve()), "--file", item.name, "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ENGINE_TIMEOUT, check=False,
            cwd=Path(__file__).resolve().parents[1], env={**os.environ},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Attempt(item.name, "tensorrt", False, f"did not answer within {ENGINE_TIMEOUT} s")
    try:
        return Attempt(**json.loads(done.stdout)["attempts"][0])
    except (ValueError, KeyError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Attempt(item.name, "tensorrt", False, f"the runtime ended without an answer: {last}")


def attempts(bundle: Path, manifest: Manifest) -> list[Attempt]:
    """Every file on every provider that could take it."""
    found = []
    for item in manifest.files:
        if item.kind == "onnx":
            providers: tuple[Provider, ...] = ("cpu",) if item.precision == "int8-cpu" else ("cpu", "cuda")
            found += [try_file(bundle, manifest, item, provider) for provider in providers]
        else:
            found.append(try_engine(bundle, item))
    return found


def damaged(bundle: Path, manifest: Manifest) -> list[str]:
    """Files that are missing or changed, as readable lines."""
    hashes = {item.name: item.sha256 for item in manifest.files}
    for sample in manifest.samples:
        hashes |= sample.sha256
    problems = []
    for name, digest in hashes.items():
        try:
            check_hash(bundle / name, digest)
        except RunnerError as error:
            problems.append(str(error))
    return problems


def environment() -> list[str]:
    """Packages that matter, and conflicts between them."""
    lines = []
    installed = onnxruntime_distributions()
    lines.append(f"ONNX Runtime: {', '.join(installed) or 'not installed'}")
    if len(installed) > 1:
        lines.append(
            "PROBLEM: two ONNX Runtime packages share one folder and the last one installed wins; "
            "pip uninstall both, then install one"
        )
    probes: dict[str, Callable[[], str]] = {
        "TensorRT": _version("tensorrt"),
        "TensorRT-RTX": _version("tensorrt_rtx"),
    }
    lines += [f"{name}: {probe()}" for name, probe in probes.items()]
    from export.runners.cuda import Cuda

    try:
        cuda = Cuda()
        gpu = cuda.info()
        cuda.close()
        lines.append(f"GPU: {gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.cuda_driver}")
    except RunnerError as error:
        lines.append(f"GPU: {error}")
    return lines


def _version(name: str) -> Callable[[], str]:
    def probe() -> str:
        code = f"import {name} as m; print(m.__version__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        last = (done.stderr.strip().splitlines() or ["crashed"])[-1]
        return "not installed" if "No module named" in last else f"cannot be imported ({last})"

    return probe


def describe(manifest: Manifest) -> list[str]:
    """The bundle in a few lines."""
    graph, rule = manifest.graph, manifest.input
    axes = "x".join(map(str, graph.static_shape)) if graph.static_shape else "dynamic"
    lines = [
        f"{manifest.name} version {manifest.version}, made {manifest.created}",
        f"classes: {', '.join(item.name for item in manifest.classes)}",
        f"head: {graph.head}; input: {graph.input_layout}, {axes}; resize: {rule.resize.mode}; "
        f"stride multiple {rule.stride_multiple}",
    ]
    for item in manifest.files:
        outputs = ", ".join(f"{o.name} {o.dtype}" for o in item.outputs)
        reason = f" ({item.parity.reason})" if item.parity.reason else ""
        lines.append(
            f"{item.name}: {item.kind} {item.precision}, {item.size / 1e6:.1f} MB, parity "
            f"{item.parity.status}{reason}; outputs {outputs}"
        )
        if note := weight_note(item):
            lines.append(f"  {note}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Show a bundle; exit code 1 when a file is damaged or nothing in it can run here."""
    parser = argparse.ArgumentParser(
        prog="python -m export.inspect",
        description="Show what a bundle holds and what this machine can run of it, by running it.",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--file", help="try this file only, in this process")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)

    def body() -> int:
        manifest = read_manifest(args.bundle)
        if args.file is not None:
            item = manifest.file(args.file)
            provider: Provider = "cpu" if item.kind == "onnx" else "tensorrt"
            found = [try_file(args.bundle, manifest, item, provider)]
            problems: list[str] = []
        else:
            problems = damaged(args.bundle, manifest)
            found = attempts(args.bundle, manifest)
        if args.json:
            record = {"attempts": [asdict(a) for a in found], "damaged": problems}
            sys.stdout.write(json.dumps(record, indent=1) + "\n")
        else:
            lines = [*describe(manifest), "", *environment(), ""]
            lines += [f"{a.file} on {a.provider}: {'' if a.runs else 'NO: '}{a.detail}" for a in found]
            lines += [f"DAMAGED: {text}" for text in problems]
            sys.stdout.write("\n".join(lines) + "\n")
        return 0 if not problems and any(a.runs for a in found) else 1

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
