"""Which network of a bundle runs on what, and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.runners.contract import RunnerError
from export.runners.cuda import load_driver
from export.runtime import load_runner
from protoseg.errors import ManifestError


def has_driver() -> bool:
    try:
        load_driver()
    except RunnerError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
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


def test_runtime_never_imports_torch() -> None:
    code = "import sys, export.runtime, export.parity, export.inspect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
