"""A network whose classes are taken, in any order, from another's: the only place that touches its weights.

Shape legend: ``C`` classes, ``D`` channels of the linear head's last layer, ``S`` channels of the encoder's
last two stages, ``K`` prototypes of a class, ``P`` channels of the prototype head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protoseg.adapt.cells import last_layer
from protoseg.checkpoint import CheckpointInfo
from protoseg.models.segmenter import STAGE_HEADS, Segmenter, build_segmenter


@dataclass(frozen=True)
class Heads:
    """What the two heads know of each class."""

    weight: Tensor
    """(C, D + S + 1) rows of the linear scores, the bias last. What the training made reads nothing of S."""
    prototypes: Tensor
    """(C, K, P) unit vectors."""
    active: Tensor
    """(C,) bool: classes that have prototypes."""

    def take(self, order: Sequence[int]) -> Heads:
        """Some classes, in this order."""
        index = torch.tensor(order, dtype=torch.long)
        return Heads(self.weight[index], self.prototypes[index], self.active[index])

    def with_class(self, label: int, row: Tensor, prototypes: Tensor | None) -> Heads:
        """With another row and other prototypes of a class; C as its id appends one.

        Args:
            label: The class.
            row: (D + S + 1,) weight, then bias.
            prototypes: (K, P), or None for a class without.
        """
        active = self.active.new_tensor([prototypes is not None])
        given = self.prototypes.new_zeros(self.prototypes.shape[1:]) if prototypes is None else prototypes
        parts = zip((self.weight, self.prototypes, self.active), (row, given, active[0]), strict=True)
        return Heads(*(torch.cat([old[:label], new[None], old[label + 1 :]]) for old, new in parts))


def read_heads(segmenter: Segmenter) -> Heads:
    """Copies of both heads, on the CPU."""
    network, bank = segmenter.network, segmenter.bank
    layer = last_layer(network)
    assert layer.bias is not None
    stages = [weight.flatten(1) for weight in network.stage_heads.parameters()]
    if not stages:
        stages = [layer.weight.new_zeros(len(layer.weight), sum(network.row_stages))]
    weight = torch.cat([layer.weight.flatten(1), *stages, layer.bias[:, None]], 1).detach()
    return Heads(weight.cpu().clone(), bank.prototypes.cpu().clone(), bank.active.cpu().clone())


def with_heads(segmenter: Segmenter, info: CheckpointInfo, heads: Heads) -> Segmenter:
    """The same network with other classes, in evaluation mode on the CPU.

    Args:
        segmenter: Gives everything but the heads.
        info: Describes it.
        heads: The classes.
    """
    made = build_segmenter(
        info.model.model_copy(update={"pretrained": "none", "aux_weight": 0.0}), info.prototypes,
        num_classes=len(heads.weight), in_channels=info.input.channels, mean=info.input.mean,
        std=info.input.std,
    )  # fmt: skip
    state = {key: value.cpu() for key, value in segmenter.network.state_dict().items()
             if not key.startswith(("aux_head.", STAGE_HEADS))}  # fmt: skip
    place = f"linear_head.{len(segmenter.network.linear_head) - 1}"
    channels = last_layer(segmenter.network).in_channels
    state[f"{place}.weight"] = heads.weight[:, :channels, None, None]
    state[f"{place}.bias"] = heads.weight[:, -1]
    stages = heads.weight[:, channels:-1]
    if bool(stages.any()):
        made.network.use_stages()
        for number, part in enumerate(torch.split(stages, made.network.row_stages, 1)):
            state[f"{STAGE_HEADS}{number}.weight"] = part[:, :, None, None]
    made.network.load_state_dict(state)
    with torch.no_grad():
        made.bank.prototypes.copy_(heads.prototypes)
        made.bank.active.copy_(heads.active)
    return made.eval()
