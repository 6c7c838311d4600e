"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def ema_decay(updates: int, largest: float) -> float:
    """Decay of update number ``updates`` (from 0): ``min(1 - 1 / (t + 1), largest)`` [U2PL].

    The first update copies the student (decay 0).
    """
    return min(1 - 1 / (updates + 1), largest)


def updates_behind(largest: float) -> int:
    """Updates after which ``ema_decay`` is ``largest``: what a teacher worth keeping has behind it."""
    return math.ceil(1 / (1 - largest))


def make_teacher(student: M) -> M:
    """A copy of ``student`` in eval mode without gradients."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    teacher.eval()
    return teacher


@torch.no_grad()
def update_teacher(
    teacher: nn.Module, student: nn.Module, decay: float, *, new: tuple[str, ...] = (), new_decay: float = 0.0
) -> None:
    """``teacher <- decay * teacher + (1 - decay) * student``.

    Floating-point parameters and buffers are averaged; integer buffers (batch norm's counter) are
    copied, because averaging them truncates to wrong counts.

    Args:
        teacher: Module with the same state as the student.
        student: Unwrapped student.
        decay: In [0, 1); 0 copies.
        new: Beginnings of the names of parts that have another decay, because they started later.
        new_decay: The decay of those.
    """
    groups: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    source = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    for name, value in [*teacher.named_parameters(), *teacher.named_buffers()]:
        if value.dtype.is_floating_point:
            ours, theirs = groups.setdefault(new_decay if name.startswith(new) else decay, ([], []))
            ours.append(value)
            theirs.append(source[name])
        else:
            value.copy_(source[name])
    for keep, (ours, theirs) in groups.items():
        if keep == 0:
            torch._foreach_copy_(ours, theirs)
        else:
            torch._foreach_lerp_(ours, theirs, 1 - keep)


@torch.no_grad()
def average_buffers(network: nn.Module, reduce: Callable[[Tensor], Tensor], world: int) -> None:
    """Average batch norm statistics over ``world`` processes, so that all teachers stay the same."""
    buffers = [b for b in network.buffers() if b.dtype.is_floating_point]
    if world == 1 or not buffers:
        return
    flat = reduce(torch.cat([b.flatten() for b in buffers])) / world
    pieces = torch.split(flat, [b.numel() for b in buffers])
    for buffer, values in zip(buffers, pieces, strict=True):
        buffer.copy_(values.view_as(buffer))


def follow(
    teacher: nn.Module,
    student: nn.Module,
    updates: int,
    largest: float,
    *,
    head_start: int = 0,
    new: tuple[str, ...] = (),
    reduce: Callable[[Tensor], Tensor] = lambda value: value,
    world: int = 1,
) -> None:
    """One update of the moving average, the same on all processes; see ``update_teacher``.

    Args:
        teacher: The teacher.
        student: Unwrapped student.
        updates: Updates behind the teacher.
        largest: Largest decay, see ``ema_decay``.
        head_start: Updates that the weights it started from count for.
        new: Beginnings of the names of parts that did not come with those weights.
        reduce: Sums a tensor over processes.
        world: Number of processes.
    """
    average_buffers(student, reduce, world)
    decay = ema_decay(updates + head_start, largest)
    update_teacher(teacher, student, decay, new=new, new_decay=ema_decay(updates, largest))
