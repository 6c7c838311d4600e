"""What is set up before the first step: accelerator, run folder, networks, and where they start from."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, parse_flag_from_env
from torch import nn

from protoseg.allocator import keep_freed_memory
from protoseg.checkpoint import CHECKPOINT_DIR, resolve_checkpoint
from protoseg.config.ignored import ignored_settings
from protoseg.config.method import PrototypeConfig
from protoseg.config.model import ModelConfig
from protoseg.config.plan import Schedule
from protoseg.config.sections import Config
from protoseg.config.training import OptimConfig, TrainConfig
from protoseg.data.stream import padding_fill
from protoseg.errors import ConfigError
from protoseg.files import write_text_whole
from protoseg.method.calibration import Calibration
from protoseg.method.inputs import Method, Networks
from protoseg.method.pseudo_labels import ClassThresholds
from protoseg.method.teacher import make_teacher, update_teacher, updates_behind
from protoseg.models.depthwise import cheap_depthwise
from protoseg.models.segmenter import build_segmenter
from protoseg.processes import Processes
from protoseg.start_from import start_from_checkpoint
from protoseg.train.data import RunData
from protoseg.train.numerics import channels_last, precision
from protoseg.train.optim import make_optimizer, make_scheduler
from protoseg.train.state import CONFIG_NAME, FINISHED_NAME, STATE_DIR, States, state_folders
from protoseg.train.teacher import Outside, calibrate
from protoseg.train.threads import cpu_threads
from protoseg.train.tracker_kinds import Run
from protoseg.train.trackers import Trackers

logger = logging.getLogger("protoseg")


def make_accelerator(train: TrainConfig, folder: Path) -> Accelerator:
    """Accelerator with this run's numerics, the TF32 setting and, on a CPU, the number of threads.

    Raises:
        ConfigError: If accelerate refuses a setting, or the processes would not find each other.
    """
    torch.backends.cuda.matmul.allow_tf32 = train.tf32
    torch.backends.cudnn.allow_tf32 = train.tf32
    cuda = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    expected = torch.device("cuda" if cuda else "cpu")
    try:
        accelerator = Accelerator(
            mixed_precision=precision(train.mixed_precision, expected),
            # a prepared scheduler would otherwise step once for each process
            step_scheduler_with_optimizer=False,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    except ValueError as error:
        raise ConfigError(f"accelerate refuses train.mixed_precision: {error}") from error
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started > accelerator.num_processes:
        # accelerate joins CPU processes only when it is told to; each would train alone, into one folder
        raise ConfigError(
            f"{started} processes were started, but each would train alone: accelerate found no GPU. Set "
            "ACCELERATE_USE_CPU=true to train with several processes on CPUs"
        )
    if accelerator.device.type == "cpu":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(cpu_threads(train.cpu_threads, here))
        keep_freed_memory()
    return accelerator


def take_run_folder(accelerator: Accelerator, states: States) -> None:
    """Make the run folder this run's, once everything is built: until then nothing is moved or changed."""
    accelerator.wait_for_everyone()  # everyone has read what there was
    if accelerator.is_main_process:
        prepare_run_folder(states.run, states.config_text, resumed=states.progress.step > 0)
    accelerator.wait_for_everyone()


def prepare_run_folder(folder: Path, config_text: str, *, resumed: bool) -> None:
    """Make the run folder; a finished or abandoned run of that name is moved aside, never overwritten."""
    if not resumed and (folder / CONFIG_NAME).exists():
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
    (folder / FINISHED_NAME).unlink(missing_ok=True)
    write_text_whole(folder / CONFIG_NAME, config_text)


def build_networks(
    accelerator: Accelerator,
    data: RunData,
    model: ModelConfig,
    prototypes: PrototypeConfig,
    train: TrainConfig,
    optim: OptimConfig,
    *,
    threshold: float,
    max_steps: int,
    calibrated: bool = False,
    outside: Outside | None = None,
) -> tuple[Networks, Any, Any]:
    """Networks, prototypes and thresholds on the device, with the prepared optimiser and its scheduler.

    Raises:
        ModelError, WeightsError: If they cannot be built.
    """
    torch.manual_seed(train.seed)  # the same start on every process
    if train.start_from:
        model = model.model_copy(update={"pretrained": "none"})  # not looked for only to be written over
    segmenter = build_segmenter(
        model,
        prototypes,
        num_classes=len(data.classes),
        in_channels=len(data.mean),
        mean=data.mean,
        std=data.std,
    )
    network = segmenter.network
    if train.sync_bn and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        network = convert(network)
    if channels_last(train.channels_last, accelerator.device):
        network = network.to(memory_format=torch.channels_last)
    if accelerator.device.type == "cpu":
        cheap_depthwise(network)
    network.to(accelerator.device).train()
    teacher = make_teacher(network)
    optimizer = make_optimizer(network, optim)
    scheduler = make_scheduler(optimizer, optim, max_steps)
    student: Any = torch.compile(network) if train.compile else network
    student, optimizer, scheduler = accelerator.prepare(student, optimizer, scheduler)
    if train.compile:
        teacher.compile()
    calibration = None
    if calibrated or outside is not None:
        digest = outside.sha256 if outside is not None else ""
        calibration = Calibration(len(data.classes), threshold, digest).to(accelerator.device)
    networks = Networks(
        student=student,
        network=network,
        teacher=teacher,
        bank=segmenter.bank.to(accelerator.device),
        thresholds=ClassThresholds(len(data.classes), threshold).to(accelerator.device),
        outside=outside.network if outside is not None else None,
        calibration=calibration,
    )
    return networks, optimizer, scheduler


def start_from(networks: Networks, data: RunData, path: str) -> float:
    """Give student and teacher the weights of an earlier run.

    Returns:
        The linear head's mIoU that they had on the same validation images; 0 if unknown.
    """
    info = start_from_checkpoint(path, networks.network, data.classes, data.mean, data.std, data.value_range)
    update_teacher(networks.teacher, networks.network, 0.0)
    logger.info("student and teacher start from %s (%s, step %d)", path, info.name, info.step)
    same = info.data_hashes.get("val") == data.hashes["val"]
    return ((info.metrics.get("val") or {}).get("miou") or {}).get("linear") or 0.0 if same else 0.0


def check_start(path: str, folder: Path) -> None:
    """See that what training starts from is not about to be moved or written over.

    Raises:
        CheckpointError: If there is none.
        ConfigError: If it lies in the run folder.
    """
    if resolve_checkpoint(path).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"train.start_from={path} lies in the folder of this run, where its results go; give the run "
            "another run.name"
        )


def warn_of_ignored(config: Config, device_type: str) -> None:
    """Say which settings have no effect."""
    train = config.train
    if train.max_bad_steps != TrainConfig.model_fields["max_bad_steps"].default:
        logger.warning(
            "warning: train.max_bad_steps has no effect: a run stops at its first loss that is not finite"
        )
    if train.cpu_threads is not None and device_type != "cpu":
        logger.warning("warning: train.cpu_threads has no effect on a GPU")
    for text in ignored_settings(config):
        logger.warning("warning: %s", text)


def losses_of(config: Config, prototypes: PrototypeConfig, data: RunData, accelerator: Accelerator) -> Method:
    """The settings of the losses, as each process is to compute them in each micro-step."""
    # the hardest pixels of a whole step, found by each process in each micro-step
    shares = accelerator.num_processes * config.train.accumulate
    loss = config.loss.model_copy(update={"ohem_min_kept": max(1, config.loss.ohem_min_kept // shares)})
    weighted = config.loss.class_weights == "inverse_sqrt"
    return Method(
        views=config.views,
        pseudo_labels=config.pseudo_labels,
        prototypes=prototypes,
        loss=loss,
        aux_weight=config.model.aux_weight,
        ignore_index=config.data.ignore_index,
        class_weights=data.class_weights().to(accelerator.device) if weighted else None,
        fill=padding_fill(data.mean).to(accelerator.device),
    )


def begin(
    config: Config,
    accelerator: Accelerator,
    data: RunData,
    schedule: Schedule,
    states: States,
    *,
    resume: bool,
    outside: Outside | None = None,
) -> tuple[Networks, Method, Any, Any]:
    """Networks and optimiser, at the last state (``resume``) or at the start of a new run.

    Returns:
        Networks and settings of the losses, the prepared optimiser and its scheduler.

    Raises:
        ConfigError, ModelError, WeightsError, CheckpointError: With what is wrong.
    """
    warn_of_ignored(config, accelerator.device.type)
    train, folder, progress = config.train, config.run.path, states.progress
    labels = config.pseudo_labels
    state = states.last if resume else None
    start = train.start_from if state is None else None
    if start:
        check_start(start, folder)
    prototypes = config.prototypes
    if not config.method.prototypes:
        prototypes = prototypes.model_copy(update={"projection": "none"})
    networks, optimizer, scheduler = build_networks(
        accelerator, data, config.model, prototypes, train, config.optim,
        threshold=labels.threshold, max_steps=schedule.max_steps,
        calibrated=schedule.calibrate_every is not None, outside=outside,
    )  # fmt: skip
    measured = () if networks.calibration is None else (networks.calibration,)
    states.register(networks.teacher, networks.bank, networks.thresholds, *measured)
    if state is not None:
        states.load(state)
    elif resume:
        logger.info("no saved state in %s: starting at step 0", folder)
    before = progress.best_head
    if progress.follow(config.eval.best) and state is not None:
        logger.warning(
            "warning: eval.best was %s, is now %s: best/ and train.patience begin anew",
            before,
            config.eval.best,
        )
    progress.world = accelerator.num_processes
    if outside is not None and networks.calibration is not None:
        if state is None and labels.measured:
            alike = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
            calibrate(networks.calibration, data.held_out or data.labeled, outside.scores, labels, alike,
                      who=outside.name)  # fmt: skip
        if outside.labels is not None:
            outside.labels.temperature = networks.calibration.temperature.cpu().clone()
    if start:
        progress.start_miou = start_from(networks, data, start)
        if schedule.warmup_steps == 0:
            # the first update would otherwise throw the earlier run's average away
            progress.teacher_head_start = updates_behind(train.ema_decay)
    method = losses_of(config, prototypes, data, accelerator)
    return networks, method, optimizer, scheduler


def start_trackers(config: Config, accelerator: Accelerator, step: int) -> Trackers:
    """The trackers of a run that starts, or goes on, at ``step``; none on all processes but the first."""
    run = Run(
        config.run.project, config.run.name, config.run.path, config.model_dump(mode="json"), step
    )  # fmt: skip
    return Trackers(config.train.trackers if accelerator.is_main_process else [], run)
