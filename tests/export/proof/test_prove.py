"""Sides of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from export.graph.edit import read_model, to_bytes
from export.proof.cases import Case
from export.proof.judge import conclude
from export.proof.prove import ProbedOnnx, Setup, at_stride, bundle_cases, prove_case, prove_file
from protoseg.manifest import Head, read_manifest

LINEAR = np.log([[[[0.6]], [[0.3]], [[0.1]]]]).astype(np.float32)
PROTOTYPE = np.log([[[[0.1]], [[0.5]], [[0.4]]]]).astype(np.float32)


@pytest.mark.parametrize(("head", "label"), [("linear", 0), ("prototype", 1), ("fused", 1)])
def test_labels_at_the_stride_come_from_the_chosen_head(head: Head, label: int) -> None:
    """Of the probabilities 0.6, 0.3, 0.1 and 0.1, 0.5, 0.4; their mean is 0.35, 0.4, 0.25."""
    outputs: dict[str, Any] = {"linear_logits_stride": LINEAR, "prototype_logits_stride": PROTOTYPE}
    image = np.zeros((1, 3, 4, 4), np.uint8)
    assert at_stride(lambda _: outputs, head)(image)["labels"].tolist() == [[[label]]]
    own = {**outputs, "logits_stride": LINEAR[:, ::-1]}
    assert at_stride(lambda _: own, head)(image)["labels"].tolist() == [[[2]]]


@pytest.mark.parametrize("head", ["linear", "prototype", "fused"])
def test_graphs_that_end_at_the_stride_are_compared_there(head: Head) -> None:
    """The reference has scores of full size, too, which do not belong to these labels."""
    rng = np.random.default_rng(0)
    outputs: dict[str, Any] = {
        f"{name}_logits{suffix}": rng.normal(0, 4, (1, 3, size, size)).astype(np.float32)
        for name in ("linear", "prototype")
        for suffix, size in (("", 32), ("_stride", 8))
    }
    setup = Setup(head, "uint8_nchw", 3, np.ones(3, bool), 32, 255)
    cases = [Case("a", np.zeros((1, 3, 32, 32), np.uint8), natural=True)]
    side = at_stride(lambda _: outputs, head)
    names = {"labels", "linear_logits_stride", "prototype_logits_stride"}
    found = prove_case(setup, "fp32", cases, side, side, expected=names, labels=("torch", "test"))
    assert found.failures == []
    assert found.pixels == 64


def test_an_int8_network_whose_scores_are_near_zero_fails(bundle: Path, tmp_path: Path) -> None:
    """Quantised as it should be, but its scores are a thousandth of what they were."""
    manifest = read_manifest(bundle)
    setup = Setup.of(bundle, manifest)
    sound = read_model(bundle / "model.int8-cpu.onnx")
    collapsed = read_model(bundle / "model.int8-cpu.onnx")
    nodes = collapsed.graph.node
    place, producer = next((i, n) for i, n in enumerate(nodes) if "linear_logits_stride" in n.output)
    producer.output[:] = ["sound_scores"]
    collapsed.graph.initializer.append(numpy_helper.from_array(np.float32(1e-3), "thousandth"))
    nodes.insert(
        place + 1, helper.make_node("Mul", ["sound_scores", "thousandth"], ["linear_logits_stride"], name="s")
    )
    full = ProbedOnnx(bundle / "model.onnx", setup.layout)
    reports = []
    for model in (sound, collapsed):
        (tmp_path / "model.onnx").write_bytes(to_bytes(model))
        probed = ProbedOnnx(tmp_path / "model.onnx", setup.layout)
        cases = bundle_cases(bundle, manifest)
        proofs = prove_file(setup, "int8-cpu", probed, cases, [("model.onnx", full, full.names)])
        reports.append(conclude(proofs))
    assert reports[0].status == "passed"
    assert reports[1].status == "failed"
    assert "near zero" in reports[1].reason
    relative = [report.cases[0].metrics["linear/relative_logit_diff"] or 0.0 for report in reports]
    assert relative[0] < 0.2
    assert relative[1] == pytest.approx(1.0, abs=0.05)
