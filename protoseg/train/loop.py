"""The training loop, on accelerate; ``protoseg.train`` is the command."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from functools import partial

import torch
from accelerate import Accelerator

from protoseg.checkpoint import NEW_PARTS, CheckpointInfo
from protoseg.config.plan import Schedule, make_schedule
from protoseg.config.sections import Config
from protoseg.data.sources import EvalSamples
from protoseg.method.prototype_branch import move_prototypes
from protoseg.method.prototype_start import start_prototypes
from protoseg.method.step import Autocast, Method, Networks, compute_step
from protoseg.method.teacher import follow, update_teacher
from protoseg.processes import Processes
from protoseg.seeds import generator
from protoseg.train import setup
from protoseg.train.data import RunData, open_batches, open_run_data
from protoseg.train.log import RunLog
from protoseg.train.monitor import FaultWatch, Monitor
from protoseg.train.progress import Progress
from protoseg.train.results import Results, end_report, network_info, where
from protoseg.train.signals import Interrupt
from protoseg.train.state import States
from protoseg.train.teacher import calibrate_own, check_outside, open_outside
from protoseg.train.terminal import Output, Terminal, start_logging
from protoseg.train.trackers import require_trackers

logger = logging.getLogger("protoseg")


def open_reports(
    config: Config,
    accelerator: Accelerator,
    processes: Processes,
    data: RunData,
    schedule: Schedule,
    states: States,
    networks: Networks,
    info: CheckpointInfo,
    terminal: Terminal,
) -> tuple[RunLog, Results]:
    """What a run writes: its log with trackers, and its evaluations, checkpoints and pictures."""
    folder, progress = config.run.path, states.progress
    names = [c.name for c in data.classes]
    log = RunLog(folder, setup.start_trackers(config, accelerator, progress.step), processes,
                 Monitor(names, data.labeled_count.shares, best=progress.best), terminal, step=progress.step,
                 eval_every=schedule.eval_every)  # fmt: skip
    results = Results(
        folder, networks, info, data.labeled_count, EvalSamples(data.val), processes, accelerator.autocast,
        log, states,
    )  # fmt: skip
    return log, results


def change_phase(
    step: int,
    config: Config,
    schedule: Schedule,
    networks: Networks,
    method: Method,
    data: RunData,
    processes: Processes,
    autocast: Autocast,
) -> None:
    """What happens once before a step: the teacher begins, prototypes start, confidences are measured."""
    if step == schedule.warmup_steps > 0:
        # its first labels are those of the warmed-up student
        update_teacher(networks.teacher, networks.network, 0.0)
    if step in schedule.prototype_starts:
        start_prototypes(networks.bank, networks.teacher, data.labeled, method.prototypes,
                         processes=processes, ignore_index=method.ignore_index, seed=config.train.seed,
                         step=step)  # fmt: skip
    if networks.calibration is not None and step == schedule.outside_until > 0:
        networks.calibration.set(None)  # what was measured is not about the own teacher
    if schedule.calibrates(step) and data.held_out is not None:
        calibrate_own(networks, data.held_out, config.pseudo_labels, processes, step,
                      prototypes=schedule.phase(step).prototypes, autocast=autocast)  # fmt: skip


def train(
    config: Config,
    *,
    resume: bool = False,
    stopped_code: int = 0,
    output: Output = "text",
    own_logging: bool = True,
) -> int:
    """Run the configured training.

    Args:
        config: All settings.
        resume: Go on from the last state, if there is one.
        stopped_code: What to return when a signal stopped it.
        output: For whom it shows how it goes.
        own_logging: Set up logging for the whole process, as commands do.

    Returns:
        0 when finished, ``stopped_code`` when a signal stopped it with its state saved.

    Raises:
        ConfigError, DataError, ModelError, WeightsError, CheckpointError, TrainingStoppedError: With a text
            for the user.
    """
    settings, folder, seed = config.train, config.run.path, config.train.seed
    accelerator = setup.make_accelerator(settings, folder)
    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
    if own_logging:
        start_logging(main=accelerator.is_main_process, output=output)
    require_trackers(settings.trackers)
    data = open_run_data(config)
    schedule = make_schedule(config, len(data.labeled), data.num_unlabeled, processes.world)
    progress = Progress()
    states = States(folder, accelerator, progress, config.model_dump(mode="json"), settings.keep_states)
    if resume and states.finished(schedule.max_steps):
        return 0
    check_outside(config.pseudo_labels, folder)
    outside = open_outside(config, data, accelerator.device, accelerator.autocast)
    networks, method, optimizer, scheduler = setup.begin(
        config, accelerator, data, schedule, states, resume=resume, outside=outside
    )
    network, teacher, bank = networks.network, networks.teacher, networks.bank
    info = network_info(config, data, method.prototypes, network.stride_multiple)
    if outside is not None:
        # after the hand-over the numbers are the own teacher's
        known = networks.calibration if progress.step < schedule.outside_until else None
        info = info.model_copy(update={"teacher": outside.record(known)})
    batches = open_batches(config.data, config.views, settings, data, schedule, processes, progress.step,
                           unlabeled=config.method.unlabeled,
                           labels=outside.labels if outside is not None else None)  # fmt: skip
    setup.take_run_folder(accelerator, states)
    if output != "json":
        logger.info("%s", setup.describe(folder, info, data, schedule, accelerator, seed))
    names = [c.name for c in data.classes]
    terminal = Terminal(
        output, main=accelerator.is_main_process, step=progress.step, max_steps=schedule.max_steps
    )
    terminal.event("start", step=progress.step, **setup.facts(folder, info, data, schedule, accelerator))
    log, results = open_reports(
        config, accelerator, processes, data, schedule, states, networks, info, terminal
    )
    interrupt, faults, early = Interrupt(), FaultWatch(processes.device, states), False

    for step in range(progress.step, schedule.max_steps):
        phase = schedule.phase(step)
        change_phase(step, config, schedule, networks, method, data, processes, accelerator.autocast)

        points, losses = [], torch.zeros((), device=processes.device)
        for number in range(step * settings.accumulate, (step + 1) * settings.accumulate):
            with states.saved_on_error():
                labeled, unlabeled = batches.next(unlabeled=phase.unlabeled)
            # dropout and the like: a function of seed, position and process, so that a resumed run agrees
            torch.manual_seed(int(generator(seed, "steps", number, processes.rank).integers(2**31)))
            last = number + 1 == (step + 1) * settings.accumulate
            begins = number in (0, schedule.warmup_steps * settings.accumulate)
            see = results.draw_views(step, labeled, unlabeled, begins=begins)
            with nullcontext() if last else accelerator.no_sync(networks.student):
                found = compute_step(networks, method, labeled, unlabeled, phase, processes=processes,
                                     draw=partial(generator, seed, "global", number),
                                     autocast=accelerator.autocast, see=see)  # fmt: skip
                accelerator.backward(found.loss / settings.accumulate)
            log.interval.add(found)
            points.append(found.points)
            losses += found.loss.detach().float()
        norm = accelerator.clip_grad_norm_(network.parameters(), config.optim.max_grad_norm or math.inf)
        # infinite gradients are how the fp16 scaler finds its range: only the losses tell a fault there
        faults.note(step + 1, norm if accelerator.scaler is None else processes.reduce(losses))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        move_prototypes(bank, points, method.prototypes, step, processes.reduce)
        if step >= schedule.warmup_steps:
            follow(teacher, network, progress.teacher_updates, settings.ema_decay, new=NEW_PARTS,
                   head_start=progress.teacher_head_start, reduce=processes.reduce,
                   world=processes.world)  # fmt: skip
            progress.teacher_updates += 1
        progress.step = done = step + 1
        terminal.bar.update()

        stop = interrupt.requested(processes, together=schedule.logs(done))
        if stop or schedule.pauses(done) or processes.device.type == "cpu":
            faults.stop_if_seen()
            progress.skipped_images += batches.take_replaced(processes)
        if schedule.logs(done):
            log.log_interval(done, batches, bank if phase.prototypes else None, lr=scheduler.get_last_lr()[0],
                             grad_norm=float(norm), skipped_images=progress.skipped_images)  # fmt: skip
        if schedule.evaluates(done):
            if done <= schedule.warmup_steps:
                update_teacher(teacher, network, 0.0)
            result = results.evaluate(
                done, unlabeled=phase.unlabeled, after_warmup=done > schedule.warmup_steps,
                min_delta=settings.min_delta,
            )  # fmt: skip
            early = not schedule.ends(done) and progress.stale >= (settings.patience or math.inf)
        over = early or schedule.ends(done)
        if (schedule.saves(done) or over) and not (over and settings.keep_states == 0):
            states.save(or_stop=over)
        if over:
            break
        if stop:
            states.save()
            log.close()
            terminal.say(
                f"interrupted: the state of step {done} is saved. Go on with:\n  {states.resume_command}"
            )
            terminal.event("interrupted", step=done, resume=states.resume_command)
            accelerator.end_training()
            return stopped_code
    interrupt.close()
    states.finish(early=early)
    results.explain(progress.step, data.labeled.source, settings.atlas_images)
    log.close(results.best_folder)
    terminal.say(end_report(folder, names, result, progress, early=early))
    terminal.event("end", stopped_early=early, **where(folder, progress, early=early))
    accelerator.end_training()
    return 0
