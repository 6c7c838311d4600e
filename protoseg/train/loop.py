"""The training loop, on accelerate; ``protoseg.train`` is the command."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from protoseg.config.sections import Config
from protoseg.method.prototype_branch import move_prototypes
from protoseg.method.prototype_start import start_prototypes
from protoseg.method.step import compute_step
from protoseg.method.teacher import follow, update_teacher
from protoseg.processes import Processes
from protoseg.seeds import generator
from protoseg.start_from import NEW_PARTS
from protoseg.train.monitor import FaultWatch
from protoseg.train.results import end_report, where
from protoseg.train.setup import make_accelerator
from protoseg.train.signals import Interrupt
from protoseg.train.teacher import calibrate_own
from protoseg.train.terminal import Output, start_logging
from protoseg.train.training import Training, open_training


def change_phase(run: Training, step: int) -> None:
    """What happens once before a step: the teacher begins, prototypes start, confidences are measured."""
    schedule, networks, method = run.schedule, run.networks, run.method
    if step == schedule.warmup_steps > 0:
        # its first labels are those of the warmed-up student
        update_teacher(networks.teacher, networks.network, 0.0)
    if step in schedule.prototype_starts:
        start_prototypes(networks.bank, networks.teacher, run.data.labeled, method.prototypes,
                         processes=run.processes, ignore_index=method.ignore_index,
                         seed=run.config.train.seed, step=step)  # fmt: skip
    if networks.calibration is not None and step == schedule.outside_until > 0:
        networks.calibration.set(None)  # what was measured is not about the own teacher
    if schedule.calibrates(step) and run.data.held_out is not None:
        calibrate_own(networks, run.data.held_out, method.pseudo_labels, run.processes, step,
                      prototypes=schedule.phase(step).prototypes,
                      autocast=run.accelerator.autocast)  # fmt: skip


def take_step(run: Training, step: int, faults: FaultWatch) -> Tensor:
    """One step: gradients of all micro-steps, then optimiser, prototypes and moving average.

    Returns:
        The norm of the gradient before it was clipped.
    """
    settings, networks, accelerator, progress = (
        run.config.train, run.networks, run.accelerator, run.states.progress
    )  # fmt: skip
    phase, seed = run.schedule.phase(step), settings.seed
    points, losses = [], torch.zeros((), device=run.processes.device)
    for number in range(step * settings.accumulate, (step + 1) * settings.accumulate):
        with run.states.saved_on_error():
            labeled, unlabeled = run.batches.next(unlabeled=phase.unlabeled)
        # dropout and the like: a function of seed, position and process, so that a resumed run agrees
        torch.manual_seed(int(generator(seed, "steps", number, run.processes.rank).integers(2**31)))
        last = number + 1 == (step + 1) * settings.accumulate
        begins = number in (0, run.schedule.warmup_steps * settings.accumulate)
        see = run.results.draw_views(step, labeled, unlabeled, begins=begins)
        with nullcontext() if last else accelerator.no_sync(networks.student):
            found = compute_step(networks, run.method, labeled, unlabeled, phase, processes=run.processes,
                                 draw=partial(generator, seed, "global", number),
                                 autocast=accelerator.autocast, see=see)  # fmt: skip
            accelerator.backward(found.loss / settings.accumulate)
        run.log.interval.add(found)
        points.append(found.points)
        losses += found.loss.detach().float()
    limit = run.config.optim.max_grad_norm or math.inf
    norm: Tensor = accelerator.clip_grad_norm_(networks.network.parameters(), limit)
    # infinite gradients are how the fp16 scaler finds its range: only the losses tell a fault there
    faults.note(step + 1, norm if accelerator.scaler is None else run.processes.reduce(losses))
    run.optimizer.step()
    run.scheduler.step()
    run.optimizer.zero_grad(set_to_none=True)
    move_prototypes(networks.bank, points, run.method.prototypes, step, run.processes.reduce)
    if step >= run.schedule.warmup_steps:
        follow(networks.teacher, networks.network, progress.teacher_updates, settings.ema_decay,
               new=NEW_PARTS, head_start=progress.teacher_head_start, reduce=run.processes.reduce,
               world=run.processes.world)  # fmt: skip
        progress.teacher_updates += 1
    progress.step = step + 1
    run.terminal.bar.update()
    return norm


def evaluate(run: Training, done: int) -> bool:
    """Evaluate after ``done`` steps; returns whether the run has waited long enough for better numbers."""
    networks, schedule, settings = run.networks, run.schedule, run.config.train
    if done <= schedule.warmup_steps:
        update_teacher(networks.teacher, networks.network, 0.0)
    run.results.evaluate(done, unlabeled=schedule.phase(done - 1).unlabeled,
                         after_warmup=done > schedule.warmup_steps, min_delta=settings.min_delta)  # fmt: skip
    return not schedule.ends(done) and run.states.progress.stale >= (settings.patience or math.inf)


def interrupted(run: Training) -> None:
    """Save what a signal stopped, and say how it goes on."""
    states, step = run.states, run.states.progress.step
    states.save()
    run.log.close()
    run.terminal.say(
        f"interrupted: the state of step {step} is saved. Go on with:\n  {states.resume_command}"
    )
    run.terminal.event("interrupted", step=step, resume=states.resume_command)
    run.accelerator.end_training()


def finish(run: Training, *, early: bool) -> None:
    """Say what came out."""
    folder, progress = run.config.run.path, run.states.progress
    run.states.finish(early=early)
    run.results.explain(progress.step, run.data.labeled.source, run.config.train.atlas_images)
    run.log.close(run.results.best_folder)
    assert run.results.last is not None
    names = [c.name for c in run.data.classes]
    run.terminal.say(end_report(folder, names, run.results.last, progress, early=early))
    run.terminal.event("end", stopped_early=early, **where(folder, progress, early=early))
    run.accelerator.end_training()


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
    accelerator = make_accelerator(config.train, config.run.path)
    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
    if own_logging:
        start_logging(main=accelerator.is_main_process, output=output)
    run = open_training(config, accelerator, processes, resume=resume, output=output)
    if run is None:
        return 0
    schedule, states, progress = run.schedule, run.states, run.states.progress
    interrupt, faults, early = Interrupt(), FaultWatch(processes.device, states), False

    for step in range(progress.step, schedule.max_steps):
        change_phase(run, step)
        norm = take_step(run, step, faults)
        done = step + 1
        stop = interrupt.requested(processes, together=schedule.logs(done))
        if stop or schedule.pauses(done) or processes.device.type == "cpu":
            faults.stop_if_seen()
            progress.skipped_images += run.batches.take_replaced(processes)
        if schedule.logs(done):
            bank = run.networks.bank if schedule.phase(step).prototypes else None
            run.log.log_interval(done, run.batches, bank, lr=run.scheduler.get_last_lr()[0],
                                 grad_norm=float(norm), skipped_images=progress.skipped_images)  # fmt: skip
        if schedule.evaluates(done):
            early = evaluate(run, done)
        over = early or schedule.ends(done)
        if (schedule.saves(done) or over) and not (over and config.train.keep_states == 0):
            states.save(or_stop=over)
        if over:
            break
        if stop:
            interrupted(run)
            return stopped_code
    interrupt.close()
    finish(run, early=early)
    return 0
