"""Small tools for ONNX graphs: prune, describe, strip, check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from protoseg.errors import ExportError
from protoseg.manifest import TensorInfo

MAX_FILE_BYTES = 1_800_000_000  # protobuf ends at 2 GiB
ELEMENT_TYPES: dict[int, str] = {
    TensorProto.UINT8: "uint8", TensorProto.INT8: "int8", TensorProto.INT32: "int32",
    TensorProto.INT64: "int64", TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16",
}  # fmt: skip
# Operators whose output size depends on values, or that hold subgraphs: TensorRT or ONNX Runtime on a GPU
# refuse them or leave the device for them. TensorRT computes GridSample wrongly in some opsets and fusions.
DENIED_OPERATORS = frozenset(
    ("NonZero", "Unique", "Det", "Loop", "If", "Scan", "NonMaxSuppression", "Compress", "RandomNormal",
     "RandomUniform", "Dropout", "StringNormalizer", "SequenceConstruct", "SequenceAt", "Optional",
     "GridSample")
)  # fmt: skip


class GraphError(ExportError):
    """A graph that breaks the rules of a bundle."""


def tensor_infos(values: Iterable[onnx.ValueInfoProto]) -> list[TensorInfo]:
    """Names, types and shapes of graph inputs or outputs.

    Raises:
        GraphError: If an element type is not one that bundles use.
    """
    infos = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = ELEMENT_TYPES.get(int(tensor.elem_type))
        if dtype is None:
            raise GraphError(f"{value.name} has ONNX element type {tensor.elem_type}, which is not supported")
        shape = [d.dim_param or int(d.dim_value) for d in tensor.shape.dim]
        infos.append(TensorInfo(name=value.name, dtype=dtype, shape=shape))
    return infos


def set_axes(value: onnx.ValueInfoProto, axes: Sequence[str | int | None]) -> None:
    """Name or fix the axes of a graph input or output; None leaves an axis as it is."""
    for dim, axis in zip(value.type.tensor_type.shape.dim, axes, strict=True):
        if isinstance(axis, str):
            dim.dim_param = axis
        elif axis is not None:
            dim.dim_value = axis


def prune(model: onnx.ModelProto, outputs: Sequence[str], inside: Sequence[str] = ()) -> onnx.ModelProto:
    """A copy with the given outputs only, without nodes and weights that none of them needs.

    Args:
        model: Graph that has all outputs.
        outputs: Outputs to keep, in this order.
        inside: Values that stay in the graph without being outputs; runtimes do not compute them.

    Raises:
        GraphError: If an output does not exist.
    """
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    graph = pruned.graph
    known = {value.name: value for value in graph.output}
    missing = [name for name in outputs if name not in known]
    if missing:
        raise GraphError(f"the graph has no output {missing[0]}; it has {', '.join(known)}")
    needed = {*outputs, *inside}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    kept.reverse()
    weights = [weight for weight in graph.initializer if weight.name in needed]
    chosen = [known[name] for name in outputs]
    del graph.node[:], graph.initializer[:], graph.output[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)
    graph.output.extend(chosen)
    return pruned


def add_alias(model: onnx.ModelProto, source: str, alias: str) -> None:
    """Add an output ``alias`` that equals the existing output ``source``."""
    graph = model.graph
    value = next(v for v in graph.output if v.name == source)
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = alias
    graph.node.append(helper.make_node("Identity", [source], [alias], name=f"node_{alias}"))
    graph.output.append(copy)


def produced_names(model: onnx.ModelProto) -> set[str]:
    """Names of all tensors that nodes of the graph produce."""
    return {name for node in model.graph.node for name in node.output if name}


def probe(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy with inner float32 tensors as additional outputs, to look at a file's own scores.

    Names that the graph does not compute are left out.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    present = produced_names(probed) - {value.name for value in probed.graph.output}
    for name in names:
        if name in present:
            probed.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return probed


def strip(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Remove traces of the exporting machine (paths, stack traces) and set the model's own metadata."""
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for weight in graph.initializer:
        weight.doc_string = ""
        del weight.metadata_props[:]
    for key in sorted(metadata):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, metadata[key]


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Keep the opset imports that a node uses (quantisation tools leave others behind)."""
    used = {node.domain or "" for node in model.graph.node}
    kept = [item for item in model.opset_import if (item.domain or "") in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    return next((int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def check_graph(model: onnx.ModelProto, opset: int) -> None:
    """Refuse what a bundle must not hold.

    Raises:
        GraphError: For another opset, operators outside ``ai.onnx``, denied operators, functions,
            batch norm in training mode, or what ONNX's full check finds.
    """
    if opset_of(model) != opset:
        raise GraphError(f"the graph has opset {opset_of(model)}, expected {opset}; use --opset 18 to 23")
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain})
    if foreign or model.functions:
        names = foreign or [function.name for function in model.functions]
        raise GraphError(f"the graph uses operators outside ai.onnx: {', '.join(names[:5])}")
    for node in model.graph.node:
        training = node.op_type == "BatchNormalization" and len([o for o in node.output if o]) > 1
        if node.op_type in DENIED_OPERATORS or training:
            what = "BatchNormalization in training mode" if training else node.op_type
            raise GraphError(f"the graph uses {what} (node {node.name}), which a bundle must not")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the graph is not valid ONNX: {' '.join(str(error).split())[:300]}") from error


def to_bytes(model: onnx.ModelProto) -> bytes:
    """The bytes of one self-contained file; the same model gives the same bytes.

    Raises:
        GraphError: If it is too large for one file.
    """
    if model.ByteSize() > MAX_FILE_BYTES:
        raise GraphError(
            f"the network takes {model.ByteSize() / 1e9:.1f} GB, one ONNX file holds at most 1.8 GB; "
            "choose a smaller encoder"
        )
    return bytes(model.SerializeToString(deterministic=True))


def read_model(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        GraphError: If it is missing or is not ONNX.
    """
    try:
        return onnx.load(str(path))
    except FileNotFoundError:
        raise GraphError(f"{path} does not exist; export the checkpoint again") from None
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise GraphError(f"{path} is not an ONNX file: {' '.join(str(error).split())[:200]}") from error
