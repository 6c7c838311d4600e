"""What precision an engine really has, whatever was asked for: read from its weights and its layers.

A builder can write float32 for what was to be half precision, with exit code 0 and sound values. An engine's
weights lie in it in the type that they are computed in, so this needs no GPU. Where the engine can be loaded
its inspector tells the types of the layers too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.bundle import source_of
from export.graph.edit import read_model
from export.graph.half import FP32_OPERATORS, LOW_SCOPES, first_nodes
from protoseg.manifest import ArtifactFile, Manifest, Precision

AUDIT_KEY = "audit"
WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
# as written in the file, and as kernels for images whose channels come last hold them
LAYOUTS = ((0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 1, 0), (1, 2, 3, 0))
# values at a weight's start that are looked for; with fewer a find would prove nothing
PROBE, SHORTEST = 64, 16
SHOWN = 3
ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# in the order of the search: "float" is in "bfloat16" and "float16"
TYPE_WORDS = (
    ("bfloat16", ("bf16", "bfloat16")),
    ("float16", ("half", "fp16", "float16")),
    ("int8", ("int8",)),
    ("float32", ("fp32", "float")),
)


@dataclass(frozen=True)
class Weighted:
    """A node with weights, and the type that its file's precision wants it in."""

    node: str
    """Name in the graph."""
    asked: str
    """``float32``, ``float16`` or ``int8``."""
    stored: str
    """The type in the file."""
    values: dict[str, NDArray[Any]]
    """The weight in every type that an engine could hold it in; ``full``: float32, before it was rounded."""


@dataclass
class Audit:
    """What was found in an engine."""

    asked: dict[str, int] = field(default_factory=Counter)
    """Nodes with weights by the type that they are to have."""
    found: dict[str, int] = field(default_factory=Counter)
    """The same nodes by the type of their weights in the engine; ``unknown``: not recognised."""
    layers: dict[str, int] = field(default_factory=Counter)
    """Layers with such nodes by type, where the engine could be loaded."""
    wrong: list[str] = field(default_factory=list)
    """``node: float32 instead of float16``."""
    size: int = 0
    """Bytes of the engine."""
    weights: int = 0
    """Bytes of the weights in the types asked for."""

    def record(self) -> dict[str, Any]:
        """For the manifest's notes; ``Audit(**record)`` is the audit again."""
        return {key: dict(value) if isinstance(value, dict) else value for key, value in vars(self).items()}

    @property
    def failure(self) -> str:
        """One line when a node has another type than asked for, else empty."""
        if not self.wrong:
            return ""
        more = f" and {len(self.wrong) - SHOWN} more" if len(self.wrong) > SHOWN else ""
        return (
            f"the engine does not have the precision of its file: {len(self.wrong)} of "
            f"{sum(self.asked.values())} weighted nodes differ ({'; '.join(self.wrong[:SHOWN])}{more})"
        )

    def __str__(self) -> str:
        layers = f"; layers: {_counts(self.layers)}" if self.layers else ""
        return (
            f"weights: {_counts(self.found)} (asked for: {_counts(self.asked)}){layers}; "
            f"{self.size / 1e6:.1f} MB, of which weights {self.weights / 1e6:.1f} MB"
        )


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counter.items())) or "none"


def asked_type(node: onnx.NodeProto, precision: Precision, first: set[str], notes: Mapping[str, Any]) -> str:
    """The type that a precision wants a node with weights in, by the rules of ``graph.half`` and ``int8``.

    Args:
        node: The node.
        precision: Of the file.
        first: Nodes at the start that stay in float32.
        notes: The file's notes in the manifest.
    """
    if precision == "fp32":
        return "float32"
    if precision == "int8":
        if node.op_type == "Conv" and node.name not in notes.get("convolutions_float", ()):
            return "int8"
        if "rest" not in notes:
            return "float32"
    low = node.name.startswith(LOW_SCOPES) and node.op_type not in FP32_OPERATORS
    kept = node.name in first or node.name in notes.get("nodes_kept_fp32", ())
    return "float16" if low and not kept else "float32"


def weighted_nodes(
    model: onnx.ModelProto, precision: Precision, notes: Mapping[str, Any]
) -> Iterator[Weighted]:
    """Nodes of a file with constant weights, with the type that they are to have."""
    constants = {weight.name: weight for weight in model.graph.initializer}
    scaled = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    first = first_nodes(model)
    kept = sum(node.op_type == "Conv" and node.name in first for node in model.graph.node)
    # files of earlier exports do not say which convolutions stayed in floating point: they are what they hold
    told = {"fp16": notes.get("convolutions_first_fp32") == kept, "int8": "convolutions_float" in notes}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        # a product of matrices may have its weight on either side
        name = next((n for n in node.input[:2][::-1] if n in constants or n in scaled), "")
        values: dict[str, NDArray[Any]] = {}
        if name in constants:
            weight = numpy_helper.to_array(constants[name])
            stored = str(weight.dtype)
        elif name in scaled and scaled[name].input[0] in constants:
            weight, scale = (numpy_helper.to_array(constants[n]) for n in scaled[name].input[:2])
            values["int8"], stored = weight, str(weight.dtype)
            shape = [-1 if axis == 0 and scale.ndim else 1 for axis in range(weight.ndim)]
            weight = weight.astype(np.float32) * scale.astype(np.float32).reshape(shape)
        else:
            continue
        values |= {"float32": weight.astype(np.float32), "float16": weight.astype(np.float16)}
        asked = asked_type(node, precision, first, notes) if told.get(precision, True) else stored
        yield Weighted(node.name, asked, stored, values)


def source_failure(model: onnx.ModelProto, precision: Precision, notes: Mapping[str, Any]) -> str:
    """One line when a file does not hold the precision that its record names, else empty."""
    nodes = list(weighted_nodes(model, precision, notes))
    wrong = [item for item in nodes if item.stored != item.asked]
    if not wrong:
        return ""
    shown = "; ".join(f"{w.node}: {w.stored} instead of {w.asked}" for w in wrong[:SHOWN])
    return f"{len(wrong)} of {len(nodes)} weighted nodes have another type than {precision} wants ({shown})"


def _probes(weight: NDArray[Any]) -> Iterator[bytes]:
    """Bytes by which a weight is recognised, in every order of its axes."""
    orders = LAYOUTS if weight.ndim == 4 else (tuple(range(weight.ndim)), tuple(range(weight.ndim))[::-1])
    for order in orders:
        start = np.ascontiguousarray(weight.transpose(order)).ravel()[:PROBE]
        if start.size >= SHORTEST and np.unique(start).size > SHORTEST // 4:
            yield start.tobytes()


def found_type(engine: bytes, item: Weighted) -> str:
    """Type in which a weight lies in an engine; ``unknown``: too short, or rearranged by the builder."""
    # the type asked for comes first: a file may have the same values twice
    for name in sorted(item.values, key=lambda name: name != item.asked):
        if any(probe in engine for probe in _probes(item.values[name])):
            return "float32" if name == "full" else name
    return "unknown"


def layer_types(information: str) -> Iterator[tuple[set[str], str]]:
    """ONNX nodes and type of each layer, from the JSON of TensorRT's engine inspector.

    The type is that of the weights where the inspector tells it, else of all inputs and outputs together
    (``mixed`` when they differ). Layers without ONNX nodes, and those of engines that were built without
    detailed verbosity, are left out.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return  # what cannot be read proves nothing against an engine
    for layer in layers:
        if not isinstance(layer, dict):
            continue
        nodes = set(ONNX_LAYER.findall(str(layer.get("Metadata", ""))))
        nodes = nodes or {part.strip() for part in str(layer.get("Name", "")).split(" + ")}
        weights = layer.get("Weights")
        told = weights.get("Type", "") if isinstance(weights, dict) else ""
        tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
        texts = (
            [told] if told else [str(t.get("Format/Datatype", "")) for t in tensors if isinstance(t, dict)]
        )
        types = {_type_of(text) for text in texts} - {""}
        if types:
            yield nodes, types.pop() if len(types) == 1 else "mixed"


def _type_of(text: str) -> str:
    lowered = text.lower()
    return next((name for name, words in TYPE_WORDS if any(word in lowered for word in words)), "")


def compare(
    model: onnx.ModelProto,
    precision: Precision,
    notes: Mapping[str, Any],
    engine: bytes,
    information: str | None = None,
    full: onnx.ModelProto | None = None,
) -> Audit:
    """Compare an engine with the types that its file's precision asks for.

    A node is wrong when its weights lie in the engine in float32 and are to be narrower, or the other way
    round, or when the inspector says so of its layer. int8 weights that are computed in half precision, as
    those of depthwise convolutions may be, are counted and not wrong.

    Args:
        model: The ONNX file that it was built from.
        precision: Of that file.
        notes: Of that file in the manifest.
        engine: Its bytes.
        information: JSON of the engine inspector, where the engine could be loaded.
        full: The bundle's fp32 file, whose weights an engine of another file must not hold.
    """
    audit = Audit(size=len(engine))
    nodes = {item.node: item for item in weighted_nodes(model, precision, notes)}
    for item in weighted_nodes(full, "fp32", {}) if full is not None else ():
        if item.node in nodes and nodes[item.node].asked != "float32":
            nodes[item.node].values["full"] = item.values["float32"]
    wrong: dict[str, str] = {}
    for item in nodes.values():
        audit.asked[item.asked] += 1
        audit.weights += item.values[item.asked].nbytes
        found = found_type(engine, item)
        audit.found[found] += 1
        if found != "unknown" and (found == "float32") != (item.asked == "float32"):
            wrong[item.node] = found
    for names, kind in layer_types(information) if information else ():
        inside = [nodes[name] for name in names & nodes.keys()]
        if not inside:
            continue
        audit.layers[kind] += 1
        # the types at the borders of a layer of many nodes say nothing of what is inside
        if kind == "float32" and all(item.asked != "float32" for item in inside):
            wrong |= {item.node: kind for item in inside}
    audit.wrong = [
        f"{name}: {wrong[name]} instead of {item.asked}" for name, item in nodes.items() if name in wrong
    ]
    return audit


def audit_engine(
    bundle: Path, manifest: Manifest, item: ArtifactFile, information: str | None = None
) -> Audit:
    """What precision an engine of a bundle really has.

    Args:
        bundle: Bundle folder.
        manifest: Its manifest.
        item: The engine's record.
        information: JSON of its inspector, where it could be loaded.

    Raises:
        UserError: If the files that it is compared with are missing.
    """
    source = manifest.file(item.source) if item.source else source_of(manifest, item.precision)
    full = source_of(manifest)
    return compare(
        read_model(bundle / source.name), source.precision, source.notes, (bundle / item.name).read_bytes(),
        information, None if full.name == source.name else read_model(bundle / full.name),
    )  # fmt: skip
