"""What an engine's bytes and its inspector tell of its precision, on engines that are nothing but weights."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.engines.audit import Audit, compare, layer_types, source_failure, weighted_nodes
from export.graph.edit import read_model
from export.inspect import Attempt, with_precision
from protoseg.files import sha256_file
from protoseg.manifest import ArtifactFile, Manifest, ParityReport, Precision, read_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NAMES: dict[Precision, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}


def engine_of(bundle: Path, precision: Precision, as_type: str | None = None) -> bytes:
    """A file's weights one after the other, in the types asked for or all in one type."""
    name = NAMES[precision]
    notes = read_manifest(bundle).file(name).notes
    nodes = weighted_nodes(read_model(bundle / name), precision, notes)
    return b"".join(item.values[as_type or item.asked].tobytes() for item in nodes)


def audit(bundle: Path, precision: Precision, engine: bytes, information: str | None = None) -> Audit:
    name = NAMES[precision]
    notes = read_manifest(bundle).file(name).notes
    full = read_model(bundle / "model.onnx")
    return compare(read_model(bundle / name), precision, notes, engine, information, full)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_in_the_types_asked_for_pass(bundle: Path, precision: Precision) -> None:
    engine = engine_of(bundle, precision)
    found = audit(bundle, precision, engine)
    assert not found.failure
    assert found.weights == found.size == len(engine)
    # a few are too short to be recognised
    recognised = {name: count for name, count in found.found.items() if name != "unknown"}
    assert sum(recognised.values()) >= 0.8 * sum(found.asked.values())
    assert all(count <= found.asked[name] for name, count in recognised.items())
    assert Audit(**json.loads(json.dumps(found.record()))) == found


@pytest.mark.parametrize("source", ["fp16", "fp32"])
def test_float32_under_the_name_of_half_is_told_by_number_and_name(bundle: Path, source: Precision) -> None:
    """As TensorRT 11 writes it for ``fp16=True``: the file's weights, or those before they were rounded."""
    found = audit(bundle, "fp16", engine_of(bundle, source, "float32"))
    assert len(found.wrong) >= 0.8 * found.asked["float16"]
    assert f"{len(found.wrong)} of {sum(found.asked.values())} weighted nodes differ" in found.failure
    assert "float32 instead of float16" in found.failure
    assert all(line.startswith("network.") for line in found.wrong)


def test_half_where_float32_was_asked_for_fails_too(bundle: Path) -> None:
    assert "float16 instead of float32" in audit(bundle, "fp32", engine_of(bundle, "fp32", "float16")).failure


def test_weights_in_a_foreign_order_are_unknown_and_not_wrong(bundle: Path) -> None:
    found = audit(bundle, "fp16", b"\0" * 1000)
    assert found.found == {"unknown": sum(found.asked.values())}
    assert not found.failure


def layer(name: str, kind: str, **more: Any) -> dict[str, Any]:
    tensor = {"Name": "x", "Format/Datatype": kind}
    return {"Name": name, "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor], **more}


def test_the_inspector_tells_types_of_layers(bundle: Path) -> None:
    model = read_model(bundle / NAMES["fp16"])
    nodes = {
        n.node: n for n in weighted_nodes(model, "fp16", read_manifest(bundle).file(NAMES["fp16"]).notes)
    }
    low = [name for name, item in nodes.items() if item.asked == "float16"]
    high = [name for name, item in nodes.items() if item.asked == "float32"]
    half = "Two wide channel vectorized row major FP16 format"
    information = json.dumps({
        "Layers": [
            layer(f"{low[0]} + relu", half),
            layer("fused", "Float", Metadata=f"[ONNX Layer: {low[1]}]\x1e[ONNX Layer: {low[2]}]"),
            layer(low[3], "Row major linear FP32", Weights={"Type": "Half", "Count": 9}),
            layer(high[0], "Float"),
            "a layer of an engine without detailed verbosity",
        ]
    })  # fmt: skip
    assert [kind for _, kind in layer_types(information)] == ["float16", "float32", "float16", "float32"]
    found = audit(bundle, "fp16", engine_of(bundle, "fp16"), information)
    assert found.layers == {"float16": 2, "float32": 2}
    assert not list(layer_types("not JSON"))
    assert found.wrong == [f"{name}: float32 instead of float16" for name in (low[1], low[2])]


def test_a_file_that_is_not_of_its_precision(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    for precision, name in NAMES.items():
        assert not source_failure(read_model(bundle / name), precision, manifest.file(name).notes)
    full = read_model(bundle / "model.onnx")
    text = source_failure(full, "fp16", manifest.file("model.fp16.onnx").notes)
    assert "another type than fp16 wants" in text
    assert "float32 instead of float16" in text
    # an earlier export, whose notes do not tell
    assert not source_failure(full, "fp16", {})


def test_no_engine_is_built_from_a_file_that_is_not_of_its_precision(
    bundle: Path, tmp_path: Path, run_module: Run
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    shutil.copy(copy / "model.onnx", copy / "model.fp16.onnx")
    text = (copy / "manifest.json").read_text()
    for old, new in [(sha256_file(bundle / "model.fp16.onnx"), sha256_file(copy / "model.fp16.onnx"))]:
        text = text.replace(old, new)
    (copy / "manifest.json").write_text(text)
    done = run_module("export.tensorrt", copy, "--flavor", "rtx", "--precision", "fp16", "--no-cache")
    assert done.returncode == 1
    assert "another type than fp16 wants" in done.stderr
    assert not list(copy.glob("*.plan"))


def test_inspect_says_that_an_engine_is_not_what_it_is_called(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "model.fp16.plan").write_bytes(engine_of(bundle, "fp32"))
    manifest: Manifest = read_manifest(copy)
    source = manifest.file("model.fp16.onnx")
    item: ArtifactFile = source.model_copy(
        update={"name": "model.fp16.plan", "kind": "tensorrt_rtx", "source": source.name,
                "parity": ParityReport(status="not_run")}
    )  # fmt: skip
    attempt = with_precision(copy, manifest, item, Attempt(item.name, "tensorrt", False, "no driver"))
    assert "float32 instead of float16" in attempt.wrong
    assert attempt.precision.startswith("weights: ")
    (copy / "model.fp16.onnx").unlink()
    told = with_precision(copy, manifest, item, Attempt(item.name, "tensorrt", False, "no driver"))
    assert told.precision.startswith("cannot be told: ")
