"""Opens a network of a bundle without torch: ONNX Runtime, OpenVINO or TensorRT, behind one contract."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from export.bundle import OPENVINO_PRECISIONS, OpenVino, openvino_parity
from export.runners.contract import Runner, RunnerError, check_hash
from export.runners.cuda import load_driver
from export.runners.openvino import OpenVinoRunner
from export.runners.ort import OrtRunner
from export.runners.tensorrt import EngineRunner
from protoseg.manifest import ArtifactFile, Manifest, read_manifest

Provider = Literal["auto", "cpu", "cuda", "tensorrt"] | OpenVino
OPENVINO: tuple[OpenVino, ...] = get_args(OpenVino)


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


def check_parity(item: ArtifactFile, provider: Provider, folder: Path) -> None:
    """Refuse a file that is not proven, in general and for OpenVINO.

    Raises:
        RunnerError: Unless its parity reports say passed.
    """
    reports = {"": item.parity}
    if provider == "openvino" or provider == "openvino-bf16":
        reports[f" --runtime {provider}"] = openvino_parity(item, provider)
    for option, report in reports.items():
        if report.status != "passed":
            reason = f" ({report.reason})" if report.reason else ""
            where = f" in {provider}" if option else ""
            raise RunnerError(
                f"{item.name}: parity{where} is {report.status}{reason}; "
                f"run python -m export.parity {folder}{option}"
            )


def load_runner(
    bundle: str | Path,
    file: str | None = None,
    provider: Provider = "auto",
    *,
    intra_threads: int | None = None,
    device: int = 0,
    parallel: int = 1,
    require_parity: bool = True,
) -> Runner:
    """Load a network of a bundle after checking its hash and its parity report.

    Args:
        bundle: Bundle folder.
        file: File name inside the bundle; None takes the fp32 graph (``provider="tensorrt"``: the first
            proven engine).
        provider: ``auto`` takes CUDA when it really comes up and the CPU otherwise (an engine runs in
            TensorRT); any other value is met or is an error. ``openvino`` computes in float32,
            ``openvino-bf16`` in bfloat16.
        intra_threads: CPU threads for one call; None takes the runtime's default.
        device: GPU number.
        parallel: Calls at a time that an OpenVINO runner is to have threads for.
        require_parity: Refuse a file whose parity did not pass.

    Raises:
        RunnerError: If the file cannot run here as asked.
        ManifestError: If the bundle is damaged.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    item = manifest.file(file) if file is not None else choose_file(manifest, provider)
    if require_parity:
        check_parity(item, provider, folder)
    path = folder / item.name
    check_hash(path, item.sha256)
    if provider in OPENVINO:
        if item.kind != "onnx" or item.precision not in OPENVINO_PRECISIONS:
            raise RunnerError(f"{item.name} is not for OpenVINO; name a file of fp32 or int8-cpu")
        bf16 = provider == "openvino-bf16"
        return OpenVinoRunner(path, bf16=bf16, intra_threads=intra_threads, parallel=parallel)
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
