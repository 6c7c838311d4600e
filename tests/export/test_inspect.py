"""What the command shows of a bundle."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from protoseg.manifest import read_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
def test_inspect_runs_what_it_lists(bundle: Path, tmp_path: Path, run_module: Run) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    done = run_module("export.inspect", copy)
    assert done.returncode == 0, done.stderr
    assert "model.onnx on cpu: onnxruntime" in done.stdout
    assert "100.0000% of labels as torch" in done.stdout
    if "no NVIDIA driver" in done.stdout:
        assert "model.onnx on cuda: NO: CUDAExecutionProvider was asked for" in done.stdout
    (copy / "model.fp16.onnx").write_bytes(b"changed")
    done = run_module("export.inspect", copy)
    assert done.returncode == 1
    assert "DAMAGED" in done.stdout


def test_int8_for_cpus_says_on_which_it_is_exact(bundle: Path, tmp_path: Path) -> None:
    from export import inspect as export_inspect

    manifest = read_manifest(bundle)
    assert "  7-bit weights: exact on x86 CPUs with and without VNNI" in export_inspect.describe(manifest)
    item = manifest.file("model.int8-cpu.onnx")
    old = item.model_copy(update={"notes": {k: v for k, v in item.notes.items() if k != "weight_bits"}})
    lines = export_inspect.describe(manifest.model_copy(update={"files": [old]}))
    assert any("sums overflow on x86 CPUs without VNNI" in line for line in lines)


def test_inspect_needs_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from export.inspect import main as inspect_main

    assert inspect_main([str(tmp_path)]) == 1
    assert "python -m export.onnx CKPT" in capsys.readouterr().err


def test_two_onnx_runtimes_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from export import inspect as export_inspect

    both = ["onnxruntime 1.31.1", "onnxruntime-gpu 1.31.1"]
    monkeypatch.setattr(export_inspect, "onnxruntime_distributions", lambda: both)
    assert any("PROBLEM: two ONNX Runtime" in line for line in export_inspect.environment())
