"""Counters of a run: how far it is, its best evaluation, and how long nothing was better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Progress:
    """Counters of a run; saved with each state."""

    step: int = 0
    """Optimiser steps done."""
    teacher_updates: int = 0
    """Teacher updates done, for the decay ramp."""
    teacher_head_start: int = 0
    """Updates that the weights of ``train.start_from`` count for, in the same ramp."""
    start_miou: float = 0.0
    """Validation mIoU of the linear head of ``train.start_from``, in [0, 1]; 0 if unknown."""
    best_miou: float = -1.0
    """Highest validation mIoU of the linear head so far, in [0, 1]."""
    skipped_images: int = 0
    """Unreadable images passed over."""
    world: int = 0
    """Processes of the run; 0 in states that do not tell."""
    best_head: str = "linear"
    """Head that the following three are of (``eval.best``)."""
    best_value: float = -1.0
    """Highest validation mIoU of that head so far, in [0, 1]: what ``best/`` has."""
    best_step: int = 0
    """Its step; 0 before the first evaluation and in older states."""
    patience_value: float = -1.0
    """The last mIoU that counted as better for ``train.patience``."""
    stale: int = 0
    """Evaluations since then."""

    @property
    def best(self) -> tuple[float, int]:
        """Highest validation mIoU of the linear head and its step; what training started from is step 0."""
        return max((self.start_miou, 0), (self.best_miou, self.step))

    def follow(self, head: str) -> bool:
        """Look at this head from now on; whether another one was looked at, which is then forgotten."""
        other = head != self.best_head
        if other:
            self.best_head, self.best_value, self.best_step = head, -1.0, 0
            self.patience_value, self.stale = -1.0, 0
        return other

    def note(self, miou: Mapping[str, float], *, min_delta: float, counts: bool) -> bool:
        """Take note of an evaluation at the present step.

        Args:
            miou: Validation mIoU by head, in [0, 1]; a head may lack or be NaN.
            min_delta: How much higher counts as better for the patience.
            counts: Whether one that is not better uses patience up.

        Returns:
            Whether it is the highest so far of the head that is looked at.
        """
        self.best_miou = max(self.best_miou, miou["linear"])
        value = miou.get(self.best_head, math.nan)
        best = value > self.best_value
        if best:
            self.best_value, self.best_step = value, self.step
        if value > self.patience_value + min_delta:
            self.patience_value, self.stale = value, 0
        elif counts:
            self.stale += 1
        return best

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved values; older states know the linear head's best only."""
        known = {"best_value": state.get("best_miou", -1.0), "patience_value": state.get("best_miou", -1.0)}
        for item in fields(self):
            setattr(self, item.name, state.get(item.name, known.get(item.name, item.default)))
