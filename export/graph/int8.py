"""int8 as a graph transform: quantise-dequantise pairs round convolutions, calibrated on real images.

``int8`` is for TensorRT: signed and symmetric, per channel, float bias, the rest in fp16. ``int8-cpu`` is
for ONNX Runtime: unsigned activations, which its CPU kernels need to be fast, weights of 7 bits, the rest
in fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from export.graph.edit import drop_unused_domains, opset_of, strip
from export.graph.half import LOW_SCOPES, count_first, first_nodes, lower_to_half
from protoseg.errors import ExportError
from protoseg.manifest import Precision

HALF_SCALE_OPSET = 19
# x86 CPUs without VNNI add two products of a byte and a weight in 16 bits (VPMADDUBSW). 2 * 255 * 64 fits,
# 2 * 255 * 127 saturates silently: with 7 bits a file gives the same labels on every CPU
CPU_WEIGHT_BITS = 7
HALF_SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
# what ONNX Runtime's CPU kernels take as int8; activations are named so that they, not the convolutions
# before them, get the quantised output
CPU_OPERATORS = (
    "Conv", "Clip", "Relu", "Add", "Concat", "Resize", "GlobalAveragePool", "AveragePool", "MaxPool",
)  # fmt: skip


class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands calibration batches to ONNX Runtime."""

    def __init__(self, batches: Sequence[NDArray[Any]]) -> None:
        self._batches = batches
        self._next = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch by input name, or None."""
        batch = next(self._next, None)
        return None if batch is None else {"image": batch}

    def rewind(self) -> None:
        """Start again."""
        self._next = iter(self._batches)


def _in_projection(node: onnx.NodeProto) -> bool:
    return node.name.startswith("network.projection")


def float_nodes(model: onnx.ModelProto, *, heads: bool) -> list[str]:
    """Nodes that stay in floating point.

    Args:
        model: The fp32 graph.
        heads: Keep the last convolution of each head in floating point too. On a CPU they are quantised:
            that changes next to nothing and saves converting the whole feature map back for each of them.

    Returns:
        The first convolutions, the one that sums squares for the cosine, all operators outside the network
        and the prototypes, and with ``heads`` the last convolutions.
    """
    nodes = model.graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    roots = {name for node in nodes if node.op_type == "Sqrt" for name in node.input}
    # EfficientNet-Lite0 on CamVid: one float convolution loses 0.8 points of mIoU, six lose none and cost 3 %
    kept = {node.name for node in convolutions[: count_first(len(convolutions))]}
    ends = {"linear_logits_stride"}.union(*[n.output for n in convolutions if _in_projection(n)][-1:])
    for node in nodes:
        is_conv = node.op_type == "Conv"
        in_prototypes = is_conv and node.name.startswith("prototypes")
        inside = node.name.startswith(LOW_SCOPES) or in_prototypes
        last = in_prototypes or (is_conv and not ends.isdisjoint(node.output))
        if not inside or roots.intersection(node.output) or (heads and last):
            kept.add(node.name)
    return sorted(kept)


def raise_scales(model: onnx.ModelProto) -> None:
    """Give weights scales that half precision holds exactly, and round the weights again to fit them.

    Channels that hardly matter can have scales below the smallest normal half, where rounding would
    change them by a large factor.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in weights:
            continue
        quantized, scale = (numpy_helper.to_array(weights[name]) for name in node.input[:2])
        raised = np.maximum(scale, HALF_SMALLEST_NORMAL).astype(np.float16).astype(np.float32)
        shape = [1] * quantized.ndim
        if scale.ndim:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            shape[axis] = -1
        ratio = (scale / raised).reshape(shape)
        rounded = np.rint(quantized * ratio).clip(-127, 127).astype(quantized.dtype)
        for name, value in zip(node.input[:2], (rounded, raised), strict=True):
            weights[name].CopyFrom(numpy_helper.from_array(value, name))


def quantize(
    model: onnx.ModelProto,
    precision: Precision,
    batches: Sequence[NDArray[Any]],
    record: dict[str, Any],
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A copy with int8 convolutions.

    Args:
        model: The fp32 graph, its nodes named after modules.
        precision: ``int8`` or ``int8-cpu``.
        batches: Calibration images in the element type and axes of the graph.
        record: Their count and hash, for the notes.

    Returns:
        The graph and notes for the manifest.

    Raises:
        ExportError: If there is no image or no convolution.
    """
    if not batches:
        raise ExportError(f"{precision} needs calibration images; name a folder with --calibrate FOLDER")
    excluded = float_nodes(model, heads=precision == "int8")
    convolutions = [n.name for n in model.graph.node if n.op_type == "Conv"]
    count = len(set(convolutions) - set(excluded))
    if count <= 0:
        raise ExportError(f"{precision}: the network has no convolution to quantise; use fp16")
    for_tensorrt = precision == "int8"
    options: dict[str, Any] = {"ActivationSymmetric": for_tensorrt, "WeightSymmetric": True}
    if for_tensorrt:
        # an int32 bias behind DequantizeLinear is refused by TensorRT's parser
        options |= {"QuantizeBias": False, "OpTypesToExcludeOutputQuantization": ["Conv"]}
    source = onnx.ModelProto()
    source.CopyFrom(model)
    # the graph was folded and its shapes inferred when it was traced: no advice to do so first
    add_pre_process_metadata(source)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "quantized.onnx"
        quantize_static(
            source, target, Batches(batches), quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
            weight_type=QuantType.QInt8, reduce_range=not for_tensorrt, per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["Conv"] if for_tensorrt else list(CPU_OPERATORS),
            nodes_to_exclude=excluded, extra_options=options,
        )  # fmt: skip
        quantized = onnx.load(str(target))
    drop_unused_domains(quantized)
    notes: dict[str, Any] = {
        "calibration": {"method": "minmax", **record},
        "weight_bits": 8 if for_tensorrt else CPU_WEIGHT_BITS,
        "convolutions_int8": count,
        "convolutions_float": sorted(set(convolutions) & set(excluded)),
    }
    if for_tensorrt and opset_of(quantized) >= HALF_SCALE_OPSET:
        raise_scales(quantized)
        quantized, half = lower_to_half(quantized, {}, first_nodes(model))
        notes["rest"] = {"precision": "fp16", "nodes": half["nodes_fp16"]}
    strip(quantized, {entry.key: entry.value for entry in model.metadata_props})
    return quantized, notes
