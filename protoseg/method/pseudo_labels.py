"""From teacher logits to believed pseudo-labels.

Shape legend: ``B`` batch, ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def pseudo_labels(probs_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable class and its probability: (B, H, W) int64 and float in [0, 1]."""
    confidence, label = probs_BCHW.max(1)
    return label, confidence


def unpack_labels(packed_B3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W) int64 and confidences in [0, 1] from the bytes of ``protoseg.data.soft_labels``."""
    label, high, low = packed_B3HW.long().unbind(1)
    return label, (256 * high + low).float() / 65535


def fuse(linear_logits: Tensor, prototype_logits: Tensor) -> Tensor:
    """Mean of both heads' probabilities; logits (B, C, H, W) each -> probabilities of that shape."""
    return (linear_logits.float().softmax(1) + prototype_logits.float().softmax(1)) / 2


def reweight(linear_logits: Tensor, similarity: Tensor, active: Tensor, temperature: float) -> Tensor:
    """Scores of probabilities times a softmax over prototype distances (ProDA, arXiv 2101.10979).

    ``q'(c) ~ q(c) * softmax_c(-d_c / T)``, with ``d_c = 1 - cos`` of the nearest prototype of class c: half
    the squared distance of unit vectors. Confidence is that of q', as in ProDA: the linear head's own
    probability of a label that prototypes have changed is below 1/2 and would pass no usual threshold, so
    that they could only take pixels away, which ``pseudo_labels.agreement`` does.

    Args:
        linear_logits: (B, C, H, W).
        similarity: (B, C, H, W) cosine with the nearest prototype of each class.
        active: (C,) bool, classes that have prototypes; the others count as as near as the nearest.
        temperature: T.

    Returns:
        (B, C, H, W) scores whose softmax is q'.
    """
    known = active.view(1, -1, 1, 1)
    nearest = torch.where(known, similarity, -1.0).amax(1, keepdim=True)
    distance = 1 - torch.where(known, similarity, nearest)
    return linear_logits.float() - distance / temperature


def head_distance(linear_logits: Tensor, prototype_logits: Tensor) -> Tensor:
    """How far two heads are from each other at each pixel: the total variation distance, in [0, 1].

    0 when their distributions are equal, 1 when they share no class. Logits (B, C, H, W) each -> (B, H, W).
    """
    linear, prototype = linear_logits.float().softmax(1), prototype_logits.float().softmax(1)
    return 1 - torch.minimum(linear, prototype).sum(1)


def label_probability(linear_logits: Tensor, label: Tensor) -> Tensor:
    """Probability that the linear head gives to a label, whichever head chose it, in [0, 1].

    Of the scores that ``python -m benchmarks.trust`` compares it finds wrong pixels best; that the two heads
    name one class says little. Where the linear head itself labels, it is the confidence.

    Args:
        linear_logits: (B, C, H, W).
        label: (B, H, W) class ids, int64.

    Returns:
        (B, H, W) float32.
    """
    return linear_logits.float().softmax(1).gather(1, label[:, None])[:, 0]


class ClassThresholds(nn.Module):
    """Confidence thresholds that are lower for classes the teacher is less sure of.

    ``tau_c = tau * m_c / max_c m`` with ``m_c`` the running mean confidence of pixels labelled c
    (the class-adaptive rule of FreeMatch, arXiv 2205.07246, eq. 7 to 9, per pixel).
    """

    mean: Tensor

    def __init__(self, num_classes: int, threshold: float, decay: float = 0.99) -> None:
        super().__init__()
        self.threshold, self.decay = threshold, decay
        self.register_buffer("mean", torch.ones(num_classes))

    @torch.no_grad()
    def update(
        self,
        label_BHW: Tensor,
        confidence_BHW: Tensor,
        valid_BHW: Tensor,
        reduce: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        """Move the running means of the classes that were predicted in this batch."""
        num_classes = len(self.mean)
        index = torch.where(valid_BHW, label_BHW, num_classes).flatten()
        table = torch.zeros(2, num_classes + 1, device=self.mean.device)
        table[0].index_add_(0, index, confidence_BHW.float().flatten())
        table[1].index_add_(0, index, torch.ones_like(index, dtype=torch.float32))
        sums, counts = reduce(table[:, :num_classes].contiguous())
        moved = self.decay * self.mean + (1 - self.decay) * sums / counts.clamp(min=1)
        self.mean.copy_(torch.where(counts > 0, moved, self.mean))

    def per_pixel(self, label_BHW: Tensor, threshold: Tensor | float | None = None) -> Tensor:
        """(B, H, W) threshold of each pixel's class; ``threshold``: tau in place of the one given."""
        # classes that were never predicted keep their 1, which is no measurement
        seen = torch.where(self.mean < 1, self.mean, 0.0).max()
        highest = torch.where(seen > 0, seen, 1.0)
        tau = self.threshold if threshold is None else threshold
        scaled: Tensor = tau * (self.mean / highest).clamp(max=1.0)
        return scaled[label_BHW]
