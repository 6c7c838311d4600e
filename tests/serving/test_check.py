from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving_bundle import make_bundle
from protoseg.files import sha256_file
from serving.check import main


def test_command_reports_both_ways(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    assert main([str(bundle)]) == 0
    assert "samples agree to 100.0000%" in capsys.readouterr().out
    (copy / "model.onnx").write_bytes(b"not a network")
    assert main([str(copy)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_command_as_a_process_without_torch(bundle: Path) -> None:
    code = (
        "import sys, serving.check; code = serving.check.main(); "
        "sys.exit(code or bool({'torch', 'accelerate'} & set(sys.modules)))"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_graph_that_does_not_load_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_bundle(tmp_path)
    (folder / "model.onnx").write_bytes(b"not a network")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0]["sha256"] = sha256_file(folder / "model.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ONNX Runtime cannot load")
    assert error.count("\n") == 1


def test_the_former_name_goes_on_working(bundle: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "serving.bundle", str(bundle)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "samples agree" in done.stdout
