"""Losses as pure functions of tensors.

Every loss returns a ``Mean``, which is divided only after its count has been summed over processes, so
that two processes give the mean of one.

Shape legend: ``B`` batch, ``C`` classes, ``H W`` image, ``N`` points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Normalization = Literal["masked", "valid", "u2pl"]


@dataclass(frozen=True)
class Mean:
    """A sum over pixels, and the number that it is to be divided by."""

    total: Tensor
    """Scalar, in the graph."""
    count: Tensor
    """Scalar: pixels, or their weights."""

    @property
    def value(self) -> Tensor:
        """The mean; 0, still in the graph, of nothing."""
        return self.total / self.count.clamp(min=1)


def over_processes(means: dict[str, Mean], reduce: Callable[[Tensor], Tensor], world: int) -> dict[str, Mean]:
    """The means over the pixels of all processes, with one collective.

    Totals stay this process's and are multiplied by the number of processes, because DDP averages gradients.

    Args:
        means: Of this process; every process has the same names.
        reduce: Sums a tensor over processes.
        world: Number of processes.
    """
    counts = reduce(torch.stack([mean.count.detach() for mean in means.values()]))
    shared = dict(zip(means, counts, strict=True))
    return {name: Mean(mean.total * world, shared[name]) for name, mean in means.items()}


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    weights: Tensor | None = None,
) -> Mean:
    """Cross entropy over pixels that are not ignored.

    Args:
        logits: (B, C, H, W) or (N, C), any float type; computed in float32.
        target: (B, H, W) or (N,) class ids or ``ignore_index``, int64.
        ignore_index: Target value that takes no part.
        class_weights: (C,) positive weights; the count is then the sum of weights.
        weights: Weight of each pixel besides, shaped as ``target``.

    Returns:
        Sum in nats (0 and attached to the graph when nothing is valid) and count.
    """
    valid = target != ignore_index
    if weights is None:
        rows, own = _rows(logits.float(), target)
        total = F.cross_entropy(rows, own, weight=class_weights, ignore_index=ignore_index, reduction="sum")
        each = valid.float()
    else:
        values = F.cross_entropy(
            logits.float(), target, weight=class_weights, ignore_index=ignore_index, reduction="none"
        )
        each = weights * valid
        total = (each * values).sum()
    if class_weights is None:
        return Mean(total, each.sum())
    return Mean(total, (each * class_weights[torch.where(valid, target, 0)]).sum())


def _rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Maps as rows of classes where that is faster: on a CPU, whose softmax over an inner axis copies."""
    if logits.ndim == 4 and logits.device.type == "cpu":
        return logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1]), target.flatten()
    return logits, target


def ohem_cross_entropy(
    logits_BCHW: Tensor,
    target_BHW: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
) -> Mean:
    """Cross entropy over hard pixels only (online hard example mining, as in U2PL and its forks).

    A pixel is kept when the probability of its class is at most
    ``max(threshold, p of the min_kept-th least probable pixel)``. The rank is taken within this process.

    Args:
        logits_BCHW: Scores.
        target_BHW: Class ids or ``ignore_index``.
        threshold: Probability in (0, 1].
        min_kept: Pixels that are kept at least (all of them when there are fewer).
        ignore_index: Target value that takes no part.
        class_weights: (C,) weights, see ``cross_entropy``.

    Returns:
        Sum and count over the kept pixels.
    """
    with torch.no_grad():
        valid = target_BHW != ignore_index
        own = torch.where(valid, target_BHW, 0)
        log_prob = logits_BCHW.float().log_softmax(1)
        prob = log_prob.gather(1, own[:, None]).squeeze(1).exp()
        prob = torch.where(valid, prob, torch.full_like(prob, 2.0))
        rank = min(min_kept, prob.numel())
        kth = prob.flatten().kthvalue(rank).values
        kept = prob <= kth.clamp(min=threshold)
        hard = torch.where(valid & kept, target_BHW, ignore_index)
    return cross_entropy(logits_BCHW, hard, ignore_index=ignore_index, class_weights=class_weights)


def pseudo_label_cross_entropy(
    logits_BCHW: Tensor,
    pseudo_label_BHW: Tensor,
    believed_BHW: Tensor,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Sum of the cross entropy against believed pseudo-labels.

    Args:
        logits_BCHW: Student scores of the strong view.
        pseudo_label_BHW: Class ids, int64; values where not believed are not looked at.
        believed_BHW: Pixels that take part.
        class_weights: (C,) positive weight of a pixel by its pseudo-label.

    Returns:
        Sum in nats, attached to the graph even when nothing is believed.
    """
    rows, target = _rows(logits_BCHW.float(), torch.where(believed_BHW, pseudo_label_BHW, -100))
    return F.cross_entropy(rows, target, weight=class_weights, ignore_index=-100, reduction="sum")


def unsupervised_denominator(believed: Tensor, valid: Tensor, normalization: Normalization) -> Tensor:
    """What the sum of ``pseudo_label_cross_entropy`` is divided by.

    Args:
        believed: Believed pixels, over all processes, scalar.
        valid: Image pixels (not padding), over all processes, scalar.
        normalization: ``masked``: believed pixels; ``valid``: image pixels; ``u2pl``: the mean over
            believed pixels times valid / believed, as in U2PL, which raises the weight when few
            pixels are believed.

    Returns:
        Positive scalar.
    """
    believed, valid = believed.clamp(min=1), valid.clamp(min=1)
    if normalization == "masked":
        return believed
    if normalization == "valid":
        return valid
    return believed * believed / valid


def assignment_divergence(
    student_NP: Tensor,
    teacher_NP: Tensor,
    counted_N: Tensor,
    present_P: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Mean:
    """Divergence of the student's soft assignment to all prototypes from the teacher's.

    ``KL(softmax(s_t / T_t) || softmax(s_s / T_s))`` at each point, with ``s`` the cosines to the P = C * K
    prototypes of all classes: the form of RankMatch's agents (CVPR 2024) and of the second term of ProDA
    (arXiv 2101.10979). No argmax, no threshold; the teacher's side gets no gradient.

    Args:
        student_NP: Cosines of the student's points with the prototypes.
        teacher_NP: Of the teacher's, at the same places.
        counted_N: Points that take part, bool.
        present_P: Prototypes that exist, bool.
        student_temperature: T_s.
        teacher_temperature: T_t.

    Returns:
        Sum in nats, attached to the graph, and number of points.
    """
    absent = torch.where(present_P, 0.0, -1e4)  # finite, so that 0 times its logarithm is 0
    student = (student_NP.float() / student_temperature + absent).log_softmax(1)
    teacher = (teacher_NP.detach().float() / teacher_temperature + absent).log_softmax(1)
    each = (teacher.exp() * (teacher - student)).sum(1)
    return Mean((each * counted_N).sum(), counted_N.sum().float())
