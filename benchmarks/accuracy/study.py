"""A study file: which trainings it asks for, what each costs, and how a training is recognised again."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from benchmarks.common import ROOT
from protoseg.config.load import apply_override, explain_problems, find_config, parse_config, read_config
from protoseg.config.sections import Config
from protoseg.errors import ConfigError, UserError

STUDIES = ROOT / "benchmarks" / "studies"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Head = Literal["linear", "prototype", "fused"]
HEADS: tuple[Head, ...] = ("linear", "prototype", "fused")

# settings that say where results go or how data is read, and never change a figure
NO_EFFECT = {"run.name", "run.dir", "run.project", "data.cache", "data.num_workers", "train.trackers",
             "train.save_every", "train.keep_states"}  # fmt: skip
# settings that the study itself decides
OWN = NO_EFFECT - {"data.num_workers"} | {"train.seed", "train.max_steps", "train.warmup_steps",
                                          "train.eval_every", "train.start_from",
                                          "pseudo_labels.teacher"}  # fmt: skip
START = "start"


class StudyError(UserError):
    """A study that cannot be used; the text says what to change."""


class Part(BaseModel):
    """Base of every part of a study file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("overrides", check_fields=False)
    @classmethod
    def _free(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OWN & set(value)):
            raise ValueError(f"{', '.join(taken)} cannot be overridden: budgets, seeds and the runner set it")
        return value


class Budget(Part):
    """How long every method trains."""

    name: str = Field(pattern=NAME)
    """Name in tables and records."""
    title: str
    """A few words for tables and plots."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps, the same for all methods."""
    encoder_images: int | None = Field(None, ge=1)
    """Images through the student's and the teacher's encoder together; each method's steps follow."""
    labels: list[str] | None = None
    """Label counts it applies to; null: all."""

    @model_validator(mode="after")
    def _check(self) -> Budget:
        if (self.steps is None) == (self.encoder_images is None):
            raise ValueError("give exactly one of steps and encoder_images")
        return self


class Labels(Part):
    """A number of labelled images and where their lists are."""

    name: str = Field(pattern=NAME)
    """Name in tables and records."""
    count: int = Field(ge=1)
    """Labelled images, for plots."""
    overrides: dict[str, Any] = {}
    """Settings ``key.sub: value``; ``{seed}`` in a text becomes the seed."""
    seeds: list[int] | None = None
    """Seeds of this label count; null: those of the study."""


class Method(Part):
    """A method, or a variant of one."""

    name: str = Field(pattern=NAME)
    """Name in records."""
    label: str
    """Name in tables and plots."""
    head: Head
    """Head whose mIoU is the figure of the method."""
    overrides: dict[str, Any] = {}
    """Settings ``key.sub: value`` over the base configuration and the labels' settings."""
    labels: list[str] | None = None
    """Label counts it is trained with; null: all."""
    seeds: list[int] | None = None
    """Seeds it is trained with; null: those of the label count."""
    teacher: str | None = None
    """Method of the study whose network labels the unlabelled images of this one (``pseudo_labels.teacher``):
    that of the same budget, labels and seed."""


class Start(Part):
    """A training that all runs of a label count and seed start from."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    overrides: dict[str, Any] = {}
    """Settings ``key.sub: value`` over the base configuration, the study's and the labels' settings."""


class Study(Part):
    """The whole file."""

    name: str = Field(pattern=NAME)
    """Names the records, the summary and the plots."""
    title: str
    """Data, size and network in a few words."""
    config: str
    """Base configuration, relative to the project."""
    overrides: dict[str, Any] = {}
    """Settings of every run over the base configuration."""
    start: Start | None = None
    """A first stage, trained once for each label count and seed, whose cost is not counted; null: none."""
    warmup_share: float = Field(0.25, ge=0, lt=1)
    """Share of the steps that is supervised, in every run."""
    evaluations: int = Field(3, ge=1)
    """Evaluations of a run, evenly spread; the last is at the last step."""
    final_val: str | None = None
    """List below ``data.root`` on which the weights of the last step are measured once more, where
    ``data.val`` is a part of it that makes evaluations on the way cheap; the figures of methods are then
    those. Null: none."""
    baseline: str | None = None
    """Method that the others are compared with in plots and tables; null: no such method."""
    budgets: list[Budget] = Field(min_length=1)
    """Lengths of training."""
    seeds: list[int] = Field(min_length=1)
    """Seeds: of the label list (through ``{seed}``) and of the training."""
    labels: list[Labels] = Field(min_length=1)
    """Label counts."""
    methods: list[Method] = Field(min_length=1)
    """Methods."""

    @field_validator("budgets", "labels", "methods")
    @classmethod
    def _unique(cls, value: list[Any]) -> list[Any]:
        names = [item.name for item in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names must differ, {', '.join(twice)} is there twice")
        return value

    @model_validator(mode="after")
    def _check(self) -> Study:
        known = {item.name for item in self.labels}
        for part in (*self.methods, *self.budgets):
            unknown = sorted(set(part.labels or ()) - known)
            if unknown:
                raise ValueError(f"{part.name}: unknown labels {unknown}; the study has {sorted(known)}")
        if self.start is not None and any(method.name == START for method in self.methods):
            raise ValueError(f"{START!r} is the name of the first stage; give the method another")
        for item in self.methods:
            if item.teacher is None:
                continue
            found = next((one for one in self.methods if one.name == item.teacher), None)
            if (
                found is None
                or found.teacher is not None
                or found.labels is not None
                or found.seeds is not None
            ):
                raise ValueError(
                    f"{item.name}: teacher {item.teacher!r} must be a method of the study without a teacher, "
                    "labels or seeds of its own"
                )
        if self.baseline is not None and self.baseline not in {item.name for item in self.methods}:
            raise ValueError(f"baseline {self.baseline!r} is no method of the study")
        return self


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


def load_study(path: str | Path) -> Study:
    """Read a study file (over its ``base``, if any); a bare name is looked up in ``benchmarks/studies``.

    Raises:
        StudyError: With a line for each problem.
    """
    file = Path(path)
    if not file.is_file() and (STUDIES / f"{file.stem}.yaml").is_file() and file.parent == Path():
        file = STUDIES / f"{file.stem}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(item.stem for item in STUDIES.glob("*.yaml")))
        raise StudyError(f"study file {path} not found; benchmarks/studies has {known}")
    try:
        return Study.model_validate(read_config(file))
    except ConfigError as error:
        raise StudyError(str(error).replace("config file", "study file")) from error
    except ValidationError as error:
        raise StudyError(explain_problems(error, str(path), "study")) from error


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


def resolve(path: str, overrides: list[str]) -> Config:
    """A configuration file with overrides, as ``load_config`` reads it; the file is parsed once.

    Raises:
        ConfigError: If the settings are wrong.
    """
    file = find_config(path)
    stamp = file.stat().st_mtime_ns if file.is_file() else 0
    raw = copy.deepcopy(_parsed(path, stamp))
    for item in overrides:
        apply_override(raw, item)
    return parse_config(raw, path)


@functools.lru_cache(maxsize=32)
def _parsed(path: str, stamp: int) -> dict[str, Any]:
    return read_config(path)


def override_texts(seed: int, *parts: dict[str, Any]) -> list[str]:
    """Settings as ``key.sub=value``, later parts over earlier ones."""
    return [f"{key}={override_text(value, seed)}" for part in parts for key, value in part.items()]


def length_texts(seed: int, steps: int, warmup: int, evaluations: int) -> list[str]:
    """What the study itself sets."""
    return [
        f"train.seed={seed}",
        f"train.max_steps={steps}",
        f"train.warmup_steps={warmup}",
        f"train.eval_every={-(-steps // evaluations)}",
        "data.cache=true",
    ]


def override_text(value: Any, seed: int) -> str:
    """A YAML value as the text that ``key.sub=value`` takes, with ``{seed}`` filled in."""
    if isinstance(value, str):
        return value.replace("{seed}", str(seed))
    return json.dumps(value)


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


def changed_settings(config: Config) -> dict[str, Any]:
    """Settings that differ from the code's defaults, as ``section.key`` -> value."""
    found: dict[str, Any] = {}

    def walk(values: dict[str, Any], defaults: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            default = defaults.get(key)
            if isinstance(value, dict) and isinstance(default, dict):
                walk(value, default, f"{prefix}{key}.")
            elif value != default:
                found[f"{prefix}{key}"] = value

    walk(config.model_dump(mode="json"), Config().model_dump(mode="json"), "")
    return found


def config_hash(config: Config) -> str:
    """Hash of the settings that differ from the defaults and can change a figure.

    A setting that a later version adds leaves it as it is, so that records stay valid; and what configures a
    part that is off changes nothing. Of the run that the weights come from only the name counts.
    """
    off = [] if config.method.prototypes else ["prototypes."]
    if not config.method.unlabeled:
        off += ["pseudo_labels.", "data.unlabeled", "views.mixing", "views.strong_views"]
        # the colour operations of the strong view
        off += [] if config.views.labeled_jitter else ["views.jitter", "views.gray", "views.blur"]
    settings = {
        key: value
        for key, value in changed_settings(config).items()
        if key not in NO_EFFECT and (key == "pseudo_labels.held_out" or not key.startswith(tuple(off)))
    }
    for key in ("train.start_from", "pseudo_labels.teacher"):
        if key in settings:
            settings[key] = Path(settings[key]).name
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
