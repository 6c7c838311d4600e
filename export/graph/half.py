"""fp16 as a graph transform: casts at the borders of a region, everything that needs range stays fp32.

Encoder, decoder and the heads' convolutions run in half precision; normalisation, the first convolutions,
cosine, softmax, the last enlarging and argmax keep float32. TensorRT builds exactly this (its networks are
strongly typed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graph.edit import GraphError
from export.runners.ort import OrtRunner

HALF_MAX = float(np.finfo(np.float16).max)
HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)
# largest magnitude that may become a half
ACTIVATION_LIMIT = 0.25 * HALF_MAX
SUFFIX = "__half"
LOW_SCOPES = ("network.backbone", "network.linear_head", "network.projection")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
# sums over many values, and operators that carry their values in attributes
FP32_OPERATORS = frozenset(
    ("ReduceMean", "ReduceSum", "ReduceL2", "Pow", "BatchNormalization", "Constant", "ConstantOfShape",
     "Range", "GlobalAveragePool")
)  # fmt: skip
# EfficientNet-Lite0 on CamVid: nearly all of the error of fp16 and of int8 comes from the first layers. Six
# convolutions in float32 make that of fp16 a quarter, nine gain nothing more, twelve halve it once again
FLOAT_FIRST = 6
# where a transformer begins, its "first convolutions" are over
MATRIX_OPERATORS = ("MatMul", "Gemm", "Attention")
# inputs that ONNX wants in float32 whatever the data type is: roi and scales of Resize
FLOAT_INPUTS = {"Resize": (1, 2)}


def _in_scope(node: onnx.NodeProto) -> bool:
    return node.name.startswith(LOW_SCOPES) or node.op_type in QUANTIZERS


def count_first(convolutions: int) -> int:
    """How many of a network's convolutions stay in floating point at its start: an eighth, at most six."""
    return min(FLOAT_FIRST, max(1, convolutions // 8))


def first_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes from the image to what follows the last of the first convolutions."""
    total = sum(node.op_type == "Conv" for node in model.graph.node)
    names: set[str] = set()
    left = count_first(total)
    for node in model.graph.node:
        left -= node.op_type == "Conv"
        if left < 0 or node.op_type in MATRIX_OPERATORS:
            break
        names.add(node.name)
    return names


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of every tensor.

    Raises:
        GraphError: If inference fails.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"types cannot be inferred: {' '.join(str(error).split())[:200]}") from error
    types = {
        value.name: int(value.type.tensor_type.elem_type)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    types.update({weight.name: int(weight.data_type) for weight in graph.initializer})
    return types


def audit(model: onnx.ModelProto, batches: Sequence[NDArray[Any]]) -> dict[str, float]:
    """Largest magnitude of every float tensor in the region over calibration batches, in float32.

    ONNX Runtime computes half precision on a CPU with float32 in between, so only this shows what would
    overflow on a GPU.

    Args:
        model: The fp32 graph.
        batches: Images in the element type and axes of the graph.

    Returns:
        Peak by tensor name; infinity where a value was not finite.
    """
    types = element_types(model)
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    graph = probed.graph
    names = [
        name
        for node in model.graph.node
        if _in_scope(node)
        for name in (*node.input, *node.output)
        if types.get(name) == TensorProto.FLOAT and name not in {w.name for w in model.graph.initializer}
    ]
    names = list(dict.fromkeys(names))
    del graph.output[:]
    for number, name in enumerate(names):
        graph.node.append(helper.make_node("Abs", [name], [f"abs_{number}"], name=f"abs_{number}"))
        graph.node.append(
            helper.make_node(
                "ReduceMax", [f"abs_{number}"], [f"peak_{number}"], name=f"peak_{number}", keepdims=0
            )
        )
        graph.output.append(helper.make_tensor_value_info(f"peak_{number}", TensorProto.FLOAT, []))
    peaks = dict.fromkeys(names, 0.0)
    with OrtRunner(probed.SerializeToString()) as runner:
        for batch in batches:
            found = runner(batch)
            for number, name in enumerate(names):
                value = float(found[f"peak_{number}"])
                peaks[name] = max(peaks[name], value if np.isfinite(value) else float("inf"))
    return peaks


def half_weight(weight: TensorProto, *, scale: bool) -> tuple[TensorProto, int, int]:
    """A float32 weight in half precision.

    Args:
        weight: The weight.
        scale: It is a quantisation scale, which must never become zero.

    Returns:
        The new weight, values clamped to the largest half, values flushed to zero.
    """
    values = numpy_helper.to_array(weight)
    clamped = int((np.abs(values) > HALF_MAX).sum())
    limited = np.clip(values, -HALF_MAX, HALF_MAX)
    if scale:
        limited = np.maximum(limited, HALF_TINY)
    half = limited.astype(np.float16)
    flushed = int(((half == 0) & (values != 0)).sum())
    return numpy_helper.from_array(half, weight.name + SUFFIX), clamped, flushed


class _Lowering:
    """One pass over the nodes; lowered tensors get a suffix, so that a plain name is always fp32."""

    def __init__(self, model: onnx.ModelProto, keep: set[str]) -> None:
        self.types = element_types(model)
        self.graph = model.graph
        self.weights = {weight.name: weight for weight in model.graph.initializer}
        self.low = {
            node.name
            for node in model.graph.node
            if _in_scope(node) and node.op_type not in FP32_OPERATORS and node.name not in keep
        }
        self.low_tensors = {
            name for node in model.graph.node if node.name in self.low for name in self._floats(node.output)
        }
        high = {
            name
            for node in model.graph.node
            for i, name in enumerate(node.input)
            if node.name not in self.low or i in FLOAT_INPUTS.get(node.op_type, ())
        }
        self.wanted_fp32 = (high | {value.name for value in model.graph.output}) & self.low_tensors
        self.made: dict[str, TensorProto] = {}
        self.cast: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.clamped = self.flushed = 0

    def _floats(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.types.get(name) == TensorProto.FLOAT]

    def _add_cast(self, source: str, target: str, kind: int) -> None:
        name = f"cast_{target}"
        self.nodes.append(helper.make_node("Cast", [source], [target], name=name, to=kind))

    def _low_input(self, node: onnx.NodeProto, index: int, name: str) -> str:
        if name in self.weights:
            scale = node.op_type in QUANTIZERS and index == 1
            if name + SUFFIX not in self.made:
                weight, clamped, flushed = half_weight(self.weights[name], scale=scale)
                self.made[weight.name] = weight
                self.clamped, self.flushed = self.clamped + clamped, self.flushed + flushed
        elif name not in self.low_tensors and name not in self.cast:
            self._add_cast(name, name + SUFFIX, TensorProto.FLOAT16)
            self.cast.add(name)
        return name + SUFFIX

    def run(self) -> None:
        """Rewrite the graph in place."""
        for node in list(self.graph.node):
            if node.name not in self.low:
                self.nodes.append(node)
                continue
            for index, name in enumerate(node.input):
                if name and self.types.get(name) == TensorProto.FLOAT:
                    if index in FLOAT_INPUTS.get(node.op_type, ()):
                        continue
                    node.input[index] = self._low_input(node, index, name)
            outputs = self._floats(node.output)
            if node.op_type == "Cast" and outputs:
                next(a for a in node.attribute if a.name == "to").i = TensorProto.FLOAT16
            for index, name in enumerate(node.output):
                if name in outputs:
                    node.output[index] = name + SUFFIX
            self.nodes.append(node)
            for name in outputs:
                if name in self.wanted_fp32:
                    self._add_cast(name + SUFFIX, name, TensorProto.FLOAT)
        used = {name for node in self.nodes for name in node.input}
        kept = [w for w in (*self.weights.values(), *self.made.values()) if w.name in used]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(kept)


def lower_to_half(
    model: onnx.ModelProto, peaks: Mapping[str, float], first: set[str]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A copy whose encoder, decoder and head convolutions compute in half precision.

    Args:
        model: The fp32 graph, its nodes named after modules (see ``trace.name_nodes``).
        peaks: Result of ``audit``; nodes that touch a tensor above ``ACTIVATION_LIMIT`` stay in float32.
        first: Nodes that stay in float32 whatever their range, see ``first_nodes``.

    Returns:
        The graph and notes for the manifest: largest activation, nodes kept in fp32 for their range and
        at the start, weights clamped to the largest half and flushed to zero.

    Raises:
        GraphError: If no node can be lowered.
    """
    risky = {name for name, peak in peaks.items() if not peak <= ACTIVATION_LIMIT}
    keep = {
        node.name
        for node in model.graph.node
        if _in_scope(node) and risky.intersection((*node.input, *node.output))
    }
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    work = _Lowering(lowered, keep | first)
    if not work.low:
        raise GraphError(
            "no node can be lowered to fp16: every activation exceeds the safe range, or the graph was not "
            "made by this exporter"
        )
    work.run()
    finite = [peak for peak in peaks.values() if np.isfinite(peak)]
    return lowered, {
        "largest_activation": max(finite, default=0.0),
        "activation_limit": ACTIVATION_LIMIT,
        "nodes_fp16": len(work.low),
        "nodes_kept_fp32": sorted(keep),
        "convolutions_first_fp32": sum(n.op_type == "Conv" and n.name in first for n in model.graph.node),
        "weights_clamped": work.clamped,
        "weights_flushed": work.flushed,
    }
