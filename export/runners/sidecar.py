"""The JSON beside an engine: what it was built from and for, and whether this machine is that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from export.runners.contract import RunnerError
from export.runners.cuda import GpuInfo
from export.runners.profiles import Profile
from protoseg.manifest import Precision, TensorInfo
from protoseg.records import Record, explain_validation

SIDECAR_SCHEMA = 1
Flavor = Literal["tensorrt", "tensorrt_rtx"]
Compatibility = Literal["none", "same_cc", "ampere+"]


class Sidecar(Record):
    """``NAME.plan.json``: what an engine was built from and for."""

    schema_version: int = SIDECAR_SCHEMA
    """Version of this record."""
    flavor: Flavor
    """Builder."""
    onnx: str
    """ONNX file of the bundle it was built from."""
    onnx_sha256: str
    """Hash of that file."""
    plan_sha256: str
    """Hash of the engine."""
    precision: Precision
    """Numerics, a property of the ONNX graph."""
    tensorrt: str
    """Full version of the builder."""
    gpu: str | None
    """Product name of the GPU it was built on; null when built without one."""
    compute_capabilities: list[str]
    """Compute capabilities it runs on, as ``8.6``; empty for RTX's default (Ampere and later)."""
    cuda_driver: str | None
    """Highest CUDA version of the building machine's driver."""
    system: str
    """Operating system and CPU architecture."""
    hardware_compatibility: Compatibility
    """``none``: this GPU; ``same_cc``: its compute capability; ``ampere+``: 8.0 and later."""
    version_compatible: bool
    """Runs on later TensorRT versions of the same major number."""
    tf32: bool
    """Whether float32 convolutions may use TF32."""
    workspace_gib: float | None
    """Largest workspace; null is the builder's default."""
    optimization_level: int | None
    """Builder's optimisation level."""
    profiles: list[Profile]
    """Shapes; empty for a graph of fixed shape."""
    inputs: list[TensorInfo]
    """Engine inputs."""
    outputs: list[TensorInfo]
    """Engine outputs."""
    build_seconds: float
    """Time of the build; 0 when it came from the cache."""
    command: str
    """Command that builds it again."""


def sidecar_path(engine: Path) -> Path:
    """``NAME.plan.json`` beside an engine."""
    return engine.with_name(engine.name + ".json")


def read_sidecar(engine: Path) -> Sidecar:
    """The sidecar of an engine.

    Raises:
        RunnerError: If it is missing or damaged.
    """
    path = sidecar_path(engine)
    try:
        return Sidecar.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunnerError(
            f"{path} is missing: an engine cannot be trusted without it; build it again"
        ) from None
    except (OSError, ValueError) as error:
        text = explain_validation(error) if isinstance(error, ValidationError) else str(error)
        raise RunnerError(f"{path} cannot be read ({text}); build the engine again") from error


def _later_same_major(built: str, found: str) -> bool:
    first, second = built.split("."), found.split(".")
    return first[0] == second[0] and [int(x) for x in first[1:3]] <= [int(x) for x in second[1:3]]


def _gpu_difference(sidecar: Sidecar, gpu: GpuInfo) -> str | None:
    found = gpu.compute_capability
    number = tuple(map(int, found.split(".")))
    if sidecar.flavor == "tensorrt_rtx" and not sidecar.compute_capabilities:
        return None if number >= (8, 0) else f"GPU: built for compute capability 8.0 and later, here {found}"
    if sidecar.hardware_compatibility == "ampere+":
        return None if number >= (8, 0) else f"GPU: built for compute capability 8.0 and later, here {found}"
    if found not in sidecar.compute_capabilities:
        wanted = ", ".join(sidecar.compute_capabilities)
        return f"compute capability: built for {wanted}, here {found} ({gpu.name})"
    if sidecar.flavor == "tensorrt" and sidecar.hardware_compatibility == "none" and sidecar.gpu != gpu.name:
        return f"GPU: built on {sidecar.gpu}, here {gpu.name}"
    return None


def differences(sidecar: Sidecar, tensorrt: str, gpu: GpuInfo) -> list[str]:
    """Fields in which this machine is not the one that an engine was built for.

    Args:
        sidecar: The engine's record.
        tensorrt: Version of the installed runtime.
        gpu: This machine's GPU.

    Returns:
        ``field: built for X, here Y``, empty when it should run.
    """
    found = []
    if sidecar.tensorrt != tensorrt:
        later = sidecar.version_compatible and _later_same_major(sidecar.tensorrt, tensorrt)
        if not later:
            found.append(f"TensorRT: built with {sidecar.tensorrt}, here {tensorrt}")
    if sidecar.system != gpu.system:
        found.append(f"system: built on {sidecar.system}, here {gpu.system}")
    difference = _gpu_difference(sidecar, gpu)
    return [*found, *([difference] if difference else [])]
