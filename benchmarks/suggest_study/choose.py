"""Ways to choose the images that get labels next.

Shape legend: ``N`` candidates, ``L`` labelled images, ``C`` classes, ``P`` prototypes, ``E`` channels of the
encoder's last stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protoseg.models.kmeans import spherical_kmeans
from protoseg.suggest.choice import pick_diverse, pick_evenly

Floats = NDArray[np.float32]
NEAR_DUPLICATE = 0.06


@dataclass(frozen=True)
class Looks:
    """What a network says about images, a row for each."""

    scores: dict[str, Floats]
    """(N,) means over the pixels of an image, by score."""
    classes: Floats
    """(N, C) share of the pixels that each class is predicted for."""
    doubts: Floats
    """(N, C) part of the mean doubt that falls on pixels of each predicted class."""
    prototypes: Floats
    """(N, P) square roots of the share that each prototype explains, unit vectors."""
    encoder: Floats
    """(N, E) direction of the mean feature of the encoder's last stage."""

    def take(self, index: Sequence[int]) -> Looks:
        """Those of some images."""
        scores = {name: values[index] for name, values in self.scores.items()}
        rest = (self.classes, self.doubts, self.prototypes, self.encoder)
        return Looks(scores, *(part[index] for part in rest))


def highest(scores_N: Floats, count: int) -> list[int]:
    """The largest scores; the lowest index wins among equals."""
    return np.argsort(-scores_N, kind="stable")[:count].tolist()


def clusters(embeddings_NE: Floats, count: int, seed: int) -> NDArray[np.int64]:
    """The cluster of each image, by spherical k-means; (N,)."""
    points = torch.from_numpy(embeddings_NE)
    centres = spherical_kmeans(points, count, torch.Generator().manual_seed(seed))
    return np.asarray((points @ centres.t()).argmax(1).numpy(), np.int64)


def best_of_clusters(embeddings_NE: Floats, scores_N: Floats | None, count: int, seed: int) -> list[int]:
    """An image of each cluster: the one with the highest score, or the nearest to the cluster's mean."""
    cluster = clusters(embeddings_NE, count, seed)
    chosen = []
    for number in np.unique(cluster):
        members = np.flatnonzero(cluster == number)
        near = embeddings_NE[members] @ embeddings_NE[members].mean(0)
        chosen.append(int(members[np.argmax(near if scores_N is None else scores_N[members])]))
    # a cluster can end up empty
    rest = [i for i in range(len(cluster)) if i not in set(chosen)]
    return chosen + rest[: count - len(chosen)]


def evenly(roots_NC: Floats, taken_LC: Floats, count: int) -> list[int]:
    """All columns evenly, by square roots of shares: ``pick_evenly`` without near duplicates."""
    return [pick.index for pick in pick_evenly(roots_NC, taken_LC, count, 0)[0]]


def random(pool: Looks, count: int, seed: int, draw: int = 0) -> list[int]:
    """Every image as likely."""
    return np.random.default_rng([seed, draw]).choice(len(pool.classes), count, replace=False).tolist()


def weighted(pool: Looks, labeled: Looks, scores_N: Floats, count: int, near: float = 0.0) -> list[int]:
    """K-center greedy over prototype shares, its distances weighted by a score, as ``protoseg suggest``.

    Where fewer images than asked for are no near duplicates, such are taken, too.
    """
    picks, _ = pick_diverse(scores_N, pool.prototypes, labeled.prototypes, count, near)
    if len(picks) < count and near > 0:
        return weighted(pool, labeled, scores_N, count)
    return [pick.index for pick in picks]


def clusters_apart(pool: Looks, labeled: Looks, count: int, seed: int) -> list[int]:
    """An image of each cluster without labelled ones, where those take part in the clusters, too."""
    known, points = len(labeled.encoder), np.concatenate([pool.encoder, labeled.encoder])
    cluster = clusters(points, count + known, seed)
    members, taken = cluster[: len(pool.encoder)], np.bincount(cluster[-known:], minlength=count + known)
    # the clusters with the fewest labelled images, of them the largest
    order = sorted(np.unique(members), key=lambda c: (taken[c], -int((cluster == c).sum()), c))
    chosen = []
    for number in order[:count]:
        inside = np.flatnonzero(members == number)
        chosen.append(int(inside[np.argmax(pool.encoder[inside] @ points[cluster == number].mean(0))]))
    return chosen


def far_features(pool: Looks, labeled: Looks, count: int) -> list[int]:
    """K-center greedy over the encoder's features."""
    picks, _ = pick_diverse(np.ones(len(pool.encoder), np.float32), pool.encoder, labeled.encoder, count, 0)
    return [pick.index for pick in picks]


def half_random(pool: Looks, labeled: Looks, count: int, seed: int) -> list[int]:
    """Half by the present default, the others at random."""
    first = weighted(pool, labeled, pool.scores["linear"], count - count // 2, NEAR_DUPLICATE)
    drawn = random(pool, len(pool.classes), seed, 4)
    return first + [i for i in drawn if i not in set(first)][: count // 2]


Strategy = Callable[[Looks, Looks, int, int], list[int]]
"""Candidates, labelled images, how many, seed -> indices of candidates."""

STRATEGIES: dict[str, Strategy] = {
    "random": lambda p, _l, n, s: random(p, n, s),
    "random_2": lambda p, _l, n, s: random(p, n, s, 1),
    "random_3": lambda p, _l, n, s: random(p, n, s, 2),
    "random_4": lambda p, _l, n, s: random(p, n, s, 3),
    "suggested": lambda p, k, n, _s: weighted(p, k, p.scores["linear"], n, NEAR_DUPLICATE),
    "entropy": lambda p, _l, n, _s: highest(p.scores["entropy"], n),
    "margin": lambda p, _l, n, _s: highest(p.scores["margin"], n),
    "confidence": lambda p, _l, n, _s: highest(p.scores["confidence"], n),
    "k_center": lambda p, k, n, _s: weighted(p, k, np.ones_like(p.scores["linear"]), n),
    "novelty": lambda p, _l, n, _s: highest(p.scores["novelty"], n),
    "far": lambda p, _l, n, _s: highest(p.scores["far"], n),
    "rare_prototypes": lambda p, k, n, _s: evenly(p.prototypes, k.prototypes, n),
    "class_balanced": lambda p, k, n, _s: evenly(np.sqrt(p.classes), np.sqrt(k.classes), n),
    "class_doubt": lambda p, k, n, _s: evenly(np.sqrt(p.doubts), np.sqrt(k.doubts), n),
    "clusters": lambda p, _l, n, s: best_of_clusters(p.encoder, None, n, s),
    "clusters_apart": clusters_apart,
    "far_features": lambda p, k, n, _s: far_features(p, k, n),
    "clusters_doubt": lambda p, _l, n, s: best_of_clusters(p.encoder, p.scores["linear"], n, s),
    "half_random": half_random,
}
