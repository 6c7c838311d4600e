"""When what happens in a run: epochs and nulls of the configuration become steps, once. Never needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from protoseg.config.sections import Config
from protoseg.config.training import TrainConfig
from protoseg.errors import ConfigError

POOLED = ("deeplabv3", "deeplabv3plus", "pcr")
"""Architectures with batch norm behind a global pooling."""


class Length(NamedTuple):
    """The length of a run."""

    batch: int
    """Labelled images of a step, over micro-steps and processes; as many unlabelled ones."""
    steps_per_epoch: int
    """Steps for one pass over the images."""
    max_steps: int
    """Steps of the run."""


def run_length(train: TrainConfig, num_images: int, world: int = 1) -> Length:
    """Batch and number of steps.

    Args:
        train: Its section of the configuration.
        num_images: What an epoch passes over: unlabelled images, labelled ones when there are none.
        world: Number of processes.
    """
    batch = train.batch_size * train.accumulate * world
    per_epoch = math.ceil(num_images / batch)
    return Length(batch, per_epoch, train.max_steps or max(1, round((train.epochs or 1) * per_epoch)))


class Phase(NamedTuple):
    """Which parts of the method are on at a step."""

    unlabeled: bool
    """The teacher labels unlabelled images."""
    prototypes: bool
    """The prototype head is trained and prototypes move."""
    prototype_weight: float
    """w_p."""
    unsupervised_share: float = 1.0
    """Share of w_u, see ``loss.unsupervised_start``."""
    outside: bool = False
    """A teacher from outside labels instead of the moving average."""


@dataclass(frozen=True)
class Schedule:
    """When what happens, in optimiser steps; ``step`` counts from 0, ``done`` from 1."""

    length: Length
    warmup_steps: int
    """Supervised steps before the teacher is used."""
    unlabeled: bool
    """Whether unlabelled images are used after that."""
    prototype_starts: tuple[int, ...]
    """Steps before which the prototypes start; none without prototypes."""
    prototype_weight: float
    """w_p after its rise."""
    weight_ramp: int
    """Steps of the rise."""
    log_every: int
    eval_every: int
    save_every: int
    unsupervised_start: float = 1.0
    """Share of w_u with which unlabelled images begin."""
    unsupervised_ramp: int = 0
    """Steps of its rise to 1."""
    outside_until: int = 0
    """Step before which a teacher from outside labels."""
    calibrate_every: int | None = None
    """Steps between measurements of the own teacher on held-out labels; None: never."""

    @property
    def max_steps(self) -> int:
        """Steps of the run."""
        return self.length.max_steps

    def phase(self, step: int) -> Phase:
        """Parts of the method that are on."""
        since = step - self.prototype_starts[0] if self.prototype_starts else -1
        unlabeled = self.unlabeled and step >= self.warmup_steps
        return Phase(
            unlabeled, since >= 0, self.weight_after(since), self._unsupervised_share(step),
            step < self.outside_until,
        )  # fmt: skip

    def _unsupervised_share(self, step: int) -> float:
        since = max(0, step - self.warmup_steps)
        if since >= self.unsupervised_ramp:
            return 1.0
        start = self.unsupervised_start
        return start + (1 - start) * since / self.unsupervised_ramp

    def calibrates(self, step: int) -> bool:
        """Whether the own teacher is to be measured before this step."""
        first = max(self.warmup_steps, self.outside_until)
        due = self.calibrate_every is not None and step >= first
        return due and (step - first) % (self.calibrate_every or 1) == 0

    def weight_after(self, steps: int) -> float:
        """w_p with its cosine rise: 0 before the start, all of it ``weight_ramp`` steps after."""
        if steps < 0:
            return 0.0
        if steps >= self.weight_ramp:
            return self.prototype_weight
        return self.prototype_weight * 0.5 * (1 - math.cos(math.pi * steps / self.weight_ramp))

    def ends(self, done: int) -> bool:
        """Whether this was the last step."""
        return done == self.max_steps

    def logs(self, done: int) -> bool:
        """Whether a log line is due."""
        return done % self.log_every == 0 or self.ends(done)

    def evaluates(self, done: int) -> bool:
        """Whether an evaluation is due."""
        return done % self.eval_every == 0 or self.ends(done)

    def saves(self, done: int) -> bool:
        """Whether a resume state is due."""
        return done % self.save_every == 0 or self.ends(done)

    def pauses(self, done: int) -> bool:
        """Whether any of these is due: the only steps that wait for the device."""
        return self.logs(done) or self.evaluates(done) or self.saves(done)


def make_schedule(config: Config, num_labeled: int, num_unlabeled: int, world: int = 1) -> Schedule:
    """The schedule of a run.

    Raises:
        ConfigError: If the parts do not fit into the run.
    """
    train, prototypes = config.train, config.prototypes
    passed = num_unlabeled if config.method.unlabeled and num_unlabeled else num_labeled
    length = run_length(train, passed, world)
    warmup = train.warmup_steps
    if warmup is None:
        warmup = 0 if train.start_from else min(length.steps_per_epoch, length.max_steps // 4)
    start, restart = warmup + prototypes.start_delay, prototypes.restart_step
    if config.method.unlabeled and warmup >= length.max_steps:
        raise ConfigError(
            f"train.warmup_steps={warmup} leaves no step for unlabelled images: the run has "
            f"{length.max_steps}; lower it or raise train.max_steps"
        )
    if config.method.prototypes and start >= length.max_steps:
        raise ConfigError(
            f"the prototypes would start at step {start} of {length.max_steps}; lower prototypes.start_delay "
            "or train.warmup_steps"
        )
    if (
        train.batch_size == 1
        and world == 1
        and config.model.architecture in POOLED
        and not config.model.freeze_bn
    ):
        raise ConfigError(
            f"train.batch_size=1 is too small for {config.model.architecture}: batch norm after its global "
            "pooling needs two images; raise it, or set model.freeze_bn=true"
        )
    if restart is not None and not start < restart < length.max_steps:
        raise ConfigError(
            f"prototypes.restart_step={restart} must lie between the start ({start}) and the last step "
            f"({length.max_steps})"
        )
    eval_every = train.eval_every or max(1, math.ceil(length.max_steps / 5))
    starts = (start,) if restart is None else (start, restart)
    labels = config.pseudo_labels
    measured = config.method.unlabeled and labels.measured and labels.held_out > 0
    outside = round(labels.teacher_until * length.max_steps) if labels.from_outside else 0
    return Schedule(
        length=length,
        warmup_steps=warmup,
        unlabeled=config.method.unlabeled,
        prototype_starts=starts if config.method.prototypes else (),
        prototype_weight=prototypes.weight,
        weight_ramp=prototypes.weight_ramp,
        log_every=train.log_every,
        eval_every=eval_every,
        save_every=train.save_every or eval_every,
        unsupervised_start=config.loss.unsupervised_start,
        unsupervised_ramp=config.loss.unsupervised_ramp,
        outside_until=outside,
        calibrate_every=labels.calibrate_every if measured else None,
    )
