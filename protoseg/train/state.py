"""Resume states: everything that a killed run needs to go on as if nothing had happened.

A state is a folder ``state/step_00000120`` written by ``accelerate`` (student, optimiser, schedule,
scaler, random states) together with the teacher, the prototypes and the progress. It appears whole or
not at all, and the last ones are kept. Weights that the checkpoint of the same step has are shared with it.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from protoseg.checkpoint import CHECKPOINT_DIR, STUDENT_NAME, WEIGHTS_NAME
from protoseg.errors import CheckpointError, ConfigError, DataError
from protoseg.files import PARTIAL_SUFFIX, write_text_whole
from protoseg.train.progress import Progress
from protoseg.train.sharing import save_shared, share
from protoseg.weights import writing

logger = logging.getLogger("protoseg")

STATE_DIR = "state"
PREFIX = "step_"
CONFIG_NAME = "config.yaml"
TEACHER_NAME = "teacher.safetensors"
FINISHED_NAME = "finished.json"
# settings that may change between a state and the run that goes on from it
FREE_ON_RESUME = frozenset({
    "data.cache", "data.num_workers", "train.atlas_images", "train.channels_last", "train.epochs",
    "train.eval_every", "train.keep_states", "train.log_every", "train.max_bad_steps", "train.max_steps",
    "train.min_delta", "train.patience", "train.save_every", "train.start_from", "train.trackers",
})  # fmt: skip
# optimiser settings that are not part of its state
READ_EACH_STEP = frozenset({"optim.max_grad_norm"})


def state_folders(run: Path) -> list[Path]:
    """Complete states of a run, oldest first."""
    folder = run / STATE_DIR
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Optimiser steps done in a state, by its folder's name."""
    return int(folder.name.removeprefix(PREFIX))


class _TeacherPlace:
    """The teacher's place among what accelerate saves, where older states have its weights."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the weights are written beside."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The weights of an older state."""
        if state:
            self.teacher.load_state_dict(state)


class States:
    """The resume states of a run.

    Args:
        run: The run folder.
        accelerator: Saves student, optimiser, schedule, scaler, and what is registered with it.
        progress: Counters of the run, among what is saved.
        config: The run's settings as plain values.
        keep: How many states are kept; 0 keeps one until the run has finished.
    """

    teacher: nn.Module

    def __init__(
        self, run: Path, accelerator: Accelerator, progress: Progress, config: dict[str, Any], keep: int
    ) -> None:
        self.run, self.accelerator, self.progress = run, accelerator, progress
        self.config, self.keep = config, keep

    def register(self, teacher: nn.Module, *others: Any) -> None:
        """Have the teacher and others with a ``state_dict``, always in one order, saved, too."""
        self.teacher = teacher
        self.accelerator.register_for_checkpointing(_TeacherPlace(teacher), *others, self.progress)

    @property
    def config_text(self) -> str:
        """The settings as YAML."""
        return yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)

    @property
    def resume_command(self) -> str:
        """The command line of this run with ``--resume``."""
        own = [item for item in sys.argv[1:] if item != "--resume"]
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ
        launcher = "accelerate launch --quiet -m" if launched else "python -m"
        command = os.environ.get("_PROTOSEG_STARTED_AS", f"{launcher} protoseg.train")
        return f"{command} --resume {shlex.join(own)}".rstrip()

    @property
    def last(self) -> Path | None:
        """The last complete state, or None."""
        found = state_folders(self.run)
        return found[-1] if found else None

    def finished(self, max_steps: int) -> bool:
        """Compare this run's settings with those of the last state, and see whether that is its end.

        Raises:
            ConfigError: If an optimiser setting differs, which would have no effect, or if the run has
                finished, was to go on, and has kept no state.
        """
        state, end = self.last, self._read_end()
        if state is None:
            if end is not None and end["step"] < max_steps and not end["stopped_early"]:
                raise ConfigError(
                    f"{self.run} finished at step {end['step']} and has kept no state to go on from "
                    "(train.keep_states=0); start a new run from its weights with train.start_from"
                )
            if end is not None:
                logger.info("this run is already finished (step %d); nothing to do", end["step"])
            return end is not None
        changed = changed_since(state, self.config)
        texts = {key: f"{key} was {was}, is now {now}" for key, (was, now) in changed.items()}
        refused = [
            text for key, text in texts.items() if key.startswith("optim.") and key not in READ_EACH_STEP
        ]
        if refused:
            raise ConfigError(
                f"--resume goes on with the optimiser of {state}, and cannot take other settings for it: "
                f"{'; '.join(refused)}. Leave them as they were, or start a new run from these weights with "
                "train.start_from"
            )
        for text in texts.values():
            logger.warning("warning: resumed with another setting: %s", text)
        if (done := step_of(state)) >= max_steps:
            logger.info("this run is already finished (step %d of %d); nothing to do", done, max_steps)
            return True
        patience = self.config["train"]["patience"]
        if end is None or not end["stopped_early"] or (end["step"], end["patience"]) != (done, patience):
            return False
        logger.info(
            "this run has already stopped early (step %d, train.patience=%d); raise train.patience to go on",
            done,
            patience,
        )
        return True

    def finish(self, *, early: bool) -> None:
        """Write down that and how the run has ended; with ``train.keep_states=0`` its states go."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        progress = self.progress
        record = {
            "step": progress.step,
            "stopped_early": early,
            "patience": self.config["train"]["patience"],
            "best": {"head": progress.best_head, "miou": progress.best_value, "step": progress.best_step},
        }
        write_text_whole(self.run / FINISHED_NAME, json.dumps(record, indent=2) + "\n")
        if self.keep == 0:
            shutil.rmtree(self.run / STATE_DIR, ignore_errors=True)

    def _read_end(self) -> dict[str, Any] | None:
        """How the run has ended; None if it has not, or does not tell."""
        try:
            record = json.loads((self.run / FINISHED_NAME).read_text(encoding="utf-8"))
            return {key: record[key] for key in ("step", "stopped_early", "patience")}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def load(self, state: Path) -> None:
        """Restore everything from a state folder.

        Raises:
            CheckpointError: If it does not fit this run.
        """
        try:
            self.accelerator.load_state(str(state))
            if (state / TEACHER_NAME).exists():
                held = safetensors.torch.load_file(state / TEACHER_NAME)
                own = self.teacher.state_dict()
                self.teacher.load_state_dict({key: held[key] for key in own})
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, IndexError) as error:
            text = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"the state {state} does not fit this run ({text}); continue with the configuration and the "
                "number of processes it was made with, or start afresh without --resume"
            ) from error
        world = self.accelerator.num_processes
        if self.progress.world not in (0, world):
            raise CheckpointError(
                f"the state {state} was made by {self.progress.world} process(es); this run has {world}. Go "
                "on with as many, or start anew with train.start_from"
            )
        logger.info("resumed from %s", state)

    def save(self, *, or_stop: bool = True) -> None:
        """Write the state of this step, then remove all but the last ones.

        Every process calls this. A failure on any process is one on all, so that none waits.

        Args:
            or_stop: Raise when it cannot be written; else say so and go on.

        Raises:
            CheckpointError: If it cannot be written; earlier states are untouched.
        """
        target = self.run / STATE_DIR / f"{PREFIX}{self.progress.step:08d}"
        main = self.accelerator.is_main_process
        try:
            # all processes write into one folder, which the main process then moves into place
            shared = target.with_name(target.name + PARTIAL_SUFFIX)
            with writing(target) if main else nullcontext(shared) as partial:
                self.accelerator.wait_for_everyone()
                self._write(partial)
        except (CheckpointError, SafetensorError, OSError, RuntimeError) as error:
            if or_stop:
                raise CheckpointError(str(error)) from error
            logger.error("error: %s; training goes on", error)
            return
        if main:
            for old in state_folders(self.run)[: -max(1, self.keep)]:
                shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def saved_on_error(self) -> Iterator[None]:
        """Save the state when the block fails and nobody else waits in the middle of it."""
        try:
            yield
        except (DataError, RuntimeError):
            if self.accelerator.num_processes == 1:
                self.save()
                logger.info("the state of step %d is saved in %s", self.progress.step, self.run)
            raise

    def _write(self, folder: Path) -> None:
        """Write this process's part; an error of any process is one of all."""
        error: Exception | None = None
        try:
            self.accelerator.save_state(str(folder))
            if self.accelerator.is_main_process:
                (folder / CONFIG_NAME).write_text(self.config_text, encoding="utf-8")
                checkpoint = self.run / CHECKPOINT_DIR
                teacher = {k: v.detach().cpu().contiguous() for k, v in self.teacher.state_dict().items()}
                save_shared(teacher, folder / TEACHER_NAME, checkpoint / WEIGHTS_NAME)
                share(folder / "model.safetensors", checkpoint / STUDENT_NAME)
        except (SafetensorError, OSError, RuntimeError) as caught:
            error = caught
        failures = torch.tensor([int(error is not None)], device=self.accelerator.device)
        if int(self.accelerator.reduce(failures, reduction="sum").item()):
            raise error or OSError("another process failed")


def changed_since(folder: Path, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those of a saved state: ``section.key`` -> (there, now).

    What only names, logs or saves is left out.
    """
    try:
        there = yaml.safe_load((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return {
        f"{section}.{key}": (there[section].get(key), value)
        for section, values in config.items()
        if section not in ("run", "eval") and isinstance(there.get(section), dict)
        for key, value in values.items()
        if f"{section}.{key}" not in FREE_ON_RESUME and there[section].get(key, value) != value
    }
