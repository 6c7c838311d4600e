"""The maths of one training step: teacher labels, mixing, both heads' losses, prototype points.

Shape legend: ``B`` images of this process, ``V`` strong views, ``C`` classes, ``D`` feature channels,
``H W`` crop, ``Y X`` feature map.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from protoseg.config.plan import Phase
from protoseg.config.sections import LossConfig, PrototypeConfig, PseudoLabelConfig, ViewConfig
from protoseg.data.stream import Sample
from protoseg.method.calibration import LOWEST_LOG, Calibration
from protoseg.method.losses import (
    Mean,
    cross_entropy,
    ohem_cross_entropy,
    over_processes,
    pseudo_label_cross_entropy,
    unsupervised_denominator,
)
from protoseg.method.mixing import mix_views
from protoseg.method.prototype_branch import Points, assignment_loss, prototype_losses
from protoseg.method.pseudo_labels import ClassThresholds, fuse, pseudo_labels, reweight, unpack_labels
from protoseg.models.prototypes import PrototypeBank
from protoseg.models.segmenter import SegmentationNetwork
from protoseg.processes import Processes

Autocast = Callable[[], AbstractContextManager[object]]
POINT_DRAW = 99  # number of the points' draw among those of a step; the views' are 0 and 1
ASSIGNMENT_DRAW = 98
LOG_NAMES = {
    "sup": "loss/sup_linear", "uns": "loss/uns_linear", "proto_sup": "loss/sup_prototype",
    "proto_uns": "loss/uns_prototype", "aux": "loss/sup_aux", "consistency": "loss/consistency",
}  # fmt: skip
"""The losses, and what they are called in the log."""


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


class StepResult(NamedTuple):
    """What a step computed; everything stays on the device."""

    loss: Tensor
    """Scalar to call backward on."""
    parts: dict[str, Tensor]
    """Loss parts before their weights, detached, under their names in the log."""
    counts: dict[str, Tensor]
    """Counts of pseudo-labels for the log, see ``count_labels``."""
    points: Points | None
    """What moves the prototypes, or None."""


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
    """Labels and confidences of weak views (B, C_in, H, W) from the teacher's head(s).

    Args:
        teacher: The labelling network.
        bank: Its prototypes.
        weak: Images.
        settings: Which head labels, and whether the other must name the same class.
        prototypes: Whether there is a prototype head yet.
        autocast: Gives the context of the forward pass.
        calibration: Temperatures, or None.

    See ``teacher_scores``.
    """
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


def supervised_loss(method: Method, logits: Tensor, target: Tensor) -> Mean:
    """Cross entropy of labelled images, over hard pixels alone with ``loss.ohem``."""
    ignore, weights, loss = method.ignore_index, method.class_weights, method.loss
    if not loss.ohem:
        return cross_entropy(logits, target, ignore_index=ignore, class_weights=weights)
    return ohem_cross_entropy(logits, target, ignore_index=ignore, class_weights=weights,
                              threshold=loss.ohem_threshold, min_kept=loss.ohem_min_kept)  # fmt: skip


@torch.no_grad()
def count_labels(logits: Tensor, strong: StrongViews, num_classes: int) -> dict[str, Tensor]:
    """Counts that are summed over an interval and over processes before they become shares.

    ``valid`` pixels, ``believed`` ones, these ``per_class`` (C,), and those that are ``contradicted``: the
    student names another class on the strong view.
    """
    per_class = torch.zeros(num_classes, device=logits.device)
    per_class.index_add_(0, strong.label.flatten(), strong.believed.flatten().float())
    # max finds the same class as argmax, which is slow over an inner axis on a CPU
    contradicted = (logits.max(1).indices != strong.label) & strong.believed
    return {
        "believed": strong.believed.sum().float(),
        "valid": strong.valid.sum().float(),
        "per_class": per_class,
        "contradicted": contradicted.sum().float(),
    }


def compute_step(
    networks: Networks,
    method: Method,
    labeled: Sample,
    unlabeled: Sample | None,
    phase: Phase,
    *,
    draw: Callable[[int], np.random.Generator],
    processes: Processes,
    autocast: Autocast = nullcontext,
    see: Callable[[StrongViews], None] | None = None,
) -> StepResult:
    """Forward passes and losses of one micro-step (arXiv 2210.04388, eq. 2 to 8; see docs/method).

    Each loss is a sum divided by a count over all processes, times the number of processes, because
    DDP averages gradients. Costs B teacher and (1 + V) B student encoder images.

    Args:
        networks: Student, teacher, prototypes, thresholds.
        method: Settings of the losses.
        labeled: ``image`` and ``target`` on the device.
        unlabeled: ``weak``, ``strong`` and ``valid`` on the device; None before the teacher is used.
        phase: Parts that are on, and w_p.
        draw: Gives the generator of the step's draw of a number, alike on every process.
        processes: Who shares the batch.
        autocast: Gives the context of the teacher's forward pass.
        see: Is shown the mixed views and their labels, which it must not change.
    """
    target, upsample = labeled["target"], networks.network.upsample
    local, size = len(target), (target.shape[1], target.shape[2])
    images, strong = labeled["image"], None
    if unlabeled is not None:
        strong = teach(networks, method, unlabeled, phase, draw=draw, processes=processes, autocast=autocast)
        images = torch.cat([images, strong.image])
        if see is not None:
            see(strong)
    paired = local if strong is not None and method.views.complementary_dropout else 0
    output = networks.student(images, paired=paired)
    # apart from here on: the gradient of a slice of full-size scores is a full-size map of zeros
    low, strong_low = output.linear_logits.float().split([local, len(images) - local])

    points: Points | None = None
    counts: dict[str, Tensor] = {}
    labeled_logits = upsample(low, *size)
    means = {"sup": supervised_loss(method, labeled_logits, target)}
    if output.aux_logits is not None:
        means["aux"] = supervised_loss(method, upsample(output.aux_logits[:local].float(), *size), target)
    if phase.prototypes:
        classes = torch.where(target == method.ignore_index, -1, target)
        if strong is not None:
            classes = torch.cat([classes, torch.where(strong.believed, strong.label, -1)])
        clean = method.prototypes.update_from == "clean"
        losses, points = prototype_losses(
            networks.bank, method.prototypes, output.features, classes, networks.network.padded_size(*size),
            batch=local, taught=strong.taught if strong is not None else None,
            class_weights=method.class_weights, rng=draw(POINT_DRAW), processes=processes,
            right=labeled_logits.detach().max(1).indices == target if clean else None,
        )  # fmt: skip
        means |= losses
        if strong is not None and strong.weak_features is not None and method.prototypes.consistency > 0:
            counted = strong.valid if method.prototypes.consistency_pixels == "valid" else strong.believed
            means["consistency"] = assignment_loss(
                networks.bank, method.prototypes, output.features[local:], strong.weak_features,
                strong.source, counted, networks.network.padded_size(*size), batch=local,
                rng=draw(ASSIGNMENT_DRAW), processes=processes,
            )  # fmt: skip
    if strong is not None:
        logits = upsample(strong_low, *size)
        uns = pseudo_label_cross_entropy(logits, strong.label, strong.believed, method.class_weights)
        counts = count_labels(logits.detach(), strong, networks.bank.num_classes)
        means |= {"uns": Mean(uns, counts["valid"]), "believed": Mean(uns, counts["believed"])}

    means = over_processes(means, processes.reduce, processes.world)
    loss = {name: mean.value for name, mean in means.items() if name in LOG_NAMES}
    if strong is not None:
        loss["uns"] = means["uns"].total / unsupervised_denominator(
            means["believed"].count, means["uns"].count, method.pseudo_labels.normalization
        )
    sup, uns, proto_sup, proto_uns, aux, soft = (loss.get(name, low.new_zeros(())) for name in LOG_NAMES)
    w_u = method.loss.unsupervised_weight * phase.unsupervised_share
    w_p, w_aux = phase.prototype_weight, method.aux_weight
    total = (
        sup + w_u * uns + w_p * (proto_sup + proto_uns) + w_aux * aux + method.prototypes.consistency * soft
    )
    parts = {LOG_NAMES[name]: value.detach() for name, value in loss.items()}
    parts["loss/total"] = total.detach()
    if not phase.prototypes and not isinstance(networks.network.projection, nn.Identity):
        # DDP waits for a gradient of every parameter, and the projection has none yet
        total = total + 0.0 * output.features.mean()
    return StepResult(total, parts, counts, points)
