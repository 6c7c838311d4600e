"""The bundle folder, and bundles of earlier versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.bundle import check_target, verify_bundle
from export.graph.edit import to_bytes
from export.graph.trace import ExportSettings
from export.inspect import describe, try_file
from export.onnx import export_bundle
from export.parity import main as parity_main
from export.proof.prove import Setup
from export.proof.samples import sample_batches, softmax
from export.runtime import load_runner
from protoseg.checkpoint import Checkpoint
from protoseg.errors import ExportError
from protoseg.files import sha256_file
from protoseg.manifest import read_manifest


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    check_target(target)
    target.mkdir()
    check_target(target)
    (target / "chapter.tex").write_text("text")
    with pytest.raises(ExportError, match="is not a bundle"):
        check_target(target)


def test_a_manifest_that_calls_the_fused_head_mean(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    raw = json.loads((copy / "manifest.json").read_text())
    raw["graph"]["head"] = "mean"
    for item in raw["files"]:
        del item["cut_of"]
        for case in item["parity"]["cases"]:
            del case["details"]["miou_classes"]
    (copy / "manifest.json").write_text(json.dumps(raw))
    manifest = verify_bundle(copy)
    assert Setup.of(copy, manifest).head == "fused"
    for _, _, outputs in sample_batches(copy, manifest):
        probs = [softmax(outputs[f"{head}_logits"]) for head in ("linear", "prototype")]
        np.testing.assert_allclose(outputs["confidence"], (sum(probs) / 2).max(1), atol=1e-6)
    assert sum("mIoU by the rule up to 0.1" in line for line in describe(manifest)) == 1


@pytest.fixture(scope="module")
def fused_bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ExportSettings(head="fused", outputs=("labels", "confidence", "agreement", "logits_stride"))
    folder, manifest = export_bundle(checkpoint, tmp_path_factory.mktemp("fused") / "bundle", settings)
    assert manifest.files[0].parity.status == "passed"
    return folder


@pytest.mark.slow
def test_cuts_for_both_ways_to_a_mask(fused_bundle: Path) -> None:
    manifest = verify_bundle(fused_bundle)
    assert [item.name for item in manifest.cuts("model.onnx")] == [
        "model.labels.onnx", "model.logits_stride.onnx",
    ]  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    with load_runner(fused_bundle, provider="cpu") as runner:
        full = runner(image)
    for output in ("labels", "logits_stride"):
        with load_runner(fused_bundle, f"model.{output}.onnx", "cpu") as runner:
            found = runner(image)
        assert list(found) == [output]
        np.testing.assert_allclose(found[output], full[output], atol=1e-5)
    cases = manifest.file("model.logits_stride.onnx").parity.cases
    assert [case.reference for case in cases] == ["torch", "model.onnx"]
    assert cases[0].metrics["labels/equal_labels"] == 1
    assert try_file(fused_bundle, manifest, manifest.files[-1], "cpu").runs


@pytest.mark.slow
def test_a_bundle_that_calls_the_fused_head_mean(fused_bundle: Path, tmp_path: Path) -> None:
    """As written up to 0.1: names in the graph, in its notes and in the manifest, and no cuts."""
    bundle = shutil.copytree(fused_bundle, tmp_path / "bundle")
    model = onnx.load(str(bundle / "model.onnx"))
    renamed = 0
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name.startswith("fused_"):
                    names[place] = name.replace("fused_", "mean_")
                    renamed += 1
    assert renamed
    next(entry for entry in model.metadata_props if entry.key == "protoseg.head").value = "mean"
    (bundle / "model.onnx").write_bytes(to_bytes(model))
    raw = json.loads((bundle / "manifest.json").read_text())
    raw["graph"]["head"] = "mean"
    raw["files"] = [item for item in raw["files"] if item["cut_of"] is None]
    for item in raw["files"]:
        del item["cut_of"]
    raw["files"][0]["sha256"] = sha256_file(bundle / "model.onnx")
    (bundle / "manifest.json").write_text(json.dumps(raw))
    assert parity_main([str(bundle)]) == 0
    manifest = read_manifest(bundle)
    assert manifest.graph.head == "fused"
    assert try_file(bundle, manifest, manifest.files[0], "cpu").runs
