"""Tensors on disk: what is written appears whole or not at all, and what cannot be read says why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from protoseg.errors import FULL_DISK, CheckpointError
from protoseg.files import folder_whole


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its place when the block ends without an error.

    Raises:
        CheckpointError: If it cannot be written (a full disk, say); ``target`` is then untouched.
    """
    try:
        with folder_whole(target) as partial:
            yield partial
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(write_failure(target, error)) from error


def write_failure(target: Path, error: Exception) -> str:
    """Why ``target`` was not written, and what to do."""
    free = shutil.disk_usage(target.parent if target.parent.exists() else Path.cwd()).free
    full = getattr(error, "errno", None) in FULL_DISK
    reason = "the disk is full" if full else (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"cannot write {target}: {reason} ({free / 2**20:.0f} MiB free); what was there before is "
        "unchanged. Free some space or set run.dir to another disk"
    )


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """State without the prefixes that wrappers (torch.compile, DDP) put before names."""
    return {
        key.replace("_orig_mod.", "").removeprefix("module."): value
        for key, value in network.state_dict().items()
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
