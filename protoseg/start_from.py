"""A new network that starts from a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from protoseg.checkpoint import WEIGHTS_NAME, CheckpointInfo, described_tensors, read_info, resolve_checkpoint
from protoseg.errors import CheckpointError
from protoseg.input_rule import ValueRange
from protoseg.manifest import ClassInfo
from protoseg.models.segmenter import STAGE_HEADS
from protoseg.weights import plain_state

# parts that a start from other weights may lack: they depend on the method and learn quickly (what an adapted
# class read of the encoder is left out, because the training teaches it to the decoder)
NEW_PARTS = ("projection.", "aux_head.")


def start_from_checkpoint(
    path: str | Path,
    network: nn.Module,
    classes: list[ClassInfo],
    mean: list[float],
    std: list[float],
    value_range: ValueRange | None = None,
) -> CheckpointInfo:
    """Copy a checkpoint's teacher into a new network, but for projection, auxiliary and adapted rows.

    Args:
        path: Run folder, checkpoint folder or a file in it.
        network: Network of a new run; changed in place.
        classes: Its classes.
        mean: Its input normalisation, per channel.
        std: Likewise.
        value_range: Its range of values of images of more than 8 bits, if it has such.

    Returns:
        The description of the checkpoint.

    Raises:
        CheckpointError: If it is missing or damaged, or its classes, normalisation or network are others.
    """
    folder = resolve_checkpoint(path)
    info = read_info(folder)
    _refuse_others(path, info, classes, mean, std, value_range)
    state = {
        key: value
        for key, value in described_tensors(folder / WEIGHTS_NAME, info).items()
        if not key.startswith(("prototypes.", STAGE_HEADS, *NEW_PARTS))
    }
    own = plain_state(network)
    odd = sorted(set(state) - set(own))
    odd += sorted(key for key in set(own) - set(state) if not key.startswith(NEW_PARTS))
    odd += sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    if odd:
        raise CheckpointError(
            f"train.start_from={path} holds another network ({info.model.architecture}, "
            f"{info.model.encoder}): {len(odd)} tensors differ, the first is {odd[0]}; "
            "give this run the same model settings"
        )
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value)
    return info


def _refuse_others(
    path: str | Path,
    info: CheckpointInfo,
    classes: list[ClassInfo],
    mean: list[float],
    std: list[float],
    value_range: ValueRange | None,
) -> None:
    """Refuse a checkpoint whose labels or pixels mean something else."""
    theirs, ours = [c.name for c in info.classes], [c.name for c in classes]
    if theirs != ours:
        raise CheckpointError(
            f"train.start_from={path} has the classes {', '.join(theirs)}; this run has {', '.join(ours)}. "
            "They must be the same, in the same order"
        )
    if (info.input.mean, info.input.std) != (mean, std):
        raise CheckpointError(
            f"train.start_from={path} was trained with mean {info.input.mean} and std {info.input.std}, this "
            f"run has {mean} and {std}; set data.mean and data.std to the former"
        )
    theirs_range = info.input.value_range
    if theirs_range is not None and value_range is not None and theirs_range != value_range:
        low, high = theirs_range
        raise CheckpointError(
            f"train.start_from={path} was trained with values of {low:g} to {high:g}, this run has "
            f"{value_range[0]:g} to {value_range[1]:g}; set data.value_range=[{low:.9g},{high:.9g}]"
        )
