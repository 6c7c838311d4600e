"""What a bundle holds and what this machine can run: ``python -m export.inspect BUNDLE``.

Every statement comes from loading a file and running a sample, never from a list of built-in providers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle import OPENVINO_PRECISIONS, file_hashes, openvino_parity, weight_note
from export.proof.samples import read_labels, read_pixels
from export.runners.contract import RunnerError, adapt, check_hash
from export.runners.cuda import Cuda
from export.runners.ort import onnxruntime_distributions
from export.runners.tensorrt import EngineRunner
from export.runtime import OPENVINO, Provider, load_runner
from protoseg.errors import ExportError, ManifestError, guarded
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
    """Runtime, time and share of the sample's labels, or why it does not run."""
    precision: str = ""
    """Types of an engine's weights, and of its layers where it could be loaded."""
    wrong: str = ""
    """Where they are not those of the file that it was built from."""


def first_sample(bundle: Path, manifest: Manifest) -> tuple[Any, Any]:
    """A batch for the graph and the labels that torch gave for it, or None for both without samples."""
    if not manifest.samples:
        return None, None
    sample = manifest.samples[0]
    pixels = read_pixels(bundle / sample.image)
    size = manifest.graph.static_shape[0] if manifest.graph.static_shape else 1
    batch = np.repeat(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), size, 0)
    return adapt(batch, manifest.graph.input_layout), read_labels(bundle / sample.labels)


def try_file(bundle: Path, manifest: Manifest, item: ArtifactFile, provider: Provider) -> Attempt:
    """Load a file, run a sample and compare its labels."""
    try:
        start = time.perf_counter()
        with load_runner(bundle, item.name, provider, require_parity=False) as runner:
            loaded = time.perf_counter() - start
            batch, labels = first_sample(bundle, manifest)
            if batch is None:
                return Attempt(item.name, provider, False, "loads, but the bundle has no sample to run")
            runner(batch)
            start = time.perf_counter()
            found = runner(batch).get("labels")
            ms = 1000 * (time.perf_counter() - start)
            told = runner.layer_information() if isinstance(runner, EngineRunner) else None
            equal = "" if found is None else f", {(found[0] == labels).mean():.4%} of labels as torch"
            if provider in OPENVINO:
                equal += f", parity {openvino_parity(item, provider).status}"
            text = f"{runner.description}: loads in {loaded:.2f} s, {ms:.1f} ms{equal}"
            attempt = Attempt(item.name, provider, True, text)
            return attempt if told is None else with_precision(bundle, manifest, item, attempt, told)
    except (ExportError, ManifestError) as error:
        return Attempt(item.name, provider, False, str(error))


def with_precision(
    bundle: Path, manifest: Manifest, item: ArtifactFile, attempt: Attempt, information: str | None = None
) -> Attempt:
    """An engine's attempt with what its bytes, and its inspector where it loaded, tell of its precision."""
    from export.engines.audit import audit_engine  # where bundles are only served there is no onnx

    try:
        audit = audit_engine(bundle, manifest, item, information)
    except (ExportError, ManifestError, OSError) as error:
        return replace(attempt, precision=f"cannot be told: {error}")
    return replace(attempt, precision=str(audit), wrong=audit.failure)


def try_engine(bundle: Path, manifest: Manifest, item: ArtifactFile) -> Attempt:
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
        attempt = Attempt(**json.loads(done.stdout)["attempts"][0])
    except (ValueError, KeyError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        attempt = Attempt(item.name, "tensorrt", False, f"the runtime ended without an answer: {last}")
    return attempt if attempt.precision else with_precision(bundle, manifest, item, attempt)


def attempts(bundle: Path, manifest: Manifest) -> list[Attempt]:
    """Every file on every provider that could take it."""
    found = []
    for item in manifest.files:
        if item.kind == "onnx":
            for_cpus = item.precision == "int8-cpu" or item.cut_of is not None
            providers: tuple[Provider, ...] = ("cpu",) if for_cpus else ("cpu", "cuda")
            if item.precision in OPENVINO_PRECISIONS and importlib.util.find_spec("openvino"):
                providers += OPENVINO
            found += [try_file(bundle, manifest, item, provider) for provider in providers]
        else:
            found.append(try_engine(bundle, manifest, item))
    return found


def damaged(bundle: Path, manifest: Manifest) -> list[str]:
    """Files that are missing or changed, as readable lines."""
    problems = []
    for name, digest in file_hashes(manifest).items():
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
    lines += [
        f"{name}: {_version(module)}"
        for name, module in (
            ("OpenVINO", "openvino"), ("TensorRT", "tensorrt"), ("TensorRT-RTX", "tensorrt_rtx")
        )
    ]  # fmt: skip
    try:
        cuda = Cuda()
        gpu = cuda.info()
        cuda.close()
        lines.append(f"GPU: {gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.cuda_driver}")
    except RunnerError as error:
        lines.append(f"GPU: {error}")
    return lines


def _version(name: str) -> str:
    """Of a module that may crash the process that imports it."""
    code = f"import {name} as m; print(m.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    last = (done.stderr.strip().splitlines() or ["crashed"])[-1]
    return "not installed" if "No module named" in last else f"cannot be imported ({last})"


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
        cut = f"cut of {item.cut_of}, " if item.cut_of else ""
        lines.append(
            f"{item.name}: {cut}{item.kind} {item.precision}, {item.size / 1e6:.1f} MB, parity "
            f"{item.parity.status}{reason}; outputs {outputs}"
        )
        if note := weight_note(item):
            lines.append(f"  {note}")
    cases = [case for item in manifest.files for case in item.parity.cases if "val/miou" in case.metrics]
    if any("miou_classes" not in case.details for case in cases):
        lines.append(
            "mIoU by the rule up to 0.1, which counts a class that no mask has as 0 once it is predicted"
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    """Show a bundle; exit code 1 when a file is damaged, an engine not what it says, or nothing runs here."""
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
            for a in found:
                lines.append(f"{a.file} on {a.provider}: {'' if a.runs else 'NO: '}{a.detail}")
                lines += [f"  {a.precision}"] if a.precision else []
                lines += [f"  WRONG: {a.wrong}"] if a.wrong else []
            lines += [f"DAMAGED: {text}" for text in problems]
            sys.stdout.write("\n".join(lines) + "\n")
        return 0 if not problems and any(a.runs for a in found) and not any(a.wrong for a in found) else 1

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
