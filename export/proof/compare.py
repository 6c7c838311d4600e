"""Compares what two runtimes gave for the same images, and decides.

Shape legend: ``B`` batch, ``C`` classes, ``H W`` image. Scores are full-size logits of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.iou import confusion_matrix, iou, mean_iou
from export.proof.gates import Gates
from protoseg.manifest import Head, ParityCase, ParityReport

Array = NDArray[Any]
Outputs = Mapping[str, Array]
HEADS = ("linear", "prototype")
MIN_CLASS_SHARE = 0.01
CONFIDENT_MARGIN = 0.10


@dataclass
class _HeadTally:
    largest: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    total: float = 0.0
    count: int = 0
    p999: float = 0.0
    scale: float = 1.0
    equal: int = 0
    pixels: int = 0
    sure_equal: int = 0
    sure: int = 0
    worst: tuple[float, str] = (-1.0, "")
    near_tie: float = 0.0
    shares: Array | None = None


def _margins(logits: Array) -> tuple[Array, Array]:
    """Gaps between the two best classes, (B, C, H, W) -> logit and probability gaps (B, H, W)."""
    if logits.shape[1] == 1:
        flat = np.full((len(logits), *logits.shape[2:]), np.inf, np.float32)
        return flat, flat
    best = np.partition(logits, -2, axis=1)[:, -2:]
    top, second = best[:, 1], best[:, 0]
    total = np.exp(logits - top[:, None]).sum(1)
    return top - second, (1 - np.exp(second - top)) / total


def score_key(head: str, names: set[str]) -> str | None:
    """The scores of a head that are compared: full size if both sides have them, else at the stride."""
    return next((k for k in (f"{head}_logits", f"{head}_logits_stride") if k in names), None)


class Comparator:
    """Adds up comparisons of single batches and judges them at the end.

    Args:
        gates: Thresholds.
        num_classes: C.
        head: Head behind ``labels`` and ``confidence``.
        active: (C,) bool: classes that the prototype head knows; others have no scores to compare.
        expected: Names that both sides must give.
        ignore_index: Mask value that is not counted.
    """

    def __init__(
        self,
        gates: Gates,
        num_classes: int,
        head: Head,
        active: Array,
        expected: set[str],
        ignore_index: int = 255,
    ) -> None:
        self.gates, self.num_classes, self.head = gates, num_classes, head
        self.active = {"linear": np.ones(num_classes, bool), "prototype": np.asarray(active, bool)}
        self.expected, self.ignore_index = expected, ignore_index
        self.scores = {h: key for h in HEADS if (key := score_key(h, expected)) is not None}
        self.heads = {h: _HeadTally() for h in self.scores}
        self.labels = _HeadTally()
        self.output_diff = {name: 0.0 for name in ("confidence", "agreement") if name in expected}
        self.versus = np.zeros((num_classes, num_classes), np.int64)
        self.truth = {side: np.zeros((num_classes, num_classes), np.int64) for side in ("ref", "new")}
        self.problems: list[str] = []
        self.inputs = self.pixels = 0

    def add(
        self,
        name: str,
        reference: Outputs,
        candidate: Outputs,
        *,
        on_multiple: bool = True,
        natural: bool = True,
        mask: Array | None = None,
    ) -> None:
        """Compare one batch.

        Args:
            name: Name of the case in reports.
            reference: Outputs by name.
            candidate: Outputs by name.
            on_multiple: Whether height and width are multiples of the stride.
            natural: Whether it is a real image, which counts for "at least two classes".
            mask: (B, H, W) class ids, for mIoU.
        """
        for side, outputs in (("reference", reference), ("candidate", candidate)):
            missing = sorted(self.expected - set(outputs))
            if missing:
                self.problems.append(f"{name}: the {side} gave no {missing[0]}")
                return
        for key in sorted(self.expected):
            first, second = reference[key], candidate[key]
            if first.shape != second.shape:
                self.problems.append(f"{name}: {key} has shape {second.shape}, expected {first.shape}")
                return
            bad = [s for s, v in (("reference", first), ("candidate", second)) if not np.isfinite(v).all()]
            if bad:
                self.problems.append(f"{name}: {key} of the {bad[0]} holds NaN or infinity")
                return
        if not reference["labels"].size:
            self.problems.append(f"{name}: empty")
            return
        if max(int(reference["labels"].max()), int(candidate["labels"].max())) >= self.num_classes:
            self.problems.append(f"{name}: labels reach beyond the {self.num_classes} classes")
            return
        self.inputs += len(reference["labels"])
        for head, tally in self.heads.items():
            self._add_scores(tally, head, name, reference, candidate, on_multiple, natural)
        self._add_labels(name, reference, candidate, natural, mask)
        for key, value in self.output_diff.items():
            difference = np.abs(reference[key] - candidate[key])
            if key == "agreement":
                # it belongs to the label: where that differs, the labels' own gates have their say
                difference = difference[reference["labels"] == candidate["labels"]]
            self.output_diff[key] = max(value, float(difference.max(initial=0.0)))

    def _add_scores(
        self, tally: _HeadTally, head: str, name: str, reference: Outputs, candidate: Outputs,
        on_multiple: bool, natural: bool,
    ) -> None:  # fmt: skip
        keep = self.active[head]
        key = self.scores[head]
        first, second = reference[key][:, keep], candidate[key][:, keep]
        difference = np.abs(first - second)
        largest = float(difference.max())
        tally.largest[on_multiple] = max(tally.largest[on_multiple], largest)
        tally.total += float(difference.sum(dtype=np.float64))
        tally.count += difference.size
        tally.p999 = max(tally.p999, float(np.quantile(difference, 0.999)))
        if natural:
            tally.scale = max(tally.scale, float(np.abs(first).max()))
        if largest > tally.worst[0]:
            tally.worst = (largest, name)
        logit_gap, probability_gap = _margins(first)
        best = first.argmax(1)
        same = best == second.argmax(1)
        if natural:
            self._tally(tally, same, probability_gap, np.where(keep)[0][best])
        if not same.all():
            tally.near_tie = max(tally.near_tie, float(logit_gap[~same].max()))

    def _tally(self, tally: _HeadTally, same: Array, gap: Array | None, labels: Array) -> None:
        tally.equal += int(same.sum())
        tally.pixels += same.size
        if gap is not None:
            sure = gap > CONFIDENT_MARGIN
            tally.sure += int(sure.sum())
            tally.sure_equal += int((same & sure).sum())
        counts = np.bincount(labels.astype(np.int64).ravel(), minlength=self.num_classes)
        tally.shares = counts if tally.shares is None else tally.shares + counts

    def _add_labels(
        self, name: str, reference: Outputs, candidate: Outputs, natural: bool, mask: Array | None
    ) -> None:
        first, second = reference["labels"], candidate["labels"]
        same = first == second
        self.pixels += same.size
        if not natural:
            return
        gap = None
        if self.head != "mean" and f"{self.head}_logits" in reference:
            gap = _margins(reference[f"{self.head}_logits"])[1]
        self._tally(self.labels, same, gap, first)
        wrong = 1 - float(same.mean())
        if wrong > self.labels.worst[0]:
            self.labels.worst = (wrong, name)
        self.versus += confusion_matrix(first, second, self.num_classes)
        if mask is not None:
            valid = (mask != self.ignore_index) & (mask < self.num_classes)
            self.truth["ref"] += confusion_matrix(mask[valid], first[valid], self.num_classes)
            self.truth["new"] += confusion_matrix(mask[valid], second[valid], self.num_classes)

    def _head_metrics(self, head: str, tally: _HeadTally, failures: list[str]) -> dict[str, float | None]:
        gates = self.gates
        factor = gates.prototype_factor if head == "prototype" else 1.0
        allowed = tally.scale * factor
        for on_multiple, limit in ((True, gates.logit), (False, gates.logit_other)):
            if limit is None:
                continue
            tolerance, found = limit * allowed, tally.largest[on_multiple]
            if not found <= tolerance:
                where = "stride multiples" if on_multiple else "other sizes"
                failures.append(
                    f"{head} logits differ by {found:.3g} at {where}, allowed {tolerance:.3g} "
                    f"(worst: {tally.worst[1]})"
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
        if gates.everything:
            self._judge_labels(f"{head} head", tally, factor, failures)
        return {
            f"{head}/max_logit_diff": max(tally.largest.values()),
            f"{head}/max_logit_diff_on_multiples": tally.largest[True],
            f"{head}/mean_logit_diff": tally.total / max(tally.count, 1),
            f"{head}/p999_logit_diff": tally.p999,
            f"{head}/logit_range": tally.scale,
            f"{head}/label_agreement": tally.equal / max(tally.pixels, 1),
            f"{head}/margin_agreement": tally.sure_equal / tally.sure if tally.sure else None,
        }

    def _judge_labels(self, what: str, tally: _HeadTally, factor: float, failures: list[str]) -> None:
        if tally.pixels == 0:
            return
        share = tally.equal / max(tally.pixels, 1)
        needed = 1 - factor * (1 - self.gates.label_agreement)
        if not share >= needed:
            failures.append(f"{what}: {share:.5f} of labels agree, at least {needed:.5g} must")
        if tally.sure and not tally.sure_equal / tally.sure >= self.gates.margin_agreement:
            failures.append(
                f"{what}: {tally.sure_equal / tally.sure:.6f} of clear labels agree, at least "
                f"{self.gates.margin_agreement} must"
            )

    def result(self, reference: str, runtime: str, details: dict[str, Any] | None = None) -> ParityCase:
        """The comparison with metrics, gates and the reasons of failure."""
        failures = list(self.problems)
        metrics: dict[str, float | None] = {}
        if self.inputs == 0:
            failures.append("nothing was compared")
        for head, tally in self.heads.items():
            metrics |= self._head_metrics(head, tally, failures)
        if self.inputs:
            factor = self.gates.prototype_factor if self.head == "prototype" else 1.0
            self._judge_labels("labels", self.labels, factor, failures)
        labels = self.labels
        metrics["labels/agreement"] = labels.equal / max(labels.pixels, 1)
        metrics["labels/margin_agreement"] = labels.sure_equal / labels.sure if labels.sure else None
        metrics["labels/miou_vs_reference"] = mean_iou(self.versus)
        for key, value in self.output_diff.items():
            metrics[f"{key}/max_diff"] = value
            if self.gates.probability is not None and not value <= self.gates.probability:
                failures.append(f"{key} differs by {value:.3g}, allowed {self.gates.probability:.3g}")
        first, second = mean_iou(self.truth["ref"]), mean_iou(self.truth["new"])
        if first is not None and second is not None:
            metrics |= {"val/miou_reference": first, "val/miou": second, "val/miou_drop": first - second}
            if self.gates.miou_drop is not None and not first - second <= self.gates.miou_drop:
                failures.append(
                    f"mIoU on labelled images falls from {first:.4f} to {second:.4f}, allowed "
                    f"{self.gates.miou_drop:.3f}"
                )
        per_class = [None if np.isnan(v) else round(float(v), 6) for v in iou(self.versus)]
        return ParityCase(
            reference=reference, runtime=runtime, inputs=self.inputs, pixels=self.pixels,
            metrics=metrics, gates=self.gates.named(), failures=failures,
            details={
                "iou_vs_reference": per_class,
                "worst_image": self.labels.worst[1],
                "worst_image_by_logits": {h: t.worst[1] for h, t in self.heads.items()},
                "vacuous": self.vacuous(),
                **(details or {}),
            },
        )  # fmt: skip

    def vacuous(self) -> str:
        """Why equal labels would prove nothing, or an empty string."""
        for name, tally in {**self.heads, "labels": self.labels}.items():
            shares = tally.shares
            if shares is None:
                return "no real image was compared"
            seen = int((shares / max(shares.sum(), 1) >= MIN_CLASS_SHARE).sum())
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
    vacuous = [str(case.details.get("vacuous")) for case in cases if case.details.get("vacuous")]
    if vacuous:
        return ParityReport(status="inconclusive", reason=vacuous[0], cases=cases)
    return ParityReport(status="passed", cases=cases)
