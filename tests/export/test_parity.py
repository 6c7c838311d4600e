"""Bundles are proven again without the checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.runners.contract import RunnerError
from export.runtime import load_runner
from protoseg.manifest import read_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_parity_repeats_without_the_checkpoint(bundle: Path, tmp_path: Path, run_module: Run) -> None:
    copy = shutil.copytree(bundle, tmp_path / "moved")
    done = run_module("export.parity", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx"):
        assert f"{name}: passed" in done.stdout
    assert read_manifest(copy) == read_manifest(bundle)


def test_parity_takes_a_pass_away(bundle: Path, tmp_path: Path) -> None:
    """A file that was replaced together with its hash, so that only the numbers can tell."""
    from export.parity import main as parity_main
    from protoseg.files import sha256_file

    copy = shutil.copytree(bundle, tmp_path / "bundle")
    data = bytearray((copy / "samples" / "0_logits.npz").read_bytes())
    stored = dict(np.load(copy / "samples" / "0_logits.npz"))
    stored["linear_logits_stride"] = stored["linear_logits_stride"] + 0.01
    np.savez(copy / "samples" / "0_logits.npz", **stored)
    assert bytes(data) != (copy / "samples" / "0_logits.npz").read_bytes()
    raw = json.loads((copy / "manifest.json").read_text())
    raw["samples"][0]["sha256"]["samples/0_logits.npz"] = sha256_file(copy / "samples" / "0_logits.npz")
    (copy / "manifest.json").write_text(json.dumps(raw))
    assert parity_main([str(copy)]) == 1
    assert read_manifest(copy).files[0].parity.status == "failed"
    with pytest.raises(RunnerError, match="whose parity passed"):
        load_runner(copy)


def test_parity_refuses_a_changed_byte(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.parity import main as parity_main

    copy = shutil.copytree(bundle, tmp_path / "bundle")
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(bytes(data))
    before = (copy / "manifest.json").read_bytes()
    assert parity_main([str(copy)]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "model.onnx was changed after it was exported" in error[0]
    assert (copy / "manifest.json").read_bytes() == before
