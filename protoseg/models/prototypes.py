"""The prototype bank: logits, start, update and care of prototypes (arXiv 2210.04388, section 3).

Shape legend: ``N`` points, ``C`` classes, ``K`` prototypes for each class, ``D`` feature channels,
``B Y X`` batch and feature map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.processes import sent

Pooling = Literal["max", "logsumexp"]
Reduce = Callable[[Tensor], Tensor]

# A class without prototypes sits this far below the lowest possible logit, so that its probability is
# below 1e-13 while logits stay in a range that half precision and parity checks can handle.
INACTIVE_MARGIN = 30.0
# Updates that a starting centre counts for in the momentum's ramp: it is the mean of thousands of pixels
# and is not to be thrown away for the first few that it wins.
START_UPDATES = 10


def identity(value: Tensor) -> Tensor:
    """Stand-in for an all-reduce on one process."""
    return value


def unit(values: Tensor) -> Tensor:
    """Unit vectors along the last axis, in float32; a zero vector stays zero."""
    return F.normalize(values.float(), dim=-1, eps=1e-12)


class PrototypeBank(nn.Module):
    """K unit prototypes for each class, as buffers: no gradient ever reaches them.

    ``logit_c = pool_k cos(z, p_ck) / T`` with ``pool`` the maximum (the paper) or
    ``T * logsumexp(cos / T) - T log K``, its smooth form.

    Args:
        num_classes: C.
        num_prototypes: K.
        dim: D.
        temperature: T, positive.
        pooling: How K similarities become a logit.
    """

    prototypes: Tensor
    active: Tensor
    updates: Tensor
    idle: Tensor
    usage: Tensor

    def __init__(
        self,
        num_classes: int,
        num_prototypes: int,
        dim: int,
        *,
        temperature: float = 0.1,
        pooling: Pooling = "max",
    ) -> None:
        super().__init__()
        self.num_classes, self.num_prototypes, self.dim = num_classes, num_prototypes, dim
        self.temperature, self.pooling = temperature, pooling
        shape = (num_classes, num_prototypes)
        self.register_buffer("prototypes", torch.zeros(*shape, dim))
        self.register_buffer("active", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("updates", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("idle", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("usage", torch.zeros(shape))

    def similarity(self, features_ND: Tensor) -> Tensor:
        """Cosine of each point with each prototype: (N, D) -> (N, C, K) in [-1, 1], float32."""
        # a copy, because backward needs the values of this forward and `update` works in place
        weight = self.prototypes.flatten(0, 1).clone()
        features = features_ND.float()
        # dividing C * K products instead of D channels gives the same cosine with less memory traffic
        length = torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp(min=1e-12)
        cosine: Tensor = (features @ weight.t()) / length
        return cosine.view(-1, self.num_classes, self.num_prototypes)

    def pool(self, similarity: Tensor) -> Tensor:
        """Class logits from similarities: (..., C, K) -> (..., C)."""
        if self.pooling == "max":
            logits = similarity.amax(-1) / self.temperature
        else:
            scaled = similarity / self.temperature
            logits = scaled.logsumexp(-1) - math.log(self.num_prototypes)
        return logits + self.class_bias()

    def class_bias(self) -> Tensor:
        """(C,) zeros, or the value that removes a class that has no prototypes yet."""
        low = -1.0 / self.temperature - INACTIVE_MARGIN
        return torch.where(self.active, 0.0, low)

    def similarity_map(self, features_BDYX: Tensor) -> Tensor:
        """Cosine maps: (B, D, Y, X) -> (B, C, K, Y, X), float32."""
        features = F.normalize(features_BDYX.float(), dim=1, eps=1e-12)
        weight = self.prototypes.flatten(0, 1)[:, :, None, None]
        cosine: Tensor = F.conv2d(features, weight)
        return cosine.view(len(cosine), self.num_classes, self.num_prototypes, *cosine.shape[2:])

    def nearest_map(self, features_BDYX: Tensor) -> Tensor:
        """Cosine with the nearest prototype of each class: (B, D, Y, X) -> (B, C, Y, X), float32."""
        return self.similarity_map(features_BDYX).amax(2)

    def dense_logits(self, features_BDYX: Tensor) -> Tensor:
        """Class logits of a feature map: (B, D, Y, X) -> (B, C, Y, X), float32."""
        similarity = self.similarity_map(features_BDYX)
        return self.pool(similarity.movedim(2, -1).movedim(1, -2)).movedim(-1, 1)

    def assign(self, similarity_NCK: Tensor, target_N: Tensor) -> Tensor:
        """Flat index ``c * K + k`` of the nearest prototype of each point's own class.

        Args:
            similarity_NCK: Cosines, see ``similarity``.
            target_N: Class ids; a value outside [0, C) means "no class".

        Returns:
            (N,) int64; points without a class get ``C * K``.
        """
        valid = (target_N >= 0) & (target_N < self.num_classes)
        own = target_N.clamp(0, self.num_classes - 1)
        rows = similarity_NCK.gather(1, own[:, None, None].expand(-1, 1, self.num_prototypes)).squeeze(1)
        index = own * self.num_prototypes + rows.argmax(-1)
        return torch.where(valid, index, self.num_classes * self.num_prototypes)

    @torch.no_grad()
    def update(
        self,
        features_ND: Tensor,
        target_N: Tensor,
        *,
        momentum: float = 0.99,
        ramp: bool = False,
        normalize: bool = True,
        similarity: Tensor | None = None,
        reduce: Reduce = identity,
    ) -> None:
        """Move every prototype that won a point: ``p <- m p + (1 - m) mean(z)``, then to unit length.

        One matrix product and one all-reduce of (sums, counts); no host-device wait. All processes
        compute from the same reduced numbers, so their prototypes stay identical to the bit.

        Args:
            features_ND: Points of this process.
            target_N: Their classes; a value outside [0, C) takes no part.
            momentum: m, the share of the old prototype.
            ramp: Use ``min(m, 1 - 1 / (n + 1))`` for a prototype's n-th update.
            normalize: Average unit vectors instead of raw features.
            similarity: (N, C, K) cosines of the points with the present prototypes, when the caller has
                them from its forward pass; None computes them.
            reduce: Sums a tensor over processes.
        """
        features = features_ND.float()
        if similarity is None:
            similarity = self.similarity(features)
        index = self.assign(similarity, target_N)
        slots = self.num_classes * self.num_prototypes
        share = torch.ones_like(features[:, 0])
        counts_of = torch.zeros(slots + 1, device=features.device).index_add_(0, index, share)
        if normalize:
            share = 1 / torch.linalg.vector_norm(features, dim=-1).clamp(min=1e-12)
        # a product with the (slots, N) assignment reads the features once and, unlike index_add_ of
        # rows, gives the same sums every time on CUDA
        assignment = features.new_zeros(slots + 1, len(features)).scatter_(0, index[None], share[None])
        table = torch.cat([assignment[:slots] @ features, counts_of[:slots, None]], 1)
        table = reduce(table).view(self.num_classes, self.num_prototypes, self.dim + 1)
        sums, counts = table[..., :-1], table[..., -1]

        won = counts > 0
        mean = sums / counts.clamp(min=1).unsqueeze(-1)
        keep = torch.full_like(counts, momentum)
        if ramp:
            keep = torch.minimum(keep, 1 - 1 / (self.updates.float() + 1))
        moved = unit(keep.unsqueeze(-1) * self.prototypes + (1 - keep).unsqueeze(-1) * mean)
        moved = torch.where((won & self.active[:, None]).unsqueeze(-1), moved, self.prototypes)

        # A class without prototypes takes its first pixels' mean, spread so that its K can part.
        arrived = (counts.sum(-1) > 0) & ~self.active
        first = unit(sums.sum(1))[:, None, :] + spread(self.num_prototypes, self.dim, sums.device)
        moved = torch.where(arrived[:, None, None], unit(first), moved)
        self.prototypes.copy_(moved)
        self.active |= arrived
        self.updates += won
        present = (counts.sum(-1) > 0).unsqueeze(-1)
        self.idle.copy_(torch.where(won, 0, self.idle + present))
        self.usage.mul_(0.99).add_(counts, alpha=0.01)

    @torch.no_grad()
    def reseed(self, *, after: int) -> Tensor:
        """Move prototypes that won nothing in ``after`` updates with their class beside its most used one.

        Both then share its pixels, and part. To take the class's least explained pixel instead is tempting
        and wrong: that is most often a wrong label or a border, and the prototype at once wins pixels of
        other classes, which no other loss than its own corrects. For each class at most one prototype a
        call. Needs no pixels: all processes hold the same numbers and do the same.

        Args:
            after: Idle updates from which a prototype is moved, at least 1.

        Returns:
            (C,) bool: classes in which a prototype was moved.
        """
        stalest, idlest = self.idle.max(-1)
        most, busiest = self.usage.max(-1)
        replace = (stalest >= after) & (most > 0) & (idlest != busiest) & self.active
        classes = torch.arange(self.num_classes, device=self.usage.device)
        beside = self.prototypes[classes, busiest] + spread(1, self.dim, self.usage.device)
        moved = F.one_hot(idlest, self.num_prototypes).bool() & replace[:, None]
        self.prototypes.copy_(torch.where(moved.unsqueeze(-1), unit(beside)[:, None], self.prototypes))
        self.idle.masked_fill_(moved, 0)
        self.updates.masked_fill_(moved, START_UPDATES)
        # halves of the usage, so that the next idle prototype goes to the next most used one
        pair = (moved | F.one_hot(busiest, self.num_prototypes).bool()) & replace[:, None]
        self.usage.copy_(torch.where(pair, most[:, None] / 2, self.usage))
        return replace

    @torch.no_grad()
    def start(self, centres: dict[int, Tensor]) -> None:
        """Install starting prototypes: class id -> (K, D). Classes not named stay inactive."""
        self.prototypes.zero_()
        self.active.zero_()
        self.updates.zero_()
        for class_id, values in centres.items():
            self.prototypes[class_id] = unit(values.to(self.prototypes.device))
            self.active[class_id] = True
            self.updates[class_id] = START_UPDATES
        self.idle.zero_()
        self.usage.zero_()

    def usage_entropy(self) -> Tensor:
        """(C,) entropy of prototype use in [0, 1]; 1 is even use, NaN where there was none yet."""
        share = self.usage / self.usage.sum(-1, keepdim=True)
        entropy: Tensor = torch.special.entr(share).sum(-1)
        if self.num_prototypes == 1:
            return entropy + 1
        return entropy / math.log(self.num_prototypes)

    def closest_pair(self) -> Tensor:
        """(C,) highest cosine between two prototypes of one class; -1 for K = 1."""
        cosine = self.prototypes @ self.prototypes.transpose(1, 2)
        eye = torch.eye(self.num_prototypes, dtype=torch.bool, device=cosine.device)
        closest: Tensor = cosine.masked_fill(eye, -1.0).amax((1, 2))
        return closest


def spread(count: int, dim: int, device: torch.device) -> Tensor:
    """(count, dim) small fixed offsets that let equal vectors part; the same on every process."""
    generator = torch.Generator().manual_seed(0)
    return sent(0.1 / math.sqrt(dim) * torch.randn(count, dim, generator=generator), device)
