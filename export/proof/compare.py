"""Adds up how far the outputs of two runtimes for the same images are apart.

Shape legend: ``B`` batch, ``C`` classes, ``H W`` image. Scores are full-size logits of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from export.runners.contract import Array
from protoseg.evaluate.metrics import confusion_matrix
from protoseg.manifest import Head

Outputs = Mapping[str, Array]
HEADS = ("linear", "prototype")
COMPARED_SCORES = ("confidence", "agreement", "similarity", "novelty")
CONFIDENT_MARGIN = 0.10


@dataclass
class Tally:
    """Sums over images, of the scores and labels of one head or of the output labels."""

    largest: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    total: float = 0.0
    count: int = 0
    centred: float = 0.0
    deviation: float = 0.0
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


def _deviation(logits: Array) -> float:
    """Sum of the distances of logits (B, C, H, W) from each pixel's mean."""
    return float(np.abs(logits - logits.mean(1, keepdims=True)).sum(dtype=np.float64))


def score_key(head: str, names: set[str]) -> str | None:
    """The scores of a head that are compared: full size if both sides have them, else at the stride."""
    return next((k for k in (f"{head}_logits", f"{head}_logits_stride") if k in names), None)


class Comparator:
    """Adds up comparisons of single batches; ``judge`` says what they amount to.

    Args:
        num_classes: C.
        head: Head behind ``labels`` and ``confidence``.
        active: (C,) bool: classes that the prototype head knows; others have no scores to compare.
        expected: Names that both sides must give.
        ignore_index: Mask value that is not counted.
    """

    def __init__(
        self,
        num_classes: int,
        head: Head,
        active: Array,
        expected: set[str],
        ignore_index: int = 255,
    ) -> None:
        self.num_classes, self.head = num_classes, head
        self.active = {"linear": np.ones(num_classes, bool), "prototype": np.asarray(active, bool)}
        self.expected, self.ignore_index = expected, ignore_index
        self.scores = {h: key for h in HEADS if (key := score_key(h, expected)) is not None}
        self.heads = {h: Tally() for h in self.scores}
        self.labels = Tally()
        self.output_diff = {name: 0.0 for name in COMPARED_SCORES if name in expected}
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
        self, tally: Tally, head: str, name: str, reference: Outputs, candidate: Outputs,
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
        # what all classes have in common changes neither labels nor probabilities
        tally.centred += _deviation(first - second)
        tally.deviation += _deviation(first)
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

    def _tally(self, tally: Tally, same: Array, gap: Array | None, labels: Array) -> None:
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
        if self.head != "fused" and f"{self.head}_logits" in reference:
            gap = _margins(reference[f"{self.head}_logits"])[1]
        self._tally(self.labels, same, gap, first)
        wrong = 1 - float(same.mean())
        if wrong > self.labels.worst[0]:
            self.labels.worst = (wrong, name)
        self.versus += confusion_matrix(second, first, self.num_classes)
        if mask is not None:
            target = np.where(mask == self.ignore_index, -1, mask.astype(np.int64))
            self.truth["ref"] += confusion_matrix(first, target, self.num_classes)
            self.truth["new"] += confusion_matrix(second, target, self.num_classes)
