"""Graph tools on hand-made graphs, and what an exported file must be free of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graph.edit import (
    GraphError,
    add_alias,
    check_graph,
    drop_unused_domains,
    probe,
    prune,
    read_model,
    strip,
    tensor_infos,
    to_bytes,
)


def make_model(*extra: onnx.NodeProto, opset: int = 20) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["image", "one"], ["a"], name="add"),
        helper.make_node("Mul", ["a", "two"], ["b"], name="mul"),
        helper.make_node("Neg", ["image"], ["c"], name="neg"),
        *extra,
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in ("b", "c")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2])], outputs,
        [numpy_helper.from_array(np.float32(v), n) for n, v in (("one", 1), ("two", 2))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_prune_keeps_what_the_outputs_need() -> None:
    pruned = prune(make_model(), ["c"])
    assert [n.name for n in pruned.graph.node] == ["neg"]
    assert not pruned.graph.initializer
    assert [o.name for o in pruned.graph.output] == ["c"]
    check_graph(pruned, 20)
    with pytest.raises(GraphError, match="no output d; it has b, c"):
        prune(make_model(), ["d"])


def test_probe_adds_inner_tensors_only() -> None:
    probed = probe(make_model(), ["a", "b", "absent"])
    assert [o.name for o in probed.graph.output] == ["b", "c", "a"]


def test_alias_is_an_output_of_its_own() -> None:
    model = make_model()
    add_alias(model, "b", "again")
    check_graph(model, 20)
    assert [i.name for i in tensor_infos(model.graph.output)] == ["b", "c", "again"]


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (helper.make_node("NonZero", ["c"], ["d"], name="bad"), "uses NonZero"),
        (helper.make_node("GridSample", ["c", "c"], ["d"], name="bad"), r"uses GridSample \(node bad\)"),
        (helper.make_node("Gelu", ["c"], ["d"], name="bad", domain="com.microsoft"), "outside ai.onnx"),
        (helper.make_node("Unknown", ["c"], ["d"], name="bad"), "not valid ONNX"),
        (helper.make_node("Neg", ["missing"], ["d"], name="bad"), "not valid ONNX"),
    ],
)
def test_unsupported_operators_are_refused(node: onnx.NodeProto, text: str) -> None:
    model = make_model(node)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(GraphError, match=text):
        check_graph(model, 20)


def test_another_opset_is_refused() -> None:
    with pytest.raises(GraphError, match="has opset 18, expected 20"):
        check_graph(make_model(opset=18), 20)


def test_unused_domains_go() -> None:
    model = make_model()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    drop_unused_domains(model)
    assert [item.domain for item in model.opset_import] == [""]


def test_strip_leaves_no_trace() -> None:
    model = make_model()
    for node in model.graph.node:
        node.doc_string = "/home/someone/model.py:12"
        entry = node.metadata_props.add()
        entry.key, entry.value = "stack_trace", "/home/someone/model.py"
    strip(model, {"protoseg.head": "linear"})
    assert b"/home/someone" not in to_bytes(model)
    assert [(e.key, e.value) for e in model.metadata_props] == [("protoseg.head", "linear")]


def test_foreign_bytes_are_no_onnx(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\x89PNG not a graph")
    with pytest.raises(GraphError, match="is not an ONNX file"):
        read_model(file)
    with pytest.raises(GraphError, match="does not exist"):
        read_model(tmp_path / "absent.onnx")


def test_exported_file_is_clean(bundle: Path) -> None:
    model = read_model(bundle / "model.onnx")
    check_graph(model, 20)
    data = (bundle / "model.onnx").read_bytes()
    for trace in (b".py", b"site-packages", str(Path.home()).encode() + b"/", b"stack_trace"):
        assert trace not in data
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)
    assert [i.shape for i in tensor_infos(model.graph.input)] == [["batch", 3, "height", "width"]]
    assert {i.name: (i.dtype, i.shape) for i in tensor_infos(model.graph.output)} == {
        "labels": ("uint8", ["batch", "height", "width"]),
        "confidence": ("float32", ["batch", "height", "width"]),
        "agreement": ("float32", ["batch", "height", "width"]),
    }
    assert not any(n.op_type == "BatchNormalization" for n in model.graph.node)
    assert all(item.domain == "" for item in model.opset_import)
