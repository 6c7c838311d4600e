"""The teacher's part of a training step: it labels the weak views, and the strong ones are mixed alike.

Shape legend: ``B`` images of this process, ``V`` strong views, ``C`` classes, ``D`` feature channels,
``H W`` crop, ``Y X`` feature map.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protoseg.config.method import PseudoLabelConfig
from protoseg.config.plan import Phase
from protoseg.data.stream import Sample
from protoseg.method.calibration import LOWEST_LOG, Calibration
from protoseg.method.inputs import Autocast, Method, Networks
from protoseg.method.mixing import mix_views
from protoseg.method.pseudo_labels import ClassThresholds, fuse, pseudo_labels, reweight, unpack_labels
from protoseg.models.prototypes import PrototypeBank
from protoseg.models.segmenter import SegmentationNetwork
from protoseg.processes import Processes


class TeacherLabels(NamedTuple):
    """What the teacher says about the weak views."""

    label: Tensor
    """(B, H, W) int64 pseudo-labels."""
    confidence: Tensor
    """(B, H, W) float; 0 where the two heads name different classes and must not."""
    features: Tensor | None
    """(B, D, Y, X) of the moving average, or None where something else labels and nothing asks for them."""


class TeacherScores(NamedTuple):
    """What the moving average computes of weak views."""

    scores: Tensor
    """(B, C, H, W) whose softmax labels: logits, or logarithms of probabilities."""
    probs: Tensor | None
    """The probabilities, where they come first."""
    agreed: Tensor | None
    """(B, H, W) bool, where both heads name the same class; None where they need not."""
    features: Tensor
    """(B, D, Y, X)."""


class StrongViews(NamedTuple):
    """V*B mixed strong views, and what the student is to say about them."""

    image: Tensor
    """(V*B, C_in, H, W) uint8."""
    label: Tensor
    """(V*B, H, W) int64 pseudo-labels."""
    believed: Tensor
    """(V*B, H, W) bool: pixels whose pseudo-label takes part."""
    valid: Tensor
    """(V*B, H, W) bool: image and not padding."""
    taught: tuple[Tensor, Tensor] | None
    """Teacher features (B, D, Y, X) and believed classes (B, H, W), -1 for none, of the weak views, where
    these move the prototypes instead of the student's."""
    source: Tensor
    """(V*B, H, W) image of the batch that a pixel is from, see ``Mixed.source``."""
    weak_features: Tensor | None
    """(B, D, Y, X) of the teacher, see ``TeacherLabels.features``."""


@torch.no_grad()
def teacher_scores(
    teacher: SegmentationNetwork,
    bank: PrototypeBank,
    weak: Tensor,
    settings: PseudoLabelConfig,
    *,
    prototypes: bool,
    autocast: Autocast = nullcontext,
) -> TeacherScores:
    """Scores of weak views (B, C_in, H, W) from the teacher's head(s).

    Args:
        teacher: The labelling network.
        bank: Its prototypes.
        weak: Images.
        settings: Which head labels, and whether the other must name the same class.
        prototypes: Whether there is a prototype head yet.
        autocast: Gives the context of the forward pass.
    """
    height, width = weak.shape[-2:]
    with autocast():
        output = teacher(weak)
    linear = teacher.upsample(output.linear_logits.float(), height, width)
    features = output.features.float()
    if not prototypes or (settings.source == "linear" and settings.agreement == "none"):
        return TeacherScores(linear, None, None, features)
    prototype = teacher.upsample(bank.dense_logits(features), height, width)
    agreed = linear.argmax(1) == prototype.argmax(1) if settings.agreement == "heads" else None
    if settings.source == "fused":
        probs = fuse(linear, prototype)
        return TeacherScores(probs.clamp(min=LOWEST_LOG).log(), probs, agreed, features)
    if settings.source == "reweighted":
        nearest = teacher.upsample(bank.nearest_map(features), height, width)
        linear = reweight(linear, nearest, bank.active, settings.distance_temperature)
    return TeacherScores(linear, None, agreed, features)


@torch.no_grad()
def label_with_teacher(
    teacher: SegmentationNetwork,
    bank: PrototypeBank,
    weak: Tensor,
    settings: PseudoLabelConfig,
    *,
    prototypes: bool,
    autocast: Autocast = nullcontext,
    calibration: Calibration | None = None,
) -> TeacherLabels:
    """Labels and confidences of weak views by ``teacher_scores``, at the temperatures of ``calibration``."""
    found = teacher_scores(teacher, bank, weak, settings, prototypes=prototypes, autocast=autocast)
    if calibration is not None:
        label, confidence = calibration.label(found.scores)
    else:
        label, confidence = pseudo_labels(found.scores.softmax(1) if found.probs is None else found.probs)
    if found.agreed is not None:
        confidence = confidence * found.agreed
    return TeacherLabels(label, confidence, found.features)


@torch.no_grad()
def label_from_outside(networks: Networks, unlabeled: Sample) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W) and confidences of weak views from what labels in place of the moving average."""
    if "given" in unlabeled:
        return unpack_labels(unlabeled["given"])
    assert networks.outside is not None
    scores = networks.outside(unlabeled["weak"])
    return networks.calibration.label(scores) if networks.calibration else pseudo_labels(scores.softmax(1))


def believe(
    settings: PseudoLabelConfig,
    thresholds: ClassThresholds,
    label: Tensor,
    confidence: Tensor,
    valid: Tensor,
    calibration: Calibration | None = None,
) -> Tensor:
    """(B, H, W) bool: pixels whose pseudo-label takes part; ``calibration`` has tau in place of settings."""
    # a pixel that the gate of the heads refuses has confidence 0, and does not pass a threshold of 0 either
    valid = valid & (confidence > 0)
    tau = settings.threshold if calibration is None else calibration.threshold
    if settings.per_class:
        return valid & (confidence >= thresholds.per_pixel(label, tau))
    return valid & (confidence >= tau)


def teach(
    networks: Networks,
    method: Method,
    unlabeled: Sample,
    phase: Phase,
    *,
    draw: Callable[[int], np.random.Generator],
    processes: Processes,
    autocast: Autocast,
) -> StrongViews:
    """Label the weak views, mix the strong ones alike, and choose what to believe; see ``compute_step``."""
    settings, thresholds, valid = method.pseudo_labels, networks.thresholds, unlabeled["valid"]
    calibration = networks.calibration
    moved_by_teacher = method.prototypes.update_features == "teacher"
    features: Tensor | None = None
    if not phase.outside or (phase.prototypes and (moved_by_teacher or method.prototypes.consistency > 0)):
        label, confidence, features = label_with_teacher(
            networks.teacher, networks.bank, unlabeled["weak"], settings, prototypes=phase.prototypes,
            autocast=autocast, calibration=calibration,
        )  # fmt: skip
    if phase.outside:
        label, confidence = label_from_outside(networks, unlabeled)
    mixed = mix_views(
        method.views, unlabeled["strong"], label, confidence, valid, method.fill, draw=draw,
        num_classes=networks.bank.num_classes, processes=processes,
    )  # fmt: skip
    believed = believe(settings, thresholds, mixed.pseudo_label, mixed.confidence, mixed.valid, calibration)
    taught = None
    if moved_by_teacher and features is not None:
        own = believe(settings, thresholds, label, confidence, valid, calibration)
        taught = features, torch.where(own, label, -1)
    if settings.per_class:
        thresholds.update(label, confidence, valid, processes.reduce)
    return StrongViews(mixed.image, mixed.pseudo_label, believed, mixed.valid, taught, mixed.source, features)
