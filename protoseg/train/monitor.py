"""What goes wrong in a run: statistics that become warnings in plain language, and losses that stop it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from protoseg.errors import TrainingStoppedError
from protoseg.train.state import States

# where statistics become warnings
FEW_LABELS = 0.001
ONE_CLASS = 0.98
DEAD_CLASS = 0.01
MERGED = 0.98
UNEVEN = 0.2
DEEP_FALL = 0.02
MANY_CONTRADICTED = 0.5


Record = Mapping[str, Any]
"""A line of the log, see ``protoseg.train.log``."""


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

    def update(self, record: Record, *, unlabeled: bool = False) -> list[str]:
        """Warnings that are new with this line of the log; what it lacks is not looked at.

        Args:
            record: The line.
            unlabeled: Whether unlabelled images are in use.
        """
        return [
            *self._few_labels(record), *self._one_class(record), *self._dead_classes(record),
            *self._merged(record), *self._uneven(record), *self._fall(record, unlabeled),
            *self._contradiction(record),
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

    def _few_labels(self, record: Record) -> list[str]:
        rate = record.get("pseudo_label/rate")
        if rate is None or not self._is_new("rate", bad=rate < FEW_LABELS, good=rate > 2 * FEW_LABELS):
            return []
        return [
            f"{rate:.2%} of the pseudo-labels pass the threshold, so the unlabelled images teach nothing. "
            "Lower pseudo_labels.threshold, or train longer on the labels first (train.warmup_steps)"
        ]

    def _one_class(self, record: Record) -> list[str]:
        shares = record.get("pseudo_label/class_share")
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

    def _dead_classes(self, record: Record) -> list[str]:
        shares = record.get("pseudo_label/class_share")
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

    def _merged(self, record: Record) -> list[str]:
        closest = record.get("prototype/closest_pair")
        if closest is None:
            return []
        active = record.get("prototype/active") or [True] * len(closest)
        bad = [a and c > MERGED for a, c in zip(active, closest, strict=True)]
        good = [c < MERGED - 0.01 for c in closest]
        merged = self._new_classes("merged", bad, good)
        if not merged:
            return []
        highest = max(closest[i] for i in merged)
        return [
            f"two prototypes of {self._names(merged)} are nearly the same (cosine {highest:.3f}): they "
            "describe one appearance twice. Lower prototypes.num_prototypes, set prototypes.restart_step for "
            "a new k-means start, or lower prototypes.weight"
        ]

    def _uneven(self, record: Record) -> list[str]:
        entropy = record.get("prototype/usage_entropy")
        if entropy is None:
            return []
        active = record.get("prototype/active") or [True] * len(entropy)
        # NaN, before the first use, is neither
        bad = [a and e < UNEVEN for a, e in zip(active, entropy, strict=True)]
        good = [e > 1.5 * UNEVEN for e in entropy]
        uneven = self._new_classes("uneven", bad, good)
        if not uneven:
            return []
        return [
            f"one prototype of {self._names(uneven)} wins nearly all pixels (usage entropy "
            f"{min(entropy[i] for i in uneven):.2f} of 1): the others are idle. Lower "
            "prototypes.reseed_after so that idle ones are replaced sooner, or prototypes.num_prototypes"
        ]

    def _fall(self, record: Record, unlabeled: bool) -> list[str]:
        miou = record.get("val/miou_linear")
        if miou is None:
            return []
        best, step = self.best
        self.best = max(self.best, (miou, record["step"]))
        fall = best - miou
        bad = unlabeled and fall > DEEP_FALL
        if not self._is_new("fall", bad=bad, good=fall < DEEP_FALL / 2):
            return []
        return [
            f"validation mIoU fell from {best:.1%} at step {step} to {miou:.1%} with unlabelled images "
            "in use: their labels may mislead. Make the strong views milder (views.jitter_strength, "
            "views.gray, views.blur), train on the labels alone for longer (train.warmup_steps), or lower "
            "loss.unsupervised_weight; compare with method.preset=supervised"
        ]

    def _contradiction(self, record: Record) -> list[str]:
        share = record.get("teacher_student/disagreement")
        if share is None or not self._is_new("contradicted", bad=share > MANY_CONTRADICTED, good=share < 0.4):
            return []
        return [
            f"the student contradicts {share:.0%} of the pseudo-labels it is given: the strong views are too "
            "hard or the labels are wrong. Lower views.jitter_strength or views.mixing_probability, raise "
            "pseudo_labels.threshold, or train longer on the labels first (train.warmup_steps)"
        ]


class FaultWatch:
    """The first step whose loss or gradient is not finite, noted on the device: nobody waits for it.

    Args:
        device: Where losses are.
        states: What there is to go on from.
    """

    def __init__(self, device: torch.device, states: States) -> None:
        self.first = torch.zeros((), dtype=torch.int64, device=device)
        self.states = states

    def note(self, step: int, value: Tensor) -> None:
        """Look at the scalar of step ``step`` (from 1), which must be alike on all processes."""
        bad = (self.first == 0) & ~value.isfinite()
        self.first = torch.where(bad, step, self.first)

    def stop_if_seen(self) -> None:
        """Wait for the device and end the run if there was such a step.

        Raises:
            TrainingStoppedError: With the step, the last state from before it, and what to change.
        """
        step = int(self.first)
        if step == 0:
            return
        cure = (
            "start anew with a lower optim.lr, with optim.max_grad_norm=1, or with "
            "train.mixed_precision=bf16 instead of fp16"
        )
        last = self.states.last
        if last is not None:
            cure = (
                f"{last} is from before that; go on from it with clipped gradients:\n  "
                f"{self.states.resume_command} optim.max_grad_norm=1\nIf that does not help, {cure}"
            )
        raise TrainingStoppedError(f"the loss or its gradient is not finite at step {step}: {cure}")
