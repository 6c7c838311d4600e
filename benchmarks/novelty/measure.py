"""Scores of pixels that a network knows and of those that it was never shown.

Pixels are centres of the decoder's cells, a fixed sample of each image; scores of encoder stages, which are
coarser, are interpolated to them.

Shape legend: ``N`` sampled pixels, ``D`` channels, ``Y X`` map of the decoder, ``y x`` map of a place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.novelty.fits import Distances, fit
from protoseg.checkpoint import Checkpoint
from protoseg.evaluate.measure import Samples
from protoseg.inference import HeadLogits, available_heads, image_batch, inference
from protoseg.suggest.uncertainty import NEED_PROTOTYPES, suspicion

Pixels = NDArray[np.uint8]
KNOWN, NOVEL, DROPPED = 0, 1, 2
PLACES = ("prototype space", "decoder", "stage 3", "stage 4")
FIT_PIXELS = 24
TESTED_PIXELS = 256
BASELINE = "max probability"
# scores that suggest has, by what the table calls them
SUSPICIONS = {"linear": BASELINE, "entropy": "entropy", "margin": "margin", "disagreement": "disagreement",
              "distance": "distance to the label's prototype"}  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """One forward pass of an image."""

    maps: dict[str, Tensor]
    """(D, y, x) features of the padded image by place."""
    logits: HeadLogits
    """(1, C, Y, X) scores of both heads."""
    size: tuple[int, int]
    """The image's height and width."""
    padded: tuple[int, int]
    """That of the padded image, which maps cover."""

    def centres(self, place: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the image at the centres of the cells of a map."""
        shape = self.maps[place].shape[1:]
        rows, columns = (
            ((np.arange(cells) + 0.5) * padded / cells).astype(np.int64)
            for cells, padded in zip(shape, self.padded, strict=True)
        )
        return rows[rows < self.size[0]], columns[columns < self.size[1]]


@dataclass(frozen=True)
class Measured:
    """What was found on a sample of pixels."""

    scores: dict[str, NDArray[np.float64]]
    """(N,) by name; higher where a pixel is less like what was labelled."""
    kind: NDArray[np.int64]
    """(N,) ``KNOWN`` or ``NOVEL``."""
    calibration: NDArray[np.bool_]
    """(N,) known pixels of images without anything novel, which thresholds and scales come from."""


class Looker:
    """Passes images through a checkpoint and keeps features of every place."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.info, self.segmenter = checkpoint.info, checkpoint.segmenter
        self.both = "prototype" in available_heads(self.segmenter)
        self._kept: list[tuple[Tensor, list[Tensor]]] = []
        self.segmenter.network.backbone.register_forward_hook(
            lambda _module, _inputs, output: self._kept.append(output)
        )

    def __call__(self, image: Pixels) -> Pass:
        """(h, w, C_in) uint8 at the working size -> features and scores."""
        network, bank = self.segmenter.network, self.segmenter.bank
        size = (image.shape[0], image.shape[1])
        with inference(self.segmenter):
            output = network(image_batch([image], bank.prototypes.device))
            features, stages = self._kept.pop()
            found = zip(PLACES, (output.features, features, stages[-2], stages[-1]), strict=True)
            prototype = bank.dense_logits(output.features) if self.both else None
        return Pass(
            {name: values[0].float() for name, values in found},
            HeadLogits(output.linear_logits.float(), prototype), size, network.padded_size(*size),
        )  # fmt: skip


def fit_places(looker: Looker, samples: Samples, rng: np.random.Generator) -> dict[str, Distances]:
    """Fit the distances of every place to labelled images, up to 24 pixels of each class an image.

    Args:
        looker: The network.
        samples: Labelled images and their masks, at the working size.
        rng: Source of randomness.
    """
    features: dict[str, list[Tensor]] = {place: [] for place in PLACES}
    labels: dict[str, list[Tensor]] = {place: [] for place in PLACES}
    for image, mask in progress(samples, "fit"):
        seen = looker(image)
        for place, values in seen.maps.items():
            rows, columns = seen.centres(place)
            at = mask[np.ix_(rows, columns)]
            for label in np.unique(at):
                if label < len(looker.info.classes):
                    cells = np.argwhere(at == label)
                    y, x = cells[rng.permutation(len(cells))[:FIT_PIXELS]].T
                    features[place].append(values[:, y, x].t())
                    labels[place].append(torch.full((len(y),), int(label)))
    bank, head = looker.segmenter.bank, looker.segmenter.network.linear_head[-1]
    given = {"prototype space": bank.prototypes[bank.active].flatten(0, 1)} if looker.both else {}
    origin = {"decoder": logits_origin(head)} if len(looker.segmenter.network.linear_head) == 2 else {}
    return {
        place: fit(
            torch.cat(features[place]), torch.cat(labels[place]), num_prototypes=bank.num_prototypes,
            rng=rng, prototypes=given.get(place), origin=origin.get(place),
        )
        for place in PLACES
    }  # fmt: skip


def logits_origin(head: nn.Conv2d) -> Tensor:
    """(D,) feature at which all logits of a 1 x 1 head vanish, as ViM has it."""
    assert head.bias is not None
    return -(torch.linalg.pinv(head.weight.detach().flatten(1).double()) @ head.bias.detach().double())


def baselines(looker: Looker, logits: HeadLogits) -> dict[str, Tensor]:
    """Scores (1, Y, X) that need no fit."""
    temperature = looker.segmenter.bank.temperature
    found = {
        title: suspicion(logits, name, "linear", temperature)
        for name, title in SUSPICIONS.items()
        if looker.both or name not in NEED_PROTOTYPES
    }
    found |= {"max logit": -logits.linear.amax(1), "energy": -logits.linear.logsumexp(1)}
    if looker.both:
        found["max probability of both heads"] = suspicion(logits, "confidence", "fused", temperature)
    return found


def measure(
    looker: Looker,
    places: dict[str, Distances],
    shown: Iterable[tuple[Pixels, Pixels]],
    rng: np.random.Generator,
) -> Measured:
    """Score a sample of pixels of each image.

    Args:
        looker: The network.
        places: Fitted distances.
        shown: Images at the working size, each with what its pixels are: ``KNOWN``, ``NOVEL`` or ``DROPPED``.
        rng: Source of randomness.
    """
    scores: dict[str, list[Tensor]] = {}
    kinds, calibration = [], []
    plain = 0
    for image, kind in shown:
        seen = looker(image)
        rows, columns = seen.centres("decoder")
        at = kind[np.ix_(rows, columns)]
        valid = np.argwhere(at != DROPPED)
        if len(valid) == 0:
            continue
        cells = valid[rng.permutation(len(valid))[:TESTED_PIXELS]]
        y, x = torch.from_numpy(cells.T.copy())
        found = {name: values[0, y, x] for name, values in baselines(looker, seen.logits).items()}
        for place, distances in places.items():
            values = seen.maps[place]
            of_decoder = values.shape[1:] == seen.logits.linear.shape[2:]
            picked = values[:, y, x] if of_decoder else values.flatten(1)
            for name, distance in distances(picked.t()).items():
                if not of_decoder:
                    low = distance.view(1, 1, *values.shape[1:])
                    size = seen.logits.linear.shape[2:]
                    distance = F.interpolate(low, size=size, mode="bilinear", align_corners=False)[0, 0, y, x]
                found[f"{name}, {place}"] = distance
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
        kinds.append(at[tuple(cells.T)])
        novel = bool((kind == NOVEL).any())
        calibration.append(np.full(len(cells), not novel and plain % 2 == 0))
        plain += not novel
    joined = {name: torch.cat(parts).double().numpy() for name, parts in scores.items()}
    return Measured(joined, np.concatenate(kinds).astype(np.int64), np.concatenate(calibration))


def with_combinations(measured: Measured) -> Measured:
    """Every distance also added to energy and to maximum probability, in deviations of calibration pixels."""

    def standard(name: str) -> NDArray[np.float64]:
        values = measured.scores[name]
        known = values[measured.calibration]
        return (values - known.mean()) / max(float(known.std()), 1e-12)

    sums = {
        f"{name} + {other}": standard(name) + standard(other)
        for name in measured.scores
        if ", " in name
        for other in ("energy", BASELINE)
    }
    return Measured({**measured.scores, **sums}, measured.kind, measured.calibration)


def progress(samples: Samples, what: str) -> Iterator[tuple[Pixels, Pixels]]:
    """Pairs of a data set behind a bar."""
    pause = 0.5 if sys.stderr.isatty() else 10.0
    for number in tqdm(range(len(samples)), desc=what, unit="image", leave=False, mininterval=pause):
        yield samples[number]
