"""What a run says about itself: ``metrics.jsonl``, warnings in plain language, and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protoseg.draw import plots
from protoseg.draw.panel import panel
from protoseg.draw.plots import confusion_picture

__all__ = [
    "MetricsLog", "Monitor", "MonitorStats", "confusion_picture", "curves", "panel",
    "read_metrics",
]  # fmt: skip

STEP = "step"

# where statistics become warnings
FEW_LABELS = 0.001
ONE_CLASS = 0.98
DEAD_CLASS = 0.01
MERGED = 0.98
UNEVEN = 0.2
DEEP_FALL = 0.02
WIDE_DISAGREEMENT = 0.5


def _plain(value: Any) -> Any:
    """Values that JSON has: NaN and infinities become null, tensors and numpy scalars numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a ``metrics.jsonl`` in file order; a last line cut short by a crash is left out.

    Raises:
        ValueError: If a line before the last is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = text.split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); delete that line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object; delete that line")
        records.append(record)
    return records


def curves(metrics: Path, path: Path) -> None:
    """Draw the curves of a ``metrics.jsonl`` as PNG; see ``protoseg.draw.plots.curves``.

    Raises:
        DataError: If the picture cannot be written.
        ValueError: If the log is damaged.
    """
    plots.curves(read_metrics(metrics), path)


class MetricsLog:
    """Appends one JSON object a line to a file; every line is flushed whole.

    Args:
        path: The file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record; NaN becomes null.

        Raises:
            ValueError: If the record has no integer ``step``.
        """
        if not isinstance(record.get(STEP), int):
            raise ValueError(f"a record needs an integer {STEP!r}, got {record.get(STEP)!r}")
        line = json.dumps(_plain(record), allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as stream:
            stream.write(line.encode())

    def truncate_after(self, step: int) -> None:
        """Drop records later than ``step`` (and a torn last line), so that a resumed run repeats none."""
        kept = [record for record in read_metrics(self.path) if record.get(STEP, 0) <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path)


@dataclass(frozen=True)
class MonitorStats:
    """What happened since the last log line; None where it does not apply.

    Lists are by class id; shares and rates are in [0, 1].
    """

    step: int
    """Optimiser steps so far."""
    pseudo_rate: float | None = None
    """Share of valid unlabelled pixels whose pseudo-label was believed."""
    pseudo_share: Sequence[float] | None = None
    """Share of each class among believed pseudo-labels."""
    usage_entropy: Sequence[float] | None = None
    """``PrototypeBank.usage_entropy``; NaN where a prototype was not used yet."""
    closest_pair: Sequence[float] | None = None
    """``PrototypeBank.closest_pair``: highest cosine between prototypes of one class."""
    active: Sequence[bool] | None = None
    """Classes that have prototypes."""
    miou: float | None = None
    """Validation mIoU, where an evaluation took place."""
    unlabeled: bool = False
    """Whether unlabelled images were in use by then."""
    disagreement: float | None = None
    """Share of believed pseudo-labels that the student contradicts on the strong view."""


@dataclass
class Monitor:
    """Turns statistics into warnings in plain language, each given once until it clears.

    Attributes:
        class_names: Names by class id.
        labeled_share: Share of each class among labelled pixels; 0 for a class that has none.
        patience: Intervals in a row after which a class without pseudo-labels counts as dead.
        best: Highest validation mIoU so far, with its step; what training started from counts as step 0.
    """

    class_names: Sequence[str]
    labeled_share: Sequence[float]
    patience: int = 3
    best: tuple[float, int] = (0.0, 0)
    _raised: set[str] = field(default_factory=set, init=False)
    _empty: dict[int, int] = field(default_factory=dict, init=False)

    def update(self, stats: MonitorStats) -> list[str]:
        """Warnings that are new with these statistics."""
        return [
            *self._few_labels(stats), *self._one_class(stats), *self._dead_classes(stats),
            *self._merged(stats), *self._uneven(stats), *self._fall(stats), *self._contradiction(stats),
        ]  # fmt: skip

    def _is_new(self, key: str, *, bad: bool, good: bool) -> bool:
        """Whether a condition begins. It stays raised until ``good``, so that it does not flicker."""
        if good:
            self._raised.discard(key)
        if not bad or key in self._raised:
            return False
        self._raised.add(key)
        return True

    def _names(self, ids: Sequence[int]) -> str:
        names = ", ".join(repr(self.class_names[i]) for i in ids)
        return f"class {names}" if len(ids) == 1 else f"classes {names}"

    def _new_classes(self, kind: str, bad: Sequence[bool], good: Sequence[bool]) -> list[int]:
        pairs = enumerate(zip(bad, good, strict=True))
        return [i for i, (b, g) in pairs if self._is_new(f"{kind}/{i}", bad=b, good=g)]

    def _few_labels(self, stats: MonitorStats) -> list[str]:
        rate = stats.pseudo_rate
        if rate is None or not self._is_new("rate", bad=rate < FEW_LABELS, good=rate > 2 * FEW_LABELS):
            return []
        return [
            f"{rate:.2%} of the pseudo-labels pass the threshold, so the unlabelled images teach nothing. "
            "Lower pseudo_labels.threshold, or train longer on the labels first (train.warmup_steps)"
        ]

    def _one_class(self, stats: MonitorStats) -> list[str]:
        shares = stats.pseudo_share
        if shares is None or not sum(shares) > 0:
            return []
        top = max(range(len(shares)), key=lambda i: shares[i])
        rest, expected = 1 - shares[top], 1 - self.labeled_share[top]
        # a set that is 99% background by nature has not collapsed
        bad = rest < 1 - ONE_CLASS and rest < expected / 4
        if not self._is_new("one", bad=bad, good=rest > 1.5 * (1 - ONE_CLASS) or rest > expected / 2):
            return []
        return [
            f"{shares[top]:.1%} of the accepted pseudo-labels are {self.class_names[top]!r} "
            f"({self.labeled_share[top]:.1%} of the labelled pixels are): the teacher is collapsing into one "
            "class. Train longer on the labels first (train.warmup_steps), lower loss.unsupervised_weight, "
            "or set pseudo_labels.per_class=true"
        ]

    def _dead_classes(self, stats: MonitorStats) -> list[str]:
        shares = stats.pseudo_share
        if shares is None or not sum(shares) > 0:
            return []
        bad, good = [], []
        for i, (share, labeled) in enumerate(zip(shares, self.labeled_share, strict=True)):
            absent = labeled > 0 and share < DEAD_CLASS * labeled
            self._empty[i] = self._empty.get(i, 0) + 1 if absent else 0
            bad.append(self._empty[i] >= self.patience)
            good.append(share > 2 * DEAD_CLASS * labeled)
        dead = self._new_classes("dead", bad, good)
        if not dead:
            return []
        return [
            f"{self._names(dead)}: labelled pixels exist, but (almost) no pseudo-label in the last "
            f"{self.patience} intervals, so only the labels teach it. Lower pseudo_labels.threshold or set "
            "pseudo_labels.per_class=true; prototypes.sampling=balanced helps rare classes"
        ]

    def _merged(self, stats: MonitorStats) -> list[str]:
        if stats.closest_pair is None:
            return []
        active = stats.active or [True] * len(stats.closest_pair)
        bad = [a and c > MERGED for a, c in zip(active, stats.closest_pair, strict=True)]
        good = [c < MERGED - 0.01 for c in stats.closest_pair]
        merged = self._new_classes("merged", bad, good)
        if not merged:
            return []
        highest = max(stats.closest_pair[i] for i in merged)
        return [
            f"two prototypes of {self._names(merged)} are nearly the same (cosine {highest:.3f}): they "
            "describe one appearance twice. Lower prototypes.num_prototypes, set prototypes.restart_step for "
            "a new k-means start, or lower prototypes.weight"
        ]

    def _uneven(self, stats: MonitorStats) -> list[str]:
        if stats.usage_entropy is None:
            return []
        active = stats.active or [True] * len(stats.usage_entropy)
        # NaN, before the first use, is neither
        bad = [a and e < UNEVEN for a, e in zip(active, stats.usage_entropy, strict=True)]
        good = [e > 1.5 * UNEVEN for e in stats.usage_entropy]
        uneven = self._new_classes("uneven", bad, good)
        if not uneven:
            return []
        return [
            f"one prototype of {self._names(uneven)} wins nearly all pixels (usage entropy "
            f"{min(stats.usage_entropy[i] for i in uneven):.2f} of 1): the others are idle. Lower "
            "prototypes.reseed_after so that idle ones are replaced sooner, or prototypes.num_prototypes"
        ]

    def _fall(self, stats: MonitorStats) -> list[str]:
        if stats.miou is None:
            return []
        best, step = self.best
        self.best = max(self.best, (stats.miou, stats.step))
        fall = best - stats.miou
        bad = stats.unlabeled and fall > DEEP_FALL
        if not self._is_new("fall", bad=bad, good=fall < DEEP_FALL / 2):
            return []
        return [
            f"validation mIoU fell from {best:.1%} at step {step} to {stats.miou:.1%} with unlabelled images "
            "in use: their labels may mislead. Make the strong views milder (views.jitter_strength, "
            "views.gray, views.blur), train on the labels alone for longer (train.warmup_steps), or lower "
            "loss.unsupervised_weight; compare with method.preset=supervised"
        ]

    def _contradiction(self, stats: MonitorStats) -> list[str]:
        share = stats.disagreement
        if share is None or not self._is_new("differs", bad=share > WIDE_DISAGREEMENT, good=share < 0.4):
            return []
        return [
            f"the student contradicts {share:.0%} of the pseudo-labels it is given: the strong views are too "
            "hard or the labels are wrong. Lower views.jitter_strength or views.mixing_probability, raise "
            "pseudo_labels.threshold, or train longer on the labels first (train.warmup_steps)"
        ]
