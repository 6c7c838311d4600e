"""Cuts an ONNX file down to some of its outputs, without the onnx package.

ONNX Runtime computes every node of a graph, also those behind outputs that nobody asked for. A mask needs
``labels`` only, so the service loads a second, leaner graph for it. The file is a protobuf message; only the
few fields that name nodes and values are looked at, everything else is copied byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# field numbers of onnx.proto3
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 1, 5, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_VALUE_NAME, _TENSOR_NAME = 1, 8
_BYTES = 2


@dataclass(frozen=True)
class _Field:
    number: int
    wire: int
    whole: memoryview
    """Tag, length and content."""
    content: memoryview
    """Content of a length-delimited field; empty otherwise."""


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _fields(data: memoryview) -> Iterator[_Field]:
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        wire = tag & 7
        content = data[:0]
        if wire == 0:
            _, position = _varint(data, position)
        elif wire == 1:
            position += 8
        elif wire == _BYTES:
            length, position = _varint(data, position)
            content = data[position : position + length]
            position += length
        elif wire == 5:
            position += 4
        else:
            raise ValueError(f"not an ONNX file: wire type {wire} at byte {start}")
        if position > len(data):
            raise ValueError("not an ONNX file: it is cut short")
        yield _Field(tag >> 3, wire, data[start:position], content)


def _text(field: _Field) -> str:
    return bytes(field.content).decode("utf-8")


def _names(message: memoryview, number: int) -> list[str]:
    return [_text(field) for field in _fields(message) if field.number == number]


def _first_name(message: memoryview, number: int) -> str:
    return next(iter(_names(message, number)), "")


def _node_reads(node: memoryview) -> set[str]:
    """Inputs of a node, those of its subgraphs (which see the outer values) included."""
    reads = set(_names(node, _NODE_INPUT))
    for attribute in _fields(node):
        if attribute.number != _NODE_ATTRIBUTE:
            continue
        for field in _fields(attribute.content):
            if field.number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) and field.wire == _BYTES:
                for inner in _fields(field.content):
                    if inner.number == _GRAPH_NODE:
                        reads |= _node_reads(inner.content)
                    elif inner.number == _GRAPH_OUTPUT:
                        # a subgraph may hand an outer value straight through
                        reads.add(_first_name(inner.content, _VALUE_NAME))
    return reads


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _prune_graph(graph: memoryview, keep: frozenset[str]) -> Iterable[memoryview]:
    fields = list(_fields(graph))
    needed = set(keep)
    nodes: set[int] = set()
    produced: set[str] = set()
    # nodes are stored in topological order
    for index in range(len(fields) - 1, -1, -1):
        field = fields[index]
        if field.number != _GRAPH_NODE:
            continue
        outputs = {name for name in _names(field.content, _NODE_OUTPUT) if name}
        if outputs & needed:
            nodes.add(index)
            produced |= outputs
            needed |= _node_reads(field.content)
    for index, field in enumerate(fields):
        if field.number == _GRAPH_NODE:
            wanted = index in nodes
        elif field.number == _GRAPH_OUTPUT:
            wanted = _first_name(field.content, _VALUE_NAME) in keep
        elif field.number == _GRAPH_INITIALIZER:
            wanted = _first_name(field.content, _TENSOR_NAME) in needed
        elif field.number == _GRAPH_VALUE_INFO:
            wanted = _first_name(field.content, _VALUE_NAME) in produced
        else:
            wanted = True
        if wanted:
            yield field.whole


def prune_outputs(model: bytes, keep: frozenset[str]) -> bytes:
    """The model with only the outputs ``keep`` and what they need.

    Args:
        model: A whole ONNX file without external data.
        keep: Names of outputs.

    Raises:
        ValueError: If the data is not an ONNX file or lacks one of the outputs.
    """
    parts: list[bytes | memoryview] = []
    graphs = 0
    try:
        for field in _fields(memoryview(model)):
            if field.number != _MODEL_GRAPH:
                parts.append(field.whole)
                continue
            graphs += 1
            outputs = {
                _first_name(item.content, _VALUE_NAME)
                for item in _fields(field.content)
                if item.number == _GRAPH_OUTPUT
            }
            if not keep <= outputs:
                raise ValueError(f"the graph has no output {', '.join(sorted(keep - outputs))}")
            graph = b"".join(_prune_graph(field.content, keep))
            parts += [_encode_varint(_MODEL_GRAPH << 3 | _BYTES), _encode_varint(len(graph)), graph]
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("not an ONNX file") from error
    if graphs != 1:
        raise ValueError("not an ONNX file: it holds no graph")
    return b"".join(parts)
