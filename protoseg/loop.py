"""The training loop, on accelerate; ``protoseg.train`` is the command."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, broadcast
from torch import Tensor, nn
from tqdm import tqdm

from protoseg.checkpoint import NEW_PARTS, CheckpointError, resolve_checkpoint, start_from_checkpoint
from protoseg.config import Config, ConfigError
from protoseg.data.datasets import Sample, make_stream, padding_fill
from protoseg.data.errors import DataError
from protoseg.models.depthwise import cheap_depthwise
from protoseg.models.segmenter import Segmenter, build_segmenter
from protoseg.optim import make_optimizer, make_scheduler
from protoseg.pseudo_labels import ClassThresholds
from protoseg.report import MetricsLog, Monitor, MonitorStats, curves
from protoseg.resume import Guard, Progress, changed_since, load_state, save_state, state_folders, step_of
from protoseg.run import (
    Interrupt,
    Plan,
    RunData,
    end_report,
    open_run_data,
    prepare_run_folder,
    save_results,
    validate,
)
from protoseg.start import labeled_features, starting_prototypes
from protoseg.step import Context, Phase, Points, compute_step, prototype_weight, step_generator
from protoseg.teacher import ema_decay, make_teacher, update_teacher, updates_behind

logger = logging.getLogger("protoseg")


class TrainingStoppedError(RuntimeError):
    """The run cannot go on; the text says why and what to change."""


def make_accelerator(config: Config) -> Accelerator:
    """Accelerator with this run's numerics, and the TF32 setting."""
    torch.backends.cuda.matmul.allow_tf32 = config.train.tf32
    torch.backends.cudnn.allow_tf32 = config.train.tf32
    try:
        accelerator = _accelerator(config)
    except ValueError as error:
        raise ConfigError(f"accelerate refuses train.mixed_precision or train.trackers: {error}") from error
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started > accelerator.num_processes:
        # accelerate joins CPU processes only when it is told to; each would train alone, into one folder
        raise ConfigError(
            f"{started} processes were started, but each would train alone: accelerate found no GPU. Set "
            "ACCELERATE_USE_CPU=true to train with several processes on CPUs"
        )
    return accelerator


def _accelerator(config: Config) -> Accelerator:
    return Accelerator(
        mixed_precision=config.train.mixed_precision,
        # a prepared scheduler would otherwise step once for each process
        step_scheduler_with_optimizer=False,
        log_with=list(config.train.trackers) or None,
        project_config=ProjectConfiguration(
            project_dir=str(config.run.path), logging_dir=str(config.run.path)
        ),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def build_context(config: Config, accelerator: Accelerator, data: RunData) -> tuple[Context, Any]:
    """Networks, prototypes and helpers of a run, and the prepared optimiser with its scheduler."""
    torch.manual_seed(config.train.seed)  # the same start on every process
    prototypes = config.prototypes
    if not config.method.prototypes:
        prototypes = prototypes.model_copy(update={"projection": "none"})
    model = config.model
    if config.train.start_from:
        model = model.model_copy(update={"pretrained": "none"})  # not looked for only to be written over
    segmenter = build_segmenter(
        model,
        prototypes,
        num_classes=len(data.classes),
        in_channels=config.data.in_channels,
        mean=data.mean,
        std=data.std,
    )
    network, bank = segmenter.network, segmenter.bank
    if config.train.sync_bn and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        network = convert(network)
    if config.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if accelerator.device.type == "cpu":
        cheap_depthwise(network)
    network.to(accelerator.device).train()
    teacher = make_teacher(network)
    optimizer = make_optimizer(network, config.optim)
    scheduler = make_scheduler(optimizer, config.optim, data.plan.max_steps)
    student: Any = torch.compile(network) if config.train.compile else network
    student, optimizer, scheduler = accelerator.prepare(student, optimizer, scheduler)
    if config.train.compile:
        teacher.compile()
    thresholds = ClassThresholds(len(data.classes), config.pseudo_labels.threshold)

    def reduce(value: Tensor) -> Tensor:
        if accelerator.num_processes == 1:
            return value
        reduced: Tensor = accelerator.reduce(value, reduction="sum")
        return reduced

    weights = data.class_weights
    context = Context(
        config=config,
        network=network,
        student=student,
        teacher=teacher,
        bank=bank.to(accelerator.device),
        thresholds=thresholds.to(accelerator.device),
        num_classes=len(data.classes),
        fill=padding_fill(data.mean).to(accelerator.device),
        class_weights=None if weights is None else weights.to(accelerator.device),
        autocast=accelerator.autocast,
        reduce=reduce,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    return context, (optimizer, scheduler)


def start_from(context: Context, data: RunData, path: str) -> float:
    """Give student and teacher the weights of an earlier run.

    Returns:
        The linear head's mIoU that they had on the same validation images; 0 if unknown.
    """
    info = start_from_checkpoint(path, context.network, data.classes, data.mean, data.std)
    update_teacher(context.teacher, context.network, 0.0)
    logger.info("student and teacher start from %s (%s, step %d)", path, info.name, info.step)
    same = info.data_hashes.get("val") == data.hashes["val"]
    return ((info.metrics.get("val") or {}).get("miou") or {}).get("linear") or 0.0 if same else 0.0


def check_resumable(state: Path, config: Config) -> None:
    """Compare this run's settings with those of the state that it goes on from.

    Raises:
        ConfigError: If an optimiser setting differs, which would have no effect.
    """
    changed = changed_since(state, config)
    texts = [f"{key} was {was}, is now {now}" for key, (was, now) in changed.items()]
    if any(key.startswith("optim.") for key in changed):
        raise ConfigError(
            f"--resume goes on with the optimiser of {state}, and cannot take other settings for it: "
            f"{'; '.join(text for text in texts if text.startswith('optim.'))}. Leave them as they were, or "
            "start a new run from these weights with train.start_from"
        )
    for text in texts:
        logger.warning("warning: resumed with another setting: %s", text)


def phase_at(config: Config, plan: Plan, step: int) -> Phase:
    """Parts of the method that are on at ``step`` (from 0)."""
    since = step - plan.prototype_start
    on = config.method.prototypes and since >= 0
    return Phase(
        unlabeled=config.method.unlabeled and step >= plan.warmup_steps,
        prototypes=on,
        prototype_weight=prototype_weight(config, since) if on else 0.0,
    )


def start_prototypes(context: Context, data: RunData, step: int) -> None:
    """Install starting prototypes from labelled features of the teacher, the same on every process."""
    rng = step_generator(context.config.train.seed, "global", step, 7)
    features = labeled_features(
        context.teacher,
        data.labeled,
        context.config,
        num_classes=context.num_classes,
        device=context.fill.device,
        rng=rng,
    )
    context.bank.start(starting_prototypes(features, context.config, rng))
    if context.world > 1:
        for buffer in context.bank.buffers():
            buffer.copy_(broadcast(buffer.clone()))


def move_teacher(context: Context, progress: Progress) -> None:
    """One update of the moving average; what ``train.start_from`` did not bring starts like a new teacher."""
    largest = context.config.train.ema_decay
    update_teacher(
        context.teacher,
        context.network,
        ema_decay(progress.teacher_updates + progress.teacher_head_start, largest),
        new=NEW_PARTS,
        new_decay=ema_decay(progress.teacher_updates, largest),
    )


def average_buffers(context: Context) -> None:
    """Average batch norm statistics over processes, so that all teachers stay the same."""
    if context.world == 1:
        return
    buffers = [b for b in context.network.buffers() if b.dtype.is_floating_point]
    if not buffers:
        return
    flat = context.reduce(torch.cat([b.flatten() for b in buffers])) / context.world
    pieces = torch.split(flat, [b.numel() for b in buffers])
    for buffer, values in zip(buffers, pieces, strict=True):
        buffer.copy_(values.view_as(buffer))


def move(sample: Sample, device: torch.device) -> Sample:
    """Sample on the device."""
    return {key: value.to(device, non_blocking=True) for key, value in sample.items()}


def lr_now(optimizer: Any) -> float:
    """Learning rate of the first group (the encoder, unless it is frozen)."""
    return float(optimizer.param_groups[0]["lr"])


class Faults:
    """Steps with a non-finite loss, counted on the device so that nobody waits for it."""

    def __init__(self, total: int, device: torch.device) -> None:
        self.total = torch.tensor(total, device=device)
        self.run = torch.zeros_like(self.total)
        self.longest = torch.zeros_like(self.total)
        self.last = torch.zeros_like(self.total)

    def add(self, bad: Tensor, step: int) -> None:
        """Count step ``step`` (from 1)."""
        self.total = self.total + bad
        self.run = torch.where(bad, self.run + 1, 0)
        self.longest = torch.maximum(self.longest, self.run)
        self.last = torch.where(bad, step, self.last)


class Interval:
    """Sums since the last log line, on the device."""

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.stats: dict[str, Tensor] = {}
        self.images = 0
        self.replaced = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, parts: dict[str, Tensor], stats: dict[str, Tensor]) -> None:
        """Add one micro-step."""
        for key, value in parts.items():
            self.parts[key] = self.parts.get(key, torch.zeros_like(value)) + value
            self.counts[key] = self.counts.get(key, 0) + 1
        for key, value in stats.items():
            self.stats[key] = self.stats.get(key, torch.zeros_like(value)) + value

    def take_replaced(self, context: Context) -> int:
        """Unreadable images that were passed over on all processes since this was last asked."""
        own = torch.tensor(float(self.replaced), device=context.fill.device)
        self.replaced = 0
        return int(context.reduce(own))

    def summary(self, context: Context, accelerator: Accelerator) -> dict[str, Any]:
        """Means and shares over the interval and all processes; waits for the device."""
        elapsed = max(time.perf_counter() - self.began, 1e-9)
        keys = sorted(self.parts)
        means = torch.stack([self.parts[k] / self.counts[k] for k in keys])
        values = (context.reduce(means) / context.world).tolist()
        record: dict[str, Any] = dict(zip(keys, values, strict=True))
        if self.stats:
            total = {k: context.reduce(v) for k, v in sorted(self.stats.items())}
            believed = max(float(total["believed"]), 1.0)
            record["pseudo_label/rate"] = float(total["believed"]) / max(float(total["valid"]), 1.0)
            record["pseudo_label/class_share"] = (total["per_class"] / believed).tolist()
            record["teacher_student/disagreement"] = float(total["differs"]) / believed
        record["time/images_per_s"] = self.images * context.world / elapsed
        record["time/data_wait"] = self.waited / elapsed
        if accelerator.device.type == "cuda":
            record["time/memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return record


def prototype_record(context: Context) -> dict[str, Any]:
    """Health of the prototypes, as plain numbers."""
    bank = context.bank
    return {
        "prototype/usage_entropy": bank.usage_entropy().tolist(),
        "prototype/closest_pair": bank.closest_pair().tolist(),
        "prototype/active": [bool(v) for v in bank.active.tolist()],
    }


def monitor_stats(record: dict[str, Any]) -> MonitorStats:
    """The part of a log record that is watched for trouble."""
    return MonitorStats(
        step=record["step"],
        pseudo_rate=record.get("pseudo_label/rate"),
        pseudo_share=record.get("pseudo_label/class_share"),
        usage_entropy=record.get("prototype/usage_entropy"),
        closest_pair=record.get("prototype/closest_pair"),
        active=record.get("prototype/active"),
        disagreement=record.get("teacher_student/disagreement"),
    )


def run_step(
    context: Context,
    accelerator: Accelerator,
    optimizer: Any,
    streams: tuple[Iterator[Sample], Iterator[Sample] | None],
    phase: Phase,
    step: int,
    interval: Interval,
) -> tuple[Tensor, list[Points], int]:
    """Forward and backward of every micro-step.

    Returns:
        Gradient norm (scalar), points that move prototypes, unreadable images passed over.
    """
    config = context.config
    points: list[Points] = []
    replaced = 0
    worst = torch.zeros((), device=accelerator.device)
    for micro in range(config.train.accumulate):
        began = time.perf_counter()
        labeled = next(streams[0])
        unlabeled = next(streams[1]) if phase.unlabeled and streams[1] is not None else None
        interval.waited += time.perf_counter() - began
        for sample in (labeled, unlabeled):
            if sample is not None:
                replaced += int(sample["replaced"].sum())
                interval.images += config.train.batch_size
        number = step * config.train.accumulate + micro
        # dropout and the like: a function of seed, position and process, so that a resumed run agrees
        torch.manual_seed(
            int(step_generator(config.train.seed, "steps", number, context.rank).integers(2**31))
        )
        last = micro + 1 == config.train.accumulate
        with contextlib.nullcontext() if last else accelerator.no_sync(context.student):
            result = compute_step(
                context,
                move(labeled, accelerator.device),
                None if unlabeled is None else move(unlabeled, accelerator.device),
                phase,
                (number,),
            )
            accelerator.backward(result.loss / config.train.accumulate)
        interval.add(result.parts, result.stats)
        worst = worst + result.loss.detach().float()
        if result.points is not None:
            points.append(result.points)
    limit = config.optim.max_grad_norm or math.inf
    norm = accelerator.clip_grad_norm_(context.network.parameters(), limit)
    norm = torch.as_tensor(norm, device=accelerator.device)
    if accelerator.scaler is not None:
        # infinite gradients are how the fp16 scaler finds its range: only the losses tell a fault, of any
        # micro-step and process, since all must agree on the step
        norm = context.reduce(worst)
    return norm, points, replaced


def update_prototypes(context: Context, points: list[Points], step: int) -> None:
    """Move prototypes once by all points of the step, and re-seed idle ones now and then."""
    if not points:
        return
    settings = context.config.prototypes
    known = [part.similarity for part in points if part.similarity is not None]
    context.bank.update(
        torch.cat([part.features for part in points]),
        torch.cat([part.classes for part in points]),
        momentum=settings.momentum,
        ramp=settings.momentum_ramp,
        normalize=settings.normalize,
        similarity=torch.cat(known) if len(known) == len(points) else None,
        reduce=context.reduce,
    )
    if settings.reseed_after and (step + 1) % 10 == 0:
        context.bank.reseed(after=settings.reseed_after)


def train(config: Config, *, resume: bool = False, stopped_code: int = 0) -> int:
    """Run the configured training.

    Returns:
        0 when finished, ``stopped_code`` when a signal stopped it with its state saved.

    Raises:
        ConfigError, DataError, ModelError, WeightsError, CheckpointError, TrainingStoppedError: With a text
            for the user.
    """
    accelerator = make_accelerator(config)
    main = accelerator.is_main_process
    logging.basicConfig(
        level=logging.INFO if main else logging.ERROR, format="%(message)s", stream=sys.stdout, force=True
    )
    for noisy in ("accelerate", "httpx", "timm", "PIL", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    data = open_run_data(config, accelerator)
    plan = data.plan
    folder = config.run.path
    states = state_folders(folder) if resume else []
    if states:
        check_resumable(states[-1], config)
        if (done := step_of(states[-1])) >= plan.max_steps:
            logger.info("this run is already finished (step %d of %d); nothing to do", done, plan.max_steps)
            return 0
    start = config.train.start_from if not states else None
    if start and resolve_checkpoint(start).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"train.start_from={start} lies in the folder of this run, where its results go; give the run "
            "another run.name"
        )
    accelerator.wait_for_everyone()  # everyone has looked before anyone changes the folder
    if main:
        prepare_run_folder(config, resume=bool(states))
    accelerator.wait_for_everyone()
    context, (optimizer, scheduler) = build_context(config, accelerator, data)
    progress = Progress()
    accelerator.register_for_checkpointing(context.teacher, context.bank, context.thresholds, progress)
    if states:
        load_state(accelerator, states[-1])
        if progress.world not in (0, accelerator.num_processes):
            raise CheckpointError(
                f"the state {states[-1]} was made by {progress.world} process(es); this run has "
                f"{accelerator.num_processes}. Go on with as many, or start anew with train.start_from"
            )
        logger.info("resumed from %s", states[-1])
    elif resume:
        logger.info("no saved state in %s: starting at step 0", folder)
    progress.world = accelerator.num_processes
    if start:
        progress.start_miou = start_from(context, data, start)
    if start and plan.warmup_steps == 0:
        # the first update would otherwise throw the earlier run's average away
        progress.teacher_head_start = updates_behind(config.train.ema_decay)
    if config.train.trackers:
        accelerator.init_trackers("tensorboard")
    logger.info("%s", data.describe(config, accelerator))

    log = MetricsLog(folder / "metrics.jsonl") if main else None
    if log is not None:
        log.truncate_after(progress.step)
    highest = max((progress.start_miou, 0), (progress.best_miou, progress.step))
    monitor = Monitor([c.name for c in data.classes], data.labeled_shares, best=highest)
    interrupt = Interrupt()
    guard = Guard(context.network, context.bank)
    config_text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    accumulate = config.train.accumulate
    place: dict[str, Any] = {
        "mean": data.mean,
        "rank": context.rank,
        "world": context.world,
        "stop": plan.max_steps * accumulate,
    }
    labeled = make_stream(config, data.labeled, "labeled", start=progress.step * accumulate, **place)
    unlabeled: Iterator[Sample] | None = None
    if config.method.unlabeled and data.unlabeled is not None:
        first = max(progress.step, plan.warmup_steps) * accumulate
        unlabeled = make_stream(config, data.unlabeled, "unlabeled", start=first, **place)

    def save(step: int) -> None:
        progress.step = step
        progress.skipped_images += interval.take_replaced(context)
        save_state(accelerator, folder, step, config_text, config.train.keep_states)

    faults = Faults(progress.bad_steps, accelerator.device)
    interval = Interval()
    bar = tqdm(total=plan.max_steps, initial=progress.step, disable=not main, desc="train", unit="step",
               dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 15)  # fmt: skip
    for step in range(progress.step, plan.max_steps):
        phase = phase_at(config, plan, step)
        if step == plan.warmup_steps > 0:
            # the teacher's first labels are those of the warmed-up student
            update_teacher(context.teacher, context.network, 0.0)
        if config.method.prototypes and step in plan.start_steps:
            start_prototypes(context, data, step)
            logger.info("step %d: prototypes start (%s)", step, config.prototypes.start)
        guard.remember()
        norm, points, replaced = run_step(
            context, accelerator, optimizer, (labeled, unlabeled), phase, step, interval
        )
        interval.replaced += replaced
        bad = ~norm.isfinite()
        faults.add(bad, step + 1)
        looks = accelerator.device.type == "cpu"
        skip = looks and bool(bad)
        if skip:
            logger.warning("step %d: the loss is not finite; the step is skipped", step + 1)
        else:
            if not looks:
                Guard.clear_gradients(list(context.network.parameters()), bad)
            optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        if not skip:
            update_prototypes(context, points, step)
        if skip or not looks:
            guard.restore(bad)
        if step >= plan.warmup_steps and not skip:
            average_buffers(context)
            move_teacher(context, progress)
            progress.teacher_updates += 1
        done = step + 1
        bar.update()

        if done % config.train.log_every == 0 or done == plan.max_steps:
            record = {"step": done, "lr": lr_now(optimizer), **interval.summary(context, accelerator)}
            record["grad_norm"] = float(norm)
            progress.bad_steps = record["bad_steps"] = int(faults.total)
            progress.skipped_images += interval.take_replaced(context)
            record["skipped_images"] = progress.skipped_images
            if phase.prototypes:
                record.update(prototype_record(context))
            if log is not None:
                log.append(record)
                for warning in monitor.update(monitor_stats(record)):
                    bar.write(f"warning: step {done}: {warning}")
                rate = record.get("pseudo_label/rate")
                bar.set_postfix_str(
                    f"loss {record['loss/total']:.3f}" + ("" if rate is None else f", labels {rate:.0%}")
                    + f", lr {record['lr']:.2g}, {record['time/images_per_s']:.1f} img/s"
                    + f", data {record['time/data_wait']:.0%}"
                )  # fmt: skip
            scalars = {k: v for k, v in record.items() if isinstance(v, float)}
            accelerator.log(scalars, step=done)
            interval = Interval()
        may_look = looks or done % config.train.log_every == 0
        if may_look and int(faults.longest) >= config.train.max_bad_steps:
            # what has diverged is not worth a state, which would push out an earlier one
            raise TrainingStoppedError(
                f"the loss was not finite in {int(faults.longest)} steps in a row, the last one step "
                f"{int(faults.last)}. Start anew with a lower optim.lr, with optim.max_grad_norm=1, or with "
                "train.mixed_precision=bf16 instead of fp16"
            )

        if done % plan.eval_every == 0 or done == plan.max_steps:
            if done <= plan.warmup_steps:
                update_teacher(context.teacher, context.network, 0.0)
            began = time.perf_counter()
            try:
                result = validate(context, accelerator, data, done)
            except (DataError, RuntimeError):
                # alone; others may be in the middle of their images and would not meet here
                if accelerator.num_processes == 1:
                    save(done)
                    bar.write(f"the state of step {done} is saved in {folder}")
                raise
            interval.began += time.perf_counter() - began
            miou = result.miou["linear"]
            progress.finished = done == plan.max_steps
            if main and log is not None:
                log.append({"step": done, **{f"val/miou_{head}": v for head, v in result.miou.items()}})
                for warning in monitor.update(MonitorStats(step=done, miou=miou, unlabeled=phase.unlabeled)):
                    bar.write(f"warning: step {done}: {warning}")
                bar.write(
                    f"step {done}: val mIoU " + ", ".join(f"{h} {v:.2%}" for h, v in result.miou.items())
                )
                segmenter = Segmenter(context.teacher, context.bank).eval()
                best = miou > progress.best_miou
                save_results(context, data, segmenter, result, done, best=best)
                curves(folder / "metrics.jsonl", folder / "curves.png")
            accelerator.log({f"val/miou_{head}": v for head, v in result.miou.items()}, step=done)
            progress.best_miou = max(progress.best_miou, miou)
        if done % plan.save_every == 0 or done == plan.max_steps:
            try:
                save(done)
            except CheckpointError as error:
                if done == plan.max_steps:
                    raise
                logger.error("error: %s; training goes on", error)
        if interrupt.requested(accelerator, done % config.train.log_every == 0):
            save(done)
            bar.close()
            logger.info(
                "interrupted: the state of step %d is saved. Go on with:\n  %s", done, data.resume_command
            )
            accelerator.end_training()
            return stopped_code
    bar.close()
    interrupt.close()
    if main:
        logger.info("%s", end_report(config, data, result, progress))
    accelerator.end_training()
    return 0
