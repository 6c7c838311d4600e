"""The images of a run: opened, looked at quickly, and dealt out batch by batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from protoseg.config.plan import Schedule
from protoseg.config.sections import Config, DataConfig, TrainConfig, ViewConfig
from protoseg.data.classes import read_classes
from protoseg.data.ranges import run_value_range
from protoseg.data.sources import CachedSource, Source, open_source
from protoseg.data.stream import Sample, make_stream
from protoseg.errors import ConfigError, DataError
from protoseg.manifest import ClassInfo, ValueRange
from protoseg.models.encoders import normalization
from protoseg.processes import Processes

logger = logging.getLogger("protoseg")


class ClassCount(NamedTuple):
    """What is labelled, by class id."""

    shares: list[float]
    """Share of the labelled pixels in [0, 1]."""
    images: list[int]
    """Images that hold the class."""


@dataclass(frozen=True)
class RunData:
    """Images and classes of a run."""

    classes: list[ClassInfo]
    labeled: CachedSource
    unlabeled: CachedSource | None
    val: Source
    mean: list[float]
    std: list[float]
    labeled_count: ClassCount
    """Pixels and images of each class among the labelled ones."""
    hashes: dict[str, str]
    """Hash of each list."""
    value_range: ValueRange | None = None
    """Values that become 0 and 255 in images of more than 8 bits; None where there are only 8-bit ones."""

    @property
    def num_unlabeled(self) -> int:
        """Unlabelled images."""
        return 0 if self.unlabeled is None else len(self.unlabeled)

    def class_weights(self) -> Tensor:
        """(C,) ``share ** -0.5``, scaled so that the mean weight of a labelled pixel is 1; 0 without one."""
        raw = torch.tensor([0.0 if s == 0 else s**-0.5 for s in self.labeled_count.shares])
        return raw / (raw * torch.tensor(self.labeled_count.shares)).sum()


def count_classes(source: CachedSource, num_classes: int) -> ClassCount:
    """What is labelled of each class; reads every labelled mask once.

    Raises:
        DataError: If no pixel is labelled.
    """
    counts, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for index in range(len(source)):
        try:
            mask = source.mask(index)
        except DataError:
            if source.config.on_error == "raise":
                raise
            continue  # the loader passes it over too, and counts it
        found = np.bincount(mask.reshape(-1), minlength=256)
        counts += found
        images += found > 0
    known = counts[:num_classes]
    if known.sum() == 0:
        raise DataError(
            "no labelled pixel has a class: every mask holds only ignored values; check data.label_map "
            "with python -m protoseg.check"
        )
    return ClassCount((known / known.sum()).tolist(), images[:num_classes].tolist())


def open_run_data(config: Config) -> RunData:
    """Open lists and images of a run and look at them quickly.

    Raises:
        DataError, ConfigError: With what is wrong.
    """
    from protoseg.check.inspect import inspect  # the doctor builds on this module's neighbours

    report = inspect(config, quick=True)
    if report.errors:
        raise DataError(
            "the data cannot be trained on:\n"
            + "\n".join(report.problem_lines())
            + "\nlook closer with: python -m protoseg.check --config FILE"
        )
    for line in report.problem_lines(limit=3):
        logger.warning("%s", line)
    settings, model = run_value_range(config.data), config.model
    classes = read_classes(settings)
    if len(classes) > settings.ignore_index:
        raise ConfigError(
            f"{len(classes)} classes and data.ignore_index={settings.ignore_index} overlap; class ids "
            "must be below it"
        )
    used = {
        "labeled": open_source(settings, "labeled", classes),
        "val": open_source(settings, "val", classes),
    }
    if settings.kind == "synthetic" or settings.unlabeled is not None:
        unlabeled = open_source(settings, "unlabeled", classes)
        if len(unlabeled) or config.method.unlabeled:
            used["unlabeled"] = unlabeled
    for split, source in used.items():
        if len(source) == 0:
            raise DataError(f"data.{split} is empty: it names no image")
    labeled = CachedSource(used["labeled"], settings)
    mean, std = normalization(model.encoder, model.pretrained, settings.in_channels)
    return RunData(
        classes=classes,
        labeled=labeled,
        unlabeled=CachedSource(used["unlabeled"], settings) if "unlabeled" in used else None,
        val=used["val"],
        mean=settings.mean or mean,
        std=settings.std or std,
        labeled_count=count_classes(labeled, len(classes)),
        hashes={split: source.sha256 for split, source in used.items()},
        value_range=settings.value_range,
    )


class Batches:
    """Labelled and unlabelled batches of this process on its device, and what it cost to wait for them.

    Attributes:
        images: Images dealt out since the last log line.
        waited: Seconds waited for them.
        replaced: Unreadable images that were passed over.
    """

    def __init__(
        self, labeled: Iterator[Sample], unlabeled: Iterator[Sample] | None, device: torch.device
    ) -> None:
        self.labeled, self.unlabeled, self.device = labeled, unlabeled, device
        self.images, self.waited, self.replaced = 0, 0.0, 0

    def next(self, *, unlabeled: bool) -> tuple[Sample, Sample | None]:
        """The next labelled batch and, where it is asked for and there is one, the next unlabelled one."""
        began = time.perf_counter()
        first = next(self.labeled)
        second = next(self.unlabeled) if unlabeled and self.unlabeled is not None else None
        self.waited += time.perf_counter() - began
        for sample in filter(None, (first, second)):
            self.images += len(sample["replaced"])
            self.replaced += int(sample["replaced"].sum())
        return self._move(first), None if second is None else self._move(second)

    def take_replaced(self, processes: Processes) -> int:
        """Unreadable images that were passed over on all processes since this was last asked."""
        own, self.replaced = self.replaced, 0
        return int(processes.reduce(torch.tensor(float(own), device=self.device)))

    def _move(self, sample: Sample) -> Sample:
        return {key: value.to(self.device, non_blocking=True) for key, value in sample.items()}


def open_batches(
    settings: DataConfig,
    views: ViewConfig,
    train: TrainConfig,
    data: RunData,
    schedule: Schedule,
    processes: Processes,
    step: int,
    *,
    unlabeled: bool,
) -> Batches:
    """Batches of this process from step ``step`` on; ``unlabeled``: of unlabelled images, too, if any."""
    stop = schedule.max_steps * train.accumulate

    def stream(source: CachedSource, name: Literal["labeled", "unlabeled"], first: int) -> Iterator[Sample]:
        return make_stream(
            source, name, data=settings, views=views, batch_size=train.batch_size, seed=train.seed,
            mean=data.mean, start=first * train.accumulate, stop=stop, rank=processes.rank,
            world=processes.world,
        )  # fmt: skip

    second = None
    if unlabeled and data.unlabeled is not None:
        second = stream(data.unlabeled, "unlabeled", max(step, schedule.warmup_steps))
    return Batches(stream(data.labeled, "labeled", step), second, processes.device)
