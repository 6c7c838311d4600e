"""The comparator on hand-made outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.proof.compare import Comparator
from export.proof.gates import GATES, Gates
from export.proof.judge import conclude
from export.proof.judge import judge as judge_comparator
from protoseg.manifest import Head, ParityReport

CLASSES = 3
NAMES = {"labels", "confidence", "agreement", "linear_logits", "prototype_logits"}
Outputs = dict[str, np.ndarray[Any, Any]]


def make_outputs(seed: int = 0, size: tuple[int, int] = (8, 10)) -> Outputs:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (1, CLASSES, *size)).astype(np.float32)
    other = logits + rng.normal(0, 1, logits.shape).astype(np.float32)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return {
        "labels": logits.argmax(1).astype(np.uint8),
        "confidence": (exp / exp.sum(1, keepdims=True)).max(1).astype(np.float32),
        "agreement": rng.random((1, *size), dtype=np.float32),
        "linear_logits": logits,
        "prototype_logits": other,
    }


def judge(reference: Outputs, candidate: Outputs, precision: str = "fp32", **options: Any) -> ParityReport:
    comparator = make_comparator()
    comparator.add("case", reference, candidate, **options)
    return verdict(comparator, GATES[precision])


def make_comparator(head: Head = "linear", active: tuple[bool, ...] = (True,) * CLASSES) -> Comparator:
    return Comparator(CLASSES, head, np.array(active), NAMES)


def verdict(comparator: Comparator, gates: Gates) -> ParityReport:
    return conclude([judge_comparator(comparator, gates, "reference", "test")])


def test_equal_outputs_pass() -> None:
    outputs = make_outputs()
    report = judge(outputs, {k: v.copy() for k, v in outputs.items()})
    assert report.status == "passed"
    case = report.cases[0]
    assert case.metrics["linear/max_logit_diff"] == 0
    assert case.metrics["labels/equal_labels"] == 1
    assert case.metrics["labels/miou_vs_reference"] == 1
    assert case.pixels == 80


@pytest.mark.parametrize(("difference", "status"), [(5e-5, "passed"), (2e-4, "failed")])
def test_similarity_has_a_gate_of_its_own(difference: float, status: str) -> None:
    outputs = make_outputs() | {"similarity": np.zeros((1, CLASSES, 2, 3), np.float32)}
    moved = outputs | {"similarity": outputs["similarity"] + np.float32(difference)}
    comparator = Comparator(CLASSES, "linear", np.ones(CLASSES, bool), NAMES | {"similarity"})
    comparator.add("case", outputs, moved)
    report = verdict(comparator, GATES["fp32"])
    assert report.status == status, report.reason
    assert report.cases[0].metrics["similarity/max_diff"] == pytest.approx(difference)
    assert ("similarity differs" in report.reason) == (status == "failed")


@pytest.mark.parametrize("name", sorted(NAMES - {"labels"}))
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_nan_never_passes(name: str, value: float, side: str) -> None:
    good, bad = make_outputs(), make_outputs()
    bad[name].flat[3] = value
    report = judge(*((bad, good) if side == "reference" else (good, bad)))
    assert report.status == "failed"
    assert f"{name} of the {side} holds NaN" in report.reason


def test_nan_on_both_sides_never_passes() -> None:
    bad = make_outputs()
    bad["linear_logits"][:] = np.nan
    assert judge(bad, bad).status == "failed"


def test_comparing_nothing_fails() -> None:
    assert conclude([]).status == "failed"
    comparator = make_comparator()
    report = verdict(comparator, GATES["fp32"])
    assert report.status == "failed"
    assert "nothing was compared" in report.reason


def test_a_missing_output_fails() -> None:
    outputs = make_outputs()
    less = {k: v for k, v in outputs.items() if k != "agreement"}
    report = judge(outputs, less)
    assert report.status == "failed"
    assert "the candidate gave no agreement" in report.reason


def test_another_shape_fails() -> None:
    report = judge(make_outputs(), make_outputs(size=(8, 11)))
    assert report.status == "failed"
    assert "has shape (1, 8, 11), expected (1, 8, 10)" in report.reason


def test_one_class_is_inconclusive() -> None:
    outputs = make_outputs()
    outputs["linear_logits"][:, 0] += 1000
    outputs["labels"][:] = 0
    report = judge(outputs, outputs)
    assert report.status == "inconclusive"
    assert "1 class(es)" in report.reason


def test_made_images_alone_are_inconclusive() -> None:
    report = judge(make_outputs(), make_outputs(), natural=False)
    assert report.status == "inconclusive"


def test_classes_below_one_percent_do_not_count() -> None:
    outputs = make_outputs(size=(20, 20))
    for name in ("linear_logits", "prototype_logits"):
        outputs[name][:, 0] += 1000
        outputs[name][:, 1, 0, :3] += 2000  # 3 of 400 pixels
    outputs["labels"] = outputs["linear_logits"].argmax(1).astype(np.uint8)
    assert judge(outputs, outputs).status == "inconclusive"


def test_the_worst_logit_decides() -> None:
    good, bad = make_outputs(), make_outputs()
    scale = float(np.abs(good["linear_logits"]).max())
    bad["linear_logits"].flat[5] += 6e-5 * scale
    assert judge(good, bad).status == "failed"
    assert judge(good, bad, on_multiple=False).status == "passed"


def test_a_clear_label_that_differs_fails() -> None:
    good, bad = make_outputs(size=(200, 200)), make_outputs(size=(200, 200))
    clear = int(good["confidence"].argmax())
    bad["labels"].flat[clear] = (good["labels"].flat[clear] + 1) % CLASSES
    report = judge(good, bad)
    assert report.status == "failed"
    assert report.cases[0].metrics["labels/equal_labels"] == pytest.approx(1 - 1 / 40000)


def test_miou_drop_by_hand() -> None:
    outputs = make_outputs(size=(4, 4))
    mask = outputs["labels"].copy()
    mask[0, 0, 0] = 255
    worse = {k: v.copy() for k, v in outputs.items()}
    worse["labels"][0, 1] = (worse["labels"][0, 1] + 1) % CLASSES
    comparator = make_comparator()
    comparator.add("case", outputs, worse, mask=mask)
    metrics = verdict(comparator, GATES["int8"]).cases[0].metrics
    assert metrics["val/miou_reference"] == 1
    confusion = np.zeros((CLASSES, CLASSES))
    valid = mask != 255
    np.add.at(confusion, (mask[valid], worse["labels"][valid]), 1)
    by_hand = [confusion[c, c] / (confusion[c].sum() + confusion[:, c].sum() - confusion[c, c])
               for c in range(CLASSES)]  # fmt: skip
    assert metrics["val/miou"] == pytest.approx(np.mean(by_hand))
    assert metrics["val/miou_drop"] == pytest.approx(1 - np.mean(by_hand))


def test_a_class_that_no_mask_has_is_left_out_of_miou() -> None:
    """The counts [[90, 0, 10], [0, 50, 0], [0, 0, 0]]: 0.95, not 0.63."""
    mask = np.repeat([0, 1], [100, 50]).reshape(1, 10, 15)
    labels = np.where(np.arange(150) < 10, 2, mask.ravel()).reshape(mask.shape)
    outputs = make_outputs(size=(10, 15)) | {"labels": labels.astype(np.uint8)}
    comparator = make_comparator()
    comparator.add("case", outputs, outputs, mask=mask)
    metrics = verdict(comparator, GATES["fp32"]).cases[0].metrics
    assert metrics["val/miou"] == pytest.approx((90 / 100 + 50 / 50) / 2)


def test_scores_of_absent_prototypes_are_not_compared() -> None:
    good, other = make_outputs(), make_outputs()
    other["prototype_logits"][:, 2] = -40
    comparator = make_comparator(active=(True, True, False))
    comparator.add("case", good, other)
    assert not verdict(comparator, GATES["fp32"]).cases[0].failures


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_labels_are_judged_on_real_images_only(precision: str) -> None:
    good, bad = make_outputs(), make_outputs()
    bad["labels"][:] = (bad["labels"] + 1) % CLASSES
    assert judge(good, bad, precision).status == "failed"
    comparator = make_comparator()
    comparator.add("real", good, good)
    comparator.add("noise", good, bad, natural=False)
    assert verdict(comparator, GATES[precision]).status == "passed"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-3, 3.0))
def test_noise_beyond_the_gate_never_passes(seed: int, noise: float) -> None:
    good = make_outputs(seed)
    bad = {k: v.copy() for k, v in good.items()}
    rng = np.random.default_rng(seed)
    bad["linear_logits"] += rng.normal(0, noise, bad["linear_logits"].shape).astype(np.float32)
    report = judge(good, bad)
    largest = float(np.abs(bad["linear_logits"] - good["linear_logits"]).max())
    scale = max(1.0, float(np.abs(good["linear_logits"]).max()))
    allowed = GATES["fp32"].logit
    assert allowed is not None
    assert (report.status == "failed") == (largest > allowed * scale)


@pytest.mark.parametrize(("head", "factor"), [("linear", 1.0), ("prototype", 3.0)])
def test_half_precision_may_have_a_single_outlier_but_not_many(head: str, factor: float) -> None:
    good, bad = make_outputs(size=(100, 100)), make_outputs(size=(100, 100))
    key = f"{head}_logits"
    scale = factor * float(np.abs(good[key]).max())
    most, many = GATES["fp16"].logit, GATES["fp16"].logit_p999
    assert most is not None
    assert many is not None
    between = (most + many) / 2 * scale
    bad[key].flat[:10] += between
    assert judge(good, bad, "fp16").status == "passed"
    bad[key].flat[:300] = good[key].flat[:300] + between
    assert "99.9th percentile" in judge(good, bad, "fp16").reason
    bad = make_outputs(size=(100, 100))
    bad[key].flat[0] += 1.1 * most * scale
    assert judge(good, bad, "fp16").status == "failed"


@pytest.mark.parametrize(
    ("head", "wrong", "status"),
    [("linear", 10, "passed"), ("linear", 40, "failed"),
     ("prototype", 40, "passed"), ("prototype", 80, "failed")],
)  # fmt: skip
def test_labels_of_the_prototype_head_have_more_room(head: Head, wrong: int, status: str) -> None:
    """Of 10,000 labels 0.2 % may differ, three times as many where the prototype head decides."""
    good, bad = make_outputs(size=(100, 100)), make_outputs(size=(100, 100))
    bad["labels"].flat[:wrong] = (bad["labels"].flat[:wrong] + 1) % CLASSES
    gates = replace(GATES["fp16"], equal_clear_labels=0.0)
    comparator = make_comparator(head)
    comparator.add("case", good, bad)
    assert verdict(comparator, gates).status == status


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_int8_scores_near_zero_fail_though_all_labels_are_equal(precision: str) -> None:
    good = make_outputs(size=(40, 40))
    noisy, collapsed = ({k: v.copy() for k, v in good.items()} for _ in range(2))
    noisy["linear_logits"] += np.random.default_rng(1).normal(0, 0.4, noisy["linear_logits"].shape)
    assert judge(good, noisy, precision).status == "passed"
    collapsed["linear_logits"] *= 1e-3
    collapsed["confidence"][:] = 1 / CLASSES
    report = judge(good, collapsed, precision)
    assert report.status == "failed"
    assert report.cases[0].metrics["labels/equal_labels"] == 1
    assert report.cases[0].metrics["linear/relative_logit_diff"] == pytest.approx(0.999)
    assert "near zero" in report.reason


def test_int8_of_a_network_near_zero_fails() -> None:
    """No pixel is clear, so that equal labels are those of rounding."""
    outputs = make_outputs(size=(40, 40))
    for name in ("linear_logits", "prototype_logits"):
        outputs[name] *= 1e-4
    report = judge(outputs, outputs, "int8")
    assert report.status == "failed"
    assert "sure of no pixel" in report.reason
    assert judge(outputs, outputs, "fp16").status == "passed"
