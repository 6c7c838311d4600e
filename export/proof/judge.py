"""What a comparison amounts to: metrics, gates, and one verdict for a file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from export.proof.compare import Comparator, Tally
from export.proof.gates import Gates
from protoseg.evaluate.metrics import iou_per_class, miou
from protoseg.manifest import ParityCase, ParityReport

MIN_CLASS_SHARE = 0.01
SHOWN_METRICS = ("max_logit_diff", "equal_labels", "max_diff", "miou_drop")


def judge(comparator: Comparator, gates: Gates, reference: str, runtime: str) -> ParityCase:
    """The comparison with metrics, gates and the reasons of failure.

    Args:
        comparator: All batches, added up.
        gates: Thresholds.
        reference: Name of what the file was compared with.
        runtime: What ran the file.
    """
    failures = list(comparator.problems)
    metrics: dict[str, float | None] = {}
    if comparator.inputs == 0:
        failures.append("nothing was compared")
    for head, tally in comparator.heads.items():
        factor = gates.prototype_factor if head == "prototype" else 1.0
        failures += _score_failures(head, tally, gates, factor)
        if comparator.head in (head, "fused"):
            failures += _collapse(head, tally, gates)
        metrics |= {
            f"{head}/max_logit_diff": max(tally.largest.values()),
            f"{head}/max_logit_diff_on_multiples": tally.largest[True],
            f"{head}/mean_logit_diff": tally.total / max(tally.count, 1),
            f"{head}/p999_logit_diff": tally.p999,
            f"{head}/logit_range": tally.scale,
            f"{head}/relative_logit_diff": _number(_relative(tally)),
        } | _label_metrics(head, tally)
    factor = gates.prototype_factor if comparator.head == "prototype" else 1.0
    failures += _label_failures("labels", comparator.labels, gates, factor)
    metrics |= _label_metrics("labels", comparator.labels)
    metrics["labels/miou_vs_reference"] = _number(miou(comparator.versus))
    for key, value in comparator.output_diff.items():
        metrics[f"{key}/max_diff"] = value
        allowed = gates.similarity if key == "similarity" else gates.probability
        if allowed is not None and not value <= allowed:
            failures.append(f"{key} differs by {value:.3g}, allowed {allowed:.3g}")
    if comparator.truth["ref"].any():
        before, after = miou(comparator.truth["ref"]), miou(comparator.truth["new"])
        metrics |= {"val/miou_reference": before, "val/miou": after, "val/miou_drop": before - after}
        if gates.miou_drop is not None and not before - after <= gates.miou_drop:
            failures.append(
                f"mIoU on labelled images falls from {before:.4f} to {after:.4f}, allowed "
                f"{gates.miou_drop:.3f}"
            )
    return ParityCase(
        reference=reference, runtime=runtime, inputs=comparator.inputs, pixels=comparator.pixels,
        metrics=metrics, gates=gates.named(), failures=failures,
        details={
            "iou_vs_reference": [_number(round(v, 6)) for v in iou_per_class(comparator.versus).tolist()],
            "worst_image": comparator.labels.worst[1],
            "worst_image_by_logits": {h: t.worst[1] for h, t in comparator.heads.items()},
            "vacuous": vacuous(comparator),
            "miou_classes": "of the target",
        },
    )  # fmt: skip


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _relative(tally: Tally) -> float:
    return tally.centred / tally.deviation if tally.deviation else np.inf


def _collapse(head: str, tally: Tally, gates: Gates) -> list[str]:
    """Scores that are near zero, in the file or in its reference."""
    if gates.relative is None:
        return []
    failures = []
    if tally.pixels and not tally.sure:
        failures.append(
            f"the reference's {head} head is sure of no pixel (its scores are near zero): equal labels would "
            "prove nothing; train it longer"
        )
    if not _relative(tally) <= gates.relative:
        failures.append(
            f"{head} logits are off by {_relative(tally):.2f} of their spread on average, allowed "
            f"{gates.relative:.2f} (1: they are near zero)"
        )
    return failures


def _score_failures(head: str, tally: Tally, gates: Gates, factor: float) -> list[str]:
    failures = []
    allowed = tally.scale * factor
    for on_multiple, limit in ((True, gates.logit), (False, gates.logit_other)):
        if limit is not None and not tally.largest[on_multiple] <= limit * allowed:
            where = "stride multiples" if on_multiple else "other sizes"
            failures.append(
                f"{head} logits differ by {tally.largest[on_multiple]:.3g} at {where}, allowed "
                f"{limit * allowed:.3g} (worst: {tally.worst[1]})"
            )
    if gates.logit_p999 is not None and not tally.p999 <= gates.logit_p999 * allowed:
        failures.append(
            f"{head} logits: the 99.9th percentile differs by {tally.p999:.3g}, allowed "
            f"{gates.logit_p999 * allowed:.3g}"
        )
    if gates.explained and gates.logit_other is not None:
        tolerance = 2 * gates.logit_other * allowed
        if not tally.near_tie <= tolerance:
            failures.append(
                f"a {head} label differs where the reference is {tally.near_tie:.3g} apart, "
                f"allowed {tolerance:.3g}"
            )
    return failures + (_label_failures(f"{head} head", tally, gates, factor) if gates.everything else [])


def _label_metrics(name: str, tally: Tally) -> dict[str, float | None]:
    return {
        f"{name}/equal_labels": tally.equal / max(tally.pixels, 1),
        f"{name}/equal_clear_labels": tally.sure_equal / tally.sure if tally.sure else None,
    }


def _label_failures(what: str, tally: Tally, gates: Gates, factor: float) -> list[str]:
    if tally.pixels == 0:
        return []
    failures = []
    share, needed = tally.equal / tally.pixels, 1 - factor * (1 - gates.equal_labels)
    if not share >= needed:
        failures.append(f"{what}: {share:.5f} of labels are equal, at least {needed:.5g} must be")
    if tally.sure and not tally.sure_equal / tally.sure >= gates.equal_clear_labels:
        failures.append(
            f"{what}: {tally.sure_equal / tally.sure:.6f} of clear labels are equal, at least "
            f"{gates.equal_clear_labels} must be"
        )
    return failures


def vacuous(comparator: Comparator) -> str:
    """Why equal labels would prove nothing, or an empty string."""
    for name, tally in {**comparator.heads, "labels": comparator.labels}.items():
        if tally.shares is None:
            return "no real image was compared"
        seen = int((tally.shares / max(tally.shares.sum(), 1) >= MIN_CLASS_SHARE).sum())
        if seen < 2:
            what = "output labels" if name == "labels" else f"{name} head"
            return f"the reference's {what} name {seen} class(es) on 1% of the pixels or more, need 2"
    return ""


def conclude(cases: list[ParityCase]) -> ParityReport:
    """One status for a file: failed before inconclusive before passed; no case at all is a failure."""
    failures = [f"vs {case.reference}: {text}" for case in cases for text in case.failures]
    if not cases:
        return ParityReport(status="failed", reason="nothing was compared")
    if failures:
        more = f" (and {len(failures) - 1} more)" if failures[1:] else ""
        return ParityReport(status="failed", reason=failures[0] + more, cases=cases)
    empty = [text for case in cases if (text := str(case.details.get("vacuous", "")))]
    if empty:
        return ParityReport(status="inconclusive", reason=empty[0], cases=cases)
    return ParityReport(status="passed", cases=cases)


def format_report(name: str, report: ParityReport) -> str:
    """One file's parity as a few lines of text."""
    lines = [f"{name}: {report.status}" + (f" ({report.reason})" if report.reason else "")]
    for case in report.cases:
        figures = ", ".join(_figures(case.metrics.items()))
        lines.append(f"  vs {case.reference}: {case.inputs} images, {case.pixels} pixels; {figures}")
        lines += [f"    FAILED {text}" for text in case.failures]
    return "\n".join(lines)


def _figures(metrics: Iterable[tuple[str, float | None]]) -> list[str]:
    return [
        f"{key} {value:.3g}" if "diff" in key or "drop" in key else f"{key} {value:.6f}"
        for key, value in metrics
        if value is not None and key.endswith(SHOWN_METRICS)
    ]
