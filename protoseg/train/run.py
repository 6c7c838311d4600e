"""What surrounds the training loop: data, plan, run folder, validation, results, signals."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from protoseg.checkpoint import (
    BEST_DIR,
    CHECKPOINT_DIR,
    CheckpointInfo,
    git_revision,
    package_versions,
    save_checkpoint,
)
from protoseg.config.sections import Config, DataConfig
from protoseg.data.classes import read_classes
from protoseg.data.lists import data_root
from protoseg.data.sources import CachedSource, EvalSamples, Source, open_source
from protoseg.errors import ConfigError, DataError
from protoseg.evaluate.measure import evaluate_segmenter
from protoseg.evaluate.results import EvalResult
from protoseg.manifest import ClassInfo, InputRule
from protoseg.method.step import Context
from protoseg.models.encoders import normalization
from protoseg.models.segmenter import Segmenter
from protoseg.train.log import panel
from protoseg.train.state import STATE_DIR, Progress, state_folders

logger = logging.getLogger("protoseg")

CONFIG_NAME = "config.yaml"
PICTURE_DIR = "pictures"
PANEL_IMAGES = 4


@dataclass(frozen=True)
class Plan:
    """When what happens, in optimiser steps."""

    max_steps: int
    """Length of the run."""
    warmup_steps: int
    """Supervised steps before the teacher is used."""
    prototype_start: int
    """First step with prototypes."""
    start_steps: frozenset[int]
    """Steps before which the k-means start runs."""
    eval_every: int
    """Steps between evaluations."""
    save_every: int
    """Steps between resume states."""
    steps_per_epoch: int
    """Steps for one pass over the unlabelled images (labelled ones when there are none)."""


@dataclass(frozen=True)
class RunData:
    """Images, classes and plan of a run."""

    classes: list[ClassInfo]
    labeled: CachedSource
    unlabeled: CachedSource | None
    val: Source
    mean: list[float]
    std: list[float]
    plan: Plan
    labeled_shares: list[float]
    """Share of each class among labelled pixels."""
    class_weights: Tensor | None
    """(C,) weights of the cross entropy with labels and pseudo-labels, or None."""
    hashes: dict[str, str]
    """Hash of each list."""
    resume_command: str
    """Command that continues this run."""

    def describe(self, config: Config, accelerator: Accelerator) -> str:
        """The first lines of a run."""
        counts = f"{len(self.labeled)} labelled, {0 if self.unlabeled is None else len(self.unlabeled)} "
        counts += f"unlabelled, {len(self.val)} validation images, {len(self.classes)} classes"
        hashes = ", ".join(f"{split} {value[:12]}" for split, value in self.hashes.items())
        batch = config.train.batch_size * config.train.accumulate * accelerator.num_processes
        versions = ", ".join(f"{k} {v}" for k, v in package_versions().items())
        return (
            f"run {config.run.path}: method {config.method.preset}, {config.model.architecture} on "
            f"{config.model.encoder}, seed {config.train.seed}\n"
            f"data: {counts} (lists: {hashes})\n"
            f"plan: {self.plan.max_steps} steps of {batch} + {batch} images "
            f"({self.plan.steps_per_epoch} steps an epoch), {self.plan.warmup_steps} of them supervised\n"
            f"device: {accelerator.device} x {accelerator.num_processes}, precision "
            f"{accelerator.mixed_precision}, {torch.get_num_threads()} threads\n"
            f"versions: {versions}; git {git_revision() or 'none'}"
        )


def plan_run(config: Config, num_labeled: int, num_unlabeled: int, world: int) -> Plan:
    """Turn epochs and nulls of the configuration into steps.

    Raises:
        ConfigError: If the parts do not fit into the run.
    """
    train = config.train
    batch = train.batch_size * train.accumulate * world
    length = num_unlabeled if config.method.unlabeled and num_unlabeled else num_labeled
    per_epoch = math.ceil(length / batch)
    max_steps = train.max_steps or max(1, round((train.epochs or 1) * per_epoch))
    warmup = train.warmup_steps
    if warmup is None:
        warmup = 0 if train.start_from else min(per_epoch, max_steps // 4)
    start = warmup + config.prototypes.start_delay
    if config.method.unlabeled and warmup >= max_steps:
        raise ConfigError(
            f"train.warmup_steps={warmup} leaves no step for unlabelled images: the run has {max_steps}; "
            "lower it or raise train.max_steps"
        )
    if config.method.prototypes and start >= max_steps:
        raise ConfigError(
            f"the prototypes would start at step {start} of {max_steps}; lower prototypes.start_delay or "
            "train.warmup_steps"
        )
    pooled = config.model.architecture in ("deeplabv3", "deeplabv3plus", "pcr")
    if train.batch_size == 1 and world == 1 and pooled and not config.model.freeze_bn:
        raise ConfigError(
            f"train.batch_size=1 is too small for {config.model.architecture}: batch norm after its global "
            "pooling needs two images; raise it, or set model.freeze_bn=true"
        )
    restart = config.prototypes.restart_step
    if restart is not None and not start < restart < max_steps:
        raise ConfigError(
            f"prototypes.restart_step={restart} must lie between the start ({start}) and the last step "
            f"({max_steps})"
        )
    eval_every = train.eval_every or max(1, math.ceil(max_steps / 5))
    return Plan(
        max_steps=max_steps,
        warmup_steps=warmup,
        prototype_start=start,
        start_steps=frozenset({start} if restart is None else {start, restart}),
        eval_every=eval_every,
        save_every=train.save_every or eval_every,
        steps_per_epoch=per_epoch,
    )


def count_classes(source: CachedSource, num_classes: int) -> list[float]:
    """Share of each class among the labelled pixels; reads every labelled mask once.

    Raises:
        DataError: If no pixel is labelled.
    """
    counts = np.zeros(256, np.int64)
    for index in range(len(source)):
        try:
            mask = source.mask(index)
        except DataError:
            if source.config.on_error == "raise":
                raise
            continue  # the loader passes it over too, and counts it
        counts += np.bincount(mask.reshape(-1), minlength=256)
    known = counts[:num_classes]
    if known.sum() == 0:
        raise DataError(
            "no labelled pixel has a class: every mask holds only ignored values; check data.label_map "
            "with python -m protoseg.check"
        )
    return [float(v) for v in known / known.sum()]


def open_run_data(config: Config, accelerator: Accelerator) -> RunData:
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
    classes = read_classes(config.data)
    if len(classes) > config.data.ignore_index:
        raise ConfigError(
            f"{len(classes)} classes and data.ignore_index={config.data.ignore_index} overlap; class ids "
            "must be below it"
        )
    labeled = CachedSource(open_source(config.data, "labeled", classes), config.data)
    val = open_source(config.data, "val", classes)
    unlabeled = None
    if config.data.kind == "synthetic" or config.data.unlabeled is not None:
        unlabeled = CachedSource(open_source(config.data, "unlabeled", classes), config.data)
        if len(unlabeled) == 0 and not config.method.unlabeled:
            unlabeled = None
    used = {"labeled": labeled.source, "val": val}
    if unlabeled is not None:
        used["unlabeled"] = unlabeled.source
    for split, source in used.items():
        if len(source) == 0:
            raise DataError(f"data.{split} is empty: it names no image")
    default_mean, default_std = normalization(
        config.model.encoder, config.model.pretrained, config.data.in_channels
    )
    shares = count_classes(labeled, len(classes))
    weights = None
    if config.loss.class_weights == "inverse_sqrt":
        raw = torch.tensor([0.0 if s == 0 else s**-0.5 for s in shares])
        weights = raw / (raw * torch.tensor(shares)).sum()  # the mean weight of a pixel is 1
    count = 0 if unlabeled is None else len(unlabeled)
    return RunData(
        classes=classes,
        labeled=labeled,
        unlabeled=unlabeled,
        val=val,
        mean=config.data.mean or default_mean,
        std=config.data.std or default_std,
        plan=plan_run(config, len(labeled), count, accelerator.num_processes),
        labeled_shares=shares,
        class_weights=weights,
        hashes={split: source.sha256 for split, source in used.items()},
        resume_command=resume_command(),
    )


def resume_command() -> str:
    """The command line of this run with ``--resume``."""
    own = [item for item in sys.argv[1:] if item != "--resume"]
    launcher = "accelerate launch -m" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python -m"
    return f"{launcher} protoseg.train --resume {shlex.join(own)}".rstrip()


def prepare_run_folder(config: Config, *, resume: bool) -> None:
    """Make the run folder; a finished or abandoned run of that name is moved aside, never overwritten."""
    folder = config.run.path
    if not resume and (folder / CONFIG_NAME).exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        unfinished = state_folders(folder) and not (folder / CHECKPOINT_DIR).exists()
        folder.rename(aside)
        logger.info(
            "moved the earlier run to %s%s",
            aside,
            " (it could have gone on with --resume)" if unfinished else "",
        )
    (folder / STATE_DIR).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    partial = folder / f".{CONFIG_NAME}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / CONFIG_NAME)


def validate(context: Context, accelerator: Accelerator, data: RunData, step: int) -> EvalResult:
    """Measure the teacher on the validation images, each counted once over all processes."""
    config = context.config
    mine = len(range(context.rank, len(data.val), context.world))
    bar = tqdm(total=mine, desc=f"val {step}", leave=False, disable=not accelerator.is_main_process,
               dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 30)  # fmt: skip
    with bar:
        return evaluate_segmenter(
            Segmenter(context.teacher, context.bank).eval(),
            EvalSamples(data.val),
            num_classes=context.num_classes,
            ignore_index=config.data.ignore_index,
            resize=config.data.resize,
            config=config.eval,
            crop=config.views.crop,
            device=accelerator.device,
            reduce=context.reduce,
            shard=(context.rank, context.world),
            boundary=False,
            autocast=context.autocast,
            progress=bar.update,
        )


def checkpoint_info(context: Context, data: RunData, result: EvalResult, step: int) -> CheckpointInfo:
    """Description of the weights at ``step``."""
    config = context.config
    prototypes = config.prototypes
    if not config.method.prototypes:
        prototypes = prototypes.model_copy(update={"projection": "none"})
    return CheckpointInfo(
        name=config.run.name,
        step=step,
        model=config.model,
        prototypes=prototypes,
        classes=data.classes,
        ignore_index=config.data.ignore_index,
        input=InputRule(
            channels=config.data.in_channels,
            mean=data.mean,
            std=data.std,
            stride_multiple=context.network.stride_multiple,
            resize=config.data.resize,
            crop=config.views.crop,
        ),
        data=_with_absolute_root(config.data),
        eval=config.eval,
        data_hashes=data.hashes,
        metrics={"step": step, "val": result.to_json([c.name for c in data.classes])},
        method=config.method.preset,
        weights_sha256="",
        versions=package_versions(),
        git_revision=git_revision(),
    )


def save_results(
    context: Context, data: RunData, segmenter: Segmenter, result: EvalResult, step: int, *, best: bool
) -> None:
    """Write checkpoint and picture of an evaluation; ``best`` also keeps it as the best so far."""
    folder = context.config.run.path
    info = checkpoint_info(context, data, result, step)
    save_checkpoint(folder / CHECKPOINT_DIR, segmenter, info, context.network)
    if best:
        save_checkpoint(folder / BEST_DIR, segmenter, info, context.network)
    samples = EvalSamples(data.val)
    chosen = np.linspace(0, len(samples) - 1, min(PANEL_IMAGES, len(samples))).round().astype(int)
    panel(
        folder / PICTURE_DIR / f"step_{step:08d}.png",
        segmenter,
        [samples[int(i)] for i in chosen],
        data.classes,
        ignore_index=context.config.data.ignore_index,
        resize=context.config.data.resize,
        config=context.config.eval,
        crop=context.config.views.crop,
    )


def end_report(config: Config, data: RunData, result: EvalResult, progress: Progress) -> str:
    """The last lines of a run: IoU by class and head, where things are, what to do next."""
    heads = list(result.miou)
    width = max([len(c.name) for c in data.classes] + [len("mean")])
    title = "val IoU, %"
    width = max(width, len(title))
    lines = ["", title.ljust(width) + "".join(f"{h:>11}" for h in heads)]
    for class_id, item in enumerate(data.classes):
        values = [result.per_class[h][class_id] for h in heads]
        cells = "".join(f"{'-':>11}" if math.isnan(v) else f"{100 * v:>11.2f}" for v in values)
        lines.append(item.name.ljust(width) + cells)
    lines.append("mean".ljust(width) + "".join(f"{100 * result.miou[h]:>11.2f}" for h in heads))
    folder = config.run.path
    if progress.bad_steps:
        lines.append(f"{progress.bad_steps} step(s) were skipped because the loss was not finite")
    if progress.skipped_images:
        lines.append(f"{progress.skipped_images} unreadable image(s) were passed over")
    lines += [
        "",
        f"checkpoint  {folder / CHECKPOINT_DIR}",
        f"pictures    {folder / PICTURE_DIR}, {folder / 'curves.png'}",
        f"metrics     {folder / 'metrics.jsonl'}",
        "",
        f"next: python -m export.onnx {folder}",
    ]
    return "\n".join(lines)


class Interrupt:
    """SIGINT and SIGTERM ask for a stop after the current step; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.seen = False
        self.before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        _follow_launcher()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = True
        sys.stderr.write("\nstopping after this step; the state will be saved (Ctrl-C again: stop at once)\n")

    def close(self) -> None:
        """Give signals back to whoever had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator, at_log: bool) -> bool:
        """Whether to stop now; with several processes they agree at log steps."""
        if accelerator.num_processes == 1:
            return self.seen
        if not at_log:
            return False
        flag = torch.tensor([int(self.seen)], device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum").item())


def _follow_launcher() -> None:
    """Get a SIGTERM when ``accelerate launch`` dies, which passes none on to its single child."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ
    if launched and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _with_absolute_root(data: DataConfig) -> DataConfig:
    """Lists are relative to the root; an absolute root finds them from any folder."""
    if data.kind == "synthetic":
        return data
    return data.model_copy(update={"root": str(data_root(data).resolve())})
