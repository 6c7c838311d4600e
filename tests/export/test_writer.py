"""What a bundle holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle import verify_bundle
from export.graph.edit import to_bytes
from export.parity import main as parity_main
from export.runtime import load_runner
from protoseg.checkpoint import Checkpoint
from protoseg.files import sha256_file
from protoseg.manifest import read_manifest


def test_manifest_is_complete(checkpoint: Checkpoint, bundle: Path) -> None:
    manifest = verify_bundle(bundle)
    info = checkpoint.info
    assert manifest.checkpoint_sha256 == info.weights_sha256
    full = [f for f in manifest.files if f.cut_of is None]
    assert [f.precision for f in full] == ["fp32", "fp16", "int8", "int8-cpu"]
    assert manifest.files[0].parity.status == manifest.files[1].parity.status == "passed"
    half = manifest.files[1].parity.cases
    assert [c.reference for c in half] == ["torch", "model.onnx", "torch"]
    assert "half precision" in half[2].runtime
    case = manifest.files[0].parity.cases[0]
    assert case.inputs > 20
    assert case.metrics["val/miou"] is not None
    assert manifest.baseline is not None
    assert sum(manifest.baseline.class_fractions) == pytest.approx(1)
    assert sum(manifest.baseline.confidence_histogram) == pytest.approx(1)
    assert manifest.baseline.images == 12
    assert manifest.graph.prototypes == 2
    assert manifest.graph.decoder_stride == 4
    for item in full[1:]:
        assert item.notes["calibration"]["images"] == 12
        assert len(item.notes["calibration"]["sha256"]) == 64


def test_graphs_of_labels_alone_are_proven(bundle: Path) -> None:
    manifest = verify_bundle(bundle)
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50), dtype=np.uint8)
    for name in ("model.onnx", "model.int8-cpu.onnx"):
        (cut,) = manifest.cuts(name)
        assert cut.name == name.replace(".onnx", ".labels.onnx")
        assert [output.name for output in cut.outputs] == ["labels"]
        assert [case.reference for case in cut.parity.cases] == ["torch", name]
        assert cut.parity.cases[1].metrics["labels/equal_labels"] == 1
        assert cut.notes.get("weight_bits") == manifest.file(name).notes.get("weight_bits")
        with load_runner(bundle, name, "cpu") as full, load_runner(bundle, cut.name, "cpu") as lean:
            np.testing.assert_array_equal(lean(image)["labels"], full(image)["labels"])
    assert all(item.cut_of is None for item in manifest.servable())
    assert manifest.cuts("model.fp16.onnx") == []


def test_a_cut_of_another_network_loses_its_pass(bundle: Path, tmp_path: Path) -> None:
    """Replaced together with its hash, so that only the numbers can tell."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    file = copy / "model.labels.onnx"
    model = onnx.load(str(file))
    node = next(n for n in model.graph.node if "linear_logits_stride" in n.output)
    bias = next(w for w in model.graph.initializer if w.name == node.input[2])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[::-1].copy(), bias.name))
    file.write_bytes(to_bytes(model))
    raw = json.loads((copy / "manifest.json").read_text())
    next(item for item in raw["files"] if item["name"] == file.name)["sha256"] = sha256_file(file)
    (copy / "manifest.json").write_text(json.dumps(raw))
    assert parity_main([str(copy)]) == 1
    manifest = read_manifest(copy)
    assert manifest.file(file.name).parity.status == "failed"
    assert manifest.cuts("model.onnx") == []
    assert manifest.servable() == read_manifest(bundle).servable()
