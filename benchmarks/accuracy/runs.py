"""The trainings of a study: their settings, their order and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.accuracy.settings import config_hash, length_texts, override_texts, resolve
from benchmarks.accuracy.study import START, Budget, Labels, Method, Study, StudyError
from protoseg.config.sections import Config
from protoseg.errors import ConfigError


@dataclass(frozen=True)
class Cost:
    """Images through the encoders in a run; the k-means start and evaluations are left out."""

    student: int
    """Images forward and backward."""
    teacher: int
    """Images forward only."""

    @property
    def total(self) -> int:
        """Both."""
        return self.student + self.teacher


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    method: Method
    labels: Labels
    seed: int
    config: Config
    overrides: tuple[str, ...]
    """What the trainer's command line says over the base configuration."""
    cost: Cost
    start: Run | None = None
    """The run whose weights this one starts from."""
    teacher: Run | None = None
    """The run whose network labels for this one."""

    @property
    def needs(self) -> list[Run]:
        """Runs that must be finished before this one."""
        return [run for run in (self.start, self.teacher) if run is not None]

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        assert self.config.train.max_steps is not None
        return self.config.train.max_steps

    @property
    def hash(self) -> str:
        """Recognises the training: equal for equal settings, wherever its files lie."""
        return config_hash(self.config)


@dataclass(frozen=True)
class Cell:
    """A place in the tables. Budgets that lead to the same training share it."""

    budget: Budget
    run: Run


def plan(study: Study) -> list[Cell]:
    """All cells, in the order in which they are trained: all methods of a seed before the next seed.

    Raises:
        StudyError: If a run's settings are wrong or a budget is too small for it.
    """
    cells = []
    for budget in study.budgets:
        for labels in study.labels:
            if budget.labels is not None and labels.name not in budget.labels:
                continue
            for seed in labels.seeds or study.seeds:
                cells += [
                    Cell(budget, make_run(study, budget, labels, method, seed))
                    for method in study.methods
                    if (method.labels is None or labels.name in method.labels)
                    and (method.seeds is None or seed in method.seeds)
                ]
    return cells


def unique_runs(cells: list[Cell]) -> list[Run]:
    """The trainings behind the cells, each once, in order; a first stage comes before what needs it."""
    return with_starts([cell.run for cell in cells])


def with_starts(runs: list[Run]) -> list[Run]:
    """``runs`` with the first stages and teachers they need, each once."""
    found: dict[str, Run] = {}
    for run in runs:
        needed = [*(one for need in run.needs for one in (*need.needs, need)), run]
        for item in needed:
            found.setdefault(item.name, item)
    return list(found.values())


def make_run(study: Study, budget: Budget, labels: Labels, method: Method, seed: int) -> Run:
    """Resolve the settings of one training.

    Raises:
        StudyError: If they are wrong, or the budget is too small.
    """
    start = make_start(study, labels, seed)
    texts = override_texts(seed, study.overrides, labels.overrides, method.overrides)
    place = f"{study.name}: {method.name}, {labels.name} labels, seed {seed}, budget {budget.name}"
    try:
        teacher = next((item for item in study.methods if item.name == method.teacher), None)
        taught = [] if teacher is None else [f"pseudo_labels.teacher={teacher.name}"]
        draft = resolve(study.config, [*texts, *taught, "train.max_steps=1", "train.warmup_steps=0"])
        steps = steps_within(budget, draft, study.warmup_share)
        warmup = warmup_steps(steps, study.warmup_share)
        if draft.method.unlabeled and warmup >= steps:
            raise StudyError(f"{place}: {steps} step(s) leave none for unlabelled images; raise the budget")
        texts += length_texts(seed, steps, warmup, study.evaluations)
        taught_by = make_run(study, budget, labels, teacher, seed) if teacher is not None else None
        return _run(study, method, labels, seed, texts, start, taught_by)
    except ConfigError as error:
        raise StudyError(f"{place}: {error}") from error


def make_start(study: Study, labels: Labels, seed: int) -> Run | None:
    """The first stage of a label count and seed, or None in a study without one.

    Raises:
        StudyError: If its settings are wrong.
    """
    if study.start is None:
        return None
    steps = study.start.steps
    texts = override_texts(seed, study.overrides, labels.overrides, study.start.overrides)
    texts += length_texts(seed, steps, 0, study.evaluations)
    method = Method(name=START, label=START, head="linear", overrides=study.start.overrides)
    try:
        return _run(study, method, labels, seed, texts, None)
    except ConfigError as error:
        raise StudyError(f"{study.name}: {START}, {labels.name} labels, seed {seed}: {error}") from error


def _run(
    study: Study, method: Method, labels: Labels, seed: int, texts: list[str], start: Run | None,
    teacher: Run | None = None,
) -> Run:  # fmt: skip
    own = [] if start is None else [f"train.start_from={start.name}"]
    own += [] if teacher is None else [f"pseudo_labels.teacher={teacher.name}"]
    config = resolve(study.config, [*texts, *own])
    steps, warmup = config.train.max_steps, config.train.warmup_steps
    assert steps is not None
    assert warmup is not None
    name = f"{method.name}_{labels.name}_seed{seed}_{steps}"
    if method.name == START:
        # what starts from it carries this name in its settings, and so is known to start from these weights
        name += f"_{config_hash(config)[:6]}"
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    return Run(name, method, labels, seed, config, tuple(texts), cost_of(config, steps, warmup), start,
               teacher)  # fmt: skip


def warmup_steps(steps: int, share: float) -> int:
    """Supervised steps of a run, a half rounded up."""
    return int(steps * share + 0.5)


def cost_of(config: Config, steps: int, warmup: int) -> Cost:
    """Encoder images of a run of ``steps`` steps, ``warmup`` of them supervised.

    A supervised step costs B student images. A later one costs B + V B of the student (V strong views)
    and B of the teacher (the weak view).
    """
    batch = config.train.batch_size * config.train.accumulate
    later = steps - warmup if config.method.unlabeled else 0
    return Cost(batch * (steps + config.views.strong_views * later), batch * later)


def steps_within(budget: Budget, config: Config, share: float) -> int:
    """Steps of a run: those of the budget, or the most that its encoder images pay for.

    Raises:
        StudyError: If the budget does not pay for one step.
    """
    if budget.steps is not None:
        return budget.steps
    assert budget.encoder_images is not None

    # the most that it would pay for if all were supervised, and down from there
    steps = budget.encoder_images // cost_of(config, 1, 1).total
    while steps and cost_of(config, steps, warmup_steps(steps, share)).total > budget.encoder_images:
        steps -= 1
    if not steps:
        raise StudyError(
            f"budget {budget.name}: {budget.encoder_images} encoder images do not pay for a step of "
            f"{cost_of(config, 1, 0).total}; raise encoder_images"
        )
    return steps
