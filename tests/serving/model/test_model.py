from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.serving_bundle import COLORS, build_model, make_bundle, sample_image
from protoseg.files import sha256_file
from protoseg.manifest import ResizeConfig
from serving.errors import BundleError
from serving.model.model import Engine, open_engine
from serving.model.prune import prune_outputs
from serving.model.upsample import argmax_planes, upsample
from serving.settings import Settings

ALL = ("labels", "confidence", "agreement", "logits", "logits_stride")
Open = Callable[..., Engine]


def load(folder: Path, **settings: Any) -> Engine:
    values = Settings(**settings)
    return open_engine(folder, values)


def nearest_color(image: NDArray[np.uint8]) -> NDArray[np.intp]:
    difference = image[:, :, None].astype(int) - np.array(COLORS)
    return (difference**2).sum(-1).argmin(-1)


def blocks(height: int, width: int) -> NDArray[np.uint8]:
    """Plain colours in squares of 16 pixels, whose inner pixels have one right answer."""
    index = (np.arange(height)[:, None] // 16 + np.arange(width)[None] // 16) % 5
    return np.array(COLORS, np.uint8)[index]


def inner(labels: NDArray[Any]) -> NDArray[Any]:
    return labels[8::16, 8::16]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "uint8_nhwc"},
        {"layout": "float32_nchw"},
        {"static_shape": (1, 96, 128)},
        {"static_shape": (3, 96, 128), "layout": "uint8_nhwc"},
        {"outputs": ALL},
        {"outputs": ("labels",)},
    ],
)
def test_every_kind_of_graph_names_the_colours(options: dict[str, Any], tmp_path: Path) -> None:
    with load(make_bundle(tmp_path, **options)) as engine:
        for size in ((96, 128), (70, 33), (150, 200)):
            image = blocks(*size)
            result = engine.predict(image, confidence=True, agreement=True)
            assert result.labels.shape == size
            np.testing.assert_array_equal(inner(result.labels), inner(nearest_color(image)))
            assert (result.confidence is not None) == engine.has_confidence
            if result.confidence is not None:
                assert result.confidence.shape == size
                assert inner(result.confidence).min() > 0.9
            assert (result.agreement is None) == ("agreement" not in engine.outputs)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 1), (17, 19)])
def test_any_size_goes_through(bundle: Path, size: tuple[int, int]) -> None:
    with load(bundle) as engine:
        result = engine.predict(np.full((*size, 3), 240, np.uint8), confidence=True)
        assert result.labels.shape == size
        assert result.labels.max() < 5
        assert result.confidence is not None
        assert np.isfinite(result.confidence).all()


def test_batches_give_the_same_as_single_images(bundle: Path) -> None:
    with load(bundle) as single, load(bundle, batch_max=4) as batched:
        assert batched.batcher is not None
        for seed in range(3):
            image = sample_image(40, 56, seed)
            a, b = (e.predict(image, confidence=True) for e in (single, batched))
            np.testing.assert_array_equal(a.labels, b.labels)
        batched.close()


def test_tiles_agree_with_the_whole_image(tmp_path: Path) -> None:
    image = sample_image(300, 420, seed=5)
    for outputs in (ALL, ("labels", "confidence", "agreement")):
        folder = make_bundle(tmp_path / str(len(outputs)), outputs=outputs)
        with load(folder, tile=96) as engine:
            whole = engine.predict(image, confidence=True, agreement=True)
            tiled = engine.predict(image, confidence=True, agreement=True, tile=True)
            assert (whole.tiles, tiled.tiles) == (1, 4 * 6)
            # the reach of this network is a pixel's own pooling cell; tile borders shift the cells
            assert np.mean(whole.labels == tiled.labels) > 0.97
            assert tiled.confidence is not None
            assert whole.confidence is not None
            assert abs(float(tiled.confidence.mean() - whole.confidence.mean())) < 0.02
            assert tiled.agreement is not None


def test_large_images_are_tiled_by_themselves(bundle: Path) -> None:
    with load(bundle, max_network_pixels=20_000, tile=96) as engine:
        assert engine.predict(sample_image(100, 100)).tiles == 1
        assert engine.predict(sample_image(200, 200)).tiles > 1


def test_tiles_stop_when_nobody_waits(bundle: Path) -> None:
    class GoneError(Exception):
        pass

    calls = []

    def alive() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise GoneError

    with load(bundle, tile=64) as engine, pytest.raises(GoneError):
        engine.predict(sample_image(300, 300), tile=True, alive=alive)


def torch_upsampled(
    logits: NDArray[np.float32], sizes: list[tuple[int, int]], crop: tuple[int, int]
) -> NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(logits)[None]
    for index, size in enumerate(sizes):
        x = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        if index == 0:
            x = x[:, :, : crop[0], : crop[1]]
    return np.asarray(x[0].numpy())


@pytest.mark.parametrize("size", [(50, 70), (23, 31), (200, 90)])
def test_upsampling_is_torchs(size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 12, 16)).astype(np.float32)
    expected = torch_upsampled(logits, [(48, 64), size], (45, 61))
    planes = list(upsample(logits, size, (48, 64), (45, 61)))
    np.testing.assert_allclose(np.stack(planes), expected, atol=2e-5)
    labels, confidence = argmax_planes(lambda: upsample(logits, size, (48, 64), (45, 61)), True)
    assert np.mean(labels == expected.argmax(0)) > 0.9999
    exponentials = np.exp(expected - expected.max(0))
    np.testing.assert_allclose(confidence, 1 / exponentials.sum(0), atol=1e-4)


def test_first_class_wins_a_tie() -> None:
    labels, _ = argmax_planes(lambda: iter(np.ones((3, 2, 2), np.float32)), False)
    assert labels.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("outputs", [("labels", "confidence", "logits"), ALL])
def test_other_working_size_upsamples_logits(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    folder = make_bundle(tmp_path, outputs=outputs, resize=ResizeConfig(mode="fixed", height=96, width=128))
    image = cv2.resize(blocks(96, 128), (256, 192), interpolation=cv2.INTER_NEAREST)
    with load(folder) as engine:
        assert engine.upsampling == "logits"
        result = engine.predict(image, confidence=True)
        assert result.labels.shape == (192, 256)
        np.testing.assert_array_equal(result.labels[16::32, 16::32], inner(nearest_color(blocks(96, 128))))
        small = engine.predict(image, confidence=True, at_model_size=True)
        assert small.labels.shape == (96, 128)
        assert small.confidence is not None
        assert small.confidence.shape == (96, 128)


def test_without_logits_labels_are_enlarged(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, resize=ResizeConfig(mode="long_side", size=32))
    with load(folder) as engine:
        assert engine.upsampling == "nearest"
        result = engine.predict(np.full((90, 60, 3), 240, np.uint8), confidence=True)
        assert result.labels.shape == (90, 60)
        assert result.confidence is not None
        assert result.confidence.shape == (90, 60)


def test_fused_labels_are_the_graphs(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, outputs=ALL)
    with load(folder) as fused, load(folder, fused=False) as plain:
        assert (fused._fused, plain._fused) == (True, False)
        for size in ((96, 128), (61, 85)):
            image = sample_image(*size, seed=11)
            np.testing.assert_array_equal(fused.predict(image).labels, plain.predict(image).labels)


def test_a_bundle_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    labels = folder / "samples" / "0_labels.png"
    cv2.imwrite(str(labels), np.full((96, 128), 3, np.uint8))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["samples"][0]["sha256"]["samples/0_labels.png"] = sha256_file(labels)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="agrees with its samples"):
        load(folder)


def test_engines_close_after_their_last_user(bundle: Path) -> None:
    engine = load(bundle, batch_max=2)
    assert engine.batcher is not None
    with engine:
        engine.close()
        engine.predict(sample_image(20, 20))
    with pytest.raises(Exception, match="waiting"):
        engine.predict(sample_image(20, 20))


def run_all(model: bytes, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


@pytest.mark.parametrize("keep", [{"labels"}, {"confidence"}, {"labels", "logits_stride"}, set(ALL)])
def test_pruned_graphs_compute_the_same(keep: set[str]) -> None:
    model = build_model(ALL)
    pruned = prune_outputs(model.SerializeToString(), frozenset(keep))
    parsed = onnx.load_model_from_string(pruned)
    onnx.checker.check_model(parsed)
    assert {output.name for output in parsed.graph.output} == keep
    if keep == {"labels"}:
        assert len(parsed.graph.node) < len(model.graph.node) - 5
        assert not any("prototype" in item.name for item in parsed.graph.initializer)
    image = sample_image(33, 47).transpose(2, 0, 1)[None].copy()
    expected, got = run_all(model.SerializeToString(), image), run_all(pruned, image)
    for name in keep:
        np.testing.assert_array_equal(got[name], expected[name])


def test_pruning_keeps_what_a_subgraph_reads() -> None:
    value = helper.make_tensor_value_info
    scalar = TensorProto.FLOAT
    then_graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["t"])], "then", [], [value("t", scalar, [1])]
    )
    else_graph = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["e"])], "else", [], [value("e", scalar, [1])]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["x"], ["a"]),
            helper.make_node("Abs", ["x"], ["b"]),
            helper.make_node("Exp", ["x"], ["c"]),
            helper.make_node("Sqrt", ["b"], ["unused"]),
            helper.make_node("If", ["flag"], ["y"], then_branch=then_graph, else_branch=else_graph),
        ],
        "g", [value("x", scalar, [1]), value("flag", TensorProto.BOOL, [])],
        [value("y", scalar, [1]), value("unused", scalar, [1])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    pruned = onnx.load_model_from_string(prune_outputs(model.SerializeToString(), frozenset({"y"})))
    assert [node.op_type for node in pruned.graph.node] == ["Neg", "Abs", "Exp", "If"]


@pytest.mark.parametrize("data", [b"", b"\x00\x01", b"\x3a\xff\xff\xff\x7f", b"not a model at all"])
def test_pruning_refuses_other_files(data: bytes) -> None:
    with pytest.raises(ValueError, match="ONNX"):
        prune_outputs(data, frozenset({"labels"}))


def test_pruning_needs_the_output() -> None:
    with pytest.raises(ValueError, match="no output embedding"):
        prune_outputs(build_model(("labels",)).SerializeToString(), frozenset({"embedding"}))
