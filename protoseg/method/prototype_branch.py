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

from protoseg.config.sections import PrototypeConfig
from protoseg.method.losses import Mean, cross_entropy
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


def prototype_losses(
    bank: PrototypeBank,
    settings: PrototypeConfig,
    features: Tensor,
    targets: Tensor,
    padded_size: tuple[int, int],
    *,
    batch: int,
    taught: tuple[Tensor, Tensor] | None,
    class_weights: Tensor | None,
    rng: np.random.Generator,
    processes: Processes,
) -> tuple[dict[str, Mean], Points]:
    """Losses of labelled and unlabelled points, and the points that move prototypes.

    Args:
        bank: Prototypes.
        settings: Which points, and what moves prototypes.
        features: (P*B, D, Y, X) of the student: labelled images, then strong views.
        targets: (P*B, H, W) class ids: labels, then believed pseudo-labels; -1 where there is none.
        padded_size: (H, W) of the image after padding, which the feature map covers.
        batch: B.
        taught: See ``StrongViews.taught``.
        class_weights: (C,) weights of the losses where they are reweighted, or None.
        rng: Source of the points, alike on every process.
        processes: Who shares the batch.

    Returns:
        Means ``proto_sup`` and, where there are strong views, ``proto_uns``; and the points.
    """
    width = targets.shape[2]
    index = choose_points(settings, rng, targets, bank.num_classes, batch=batch, processes=processes)
    z = features_at(features, index, width, padded_size)
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
    if settings.update_from == "both" and taught is None:
        return means, Points(z.detach().flatten(0, 1), classes.flatten(), cosine.detach())
    moving, kept = z.detach()[:batch], classes[:batch]
    if settings.update_from == "both" and taught is not None:
        weak = index[batch : batch + len(taught[0])]
        moving = torch.cat([moving, features_at(taught[0], weak, width, padded_size)])
        kept = torch.cat([kept, taught[1].flatten(1).gather(1, weak)])
    return means, Points(moving.flatten(0, 1), kept.flatten(), None)


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
