"""The notebooks of docs/tutorials run from top to bottom, as someone who opens them in an empty folder."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.tutorials import FOLDER, execute, tidy

pytest.importorskip("nbclient", reason='pip install -e ".[dev]"')
pytest.importorskip("ipykernel", reason='pip install -e ".[dev]"')


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run(name: str, folder: Path, **values: str) -> tuple[str, list[Any]]:
    """All text that a notebook printed, and its outputs."""
    notebook = execute(FOLDER / f"{name}.ipynb", folder, values)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    return "\n".join(texts), outputs


@pytest.mark.slow
def test_own_data_from_cvat_to_the_service(tmp_path: Path) -> None:
    # with its own number of steps: a network that names one class only is not exported
    text, _ = run("own_data", tmp_path, PORT=free_port())
    assert "format: cvat" in text
    assert "images: 40, labeled 11, unlabeled 24, val 5" in text
    assert "the data is fine" in text
    assert "model.onnx         " in text
    assert "passed" in text
    assert "equal to the loaded bundle: True" in text
    assert "exit code 0" in text
    assert len(list((tmp_path / "cvat_export" / "images").iterdir())) == 40
    masks = list((tmp_path / "data" / "masks").rglob("*.png"))
    assert len(masks) == 16
    for mask in masks:  # what CVAT's run lengths gave is what was drawn
        drawn = np.array(Image.open(tmp_path / "scenes" / "masks" / mask.name))
        assert np.array_equal(np.array(Image.open(mask)), np.where(drawn == 255, 0, drawn))


@pytest.mark.slow
def test_few_labels_compares_two_runs(tmp_path: Path) -> None:
    text, _ = run("few_labels", tmp_path, STEPS="6", SEEDS="(0, 1)")
    assert text.count("2 pair(s)") == 2
    finished = [path.parent.name for path in tmp_path.glob("runs/*/finished.json")]
    assert sorted(finished) == ["protoseg_0", "protoseg_1", "supervised_0", "supervised_1"]
    methods = {
        name: json.loads((tmp_path / "runs" / name / "checkpoint" / "config.json").read_text())["method"]
        for name in finished
    }
    assert all(name.startswith(method) for name, method in methods.items())


@pytest.mark.slow
def test_pictures_are_all_shown(tmp_path: Path) -> None:
    text, outputs = run("pictures", tmp_path, STEPS="8")
    shown = [output for output in outputs if "image/jpeg" in output.get("data", {})]
    assert len(shown) == 8
    for name in ("pictures/step_00000008.png", "curves.png", "confusion.png"):
        assert name in text


def test_what_belongs_to_one_machine_is_dropped() -> None:
    nbformat = pytest.importorskip("nbformat")
    stream = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell("x", execution_count=7, outputs=[
        stream("stream", name="stdout", text="in /made/for/it/x"),
        stream("stream", name="stdout", text="y/out\n"),
        stream("stream", name="stderr", text=" 50%|\r"),
        stream("stream", name="stderr", text="warning\n"),
        stream("display_data", data={"text/html": "<p>", "image/png": "A"}),
    ])  # fmt: skip
    kernel = {"name": "mine", "display_name": "Mine"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    tidy(notebook, Path("/made/for/it/xy"))
    found = notebook.cells[0]
    assert found.execution_count == 1
    assert [output.get("text") for output in found.outputs] == ["in ./out\n", "warning\n", None]
    assert found.outputs[2].data == {"text/html": "<p>"}
    assert notebook.metadata["kernelspec"]["name"] == "python3"
