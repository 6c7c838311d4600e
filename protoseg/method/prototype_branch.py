"""The prototype branch of a step: losses at points, and what moves the prototypes.

Shape legend: ``B`` images of this process, ``P`` parts of a batch (labelled images, then each strong view),
``C`` classes, ``K`` prototypes of each, ``N`` points of an image, ``M`` points in all, ``D`` feature
channels, ``H W`` crop, ``Y X`` feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protoseg.config.method import PrototypeConfig
from protoseg.method.losses import Mean, assignment_divergence, cross_entropy
from protoseg.method.points import choose_points, features_at, pixels_per_point
from protoseg.models.prototypes import PrototypeBank
from protoseg.processes import Processes

RESEED_EVERY = 10


class Points(NamedTuple):
    """Pixels that move the prototypes."""

    features: Tensor
    """(M, D)."""
    classes: Tensor
    """(M,) class ids, -1 for none."""
    similarity: Tensor | None
    """(M, C, K) cosines with the present prototypes, when they are known."""


class DrawnPoints(NamedTuple):
    """Points of the whole batch, at which the losses are."""

    pixels: Tensor
    """(P*B, N) flat pixel index ``row * W + column``."""
    features: Tensor
    """(P*B, N, D) of the student."""
    classes: Tensor
    """(P*B, N) class ids, -1 for none."""
    similarity: Tensor
    """(P*B*N, C, K) cosines with the prototypes."""


def prototype_losses(
    bank: PrototypeBank,
    settings: PrototypeConfig,
    features: Tensor,
    targets: Tensor,
    padded_size: tuple[int, int],
    *,
    batch: int,
    class_weights: Tensor | None,
    rng: np.random.Generator,
    processes: Processes,
) -> tuple[dict[str, Mean], DrawnPoints]:
    """Losses of labelled and unlabelled points.

    Args:
        bank: Prototypes.
        settings: Which points.
        features: (P*B, D, Y, X) of the student: labelled images, then strong views.
        targets: (P*B, H, W) class ids: labels, then believed pseudo-labels; -1 where there is none.
        padded_size: (H, W) of the image after padding, which the feature map covers.
        batch: B.
        class_weights: (C,) weights of the losses where they are reweighted, or None.
        rng: Source of the points, alike on every process.
        processes: Who shares the batch.

    Returns:
        Means ``proto_sup`` and, where there are strong views, ``proto_uns``; and the points.
    """
    index = choose_points(settings, rng, targets, bank.num_classes, batch=batch, processes=processes)
    z = features_at(features, index, targets.shape[2], padded_size)
    classes = targets.flatten(1).gather(1, index)
    cosine = bank.similarity(z.flatten(0, 1))
    logits = bank.pool(cosine).view(*classes.shape, -1)
    # a class whose prototypes do not exist yet cannot be a target
    known = bank.active[classes.clamp(min=0)] & (classes >= 0)
    wanted = torch.where(known, classes, -1)
    weights = None
    if settings.reweight and settings.sampling == "balanced":
        weights = pixels_per_point(classes, targets, bank.num_classes, settings.balance)

    def loss(part: slice) -> Mean:
        return cross_entropy(
            logits[part].flatten(0, 1),
            wanted[part].flatten(),
            ignore_index=-1,
            class_weights=class_weights if settings.reweight else None,
            weights=None if weights is None else weights[part].flatten(),
        )

    means = {"proto_sup": loss(slice(0, batch))}
    if len(targets) > batch:
        means["proto_uns"] = loss(slice(batch, None))
    return means, DrawnPoints(index, z, classes, cosine)


def moving_points(
    settings: PrototypeConfig,
    drawn: DrawnPoints,
    taught: tuple[Tensor, Tensor] | None,
    width: int,
    padded_size: tuple[int, int],
    *,
    batch: int,
) -> Points:
    """Those of the points of the losses that move prototypes, with the features of the network that may.

    Args:
        settings: What moves prototypes: ``labeled`` points or ``both``.
        drawn: Points of labelled images, then of strong views.
        taught: See ``StrongViews.taught``.
        width: W.
        padded_size: See ``prototype_losses``.
        batch: B.
    """
    z, classes = drawn.features.detach(), drawn.classes
    if settings.update_from == "both" and taught is None:
        return Points(z.flatten(0, 1), classes.flatten(), drawn.similarity.detach())
    moving, kept = z[:batch], classes[:batch]
    if settings.update_from == "both" and taught is not None:
        weak = drawn.pixels[batch : batch + len(taught[0])]
        moving = torch.cat([moving, features_at(taught[0], weak, width, padded_size)])
        kept = torch.cat([kept, taught[1].flatten(1).gather(1, weak)])
    return Points(moving.flatten(0, 1), kept.flatten(), None)


def clean_points(
    settings: PrototypeConfig,
    features: Tensor,
    targets: Tensor,
    right: Tensor,
    padded_size: tuple[int, int],
    *,
    num_classes: int,
    rng: np.random.Generator,
    processes: Processes,
) -> Points:
    """Labelled pixels that are classified right, drawn evenly over an image's classes.

    As in PixCon (arXiv 2607.03068), which keeps a memory of such features; here the prototypes are it, which
    move by a mean of the new ones.

    Args:
        settings: How many points.
        features: (B, D, Y, X) of labelled images, without gradient.
        targets: (B, H, W) class ids, -1 where there is none.
        right: (B, H, W) bool.
        padded_size: See ``prototype_losses``.
        num_classes: C.
        rng: Source of the points, alike on every process.
        processes: Who shares the batch.
    """
    clean = torch.where(right, targets, -1)
    evenly = settings.model_copy(update={"sampling": "balanced", "balance": 1.0})
    index = choose_points(evenly, rng, clean, num_classes, batch=len(clean), processes=processes)
    moving = features_at(features, index, targets.shape[2], padded_size)
    return Points(moving.flatten(0, 1), clean.flatten(1).gather(1, index).flatten(), None)


def assignment_loss(
    bank: PrototypeBank,
    settings: PrototypeConfig,
    student: Tensor,
    teacher: Tensor,
    source: Tensor,
    counted: Tensor,
    padded_size: tuple[int, int],
    *,
    batch: int,
    rng: np.random.Generator,
    processes: Processes,
) -> Mean:
    """Divergence between the assignments of strong and weak views at one point in each cell of a grid.

    Args:
        bank: Prototypes.
        settings: Grid, temperatures.
        student: (V*B, D, Y, X) features of mixed strong views.
        teacher: (B, D, Y, X) features of unmixed weak views.
        source: (V*B, H, W) image of the batch that a pixel was mixed from, see ``Mixed.source``.
        counted: (V*B, H, W) bool, pixels that take part.
        padded_size: See ``prototype_losses``.
        batch: B.
        rng: Source of the points, alike on every process.
        processes: Who shares the batch.
    """
    width = source.shape[2]
    grid = settings.model_copy(update={"sampling": "grid"})
    index = choose_points(grid, rng, source, bank.num_classes, batch=batch, processes=processes)
    # a pixel of the mixed view lies at the same place of the one image that it came from
    origin = source.flatten(1).gather(1, index)
    ours = bank.similarity(features_at(student, index, width, padded_size).flatten(0, 1))
    with torch.no_grad():
        z = features_at(teacher, index, width, padded_size, image_BN=origin)
        theirs = bank.similarity(z.flatten(0, 1))
    return assignment_divergence(
        ours.flatten(1), theirs.flatten(1), counted.flatten(1).gather(1, index).flatten(),
        bank.active.repeat_interleave(bank.num_prototypes),
        student_temperature=settings.consistency_temperature,
        teacher_temperature=settings.consistency_teacher_temperature,
    )  # fmt: skip


@torch.no_grad()
def move_prototypes(
    bank: PrototypeBank,
    points: Sequence[Points | None],
    settings: PrototypeConfig,
    step: int,
    reduce: Callable[[Tensor], Tensor],
) -> None:
    """Move prototypes once by all points of step ``step`` (from 0), and re-seed idle ones now and then."""
    given = [part for part in points if part is not None]
    if not given:
        return
    known = [part.similarity for part in given if part.similarity is not None]
    bank.update(
        torch.cat([part.features for part in given]),
        torch.cat([part.classes for part in given]),
        momentum=settings.momentum,
        ramp=settings.momentum_ramp,
        normalize=settings.normalize,
        similarity=torch.cat(known) if len(known) == len(given) else None,
        reduce=reduce,
    )
    if settings.reseed_after and (step + 1) % RESEED_EVERY == 0:
        bank.reseed(after=settings.reseed_after)
