"""A network in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.runners.contract import RunnerError, device_view
from export.runners.ort import OrtRunner
from export.runtime import load_runner

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50), dtype=np.uint8)


def test_runner_contract(bundle: Path) -> None:
    with load_runner(bundle, provider="cpu", intra_threads=1) as runner:
        outputs = runner(IMAGE)
        assert runner.provider == "cpu"
        assert [i.name for i in runner.inputs] == ["image"]
        assert [o.name for o in runner.outputs] == list(outputs) == ["labels", "confidence", "agreement"]
        assert outputs["labels"].dtype == np.uint8
        assert all(v.shape == (2, 40, 50) for v in outputs.values())
        assert outputs["confidence"].min() >= 0.25 - 1e-6  # four classes
        assert outputs["agreement"].max() <= 1 + 1e-6
    with pytest.raises(RunnerError, match="closed"):
        runner(IMAGE)
    runner.close()


def test_a_shape_that_the_graph_cannot_take_is_one_line() -> None:
    """As of a pooling pyramid that was traced at one size: the file loads and fails at another shape."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, "height", "width"])
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, None)
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 3, 8, 8])
    node = helper.make_node("Reshape", ["image", "shape"], ["labels"])
    graph = helper.make_graph([node], "fixed", [image], [labels], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with OrtRunner(model.SerializeToString()) as runner:
        assert runner(np.zeros((1, 3, 8, 8), np.uint8))["labels"].shape == (1, 3, 8, 8)
        with pytest.raises(RunnerError, match=r"images of shape 2x3x40x50.*--static BxHxW"):
            runner(IMAGE)


def test_batches_do_not_mix(bundle: Path) -> None:
    with load_runner(bundle, provider="cpu") as runner:
        together = runner(IMAGE)["confidence"]
        alone = runner(IMAGE[1:])["confidence"]
    np.testing.assert_allclose(together[1:], alone, atol=1e-5)


def test_a_strided_view_is_accepted(bundle: Path) -> None:
    hwc = np.ascontiguousarray(IMAGE.transpose(0, 2, 3, 1))
    with load_runner(bundle, provider="cpu") as runner:
        np.testing.assert_array_equal(runner(hwc.transpose(0, 3, 1, 2))["labels"], runner(IMAGE)["labels"])


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (IMAGE.astype(np.float32), "dtype float32, expected uint8"),
        (IMAGE[0], r"shape \(3, 40, 50\), expected \(batch, 3, height, width\)"),
        (IMAGE[:, :2], "shape"),
        (IMAGE[:0], "shape"),
    ],
)
def test_wrong_images_are_refused(bundle: Path, image: Any, text: str) -> None:
    with load_runner(bundle, provider="cpu") as runner, pytest.raises(RunnerError, match=text):
        runner(image)


def test_files_that_are_no_network(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"nonsense")
    with pytest.raises(RunnerError, match="ONNX Runtime cannot load"):
        OrtRunner(file)
    with pytest.raises(RunnerError, match="does not exist"):
        OrtRunner(tmp_path / "absent.onnx")


@pytest.mark.parametrize("name", ["model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx"])
def test_every_precision_runs(bundle: Path, name: str) -> None:
    with load_runner(bundle, provider="cpu") as runner:
        expected = runner(IMAGE)["labels"]
    with load_runner(bundle, name, "cpu", require_parity=False) as runner:
        assert (runner(IMAGE)["labels"] == expected).mean() > 0.8


class Device:
    """Stands for an array in GPU memory."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "|u1", "data": (4096, False), "strides": strides, "version": 3,
        }  # fmt: skip


def test_device_arrays_need_a_device(bundle: Path) -> None:
    with load_runner(bundle, provider="cpu") as runner, pytest.raises(RunnerError, match="GPU memory"):
        runner(Device((1, 3, 8, 8)))
    assert device_view(Device((2, 3), (3, 1))) == (4096, (2, 3), np.dtype(np.uint8))
    with pytest.raises(RunnerError, match="not contiguous"):
        device_view(Device((2, 3), (6, 2)))
