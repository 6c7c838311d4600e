"""Opens a network of a bundle without torch: ONNX Runtime or TensorRT, behind one contract."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from export.runners.contract import Runner, RunnerError, check_hash
from export.runners.cuda import load_driver
from export.runners.ort import OrtRunner
from export.runners.tensorrt import EngineRunner
from protoseg.manifest import ArtifactFile, Manifest, read_manifest

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]


def choose_file(manifest: Manifest, provider: Provider) -> ArtifactFile:
    """The file that runs when none is named: the fp32 graph, or for TensorRT the first proven engine.

    Raises:
        RunnerError: If there is none whose parity passed.
    """
    kinds = ("tensorrt", "tensorrt_rtx") if provider == "tensorrt" else ("onnx",)
    for item in manifest.servable():
        if item.kind in kinds and (item.kind != "onnx" or item.precision == "fp32"):
            return item
    states = ", ".join(f"{f.name}: {f.parity.status}" for f in manifest.files) or "no files"
    cure = (
        "python -m export.tensorrt BUNDLE"
        if provider == "tensorrt"
        else "python -m export.onnx CKPT (see its parity report)"
    )
    raise RunnerError(f"the bundle has no network for {provider} whose parity passed ({states}); run {cure}")


def load_runner(
    bundle: str | Path,
    file: str | None = None,
    provider: Provider = "auto",
    *,
    intra_threads: int | None = None,
    device: int = 0,
    require_parity: bool = True,
) -> Runner:
    """Load a network of a bundle after checking its hash and its parity report.

    Args:
        bundle: Bundle folder.
        file: File name inside the bundle; None takes the fp32 graph (``provider="tensorrt"``: the first
            proven engine).
        provider: ``auto`` takes CUDA when it really comes up and the CPU otherwise (an engine runs in
            TensorRT); any other value is met or is an error.
        intra_threads: CPU threads for one call; None takes the runtime's default.
        device: GPU number.
        require_parity: Refuse a file whose parity did not pass.

    Raises:
        RunnerError: If the file cannot run here as asked.
        ManifestError: If the bundle is damaged.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    item = manifest.file(file) if file is not None else choose_file(manifest, provider)
    if require_parity and item.parity.status != "passed":
        reason = f" ({item.parity.reason})" if item.parity.reason else ""
        raise RunnerError(
            f"{item.name}: parity is {item.parity.status}{reason}; run python -m export.parity {folder}"
        )
    path = folder / item.name
    check_hash(path, item.sha256)
    if item.kind != "onnx":
        if provider not in ("auto", "tensorrt"):
            raise RunnerError(f"{item.name} is a TensorRT engine and cannot run on {provider}; name an .onnx")
        return EngineRunner(path, device=device)
    if provider == "tensorrt":
        raise RunnerError(f"{item.name} is not an engine; build one with: python -m export.tensorrt {folder}")
    exact = item.precision == "int8"
    if provider != "cpu":
        try:
            if provider == "auto":
                load_driver()  # without one, trying CUDA only costs time
            return OrtRunner(path, "cuda", intra_threads=intra_threads, device=device, exact_qdq=exact)
        except RunnerError:
            if provider == "cuda":  # auto welcomes the CPU
                raise
    return OrtRunner(path, "cpu", intra_threads=intra_threads, exact_qdq=exact)
