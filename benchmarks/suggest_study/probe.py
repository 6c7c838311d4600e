"""A linear classifier on the frozen, pretrained encoder: fitted in seconds, and always the same.

Whole trainings differ by more than choices of labels do; this does not, so that many seeds can be compared.
It is multinomial logistic regression on the encoder's last two stages, cell by cell, with targets that are
the shares of the classes in a cell.

Shape legend: ``M`` cells of an image, ``N`` cells of all labelled images, ``D`` channels of both stages,
``C`` classes, ``K`` prototypes of a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from benchmarks.suggest_study.choose import Looks
from protoseg.config.sections import Config
from protoseg.data.sources import Source
from protoseg.evaluate.metrics import confusion_matrix
from protoseg.inference import HeadLogits, image_batch
from protoseg.method.prototype_start import starting_prototypes
from protoseg.models.prototypes import unit
from protoseg.models.segmenter import build_segmenter
from protoseg.suggest.embedding import mean_feature, prototype_shares
from protoseg.suggest.uncertainty import ScoreName, suspicion

TARGET_STRIDE = 4
"""Pixels of val masks are counted on a grid of this step."""
PENALTY = 1e-3
"""Of the sum of squared weights, beside the mean cross-entropy: the best of three with random choices."""
ITERATIONS = 80
PURE = 0.5
"""Share of a cell from which it is of a class."""
PROTOTYPES, TEMPERATURE = 4, 0.1
PROTOTYPE_CELLS = 2048
SCORES: tuple[ScoreName, ...] = ("linear", "entropy", "margin", "confidence")


@dataclass(frozen=True)
class Cells:
    """An image as the encoder sees it."""

    features: Tensor
    """(D, y, x); the last stage's channels come first."""
    shares: Tensor
    """(C, y, x) share of each cell that each class has; their sum is what is labelled of it."""
    target: NDArray[np.uint8]
    """Class ids on a grid of ``TARGET_STRIDE`` pixels, of the padded image; 255 where there is none."""
    pixels: NDArray[np.int64]
    """(C,) pixels of each class."""


class Encoder:
    """The pretrained encoder of a configuration."""

    def __init__(self, config: Config, num_classes: int) -> None:
        model = config.model.model_copy(update={"decoder_channels": 16})
        self.network = build_segmenter(model, config.prototypes, num_classes=num_classes).network
        self.num_classes = num_classes
        self.last = self.network.backbone.stage_channels[-1]
        self._stages: list[list[Tensor]] = []
        self.network.backbone.register_forward_hook(lambda _m, _i, output: self._stages.append(output[1]))

    def __call__(self, source: Source, what: str) -> list[Cells]:
        """All images of a source."""
        found = []
        self.network.eval()
        for number in tqdm(range(len(source)), desc=what, unit="image", mininterval=10):
            with torch.no_grad():
                self.network(image_batch([source.image(number)], torch.device("cpu")))
            stages = self._stages.pop()
            size = stages[-1].shape[-2:]
            last = [F.interpolate(s, size=size, mode="area")[0] for s in (stages[-1], stages[-2])]
            found.append(self._cells(torch.cat(last), source.mask(number)))
        return found

    def _cells(self, features: Tensor, mask: NDArray[np.uint8]) -> Cells:
        tall, wide = self.network.padded_size(*mask.shape)
        padded = np.full((tall, wide), 255, np.uint8)
        padded[: mask.shape[0], : mask.shape[1]] = mask
        ids = torch.from_numpy(padded.astype(np.int64))
        known = torch.where(ids < self.num_classes, ids, self.num_classes)
        one_hot = F.one_hot(known, self.num_classes + 1)[..., :-1].permute(2, 0, 1).float()
        shares = F.adaptive_avg_pool2d(one_hot, tuple(features.shape[1:]))
        half = TARGET_STRIDE // 2
        counts = np.bincount(mask.ravel(), minlength=256)[: self.num_classes].astype(np.int64)
        return Cells(features, shares, padded[half::TARGET_STRIDE, half::TARGET_STRIDE].copy(), counts)


@dataclass(frozen=True)
class Probe:
    """A fitted classifier with prototypes of the last stage."""

    weight: Tensor
    """(C, D) for features as they are."""
    bias: Tensor
    """(C,)."""
    prototypes: Tensor
    """(C, K, last) unit vectors; zeros for a class without cells."""
    active: Tensor
    """(C,) classes that have prototypes."""

    def logits(self, cells: Cells) -> Tensor:
        """(C, y, x)."""
        return torch.einsum("cd,dyx->cyx", self.weight, cells.features) + self.bias[:, None, None]

    def confusion(self, images: Sequence[Cells]) -> NDArray[np.int64]:
        """(C, C) pixels of the grid by target and prediction."""
        classes = len(self.bias)
        total = np.zeros((classes, classes), np.int64)
        for cells in images:
            logits = F.interpolate(
                self.logits(cells)[None], size=cells.target.shape, mode="bilinear", align_corners=False
            )
            total += confusion_matrix(logits[0].argmax(0).numpy(), cells.target, classes)
        return total

    def looks(self, images: Sequence[Cells]) -> Looks:
        """What it says about images."""
        rows = [self._look(cells) for cells in images]
        far, doubt = (np.concatenate([row[name] for row in rows]) for name in ("far", "confidence"))
        scores = {name: np.array([row[name].mean() for row in rows], np.float32)
                  for name in (*SCORES, "far")}  # fmt: skip
        # as `protoseg novelty`: distance and doubt, each in its own deviations
        scores["novelty"] = scores["far"] / far.std() + scores["confidence"] / doubt.std()
        parts = (np.stack([row[name] for row in rows]).astype(np.float32)
                 for name in ("classes", "doubts", "prototypes", "encoder"))  # fmt: skip
        return Looks(scores, *parts)

    def _look(self, cells: Cells) -> dict[str, NDArray[np.float32]]:
        last = cells.features[: self.prototypes.shape[-1]]
        logits = self.logits(cells)[None]
        maps = {name: suspicion(HeadLogits(logits, None), name, "linear", TEMPERATURE)[0]
                for name in SCORES}  # fmt: skip
        cosine = torch.einsum("ckd,dyx->ckyx", self.prototypes, F.normalize(last, dim=0))
        maps["far"] = 1 - cosine[self.active].flatten(0, 1).amax(0)
        label, count = logits[0].argmax(0).flatten(), len(self.bias)
        return {
            **{name: values.flatten().numpy() for name, values in maps.items()},
            "classes": (torch.bincount(label, minlength=count) / len(label)).numpy(),
            "doubts": (torch.bincount(label, maps["linear"].flatten(), count) / len(label)).numpy(),
            "prototypes": prototype_shares(cosine, self.active, TEMPERATURE),
            "encoder": mean_feature(last),
        }


@dataclass(frozen=True)
class Space:
    """Where features lie."""

    mean: Tensor
    """(D,) of all cells of all training images, which need no label for it."""
    deviation: Tensor
    """(D,) of them."""
    last: int
    """Channels of the last stage."""


def space_of(images: Sequence[Cells], last: int) -> Space:
    """The space of some images' features."""
    pixels = torch.cat([cells.features.flatten(1) for cells in images], 1)
    return Space(pixels.mean(1), pixels.std(1).clamp(min=1e-6), last)


def fit(images: Sequence[Cells], space: Space, seed: int) -> Probe:
    """Fit to labelled images, at least one; the seed is of k-means."""
    mean, deviation = space.mean, space.deviation
    raw = torch.cat([cells.features.flatten(1).t() for cells in images])
    features = (raw - mean) / deviation
    targets = torch.cat([cells.shares.flatten(1).t() for cells in images])
    shown = targets.sum(0) > 0
    # rare classes count more, as `loss.class_weights=inverse_sqrt`
    weights = torch.where(shown, (targets.sum(0) / targets.sum()).clamp(min=1e-9) ** -0.5, 0.0)
    weighted = targets * weights
    weighted = weighted / weighted.sum()
    weight = torch.zeros(targets.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(features, weight, bias).masked_fill(~shown, -1e4)
        loss = -(weighted * logits.log_softmax(1)).sum() + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        weight = weight / deviation
        bias = torch.where(shown, bias - weight @ mean, -1e4)
    return Probe(weight, bias, *_prototypes(raw[:, : space.last], targets, seed))


def _prototypes(features: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    found = {}
    for label in range(targets.shape[1]):
        rows = torch.nonzero(targets[:, label] >= PURE)[:, 0]
        if len(rows):
            picked = torch.from_numpy(rng.permutation(len(rows))[:PROTOTYPE_CELLS])
            found[label] = features[rows[picked]]
    prototypes = torch.zeros(targets.shape[1], PROTOTYPES, features.shape[1])
    active = torch.zeros(targets.shape[1], dtype=torch.bool)
    for label, centres in starting_prototypes(found, PROTOTYPES, "kmeans", rng).items():
        prototypes[label], active[label] = unit(centres), True
    return prototypes, active
