"""What a training step is given: networks and settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from protoseg.config.data import ViewConfig
from protoseg.config.method import LossConfig, PrototypeConfig, PseudoLabelConfig
from protoseg.method.calibration import Calibration
from protoseg.method.pseudo_labels import ClassThresholds
from protoseg.models.prototypes import PrototypeBank
from protoseg.models.segmenter import SegmentationNetwork

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Networks:
    """What a step computes with."""

    student: nn.Module
    """The student as accelerate wrapped it."""
    network: SegmentationNetwork
    """The student itself."""
    teacher: SegmentationNetwork
    """Its moving average."""
    bank: PrototypeBank
    """Prototypes, shared by both."""
    thresholds: ClassThresholds
    """Per-class confidence thresholds."""
    outside: Callable[[Tensor], Tensor] | None = None
    """A network from outside: weak views (B, C_in, H, W) to scores (B, C, H, W); None: there is none, or its
    labels come with the images."""
    calibration: Calibration | None = None
    """Temperatures and threshold where labels decide about them."""


@dataclass(frozen=True)
class Method:
    """The settings of the losses."""

    views: ViewConfig
    pseudo_labels: PseudoLabelConfig
    prototypes: PrototypeConfig
    loss: LossConfig
    aux_weight: float
    """Weight of the auxiliary head."""
    ignore_index: int
    """Target value that takes no part."""
    class_weights: Tensor | None
    """(C,) weights of both linear losses (and of the prototype losses that are reweighted), or None."""
    fill: Tensor
    """(C_in,) uint8 padding colour."""
