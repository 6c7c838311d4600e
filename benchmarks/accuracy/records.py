"""What a finished training leaves behind: one JSON file each, so that runners and machines can be merged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.accuracy.runs import Run
from benchmarks.accuracy.settings import changed_settings, config_hash
from benchmarks.accuracy.study import Study, StudyError
from benchmarks.common import machine, versions
from protoseg.config.load import load_config
from protoseg.errors import ConfigError
from protoseg.files import write_text_whole

SCHEMA = 1
FINAL_NAME = "final_val.json"


class Best(BaseModel):
    """The evaluation with the highest mIoU: chosen on val, so it flatters."""

    model_config = ConfigDict(extra="forbid")

    step: int
    miou: float


class PseudoLabels(BaseModel):
    """Believed pseudo-labels in the last logged interval."""

    model_config = ConfigDict(extra="forbid")

    step: int
    rate: float
    """Share of valid unlabelled pixels."""
    class_share: dict[str, float]
    """Share of each class among believed ones."""


class Final(BaseModel):
    """The weights of the last step on the study's ``final_val``."""

    model_config = ConfigDict(extra="forbid")

    val: str
    """The list, below ``data.root``."""
    data_hash: str
    """SHA-256 of its sorted stems."""
    images: int
    miou: dict[str, float]
    """By head."""
    iou: dict[str, dict[str, float | None]]
    """By head and class; null where the list lacks the class."""


class Record(BaseModel):
    """``RUN.json``. Shares are in [0, 1]; networks are the EMA teacher."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    study: str
    run: str
    method: str
    labels: str
    seed: int
    command: str
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    git_revision: str | None
    base_config: str
    settings: dict[str, Any]
    """Settings that differ from the code's defaults."""
    config_hash: str
    data_hashes: dict[str, str]
    """SHA-256 of the sorted stems of each list."""
    steps: int
    warmup_steps: int
    student_encoder_images: int
    teacher_encoder_images: int
    wall_seconds: float
    """All attempts together, evaluations included."""
    attempts: int
    jobs: int
    """Trainings side by side."""
    miou: dict[str, float]
    """By head, last step."""
    best: dict[str, Best]
    """By head, over all evaluations."""
    iou: dict[str, dict[str, float | None]]
    """By head and class, last step; null where val lacks the class."""
    miou_by_step: dict[str, dict[int, float]]
    pseudo_labels: PseudoLabels | None
    final: Final | None = None
    """Null where the study has no ``final_val``."""

    @property
    def measured(self) -> Final | Record:
        """Where the method's figures are: the longer list's, where there is one."""
        return self.final or self


@dataclass(frozen=True)
class Places:
    """Folders of a study."""

    runs: Path
    """Run folders, logs and locks."""
    records: Path
    """Records."""

    def record(self, run: str) -> Path:
        """The record of a run."""
        return self.records / f"{run}.json"

    def log(self, run: str) -> Path:
        """What the trainer printed."""
        return self.runs / f"{run}.log"


def read_record(path: Path) -> Record | None:
    """A record, or None where there is none.

    Raises:
        StudyError: If the file is damaged.
    """
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()
        raise StudyError(
            f"{path} is not a record ({' '.join(first[:3])}); delete it and run the study again"
        ) from error


def folder_hash(folder: Path) -> str | None:
    """Configuration hash of a run folder; None when there is none that can be read."""
    try:
        return config_hash(load_config(folder / "config.yaml"))
    except ConfigError:
        return None


def finished(run: Run, folder: Path) -> bool:
    """Whether the folder holds this training, done to its last step."""
    # torch takes seconds to import, and listing a study does not need it
    from protoseg.checkpoint import CHECKPOINT_DIR, read_info
    from protoseg.errors import CheckpointError

    if folder_hash(folder) != run.hash:
        return False
    try:
        return read_info(folder / CHECKPOINT_DIR).step == run.steps
    except CheckpointError:
        return False


def collect(study: Study, run: Run, folder: Path, *, command: str, clock: Clock, jobs: int) -> Record:
    """The record of a finished run folder."""
    from protoseg.checkpoint import CHECKPOINT_DIR, read_info
    from protoseg.train.log import read_metrics

    info = read_info(folder / CHECKPOINT_DIR)
    lines = read_metrics(folder / "metrics.jsonl")
    curve = miou_by_step(lines)
    believed = [line for line in lines if "pseudo_label/rate" in line]
    names = [item.name for item in info.classes]
    val = info.metrics["val"]
    return Record(
        study=study.name,
        run=run.name,
        method=run.method.name,
        labels=run.labels.name,
        seed=run.seed,
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine={**machine(), "threads": "1"},
        versions=versions(),
        git_revision=info.git_revision,
        base_config=study.config,
        settings={k: v for k, v in changed_settings(run.config).items() if not k.startswith("run.")},
        config_hash=run.hash,
        data_hashes=info.data_hashes,
        steps=info.step,
        warmup_steps=run.config.train.warmup_steps or 0,
        student_encoder_images=run.cost.student,
        teacher_encoder_images=run.cost.teacher,
        wall_seconds=round(clock.seconds(), 1),
        attempts=clock.attempts,
        jobs=jobs,
        miou=val["miou"],
        best={head: _best(points) for head, points in curve.items()},
        iou=val["per_class"],
        miou_by_step=curve,
        pseudo_labels=_pseudo_labels(believed[-1], names) if believed else None,
        final=None if study.final_val is None else read_final(study.final_val, folder / FINAL_NAME),
    )


def read_final(val: str, path: Path) -> Final:
    """The part of a record that ``python -m protoseg.evaluate`` has measured."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Final(
        val=val,
        data_hash=found["list_sha256"],
        images=found["num_images"],
        miou=found["miou"],
        iou=found["per_class"],
    )


def miou_by_step(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Head -> step -> mIoU on val, from the lines of a ``metrics.jsonl``."""
    curve: dict[str, dict[int, float]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("val/miou_"):
                curve.setdefault(key.removeprefix("val/miou_"), {})[line["step"]] = value
    return curve


def _best(points: dict[int, float]) -> Best:
    step = max(points, key=lambda key: (points[key], -key))
    return Best(step=step, miou=points[step])


def _pseudo_labels(line: dict[str, Any], names: list[str]) -> PseudoLabels:
    share = dict(zip(names, line["pseudo_label/class_share"], strict=True))
    return PseudoLabels(step=line["step"], rate=line["pseudo_label/rate"], class_share=share)


class Clock:
    """Wall time of a run over all attempts, kept beside its folder.

    An attempt whose runner was killed ends with the last line that its trainer printed.
    """

    def __init__(self, path: Path, log: Path) -> None:
        self.path, self.log = path, log
        try:
            self.spans: list[list[float]] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            self.spans = []

    @property
    def attempts(self) -> int:
        """How often the trainer was started."""
        return len(self.spans)

    def begin(self, now: float, *, afresh: bool) -> None:
        """An attempt starts; ``afresh``: from step 0, so that earlier ones do not count."""
        if afresh:
            self.spans = []
        self.settle()
        self.spans.append([now])
        self._save()

    def settle(self) -> None:
        """End an attempt that nobody has ended."""
        if self.spans and len(self.spans[-1]) == 1 and self.log.exists():
            self.spans[-1].append(max(self.spans[-1][0], self.log.stat().st_mtime))

    def end(self, now: float) -> None:
        """The attempt ends."""
        self.spans[-1][1:] = [now]
        self._save()

    def seconds(self) -> float:
        """Seconds of all attempts that have ended."""
        return sum(span[1] - span[0] for span in self.spans if len(span) == 2)

    def _save(self) -> None:
        write_text_whole(self.path, json.dumps(self.spans))
