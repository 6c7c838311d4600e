"""A Triton model repository from a bundle's files: ``NAME/config.pbtxt`` and ``NAME/1/model.*``."""

from __future__ import annotations

import shutil
from pathlib import Path

from export.runners.profiles import Profile
from protoseg.files import folder_whole
from protoseg.manifest import ArtifactFile, Manifest, TensorInfo

TYPES = {
    "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float32": "TYPE_FP32", "float16": "TYPE_FP16",
}  # fmt: skip
PLATFORMS = {"onnx": ("onnxruntime_onnx", "model.onnx"), "tensorrt": ("tensorrt_plan", "model.plan")}
DEFAULT_MAX_BATCH = 8
QUEUE_MICROSECONDS = 2000


def _tensor(info: TensorInfo, batched: bool) -> str:
    axes = info.shape[1:] if batched else info.shape
    dims = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in axes)
    return f'  {{\n    name: "{info.name}"\n    data_type: {TYPES[info.dtype]}\n    dims: [ {dims} ]\n  }}'


def model_config(name: str, item: ArtifactFile, profiles: list[Profile]) -> str:
    """The text of ``config.pbtxt``.

    Triton leaves the batch axis out of ``dims`` exactly when ``max_batch_size`` is not 0, which a graph
    of fixed batch cannot have.

    Args:
        name: Model name.
        item: The network file.
        profiles: Profiles of an engine; the largest batch of the first one is Triton's.
    """
    batched = isinstance(item.inputs[0].shape[0], str)
    largest = profiles[0].max[0] if profiles else DEFAULT_MAX_BATCH
    platform = PLATFORMS[item.kind][0]
    parts = [
        f'name: "{name}"',
        f'platform: "{platform}"',
        f"max_batch_size: {largest if batched else 0}",
        "input [\n" + ",\n".join(_tensor(info, batched) for info in item.inputs) + "\n]",
        "output [\n" + ",\n".join(_tensor(info, batched) for info in item.outputs) + "\n]",
        "version_policy: { latest { num_versions: 1 } }",
    ]
    if batched and largest > 1:
        parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    return "\n".join(parts) + "\n"


def write_repository(
    target: Path, bundle: Path, manifest: Manifest, item: ArtifactFile, profiles: list[Profile]
) -> Path:
    """Write one model of a Triton repository, whole or not at all.

    Args:
        target: The repository.
        bundle: Bundle folder.
        manifest: Its manifest.
        item: The file to serve; Triton runs ONNX files and TensorRT engines, not RTX ones.
        profiles: Profiles of an engine.

    Returns:
        The model's folder.
    """
    suffix = "" if item.precision == "fp32" else f"_{item.precision.replace('-', '_')}"
    name = f"{manifest.name}{suffix}_{'trt' if item.kind == 'tensorrt' else 'onnx'}"
    folder = target / name
    with folder_whole(folder) as partial:
        (partial / "config.pbtxt").write_text(model_config(name, item, profiles), encoding="utf-8")
        (partial / "1").mkdir()
        shutil.copyfile(bundle / item.name, partial / "1" / PLATFORMS[item.kind][1])
        labels = "\n".join(info.name for info in manifest.classes) + "\n"
        (partial / "classes.txt").write_text(labels, encoding="utf-8")
    return folder
