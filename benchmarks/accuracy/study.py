"""A study file: which methods, label counts, seeds and budgets it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from benchmarks.accuracy.settings import NO_EFFECT
from benchmarks.common import ROOT
from protoseg.config.load import explain_problems, read_config
from protoseg.errors import ConfigError, UserError

STUDIES = ROOT / "benchmarks" / "studies"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Head = Literal["linear", "prototype", "fused"]
HEADS: tuple[Head, ...] = ("linear", "prototype", "fused")

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
