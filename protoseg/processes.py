"""The processes that share a run or an evaluation, and sums over them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from accelerate.utils import reduce as reduce_tensor
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int = 0
    """Number of this process, from 0."""
    world: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """What this process computes on."""

    def reduce(self, value: Tensor) -> Tensor:
        """Sum over processes; the value itself on one."""
        return value if self.world == 1 else reduce_tensor(value, "sum")

    def mine(self, length: int) -> range:
        """Items of a list of ``length`` that are this process's: each item is one process's."""
        return range(self.rank, length, self.world)


ALONE = Processes()
"""One process on the CPU."""


def sent(value: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device; the host does not wait for what the device is doing.

    From memory that is not pinned it would. A compiled graph plans its own transfers.
    """
    cuda = device.type == "cuda"
    if cuda and not torch.compiler.is_compiling():
        value = value.pin_memory()
    return value.to(device, non_blocking=cuda)
