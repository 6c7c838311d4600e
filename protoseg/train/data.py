"""The images of a run: opened, looked at quickly, and dealt out batch by batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from protoseg.config.data import DataConfig, ViewConfig
from protoseg.config.plan import Schedule
from protoseg.config.sections import Config
from protoseg.config.training import TrainConfig
from protoseg.data.classes import read_classes
from protoseg.data.device_stream import make_device_stream
from protoseg.data.lists import EntryList, Split
from protoseg.data.ranges import with_value_range
from protoseg.data.sources import CachedSource, Source, listed_source, open_source
from protoseg.data.stream import GiveLabels, Sample, StreamSampler, make_stream
from protoseg.errors import ConfigError, DataError
from protoseg.input_rule import ValueRange
from protoseg.manifest import ClassInfo
from protoseg.models.encoders import normalization
from protoseg.processes import Processes
from protoseg.seeds import generator
from protoseg.train.labeled import (
    ClassCount,
    Part,
    count_classes,
    hold_out,
    rare_class_picker,
    shown_classes,
)

logger = logging.getLogger("protoseg")


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
    held_out: CachedSource | None = None
    """Labelled images that are kept from training (``pseudo_labels.held_out``)."""

    @property
    def num_unlabeled(self) -> int:
        """Unlabelled images."""
        return 0 if self.unlabeled is None else len(self.unlabeled)

    def class_weights(self) -> Tensor:
        """(C,) ``share ** -0.5``, scaled so that the mean weight of a labelled pixel is 1; 0 without one."""
        raw = torch.tensor([0.0 if s == 0 else s**-0.5 for s in self.labeled_count.shares])
        return raw / (raw * torch.tensor(self.labeled_count.shares)).sum()


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
    model = config.model
    classes = read_classes(config.data)
    settings, used = _open_splits(config.data, classes, report.lists)
    if len(classes) > settings.ignore_index:
        raise ConfigError(
            f"{len(classes)} classes and data.ignore_index={settings.ignore_index} overlap; class ids "
            "must be below it"
        )
    if "unlabeled" in used and not (len(used["unlabeled"]) or config.method.unlabeled):
        del used["unlabeled"]
    for split, source in used.items():
        if len(source) == 0:
            raise DataError(f"data.{split} is empty: it names no image")
    labeled, held_out = CachedSource(used["labeled"], settings), None
    if config.pseudo_labels.held_out:
        kept = hold_out(shown_classes(labeled, len(classes)), config.pseudo_labels.held_out,
                        generator(config.train.seed, "held out"))  # fmt: skip
        held_out = CachedSource(Part(used["labeled"], kept), settings)
        rest = sorted(set(range(len(labeled))) - set(kept))
        labeled = CachedSource(Part(used["labeled"], rest), settings)
        logger.info("%d of %d labelled images are kept from training, to measure the teacher",
                    len(kept), len(kept) + len(rest))  # fmt: skip
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
        held_out=held_out,
    )


def _open_splits(
    data: DataConfig, classes: list[ClassInfo], read: Mapping[Split, EntryList]
) -> tuple[DataConfig, dict[Split, Source]]:
    """The images of each split by lists that were read, and the settings with the value range found."""
    splits: tuple[Split, ...] = ("labeled", "val", "unlabeled")
    if data.kind == "synthetic":
        return data, {split: open_source(data, split, classes) for split in splits}
    lists = {split: read[split] for split in splits if getattr(data, split) is not None}
    labeled, unlabeled = (lists[s].entries if s in lists else () for s in ("labeled", "unlabeled"))
    data = with_value_range(data, labeled, unlabeled)
    return data, {split: listed_source(data, split, found, classes) for split, found in lists.items()}


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
            replaced = sample.pop("replaced")  # on the host, where it stays
            self.images += len(replaced)
            self.replaced += int(replaced.sum())
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
    labels: GiveLabels | None = None,
) -> Batches:
    """Batches of this process from step ``step`` on; ``unlabeled``: of unlabelled images, too, if any.

    ``labels`` gives labels of unlabelled images, see ``TrainDataset``.
    """
    stop = schedule.max_steps * train.accumulate
    pick = None
    if train.rare_class_temperature is not None:
        shown = shown_classes(data.labeled, len(data.classes))
        pick = rare_class_picker(shown, data.labeled_count.shares, train.rare_class_temperature, train.seed)

    make = make_stream
    if settings.cache == "device":
        make = partial(make_device_stream, device=processes.device)

    def stream(source: CachedSource, name: Literal["labeled", "unlabeled"], first: int) -> Iterator[Sample]:
        sampler = StreamSampler(
            len(source), train.batch_size, seed=train.seed, stream=name, start=first * train.accumulate,
            stop=stop, rank=processes.rank, world=processes.world, pick=pick if name == "labeled" else None,
        )  # fmt: skip
        return make(source, sampler, data=settings, views=views, mean=data.mean,
                    labels=labels if name == "unlabeled" else None)  # fmt: skip

    second = None
    if unlabeled and data.unlabeled is not None:
        second = stream(data.unlabeled, "unlabeled", max(step, schedule.warmup_steps))
    return Batches(stream(data.labeled, "labeled", step), second, processes.device)
