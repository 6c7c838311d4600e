"""A network in OpenVINO; what needs it is skipped where it is not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from export.bundle import openvino_parity
from export.runners import openvino
from export.runners.contract import RunnerError
from export.runtime import load_runner
from protoseg.manifest import read_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
IMAGE = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50), dtype=np.uint8)


def need_openvino(*, bf16: bool = False) -> None:
    module = pytest.importorskip("openvino")
    if bf16 and "BF16" not in module.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute bfloat16")


def test_a_file_that_is_not_proven_in_it_is_refused(bundle: Path) -> None:
    with pytest.raises(RunnerError, match=r"model\.onnx: parity in openvino-bf16 is not_run.*--runtime open"):
        load_runner(bundle, "model.onnx", "openvino-bf16")
    with pytest.raises(RunnerError, match=r"model\.fp16\.onnx is not for OpenVINO"):
        load_runner(bundle, "model.fp16.onnx", "openvino", require_parity=False)


def test_without_openvino_the_extra_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(openvino.importlib, "import_module", missing)
    with pytest.raises(RunnerError, match=r"pip install 'protoseg\[openvino\]'"):
        load_runner(bundle, "model.onnx", "openvino", require_parity=False)


def test_it_gives_what_onnx_runtime_gives(bundle: Path) -> None:
    need_openvino()
    with load_runner(bundle, "model.onnx", "cpu") as runner:
        expected = runner(IMAGE)
        infos = [info.name for info in runner.outputs]
    with load_runner(bundle, "model.onnx", "openvino", intra_threads=1, require_parity=False) as runner:
        found = runner(IMAGE)
        assert runner.provider == "openvino"
        assert [info.name for info in runner.outputs] == infos == list(found)
        np.testing.assert_array_equal(found["labels"], expected["labels"])
        np.testing.assert_allclose(found["confidence"], expected["confidence"], atol=1e-4)
        with pytest.raises(RunnerError, match="float32, expected uint8"):
            runner(IMAGE.astype(np.float32))
        with pytest.raises(RunnerError, match="has shape"):
            runner(IMAGE[:, :2])
    with pytest.raises(RunnerError, match="closed"):
        runner(IMAGE)
    runner.close()


def test_threads_do_not_mix_and_answers_stay(bundle: Path) -> None:
    need_openvino()
    images = [np.roll(IMAGE, 5 * i, axis=2) for i in range(8)]
    with load_runner(
        bundle, "model.onnx", "openvino", intra_threads=1, parallel=2, require_parity=False
    ) as runner:
        expected = [runner(image)["confidence"] for image in images]
        assert not np.array_equal(expected[0], expected[1])
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda image: runner(image)["confidence"], 3 * images))
    for got, wanted in zip(found, 3 * expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_processor_without_bfloat16_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_openvino()

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    module = openvino.import_openvino()
    monkeypatch.setattr(module, "Core", Core)
    with pytest.raises(RunnerError, match="does not compute bfloat16"):
        load_runner(bundle, "model.onnx", "openvino-bf16", require_parity=False)


def test_the_proof_opens_it(bundle: Path, tmp_path: Path, run_module: Run) -> None:
    need_openvino(bf16=True)
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    done = run_module("export.parity", copy, "--runtime", "openvino-bf16")
    assert done.returncode == 0, done.stderr + done.stdout
    manifest = read_manifest(copy)
    item = manifest.file("model.onnx")
    assert openvino_parity(item, "openvino-bf16").status == "passed"
    assert openvino_parity(item, "openvino").status == "not_run"
    assert item.notes["openvino-bf16"]["processor"]
    assert "openvino-bf16" not in manifest.file("model.fp16.onnx").notes
    with (
        load_runner(copy, "model.onnx", "openvino-bf16") as runner,
        load_runner(copy, provider="cpu") as full,
    ):
        found, expected = runner(IMAGE), full(IMAGE)
        assert "bfloat16" in runner.description
    difference = np.abs(found["confidence"] - expected["confidence"]).max()
    assert 1e-4 < difference < 0.1
    text = (copy / "manifest.json").read_text()
    raw = json.loads(text)
    raw["files"][0]["notes"]["openvino-bf16"]["parity"] |= {"status": "failed", "reason": "it differs"}
    (copy / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(RunnerError, match=r"parity in openvino-bf16 is failed \(it differs\)"):
        load_runner(copy, "model.onnx", "openvino-bf16")
