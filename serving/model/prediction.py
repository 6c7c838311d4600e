"""What a model says about one image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from protoseg.explain.reasons import Nearest
from protoseg.manifest import NOVEL
from serving.pixels.maps import Labels, Scores


@dataclass(frozen=True)
class Prediction:
    """Maps of one image."""

    labels: Labels
    """``(H, W)`` class ids."""
    confidence: Scores | None = None
    """``(H, W)`` largest probability in [0, 1], when asked for and in the graph."""
    label_probability: Scores | None = None
    """``(H, W)`` probability that the linear head gives to the label, in [0, 1], when asked for and in the
    graph."""
    tiles: int = 1
    """Tiles computed; 1 when the image went through at once."""
    nearest: Nearest | None = None
    """The nearest prototypes by cell of the feature map, when asked for."""
    novelty: Scores | None = None
    """``(H, W)`` in [0, 1], novel from 0.5 on, when asked for and in the graph."""

    @property
    def mean_label_probability(self) -> float | None:
        """Mean over the image."""
        return None if self.label_probability is None else float(self.label_probability.mean())

    @property
    def novel_share(self) -> float | None:
        """Share of novel pixels."""
        return None if self.novelty is None else float((self.novelty >= NOVEL).mean())

    def resized(self, size: tuple[int, int]) -> Prediction:
        """The maps at (height, width): labels by nearest neighbour, scores bilinearly."""
        labels = self.labels
        if labels.shape != size:
            resized = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            labels = np.asarray(resized, np.uint8)
        return Prediction(
            labels, _resize(self.confidence, size), _resize(self.label_probability, size), self.tiles,
            self.nearest,
            _resize(self.novelty, size),
        )  # fmt: skip


def _resize(scores: Scores | None, size: tuple[int, int]) -> Scores | None:
    if scores is None or scores.shape == size:
        return scores
    return np.asarray(cv2.resize(scores, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
