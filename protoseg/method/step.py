"""The maths of one training step: both heads' losses, and the points that move the prototypes.

Shape legend: ``B`` images of this process, ``V`` strong views, ``C`` classes, ``D`` feature channels,
``H W`` crop, ``Y X`` feature map.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from protoseg.config.plan import Phase
from protoseg.data.stream import Sample
from protoseg.method.inputs import Autocast, Method, Networks
from protoseg.method.labelling import StrongViews, teach
from protoseg.method.losses import (
    Mean,
    cross_entropy,
    ohem_cross_entropy,
    over_processes,
    pseudo_label_cross_entropy,
    unsupervised_denominator,
)
from protoseg.method.prototype_branch import (
    Points,
    assignment_loss,
    clean_points,
    moving_points,
    prototype_losses,
)
from protoseg.models.segmenter import NetworkOutput
from protoseg.processes import Processes

POINT_DRAW = 99  # number of the points' draw among those of a step; the views' are 0 and 1
ASSIGNMENT_DRAW = 98
LOG_NAMES = {
    "sup": "loss/sup_linear", "uns": "loss/uns_linear", "proto_sup": "loss/sup_prototype",
    "proto_uns": "loss/uns_prototype", "aux": "loss/sup_aux", "consistency": "loss/consistency",
}  # fmt: skip
"""The losses, and what they are called in the log."""


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


def prototype_terms(
    networks: Networks,
    method: Method,
    output: NetworkOutput,
    target: Tensor,
    labeled_logits: Tensor,
    strong: StrongViews | None,
    *,
    draw: Callable[[int], np.random.Generator],
    processes: Processes,
) -> tuple[dict[str, Mean], Points]:
    """The prototype head's losses on labelled images and strong views, and what moves the prototypes."""
    settings, local = method.prototypes, len(target)
    size = networks.network.padded_size(target.shape[1], target.shape[2])
    classes = torch.where(target == method.ignore_index, -1, target)
    if strong is not None:
        classes = torch.cat([classes, torch.where(strong.believed, strong.label, -1)])
    rng = draw(POINT_DRAW)
    means, drawn = prototype_losses(
        networks.bank, settings, output.features, classes, size, batch=local,
        class_weights=method.class_weights, rng=rng, processes=processes,
    )  # fmt: skip
    if settings.update_from == "clean":
        right = labeled_logits.detach().max(1).indices == target
        points = clean_points(
            settings, output.features.detach()[:local], classes[:local], right, size,
            num_classes=networks.bank.num_classes, rng=rng, processes=processes,
        )  # fmt: skip
    else:
        taught = None if strong is None else strong.taught
        points = moving_points(settings, drawn, taught, target.shape[2], size, batch=local)
    if strong is not None and strong.weak_features is not None and settings.consistency > 0:
        counted = strong.valid if settings.consistency_pixels == "valid" else strong.believed
        means["consistency"] = assignment_loss(
            networks.bank, settings, output.features[local:], strong.weak_features, strong.source, counted,
            size, batch=local, rng=draw(ASSIGNMENT_DRAW), processes=processes,
        )  # fmt: skip
    return means, points


def add_up(
    method: Method, means: dict[str, Mean], phase: Phase, processes: Processes
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses of all processes, and its detached parts under the names of the log."""
    means = over_processes(means, processes.reduce, processes.world)
    loss = {name: mean.value for name, mean in means.items() if name in LOG_NAMES}
    if "uns" in means:
        loss["uns"] = means["uns"].total / unsupervised_denominator(
            means["believed"].count, means["uns"].count, method.pseudo_labels.normalization
        )
    zero = next(iter(loss.values())).new_zeros(())
    sup, uns, proto_sup, proto_uns, aux, soft = (loss.get(name, zero) for name in LOG_NAMES)
    w_u, w_p = method.loss.unsupervised_weight * phase.unsupervised_share, phase.prototype_weight
    w_aux, w_soft = method.aux_weight, method.prototypes.consistency
    total = sup + w_u * uns + w_p * (proto_sup + proto_uns) + w_aux * aux + w_soft * soft
    parts = {LOG_NAMES[name]: value.detach() for name, value in loss.items()}
    return total, parts | {"loss/total": total.detach()}


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
        losses, points = prototype_terms(
            networks, method, output, target, labeled_logits, strong, draw=draw, processes=processes
        )
        means |= losses
    if strong is not None:
        logits = upsample(strong_low, *size)
        uns = pseudo_label_cross_entropy(logits, strong.label, strong.believed, method.class_weights)
        counts = count_labels(logits.detach(), strong, networks.bank.num_classes)
        means |= {"uns": Mean(uns, counts["valid"]), "believed": Mean(uns, counts["believed"])}

    total, parts = add_up(method, means, phase, processes)
    if not phase.prototypes and not isinstance(networks.network.projection, nn.Identity):
        # DDP waits for a gradient of every parameter, and the projection has none yet
        total = total + 0.0 * output.features.mean()
    return StepResult(total, parts, counts, points)
