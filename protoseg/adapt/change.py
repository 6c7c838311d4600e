"""What both heads learn of a class from its cells, while the other classes stay as they are.

Shape legend: ``N`` cells, ``D`` channels that a row of the linear scores reads, ``C`` classes, ``K``
prototypes of a class, ``P`` channels of the prototype head.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from protoseg.adapt.cells import Cells, joined
from protoseg.adapt.fit import fit_row
from protoseg.adapt.rows import Heads
from protoseg.models.kmeans import spherical_kmeans
from protoseg.models.prototypes import unit

STRENGTH = 1000.0
"""How many cells a unit of squared distance from the first guess of a row outweighs (``fit_row``)."""
DECODER_STRENGTH = 10.0
"""The same for a row that reads the decoder alone, as those of a training do."""
RARITY = 8.0
"""Images without the class for each that shows it: what the images of the training are weighted to."""
SURE = 0.5
"""Part of a cell from which on it counts as the class's in k-means."""
CANDIDATES = 4
"""Centres among which prototypes are chosen, as a multiple of their number."""
MAX_POINTS = 4096
"""Cells that k-means takes at most, evenly spaced."""
MENDED = 0.5
"""Share of an old prototype that is kept where the mended class's cells are nearest to it."""


def scores(heads: Heads, cells: Cells) -> Tensor:
    """(N, C) scores of the linear head."""
    return cells.row_input @ heads.weight[:, :-1].t() + heads.weight[:, -1]


def add(heads: Heads, own: Cells, rest: Cells | None, *, stages: bool = True) -> Heads:
    """With one more class.

    Args:
        heads: The classes that are there.
        own: Cells of the images that were given.
        rest: Cells of others, which are not of the class.
        stages: Whether its row reads the encoder beside the decoder, which takes several images to learn.
    """
    row = _row(heads, None, own, rest, stages=stages)
    return heads.with_class(len(heads.weight), row, _prototypes(heads, own, rest))


def mend(heads: Heads, label: int, own: Cells, rest: Cells | None) -> Heads:
    """With a class that knows more of itself, from where the network was wrong or right about it.

    Its row is fitted again, drawn to what it was; of its prototypes those move that are nearest to its cells.
    """
    row = _row(heads, label, own, rest, stages=bool(heads.weight[label, own.linear.shape[1] : -1].any()))
    mine = own.take(own.share >= SURE)
    if not heads.active[label]:
        return heads.with_class(label, row, _prototypes(heads, own, rest))
    points, old = unit(mine.prototype), heads.prototypes[label]
    nearest = (points @ old.t()).argmax(1)
    moved = old.clone()
    for index in sorted(set(nearest.tolist())):
        moved[index] = unit(MENDED * old[index] + (1 - MENDED) * points[nearest == index].mean(0))
    return heads.with_class(label, row, moved)


def merge(heads: Heads, label: int, gone: int, cells: Cells) -> Heads:
    """With a class that is two; the other one is still there.

    Its row is fitted to the sum of both probabilities on images, whatever is in them; its prototypes are the
    centres of both classes'.

    Args:
        heads: The classes that are there.
        label: The class that stays.
        gone: The class that goes into it.
        cells: Cells of any images.
    """
    known = scores(heads, cells)
    both = [label, gone]
    wanted = replace(cells, share=known.softmax(1)[:, both].sum(1))
    prior = heads.weight[both].mean(0)
    stages = bool(prior[cells.linear.shape[1] : -1].any())
    row = _fitted(wanted, _without(known, both), prior, 1.0, stages=stages)
    count = heads.prototypes.shape[1]
    active = [index for index in both if heads.active[index]]
    if not active:
        return heads.with_class(label, row, None)
    points = heads.prototypes[active].flatten(0, 1)
    return heads.with_class(label, row, spherical_kmeans(points, count, torch.Generator().manual_seed(0)))


def _prototypes(heads: Heads, own: Cells, rest: Cells | None) -> Tensor:
    """(K, P) prototypes of a class: those centres of its cells that win cells of it and few others.

    A centre of cells that resemble another class would take that class's: the nearest prototype decides, and
    has no bias. Of ``CANDIDATES`` times K centres that are taken, one after the other, which raise the IoU of
    what is nearer to them than to any other class; the last ones repeat the first where fewer than K do.
    """
    count = heads.prototypes.shape[1]
    sure = own.share >= (SURE if bool((own.share >= SURE).any()) else own.share.max())
    points = own.prototype[sure]
    points = points[:: max(1, len(points) // MAX_POINTS)]
    candidates = spherical_kmeans(points, CANDIDATES * count, torch.Generator().manual_seed(0))
    seen = own if rest is None else _weighted(own, rest)
    features = unit(seen.prototype)
    others = heads.prototypes[heads.active].flatten(0, 1)
    won = features @ candidates.t() > (features @ others.t()).amax(1, keepdim=True)
    taken, chosen, best = torch.zeros(len(features), dtype=torch.bool), list[int](), -1.0
    while len(chosen) < count:
        either = (taken[:, None] | won).float()
        both = (seen.weight * seen.share) @ either
        iou = both / (seen.weight @ torch.maximum(either, seen.share[:, None])).clamp(min=1e-12)
        if float(iou.max()) <= best:
            break
        best, index = float(iou.max()), int(iou.argmax())
        chosen.append(index)
        taken |= won[:, index]
    return candidates[[chosen[k % len(chosen)] for k in range(count)]]


def _weighted(own: Cells, rest: Cells) -> Cells:
    """Both, with ``RARITY`` times as much weight on the rest."""
    factor = RARITY * own.weight.sum() / rest.weight.sum()
    return joined([own, replace(rest, weight=rest.weight * factor)])


def _row(heads: Heads, label: int | None, own: Cells, rest: Cells | None, *, stages: bool) -> Tensor:
    own = own if rest is None else _weighted(own, rest)
    known = scores(heads, own)
    others = known if label is None else _without(known, [label])
    prior = torch.zeros_like(heads.weight[0]) if label is None else heads.weight[label]
    return _fitted(own, others, prior, STRENGTH if stages else DECODER_STRENGTH, stages=stages)


def _fitted(cells: Cells, others: Tensor, prior: Tensor, strength: float, *, stages: bool) -> Tensor:
    """A row beside (N, C) scores of the others; without ``stages`` it goes on reading none of the encoder."""
    known = others.logsumexp(1)
    if stages:
        return fit_row(
            cells.row_input, cells.share, cells.weight, known, prior, strength, parts=cells.row_parts
        )
    width = cells.linear.shape[1]
    short = torch.cat([prior[:width], prior[-1:]])
    row = fit_row(cells.linear, cells.share, cells.weight, known, short, strength)
    return torch.cat([row[:-1], prior[width:-1], row[-1:]])


def _without(known: Tensor, labels: list[int]) -> Tensor:
    left = [index for index in range(known.shape[1]) if index not in labels]
    return known[:, left]
