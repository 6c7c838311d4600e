"""Lowering to half precision, on the exported tiny network and on hand-made graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.graph.edit import GraphError, check_graph
from export.graph.half import (
    HALF_MAX,
    audit,
    count_first,
    element_types,
    first_nodes,
    half_weight,
    lower_to_half,
)
from export.graph.int8 import float_nodes, raise_scales
from export.proof.reference import TorchRunner, half_reference
from export.runners.ort import OrtRunner
from protoseg.checkpoint import Checkpoint

SCOPE = "network.backbone"


def make_graph(scale: float = 1.0, image: str = "image") -> onnx.ModelProto:
    """image -> Cast -> three 1x1 convolutions -> Mul outside the network -> scores."""
    first = np.full((2, 3, 1, 1), scale, np.float32)
    second = np.full((2, 2, 1, 1), 0.5 / scale, np.float32)
    nodes = [
        helper.make_node("Cast", [image], ["x"], name="network/Cast_0", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w1"], ["a"], name=f"{SCOPE}.one/Conv_1"),
        helper.make_node("Relu", ["a"], ["b"], name=f"{SCOPE}.one/Relu_2"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name=f"{SCOPE}.two/Conv_3"),
        helper.make_node("Conv", ["c", "w3"], ["linear_logits_stride"], name="network.linear_head/Conv_5"),
        helper.make_node("Mul", ["linear_logits_stride", "two"], ["scores"], name="head/Mul_4"),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info(image, TensorProto.UINT8, ["batch", 3, "height", "width"])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2, "height", "width"])],
            [numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2"),
             numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w3"),
             numpy_helper.from_array(np.float32(2.0), "two")],
        ),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip


IMAGE = np.full((1, 3, 4, 4), 100, np.uint8)


def run(model: onnx.ModelProto) -> Any:
    with OrtRunner(model.SerializeToString()) as runner:
        return runner(IMAGE)["scores"]


def test_the_network_is_half_and_the_rest_is_not() -> None:
    model = make_graph()
    lowered, notes = lower_to_half(model, audit(model, [IMAGE]), set())
    check_graph(lowered, 20)
    types = element_types(lowered)
    assert types["a__half"] == types["b__half"] == TensorProto.FLOAT16
    assert types["x"] == types["linear_logits_stride"] == types["scores"] == TensorProto.FLOAT
    assert [n.op_type for n in lowered.graph.node].count("Cast") == 3
    assert notes["nodes_fp16"] == 4
    assert notes["largest_activation"] == 600  # two inputs of 300, summed
    np.testing.assert_allclose(run(lowered), run(model), rtol=2e-3)


def test_the_source_graph_is_left_alone() -> None:
    model = make_graph()
    before = model.SerializeToString(deterministic=True)
    lower_to_half(model, {}, set())
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(("convolutions", "first"), [(3, 1), (15, 1), (24, 3), (67, 6), (400, 6)])
def test_an_eighth_of_the_convolutions_are_first(convolutions: int, first: int) -> None:
    assert count_first(convolutions) == first


def test_the_first_convolution_stays_in_fp32() -> None:
    model = make_graph()
    first = first_nodes(model)
    assert first == {"network/Cast_0", f"{SCOPE}.one/Conv_1", f"{SCOPE}.one/Relu_2"}
    lowered, notes = lower_to_half(model, {}, first)
    types = element_types(lowered)
    assert types["a"] == types["b"] == TensorProto.FLOAT
    assert types["c__half"] == TensorProto.FLOAT16
    assert notes["convolutions_first_fp32"] == 1
    assert notes["nodes_kept_fp32"] == []


def test_a_transformer_ends_the_first_convolutions() -> None:
    model = make_graph()
    matrix = numpy_helper.from_array(np.eye(4, dtype=np.float32), "eye")
    model.graph.initializer.append(matrix)
    node = helper.make_node("MatMul", ["a", "eye"], ["a2"], name=f"{SCOPE}.attention/MatMul_9")
    model.graph.node.insert(2, node)
    model.graph.node[3].input[0] = "a2"
    assert first_nodes(model) == {"network/Cast_0", f"{SCOPE}.one/Conv_1"}


def test_torch_half_keeps_the_same_start(checkpoint: Checkpoint) -> None:
    """What shows overflows must not be harsher than the graph, nor silently compute in float32."""
    seen: list[torch.dtype] = []
    half = half_reference(checkpoint.segmenter, "linear", 2)
    for module in half.segmenter.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    outputs = half(image)
    assert seen[:2] == [torch.float32] * 2
    assert set(seen[2:]) == {torch.float16}
    exact = TorchRunner(checkpoint.segmenter, "linear")(image)
    difference = np.abs(outputs["linear_logits"] - exact["linear_logits"]).max()
    assert 0 < difference < 0.1
    assert next(checkpoint.segmenter.parameters()).dtype == torch.float32


def test_risky_activations_stay_in_fp32() -> None:
    # 3 * 100 * 300 = 90,000 would be infinite as a half; onnxruntime on a CPU would not show it
    model = make_graph(scale=300)
    peaks = audit(model, [IMAGE])
    assert peaks["a"] == 90_000
    lowered, notes = lower_to_half(model, peaks, set())
    check_graph(lowered, 20)
    assert notes["nodes_kept_fp32"] == [
        f"{SCOPE}.one/Conv_1",
        f"{SCOPE}.one/Relu_2",
        f"{SCOPE}.two/Conv_3",
    ]
    assert notes["nodes_fp16"] == 1
    types = element_types(lowered)
    assert types["a"] == types["b"] == types["c"] == TensorProto.FLOAT
    np.testing.assert_allclose(run(lowered), run(model), rtol=2e-3)


def test_a_graph_with_nothing_to_lower_is_refused() -> None:
    model = make_graph(scale=300)
    for node in model.graph.node:
        node.name = node.name.replace("network.", "other.")
    with pytest.raises(GraphError, match="no node can be lowered"):
        lower_to_half(model, {}, set())


def test_a_value_that_is_not_finite_counts_as_risky() -> None:
    model = make_graph()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((2, 3, 1, 1), np.inf, np.float32), "w1")
    )
    assert audit(model, [IMAGE])["a"] == float("inf")


def test_weights_are_clamped_flushed_and_counted() -> None:
    weight = numpy_helper.from_array(np.array([1e6, -1e6, 1e-9, 0.0, 1.5], np.float32), "w")
    half, clamped, flushed = half_weight(weight, scale=False)
    np.testing.assert_array_equal(numpy_helper.to_array(half), np.array([HALF_MAX, -HALF_MAX, 0, 0, 1.5]))
    assert (clamped, flushed) == (2, 1)
    scale = numpy_helper.from_array(np.array([1e-9], np.float32), "s")
    assert numpy_helper.to_array(half_weight(scale, scale=True)[0])[0] > 0


def test_resize_scales_stay_float() -> None:
    model = make_graph()
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    node = helper.make_node(
        "Resize", ["b", "", "scales"], ["big"], name=f"{SCOPE}.up/Resize_9", mode="linear"
    )
    model.graph.initializer.append(scales)
    model.graph.node.insert(3, node)
    model.graph.node[4].input[0] = "big"
    lowered, _ = lower_to_half(model, {}, set())
    check_graph(lowered, 20)
    assert element_types(lowered)["scales"] == TensorProto.FLOAT
    assert element_types(lowered)["big__half"] == TensorProto.FLOAT16


def test_exported_files(bundle: Path) -> None:
    half = onnx.load(str(bundle / "model.fp16.onnx"))
    types = element_types(half)
    first = first_nodes(onnx.load(str(bundle / "model.onnx")))
    assert types["linear_logits_stride"] == types["prototype_logits_stride"] == TensorProto.FLOAT
    for node in half.graph.node:
        outside = not node.name.startswith("network.")
        if outside and node.op_type in ("Conv", "Exp", "Resize", "ArgMax", "ReduceMax", "Div"):
            assert types[node.input[0]] != TensorProto.FLOAT16, node.name
        if not outside and node.op_type == "Conv":
            wanted = TensorProto.FLOAT if node.name in first else TensorProto.FLOAT16
            assert types[node.input[0]] == wanted, node.name


def test_zero_features_give_no_nan_in_any_file(bundle: Path) -> None:
    """A dead feature map: the cosine's length is zero, and half precision has no 1e-12."""
    for name in ("model.onnx", "model.fp16.onnx"):
        model = onnx.load(str(bundle / name))
        square = next(n for n in model.graph.node if n.name.startswith("prototypes/Mul"))
        features = square.input[0]
        producer = next(n for n in model.graph.node if features in n.output)
        producer.output[list(producer.output).index(features)] = "alive"
        kind = element_types(onnx.load(str(bundle / name)))[features]
        zero = np.zeros((), np.float16 if kind == TensorProto.FLOAT16 else np.float32)
        model.graph.initializer.append(numpy_helper.from_array(zero, "zero"))
        index = list(model.graph.node).index(producer)
        dead = helper.make_node("Mul", ["alive", "zero"], [features], name="dead")
        model.graph.node.insert(index + 1, dead)
        with OrtRunner(model.SerializeToString()) as runner:
            outputs = runner(np.zeros((1, 3, 64, 64), np.uint8))
        for key, value in outputs.items():
            assert np.isfinite(value).all(), (name, key)
        assert outputs["agreement"].max() > 0


def test_int8_keeps_what_must_stay_float(bundle: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    kept = float_nodes(model, heads=True)
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    assert convolutions[0].name in kept
    assert all(
        n.name in kept for n in convolutions if n.name.startswith(("prototypes", "network.linear_head"))
    )
    projection = [n.name in kept for n in convolutions if n.name.startswith("network.projection")]
    assert projection == [False, True]
    on_cpu = float_nodes(model, heads=False)
    # the first eighth, at most six, and the sum of squares
    expected = [n.name for n in convolutions[: len(convolutions) // 8]] + [convolutions[-1].name]
    assert [n.name for n in convolutions if n.name in on_cpu] == expected


def test_int8_file_has_float_biases_and_signed_symmetric_pairs(bundle: Path) -> None:
    model = onnx.load(str(bundle / "model.int8.onnx"))
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert weights[node.input[1]].dtype == np.float16
        assert (weights[node.input[1]] > 0).all()
        assert weights[node.input[2]].dtype == np.int8
        assert not weights[node.input[2]].any()
    assert not any(w.dtype == np.int32 and w.size > 8 for w in weights.values())


def test_int8_for_cpus_cannot_overflow_16_bits(bundle: Path) -> None:
    """CPUs without VNNI add two products of an unsigned byte and a weight in 16 bits."""
    model = onnx.load(str(bundle / "model.int8-cpu.onnx"))
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    kernels = [w for w in weights.values() if w.dtype == np.int8 and w.ndim == 4]
    assert len(kernels) > 10
    largest = max(int(np.abs(w.astype(np.int32)).max()) for w in kernels)
    assert largest == 64  # the 7 bits are used, and 2 * 255 * 64 fits into 16
    assert 2 * 255 * largest <= np.iinfo(np.int16).max
    # white saturates activations: what ONNX Runtime's kernels give is what the pairs say one by one
    image = np.full((1, 3, 64, 96), 255, np.uint8)
    image[..., ::2] = 200
    with (
        OrtRunner(model.SerializeToString()) as fused,
        OrtRunner(model.SerializeToString(), exact_qdq=True) as exact,
    ):
        np.testing.assert_allclose(fused(image)["confidence"], exact(image)["confidence"], atol=0.05)


def test_scales_are_raised_to_normal_halves() -> None:
    tiny, plain = 1e-8, 0.01
    quantized = np.array([[[[100]]], [[[100]]]], np.int8)
    node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], name="dq", axis=0)
    graph = helper.make_graph(
        [node], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 1, 1, 1])],
        [numpy_helper.from_array(quantized, "w"),
         numpy_helper.from_array(np.array([tiny, plain], np.float32), "s"),
         numpy_helper.from_array(np.zeros(2, np.int8), "z")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    raise_scales(model)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert weights["s"].min() >= np.finfo(np.float16).smallest_normal
    np.testing.assert_array_equal(weights["s"], weights["s"].astype(np.float16))
    value = weights["w"].astype(np.float32).reshape(2) * weights["s"]
    assert (np.abs(value - [100 * tiny, 100 * plain]) <= weights["s"] / 2).all()
