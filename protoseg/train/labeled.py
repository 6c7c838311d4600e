"""Which classes the labelled images show, and what follows: shares, images held out, rare ones more often."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protoseg.data.sources import CachedSource, Labels, Pixels, Source
from protoseg.errors import DataError
from protoseg.seeds import generator


class ClassCount(NamedTuple):
    """What is labelled, by class id."""

    shares: list[float]
    """Share of the labelled pixels in [0, 1]."""
    images: list[int]
    """Images that hold the class."""


def _readable_masks(source: CachedSource) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every labelled mask by its index, but for unreadable ones that the loader passes over, and counts, too.

    Raises:
        DataError: Of an unreadable one, with ``data.on_error=raise``.
    """
    for index in range(len(source)):
        try:
            mask = source.mask(index)
        except DataError:
            if source.config.on_error == "raise":
                raise
        else:
            yield index, mask


def count_classes(source: CachedSource, num_classes: int) -> ClassCount:
    """What is labelled of each class; reads every labelled mask once.

    Raises:
        DataError: If no pixel is labelled.
    """
    counts, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for _, mask in _readable_masks(source):
        found = np.bincount(mask.reshape(-1), minlength=256)
        counts += found
        images += found > 0
    known = counts[:num_classes]
    if known.sum() == 0:
        raise DataError(
            "no labelled pixel has a class: every mask holds only ignored values; check data.label_map "
            "with python -m protoseg.check"
        )
    return ClassCount((known / known.sum()).tolist(), images[:num_classes].tolist())


class Part(Source):
    """Some images of a source."""

    def __init__(self, whole: Source, indices: Sequence[int]) -> None:
        self.whole, self.indices, self.sha256 = whole, list(indices), whole.sha256

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        return self.whole.name(self.indices[index])

    def image(self, index: int) -> Pixels:
        """The decoded image."""
        return self.whole.image(self.indices[index])

    def labels(self, index: int) -> Labels | None:
        """The decoded mask."""
        return self.whole.labels(self.indices[index])

    def digest(self, index: int) -> str:
        """Hash of the image's content."""
        return self.whole.digest(self.indices[index])


def shown_classes(source: CachedSource, num_classes: int) -> NDArray[np.bool_]:
    """(images, C) which class each mask shows; an unreadable mask shows none."""
    shown = np.zeros((len(source), num_classes), np.bool_)
    for index, mask in _readable_masks(source):
        shown[index] = np.bincount(mask.reshape(-1), minlength=256)[:num_classes] > 0
    return shown


def hold_out(shown: NDArray[np.bool_], share: float, rng: np.random.Generator) -> list[int]:
    """Images to keep from training: random ones, but never the last that shows a class.

    Args:
        shown: See ``shown_classes``.
        share: Of the images, at least one.
        rng: Source of the choice.

    Raises:
        DataError: If there is none that could be spared.
    """
    wanted, left = max(1, round(share * len(shown))), shown.sum(0)
    chosen: list[int] = []
    for index in rng.permutation(len(shown)):
        if len(chosen) < wanted and (left - shown[index] > 0)[shown[index]].all():
            left = left - shown[index]
            chosen.append(int(index))
    if not chosen or len(chosen) == len(shown):
        raise DataError(
            f"pseudo_labels.held_out={share:g}: of {len(shown)} labelled images none can be spared without "
            "losing a class; leave it out, or label more"
        )
    return sorted(chosen)


def rare_class_picker(
    shown: NDArray[np.bool_], shares: Sequence[float], temperature: float, seed: int
) -> Callable[[int], int]:
    """Image at a position of the labelled stream by rare-class sampling (DAFormer, arXiv 2111.14887).

    Class c with probability proportional to ``exp((1 - f_c) / T)`` among those that some image shows, then
    one of its images, each as likely. A function of seed and position alone.

    Args:
        shown: See ``shown_classes``.
        shares: f_c, share of each class among labelled pixels.
        temperature: T.
        seed: Seed of the run.
    """
    present = shown.any(0)
    exponent = (1 - np.asarray(shares)) / temperature
    weight = np.exp(np.where(present, exponent - exponent[present].max(), -np.inf))
    edges = np.cumsum(weight / weight.sum())
    images = [np.flatnonzero(column) for column in shown.T]

    def pick(position: int) -> int:
        first, second = generator(seed, "rare classes", position).random(2)
        own = images[int(np.searchsorted(edges, first * edges[-1], side="right"))]
        return int(own[int(second * len(own))])

    return pick
