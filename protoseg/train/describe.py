"""What a run says of itself when it starts, for people and for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from protoseg.checkpoint import CheckpointInfo
from protoseg.config.plan import Schedule
from protoseg.train.data import RunData


def facts(
    folder: Path, info: CheckpointInfo, data: RunData, schedule: Schedule, accelerator: Accelerator, *,
    channels_last: bool,
) -> dict[str, Any]:  # fmt: skip
    """What ``describe`` says, for machines."""
    return {
        "run": str(folder),
        "method": info.method,
        "architecture": info.model.architecture,
        "encoder": info.model.encoder,
        "classes": [item.name for item in data.classes],
        "images": {"labeled": len(data.labeled), "unlabeled": data.num_unlabeled, "val": len(data.val)},
        "batch": schedule.length.batch,
        "max_steps": schedule.max_steps,
        "warmup_steps": schedule.warmup_steps,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "channels_last": channels_last,
        "versions": info.versions,
    }


def describe(
    folder: Path, info: CheckpointInfo, data: RunData, schedule: Schedule, accelerator: Accelerator,
    seed: int, *, channels_last: bool,
) -> str:  # fmt: skip
    """The first lines of a run."""
    counts = (
        f"{len(data.labeled)} labelled, {data.num_unlabeled} unlabelled, {len(data.val)} validation images"
    )
    hashes = ", ".join(f"{split} {value[:12]}" for split, value in data.hashes.items())
    batch, per_epoch, steps = schedule.length
    versions = ", ".join(f"{k} {v}" for k, v in info.versions.items())
    return (
        f"run {folder}: method {info.method}, {info.model.architecture} on {info.model.encoder}, "
        f"seed {seed}\n"
        f"data: {counts}, {len(data.classes)} classes (lists: {hashes})\n"
        f"schedule: {steps} steps of {batch} + {batch} images ({per_epoch} steps an epoch), "
        f"{schedule.warmup_steps} of them supervised\n"
        f"device: {accelerator.device} x {accelerator.num_processes}, precision "
        f"{accelerator.mixed_precision}{', channels last' if channels_last else ''}, "
        f"{torch.get_num_threads()} threads\n"
        f"versions: {versions}; git {info.git_revision or 'none'}"
    )
