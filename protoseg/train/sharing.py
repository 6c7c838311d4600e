"""Weights that several folders of a run hold alike: one file on the disk under several names (hard links).

Every folder stays whole by itself: a copy of it has its own bytes, and deleting one name leaves the others.
Nothing writes into these files once they are there. Where the disk knows no links each has its own bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from protoseg.weights import writing


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``source`` the second name ``target``, or copy it there.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Write the checkpoint folder ``source`` as ``target``, too, whole or not at all; weights are shared.

    Raises:
        CheckpointError: If it cannot be written.
    """
    with writing(target) as partial:
        for file in source.iterdir():
            place = partial / file.name
            if file.suffix == ".safetensors":
                link_or_copy(file, place)
            else:
                shutil.copyfile(file, place)


def _holds(file: Path, tensors: Mapping[str, Tensor], *, nothing_else: bool) -> bool:
    """Whether a weight file has these tensors, to the bit."""
    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
            if not names >= set(tensors) or (nothing_else and len(names) > len(tensors)):
                return False
            for name, ours in tensors.items():
                theirs = opened.get_tensor(name)
                if theirs.dtype != ours.dtype or not torch.equal(theirs, ours):
                    return False
    except (OSError, SafetensorError):
        return False
    return True


def save_shared(tensors: Mapping[str, Tensor], target: Path, twin: Path) -> None:
    """Write tensors (on the CPU), as a second name of ``twin`` if that has them (and perhaps more).

    Raises:
        OSError, SafetensorError: If they cannot be written.
    """
    if _holds(twin, tensors, nothing_else=False):
        link_or_copy(twin, target)
    else:
        safetensors.torch.save_file(dict(tensors), target)


def share(file: Path, twin: Path) -> None:
    """Make a weight file a second name of ``twin`` if both hold the same tensors; else leave it alone."""
    try:
        tensors = safetensors.torch.load_file(file)
        if not _holds(twin, tensors, nothing_else=True):
            return
        beside = file.with_name(f".{file.name}")
        os.link(twin, beside)
        beside.replace(file)
    except (OSError, SafetensorError):
        return
