"""Resume states: everything that a killed run needs to go on as if nothing had happened.

A state is a folder ``state/step_00000120`` written by ``accelerate`` (student, optimiser, schedule,
scaler, random states) together with the teacher, the prototypes and the progress. It appears whole or
not at all, and the last ones are kept.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn

from protoseg.checkpoint import writing
from protoseg.config.sections import Config
from protoseg.errors import CheckpointError

logger = logging.getLogger(__name__)

STATE_DIR = "state"
PREFIX = "step_"
CONFIG_NAME = "config.yaml"
# settings that may change between a state and the run that goes on from it
FREE_ON_RESUME = frozenset({
    "data.cache", "data.num_workers", "train.epochs", "train.eval_every", "train.keep_states",
    "train.log_every", "train.max_bad_steps", "train.max_steps", "train.save_every", "train.start_from",
    "train.trackers",
})  # fmt: skip


@dataclass
class Progress:
    """Counters of a run; saved with each state."""

    step: int = 0
    """Optimiser steps done."""
    teacher_updates: int = 0
    """Teacher updates done, for the decay ramp."""
    teacher_head_start: int = 0
    """Updates that the weights of ``train.start_from`` count for, in the same ramp."""
    start_miou: float = 0.0
    """Validation mIoU of the linear head of ``train.start_from``, in [0, 1]; 0 if unknown."""
    best_miou: float = -1.0
    """Highest validation mIoU of the linear head so far, in [0, 1]."""
    bad_steps: int = 0
    """Steps skipped because of a non-finite loss."""
    skipped_images: int = 0
    """Unreadable images passed over."""
    finished: bool = False
    """The last step is done."""
    world: int = 0
    """Processes of the run; 0 in states that do not tell."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved numbers."""
        for key, value in state.items():
            setattr(self, key, value)


def state_folders(run: Path) -> list[Path]:
    """Complete states of a run, oldest first."""
    folder = run / STATE_DIR
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Optimiser steps done in a state, by its folder's name."""
    return int(folder.name.removeprefix(PREFIX))


def save_state(accelerator: Accelerator, run: Path, step: int, config_text: str, keep: int) -> None:
    """Write the state of ``step``, then remove all but the last ``keep``.

    Every process calls this. A failure on any process is an error on all, so that none waits.

    Raises:
        CheckpointError: If it cannot be written; earlier states are untouched.
    """
    target = run / STATE_DIR / f"{PREFIX}{step:08d}"
    failure: CheckpointError | None = None
    if accelerator.num_processes == 1:
        with writing(target) as partial:
            _save(accelerator, partial, config_text)
    else:
        failure = _save_together(accelerator, target, config_text)
    if failure is not None:
        raise failure
    if accelerator.is_main_process:
        for old in state_folders(run)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def _save(accelerator: Accelerator, folder: Path, config_text: str) -> None:
    accelerator.save_state(str(folder))
    if accelerator.is_main_process:
        (folder / CONFIG_NAME).write_text(config_text, encoding="utf-8")


def _save_together(accelerator: Accelerator, target: Path, config_text: str) -> CheckpointError | None:
    """All processes write into one folder, which the main process then moves into place."""
    shared = target.with_name(target.name + ".shared")
    error: Exception | None = None
    if accelerator.is_main_process:
        shutil.rmtree(shared, ignore_errors=True)
        shared.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    try:
        _save(accelerator, shared, config_text)
    except (OSError, RuntimeError) as caught:
        error = caught
    good = torch.tensor([0 if error else 1], device=accelerator.device)
    all_good = int(accelerator.reduce(good, reduction="sum").item()) == accelerator.num_processes
    failure: CheckpointError | None = None
    if accelerator.is_main_process:
        try:
            with writing(target) as partial:
                if not all_good:
                    raise OSError(str(error or "another process failed"))
                partial.rmdir()
                shared.replace(partial)
        except CheckpointError as caught:
            failure = caught
        shutil.rmtree(shared, ignore_errors=True)
    moved = torch.tensor([0 if failure else 1], device=accelerator.device)
    everywhere = int(accelerator.reduce(moved, reduction="sum").item()) == accelerator.num_processes
    if not everywhere and failure is None:
        failure = CheckpointError(f"cannot write {target}: the main process could not store it")
    return failure


def load_state(accelerator: Accelerator, folder: Path) -> None:
    """Restore everything from a state folder.

    Raises:
        CheckpointError: If it does not fit this run.
    """
    try:
        accelerator.load_state(str(folder))
    except (OSError, RuntimeError, KeyError, ValueError, IndexError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the state {folder} does not fit this run ({text}); continue with the configuration and the "
            "number of processes it was made with, or start afresh without --resume"
        ) from error


def changed_since(folder: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from those of a saved state: ``section.key`` -> (there, now).

    What only names, logs or saves is left out.
    """
    try:
        there = yaml.safe_load((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    now = config.model_dump(mode="json")
    return {
        f"{section}.{key}": (there[section].get(key), value)
        for section, values in now.items()
        if section not in ("run", "eval") and isinstance(there.get(section), dict)
        for key, value in values.items()
        if f"{section}.{key}" not in FREE_ON_RESUME and there[section].get(key, value) != value
    }


class Guard:
    """Undo a step whose loss was not finite, without waiting for the device.

    Batch norm statistics and prototypes are kept from before the step; gradients become zero. On the
    CPU, where looking is free, the caller skips the optimiser step altogether.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.buffers = [b for module in modules for b in module.buffers()]
        self.kept: list[Tensor] = []

    def remember(self) -> None:
        """Copy the buffers."""
        self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def restore(self, bad: Tensor) -> None:
        """Put the copies back where ``bad`` (scalar bool) is true."""
        for buffer, old in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(torch.where(bad, old, buffer))

    @staticmethod
    @torch.no_grad()
    def clear_gradients(parameters: list[nn.Parameter], bad: Tensor) -> None:
        """Zero the gradients where ``bad`` is true."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.copy_(torch.where(bad, 0.0, parameter.grad))
