"""A training that is set up: data, networks, schedule, and where its results go."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from protoseg.config.plan import Schedule, make_schedule
from protoseg.config.sections import Config
from protoseg.data.sources import EvalSamples
from protoseg.method.inputs import Method, Networks
from protoseg.processes import Processes
from protoseg.train import setup
from protoseg.train.data import Batches, RunData, open_batches, open_run_data
from protoseg.train.describe import describe, facts
from protoseg.train.log import RunLog
from protoseg.train.monitor import Monitor
from protoseg.train.numerics import channels_last, cpu_hint
from protoseg.train.progress import Progress
from protoseg.train.results import Results, network_info
from protoseg.train.state import States
from protoseg.train.teacher import check_outside, open_outside
from protoseg.train.terminal import Output, Terminal
from protoseg.train.trackers import require_trackers

logger = logging.getLogger("protoseg")


@dataclass(frozen=True)
class Training:
    """What the loop works with."""

    config: Config
    accelerator: Accelerator
    processes: Processes
    data: RunData
    schedule: Schedule
    states: States
    """What is saved, and how far the run is (``states.progress``)."""
    networks: Networks
    method: Method
    optimizer: Any
    """As accelerate prepared it."""
    scheduler: Any
    batches: Batches
    log: RunLog
    results: Results
    terminal: Terminal


def open_training(
    config: Config, accelerator: Accelerator, processes: Processes, *, resume: bool, output: Output
) -> Training | None:
    """Set everything up, at the last state (``resume``) or at the start of a new run.

    Nothing in the run folder is moved or changed before all is built.

    Returns:
        None if the run to go on with is finished.

    Raises:
        ConfigError, DataError, ModelError, WeightsError, CheckpointError: With a text for the user.
    """
    settings, folder, seed = config.train, config.run.path, config.train.seed
    require_trackers(settings.trackers)
    data = open_run_data(config)
    schedule = make_schedule(config, len(data.labeled), data.num_unlabeled, processes.world)
    progress = Progress()
    states = States(folder, accelerator, progress, config.model_dump(mode="json"), settings.keep_states)
    if resume and states.finished(schedule.max_steps):
        return None
    check_outside(config.pseudo_labels, folder)
    outside = open_outside(config, data, accelerator.device, accelerator.autocast)
    networks, method, optimizer, scheduler = setup.begin(
        config, accelerator, data, schedule, states, resume=resume, outside=outside
    )
    info = network_info(config, data, method.prototypes, networks.network.stride_multiple)
    if outside is not None:
        # after the hand-over the numbers are the own teacher's
        known = networks.calibration if progress.step < schedule.outside_until else None
        info = info.model_copy(update={"teacher": outside.record(known)})
    batches = open_batches(config.data, config.views, settings, data, schedule, processes, progress.step,
                           unlabeled=config.method.unlabeled,
                           labels=outside.labels if outside is not None else None)  # fmt: skip
    setup.take_run_folder(accelerator, states)
    layout = {"channels_last": channels_last(settings.channels_last, accelerator.device)}
    if output != "json":
        logger.info("%s", describe(folder, info, data, schedule, accelerator, seed, **layout))
        if hint := cpu_hint(settings.mixed_precision, accelerator.device):
            logger.info("hint: %s", hint)
    terminal = Terminal(
        output, main=accelerator.is_main_process, step=progress.step, max_steps=schedule.max_steps
    )
    terminal.event("start", step=progress.step, **facts(folder, info, data, schedule, accelerator, **layout))
    monitor = Monitor([c.name for c in data.classes], data.labeled_count.shares, best=progress.best)
    log = RunLog(folder, setup.start_trackers(config, accelerator, progress.step), processes, monitor,
                 terminal, step=progress.step, eval_every=schedule.eval_every)  # fmt: skip
    results = Results(folder, networks, info, data.labeled_count, EvalSamples(data.val), processes,
                      accelerator.autocast, log, states)  # fmt: skip
    return Training(config, accelerator, processes, data, schedule, states, networks, method, optimizer,
                    scheduler, batches, log, results, terminal)  # fmt: skip
