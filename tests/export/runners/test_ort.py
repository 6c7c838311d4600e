"""Runners and their refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.runners import ort as runtime
from export.runners.contract import check_input, device_view
from export.runners.ort import OrtRunner, RunnerError, load_runner
from protoseg.errors import ManifestError
from protoseg.manifest import TensorInfo

CUDA_WORKS = runtime._cuda_may_work()
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


@pytest.mark.skipif(CUDA_WORKS, reason="this machine has an NVIDIA driver")
def test_a_silent_fallback_is_an_error(bundle: Path) -> None:
    with pytest.raises(RunnerError, match=r"fell back|cannot load") as error:
        load_runner(bundle, provider="cuda")
    assert "NVIDIA driver" in str(error.value)
    assert load_runner(bundle, provider="auto").provider == "cpu"


def test_a_changed_byte_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    with pytest.raises(RunnerError, match="was changed after it was exported"):
        load_runner(copy)
    (copy / "model.onnx").unlink()
    with pytest.raises(RunnerError, match="missing from the bundle"):
        load_runner(copy)


def test_a_failed_proof_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    raw = json.loads((copy / "manifest.json").read_text())
    for item in raw["files"]:
        item["parity"] |= {"status": "failed", "reason": "it differs"}
    (copy / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(RunnerError, match="no network for auto whose parity passed"):
        load_runner(copy)
    with pytest.raises(RunnerError, match=r"parity is failed \(it differs\)"):
        load_runner(copy, "model.onnx")
    load_runner(copy, "model.onnx", require_parity=False).close()


def test_unknown_files_and_kinds(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"has no file other\.onnx"):
        load_runner(bundle, "other.onnx")
    with pytest.raises(RunnerError, match="build one with"):
        load_runner(bundle, "model.onnx", provider="tensorrt")
    with pytest.raises(RunnerError, match=r"run python -m export\.tensorrt"):
        load_runner(bundle, provider="tensorrt")
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        load_runner(tmp_path)


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


def test_static_axes_are_checked() -> None:
    info = TensorInfo(name="image", dtype="uint8", shape=[1, 3, 64, 96])
    check_input(info, (1, 3, 64, 96), np.dtype(np.uint8))
    with pytest.raises(RunnerError, match="expected"):
        check_input(info, (2, 3, 64, 96), np.dtype(np.uint8))


def test_runtime_never_imports_torch() -> None:
    code = "import sys, export.runners.ort, export.runners.tensorrt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
