"""Results tables: what the documents say is what the result files and the settings say."""

import json
import shutil
import subprocess
import sys

import pytest
from tiny import PROJECT_ROOT, quiet_environment

from benchmarks import gpu_latency
from benchmarks.accuracy import tables as blocks
from benchmarks.common import Block, machine, signed
from benchmarks.tables import BLOCKS, OWNERS, documents, machine_words, main, make_block, source_line


def test_documents_of_the_project_say_what_the_results_say(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_every_benchmark_with_results_is_asked_for_its_tables():
    folder = PROJECT_ROOT / "benchmarks"
    owners = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if "\nANSWERS = {" in path.read_text()
    }
    assert owners == set(OWNERS)


def test_tables_are_made_without_torch():
    code = "import sys, benchmarks.tables; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, env=quiet_environment(), text=True,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture
def copy(tmp_path):
    """Documents and results in a folder of their own."""
    shutil.copytree(PROJECT_ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    for path in documents(PROJECT_ROOT):
        target = tmp_path / path.relative_to(PROJECT_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def check(root, capsys):
    code = main(["--check", "--root", str(root)])
    return code, capsys.readouterr().err


def test_a_changed_number_in_a_document_is_caught(copy, capsys):
    page = copy / "docs" / "results.md"
    result = json.loads((copy / "benchmarks" / "results" / "serving_soak.json").read_text())
    old = f"p50 {result['overload']['latency_ms_of_200']['p50']:.0f} ms"
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, "p50 1 ms"))
    code, error = check(copy, capsys)
    assert code == 1
    assert error.count("error:") == 1
    assert "docs/results.md, results:serving_soak: says something else" in error
    assert "p50 1 ms" in page.read_text()  # a check changes nothing
    assert main(["--root", str(copy)]) == 0
    assert old in page.read_text()
    assert check(copy, capsys) == (0, "")


def test_a_changed_result_is_caught_in_every_document_that_shows_it(copy, capsys):
    path = copy / "benchmarks" / "results" / "export_latency.json"
    result = json.loads(path.read_text())
    result["date"] = "2001-02-03"
    path.write_text(json.dumps(result))
    code, error = check(copy, capsys)
    assert code == 1
    assert "benchmarks/README.md, results:index:" in error
    assert "docs/results.md, results:export_latency:" in error


def test_wrong_markers_and_absent_files_are_caught(copy, capsys):
    page = copy / "docs" / "extra.md"
    page.write_text("<!-- results:nonsense -->\nold\n<!-- /results -->\nsee `benchmarks/results/none.json`\n")
    code, error = check(copy, capsys)
    assert code == 1
    assert "docs/extra.md, results:nonsense: no table has this name" in error
    assert "docs/extra.md: names benchmarks/results/none.json, which does not exist" in error
    page.write_text("<!-- results:index -->\nold\n")
    code, error = check(copy, capsys)
    assert code == 1
    assert "docs/extra.md: a <!-- results:NAME --> or settings line is not closed" in error


def test_a_result_file_of_another_shape_is_an_error_with_a_cure(copy, capsys):
    path = copy / "benchmarks" / "results" / "serving_attacks.json"
    result = json.loads(path.read_text())
    del result["table"]
    path.write_text(json.dumps(result))
    code, error = check(copy, capsys)
    assert code == 1
    assert "serving_attacks.json lacks what the table shows (KeyError: 'table')" in error
    path.write_text("{")
    code, error = check(copy, capsys)
    assert code == 1
    assert "serving_attacks.json is not JSON" in error


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_without_results_says_which_command_makes_them(tmp_path, name):
    text = make_block("results", name, tmp_path)
    assert text.startswith("Not measured yet; made by `python -m benchmarks.")
    assert len(text.splitlines()) == 1


def test_a_loss_that_rounds_to_nothing_has_no_minus():
    assert [signed(value) for value in (-0.002, 0.06, -0.172)] == ["+0.00", "+0.06", "-0.17"]


def rows(text):
    return [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_gpu_table_gives_the_worst_share_of_equal_labels():
    times = {"onnx fp32": {"wall_ms": {"median": 2.25, "min": 2.0, "max": 2.5, "n": 3}}}
    sizes = {
        f"1x3x{side}x{side}": {"times": times, "labels_equal_to_torch_fp32": {"onnx fp32": share}}
        for side, share in ((64, 0.9996), (96, 0.9992))
    }
    head, row = rows(gpu_latency.table({"sizes": sizes}))
    assert head == ["", "1x64x64", "1x96x96", "labels equal to torch fp32"]
    assert row == ["ONNX Runtime, CUDA, fp32", "2.2 (2.0 to 2.5)", "2.2 (2.0 to 2.5)", "99.92 %"]


def test_versions_of_several_results_are_all_named():
    entry = Block(blocks.by_method, ("a", "b"), ("torch", "numpy"))
    found = [
        {"machine": {}, "date": "2026-01-01", "versions": {"torch": version, "numpy": "2.4.6"}}
        for version in ("2.11.0", "2.14.1")
    ]
    assert "torch 2.11.0 and 2.14.1, numpy 2.4.6; 2026-01-01" in source_line(entry, found)


def test_results_name_the_gpu(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine()["gpu"] == "NVIDIA H200, driver 580.1"
    assert machine_words(machine()).startswith("NVIDIA H200, ")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert "gpu" not in machine()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "gpu" not in machine()
