"""The maths of one training step: teacher labels, mixing, both heads' losses, prototype points.

Shape legend: ``B`` images of this process, ``V`` strong views, ``C`` classes, ``N`` points of an image,
``D`` feature channels, ``H W`` crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from protoseg.config import Config
from protoseg.data.datasets import STREAMS, Sample
from protoseg.data.mixing import MixPlan, draw_plan, mix
from protoseg.losses import (
    cross_entropy,
    ohem_cross_entropy,
    pseudo_label_cross_entropy,
    unsupervised_denominator,
)
from protoseg.models.prototypes import PrototypeBank
from protoseg.models.segmenter import SegmentationNetwork
from protoseg.points import balanced_points, features_at, grid_points, pixels_per_point
from protoseg.pseudo_labels import ClassThresholds, fuse, pseudo_labels


@dataclass(frozen=True)
class Context:
    """Everything a step works with that does not change from step to step."""

    config: Config
    network: SegmentationNetwork
    """The student, unwrapped."""
    student: nn.Module
    """The student as accelerate wrapped it."""
    teacher: SegmentationNetwork
    """The EMA teacher."""
    bank: PrototypeBank
    """Prototypes, shared by both."""
    thresholds: ClassThresholds
    """Per-class confidence thresholds."""
    num_classes: int
    """C."""
    fill: Tensor
    """(C_in,) uint8 padding colour."""
    class_weights: Tensor | None
    """(C,) weights of both linear losses (and of the prototype losses that are reweighted), or None."""
    autocast: Callable[[], AbstractContextManager[object]]
    """Mixed precision region."""
    reduce: Callable[[Tensor], Tensor]
    """Sum over processes; the identity on one."""
    rank: int
    """This process."""
    world: int
    """Number of processes."""


@dataclass(frozen=True)
class Phase:
    """Which parts of the method are on at a step."""

    unlabeled: bool
    """The teacher labels unlabelled images."""
    prototypes: bool
    """The prototype head is trained and prototypes move."""
    prototype_weight: float
    """w_p at this step."""


class Points(NamedTuple):
    """Pixels that move the prototypes."""

    features: Tensor
    """(P, D)."""
    classes: Tensor
    """(P,) class ids, -1 for none."""
    similarity: Tensor | None
    """(P, C, K) cosines with the present prototypes, when they are known."""


@dataclass
class StepResult:
    """What a step computed; everything stays on the device."""

    loss: Tensor
    """Scalar to call backward on."""
    parts: dict[str, Tensor]
    """Loss parts before their weights, detached."""
    stats: dict[str, Tensor]
    """Counts for monitoring, detached."""
    points: Points | None = None
    """What moves the prototypes, or None."""


@dataclass(frozen=True)
class TeacherLabels:
    """What the teacher says about the weak views."""

    pseudo_label: Tensor
    """(B, H, W) int64."""
    confidence: Tensor
    """(B, H, W) float; 0 where a gate refuses the pixel."""
    features: Tensor
    """(B, D, Y, X)."""


@dataclass
class _Batch:
    """Images of a student forward and what is known about them."""

    image: Tensor
    target: Tensor
    pseudo_label: list[Tensor] = field(default_factory=list)
    believed: list[Tensor] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)


def step_generator(seed: int, stream: str, *key: int) -> np.random.Generator:
    """Generator that is a function of the run's seed, a stream and a position."""
    return np.random.default_rng([seed, STREAMS[stream], *key])


def prototype_weight(config: Config, steps_since_start: int) -> float:
    """w_p with its cosine rise: 0 before the start, the full weight after ``weight_ramp`` steps."""
    if steps_since_start < 0:
        return 0.0
    ramp = config.prototypes.weight_ramp
    if ramp == 0 or steps_since_start >= ramp:
        return config.prototypes.weight
    return config.prototypes.weight * 0.5 * (1 - math.cos(math.pi * steps_since_start / ramp))


@torch.no_grad()
def label_with_teacher(context: Context, weak: Tensor, phase: Phase) -> TeacherLabels:
    """Labels and confidences of weak views (B, C_in, H, W) from the teacher's head(s)."""
    settings = context.config.pseudo_labels
    height, width = weak.shape[-2:]
    with context.autocast():
        output = context.teacher(weak)
    linear = context.teacher.upsample(output.linear_logits.float(), height, width)
    features = output.features.float()
    gate: Tensor | None = None
    probs = linear.softmax(1)
    if phase.prototypes and (settings.source == "fused" or settings.agreement == "heads"):
        low = context.bank.dense_logits(features)
        prototype = context.teacher.upsample(low, height, width)
        if settings.agreement == "heads":
            gate = linear.argmax(1) == prototype.argmax(1)
        if settings.source == "fused":
            probs = fuse(linear, prototype)
    label, confidence = pseudo_labels(probs)
    if gate is not None:
        confidence = confidence * gate
    return TeacherLabels(label, confidence, features)


def believe(context: Context, label: Tensor, confidence: Tensor, valid: Tensor) -> Tensor:
    """(B, H, W) bool: pixels whose pseudo-label takes part."""
    settings = context.config.pseudo_labels
    # a pixel that the agreement gate refuses has confidence 0, and does not pass a threshold of 0 either
    valid = valid & (confidence > 0)
    if settings.per_class:
        return valid & (confidence >= context.thresholds.per_pixel(label))
    return valid & (confidence >= settings.threshold)


def _strong_batch(
    context: Context, labeled: Sample, unlabeled: Sample, labels: TeacherLabels, key: tuple[int, ...]
) -> _Batch:
    """Labelled images followed by V mixed strong views of the unlabelled ones."""
    views = context.config.views
    batch = _Batch(labeled["image"], labeled["target"])
    images = [labeled["image"]]
    size = (unlabeled["weak"].shape[2], unlabeled["weak"].shape[3])
    for view in range(views.strong_views):
        plan = draw_plan(
            views,
            step_generator(context.config.train.seed, "global", *key, view),
            batch=len(unlabeled["weak"]),
            num_classes=context.num_classes,
            size=size,
            rank=context.rank,
            world=context.world,
        )
        plan = MixPlan(*(part.to(labels.confidence.device) for part in plan))
        mixed = mix(
            views,
            plan,
            unlabeled["strong"][:, view],
            labels.pseudo_label,
            labels.confidence,
            unlabeled["valid"],
            context.fill,
        )
        images.append(mixed.image)
        batch.pseudo_label.append(mixed.pseudo_label)
        batch.valid.append(mixed.valid)
        batch.believed.append(believe(context, mixed.pseudo_label, mixed.confidence, mixed.valid))
    batch.image = torch.cat(images)
    return batch


def _prototype_targets(context: Context, batch: _Batch) -> Tensor:
    """(B + V*B, H, W) classes for the prototype head; -1 where there is none."""
    ignored = batch.target == context.config.data.ignore_index
    targets = [torch.where(ignored, -1, batch.target)]
    for label, believed in zip(batch.pseudo_label, batch.believed, strict=True):
        targets.append(torch.where(believed, label, -1))
    return torch.cat(targets)


def _choose_points(context: Context, targets: Tensor, key: tuple[int, ...]) -> Tensor:
    """(images, N) flat pixel indices, the same for an image on any number of processes."""
    settings = context.config.prototypes
    rng = step_generator(context.config.train.seed, "global", *key, 99)
    images, size = len(targets), (targets.shape[1], targets.shape[2])
    # drawn for the global batch, part by part (labelled images, then each view), and then cut
    parts = images // context.config.train.batch_size
    local = context.config.train.batch_size
    own = [
        slice(
            (part * context.world + context.rank) * local, (part * context.world + context.rank + 1) * local
        )
        for part in range(parts)
    ]
    total = images * context.world
    if settings.sampling == "grid":
        drawn = grid_points(rng, total if settings.per_image_positions else 1, settings.grid, size)
        drawn = drawn.expand(total, -1)
        return torch.cat([drawn[part] for part in own]).to(targets.device)
    uniform = torch.from_numpy(rng.random((total, settings.grid**2)))
    mine = torch.cat([uniform[part] for part in own]).to(targets.device)
    return balanced_points(mine, targets, context.num_classes, settings.balance)


def _prototype_losses(
    context: Context,
    features: Tensor,
    targets: Tensor,
    teacher_part: tuple[Tensor, Tensor] | None,
    key: tuple[int, ...],
) -> tuple[list[tuple[Tensor, Tensor]], Points]:
    """Losses of labelled and unlabelled points, and the points that move prototypes.

    Args:
        context: The step's context.
        features: (B + V*B, D, Y, X) of the student.
        targets: (B + V*B, H, W), -1 where there is no class.
        teacher_part: Teacher features (B, D, Y, X) and classes (B, H, W) of the weak views when they
            move the prototypes instead of the student's.
        key: Position of the step, for randomness.
    """
    settings, bank = context.config.prototypes, context.bank
    labeled = context.config.train.batch_size
    size = (targets.shape[1], targets.shape[2])
    padded = context.network.padded_size(*size)
    index = _choose_points(context, targets, key)
    z = features_at(features, index, size[1], padded)
    classes = targets.flatten(1).gather(1, index)
    cosine = bank.similarity(z.flatten(0, 1))
    logits = bank.pool(cosine).view(*classes.shape, -1)
    # a class whose prototypes do not exist yet cannot be a target
    known = bank.active[classes.clamp(min=0)] & (classes >= 0)
    wanted = torch.where(known, classes, -1)
    weights, class_weights = None, None
    if settings.reweight:
        class_weights = context.class_weights
        if settings.sampling == "balanced":
            weights = pixels_per_point(classes, targets, context.num_classes, settings.balance)
    losses = []
    for part in (slice(0, labeled), slice(labeled, None)):
        if len(logits[part]):
            losses.append(
                cross_entropy(
                    logits[part].flatten(0, 1),
                    wanted[part].flatten(),
                    ignore_index=-1,
                    class_weights=class_weights,
                    weights=None if weights is None else weights[part].flatten(),
                )
            )

    moving = z.detach()
    if settings.update_from == "both" and teacher_part is None:
        return losses, Points(moving.flatten(0, 1), classes.flatten(), cosine.detach())
    moving, kept = moving[:labeled], classes[:labeled]
    if settings.update_from == "both" and teacher_part is not None:
        teacher_features, teacher_classes = teacher_part
        weak_index = index[labeled : labeled + len(teacher_features)]
        weak_z = features_at(teacher_features, weak_index, size[1], padded)
        moving = torch.cat([moving, weak_z])
        kept = torch.cat([kept, teacher_classes.flatten(1).gather(1, weak_index)])
    return losses, Points(moving.flatten(0, 1), kept.flatten(), None)


def _supervised(context: Context, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    settings = context.config.loss
    ignore = context.config.data.ignore_index
    if not settings.ohem:
        return cross_entropy(logits, target, ignore_index=ignore, class_weights=context.class_weights)
    return ohem_cross_entropy(
        logits,
        target,
        threshold=settings.ohem_threshold,
        min_kept=max(1, settings.ohem_min_kept // (context.world * context.config.train.accumulate)),
        ignore_index=ignore,
        class_weights=context.class_weights,
    )


def compute_step(
    context: Context, labeled: Sample, unlabeled: Sample | None, phase: Phase, key: tuple[int, ...]
) -> StepResult:
    """Forward passes and losses of one micro-step (arXiv 2210.04388, eq. 2 to 8; see docs/method).

    Each loss is a sum divided by a count over all processes, times the number of processes, because
    DDP averages gradients. Costs B teacher and (1 + V) B student encoder images.

    Args:
        context: Networks and settings.
        labeled: ``image`` and ``target`` on the device.
        unlabeled: ``weak``, ``strong`` and ``valid`` on the device; None before the teacher is used.
        phase: Parts that are on.
        key: Position of the micro-step, for randomness.
    """
    config, views = context.config, context.config.views
    labels: TeacherLabels | None = None
    if unlabeled is not None and phase.unlabeled:
        labels = label_with_teacher(context, unlabeled["weak"], phase)
        batch = _strong_batch(context, labeled, unlabeled, labels, key)
    else:
        batch = _Batch(labeled["image"], labeled["target"])
    size = labeled["target"].shape[-2:]
    local = len(labeled["image"])
    paired = local if labels is not None and views.complementary_dropout else 0
    output = context.student(batch.image, paired=paired)
    # apart from here on: the gradient of a slice of full-size scores is a full-size map of zeros
    low = output.linear_logits.float().split([local, len(batch.image) - local])
    logits = context.network.upsample(low[0], *size)

    terms = [("loss/sup_linear", 1.0, _supervised(context, logits, batch.target))]
    if output.aux_logits is not None:
        aux = context.network.upsample(output.aux_logits[:local].float(), *size)
        terms.append(("loss/sup_aux", config.model.aux_weight, _supervised(context, aux, batch.target)))
    points: Points | None = None
    if phase.prototypes:
        targets = _prototype_targets(context, batch)
        teacher_part = None
        if labels is not None and unlabeled is not None and config.prototypes.update_features == "teacher":
            kept = believe(context, labels.pseudo_label, labels.confidence, unlabeled["valid"])
            teacher_part = (labels.features, torch.where(kept, labels.pseudo_label, -1))
        losses, points = _prototype_losses(context, output.features, targets, teacher_part, key)
        names = ("loss/sup_prototype", "loss/uns_prototype")
        terms += [(n, phase.prototype_weight, pair) for n, pair in zip(names, losses, strict=False)]

    stats: dict[str, Tensor] = {}
    counts = [pair[1] for _, _, pair in terms]
    unsupervised: Tensor | None = None
    if labels is not None and unlabeled is not None:
        label, believed = torch.cat(batch.pseudo_label), torch.cat(batch.believed)
        valid = torch.cat(batch.valid)
        strong = context.network.upsample(low[1], *size)
        unsupervised = pseudo_label_cross_entropy(strong, label, believed, context.class_weights)
        counts += [believed.sum().float(), valid.sum().float()]
        with torch.no_grad():
            stats = _label_stats(context, strong, label, believed, valid, labels, unlabeled)
    shared = context.reduce(torch.stack([c.detach() for c in counts]))

    parts: dict[str, Tensor] = {}
    loss = logits.new_zeros(())
    for (name, weight, (total, _)), count in zip(terms, shared, strict=False):
        value = total * context.world / count.clamp(min=1)
        parts[name] = value.detach()
        loss = loss + weight * value
    if unsupervised is not None:
        below = unsupervised_denominator(shared[-2], shared[-1], config.pseudo_labels.normalization)
        value = unsupervised * context.world / below
        parts["loss/uns_linear"] = value.detach()
        loss = loss + config.loss.unsupervised_weight * value
    if not phase.prototypes and not isinstance(context.network.projection, nn.Identity):
        # DDP waits for a gradient of every parameter, and the projection has none yet
        loss = loss + 0.0 * output.features.mean()
    parts["loss/total"] = loss.detach()
    return StepResult(loss, parts, stats, points)


def _label_stats(
    context: Context,
    logits: Tensor,
    label: Tensor,
    believed: Tensor,
    valid: Tensor,
    labels: TeacherLabels,
    unlabeled: Sample,
) -> dict[str, Tensor]:
    """Counts that are summed over an interval and over processes before they become shares."""
    if context.config.pseudo_labels.per_class:
        context.thresholds.update(labels.pseudo_label, labels.confidence, unlabeled["valid"], context.reduce)
    per_class = torch.zeros(context.num_classes, device=label.device)
    per_class.index_add_(0, label.flatten(), believed.flatten().float())
    # max finds the same class as argmax, which is slow over an inner axis on a CPU
    differs = (logits.max(1).indices != label) & believed
    return {
        "believed": believed.sum().float(),
        "valid": valid.sum().float(),
        "per_class": per_class,
        "differs": differs.sum().float(),
    }
