"""Looks at images through a checkpoint and keeps a few numbers of each.

Shape legend: ``N`` images, ``E`` numbers of an embedding, ``h w`` working size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from protoseg.annotate.draft import Draft, Keep
from protoseg.checkpoint import Checkpoint
from protoseg.data.find import FoundImage
from protoseg.data.images import read_image, resize_image
from protoseg.data.pictures import reading
from protoseg.errors import DataError
from protoseg.inference import HeadName, image_batch, inference, score, upsample
from protoseg.suggest.embedding import Look, look
from protoseg.suggest.uncertainty import ScoreName, suspicion

CLASSES_SHOWN = 3
SMALLEST_SHARE = 0.05


@dataclass
class Scan:
    """Images that could be read, with a few numbers of each: the pictures themselves are not kept."""

    images: list[FoundImage] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    """Mean suspicion over the pixels of an image, in [0, 1]."""
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    """Unit vectors, see ``protoseg.suggest.embedding``."""
    encoder: list[NDArray[np.float32]] = field(default_factory=list)
    """Directions of the mean feature of the encoder's last stage, unit vectors."""
    skipped: list[str] = field(default_factory=list)
    """Why each of the others could not be read."""

    def matrix(self, length: int) -> NDArray[np.float32]:
        """(N, length) embeddings."""
        return np.stack(self.embeddings) if self.embeddings else np.zeros((0, length), np.float32)


@dataclass(frozen=True)
class Suggester:
    """A checkpoint with the way to look at an image."""

    checkpoint: Checkpoint
    """Network, already on its device, and its description."""
    head: HeadName
    """Head that labels."""
    score: ScoreName
    """What makes a pixel suspicious."""

    def look(self, image: NDArray[np.uint8]) -> tuple[Look, NDArray[np.float32]]:
        """Forward pass and suspicion (h, w) of an image at the working size, (h, w, C_in) uint8."""
        segmenter = self.checkpoint.segmenter
        with inference(segmenter):
            found = look(segmenter, image_batch([image], segmenter.bank.prototypes.device))
            doubt = suspicion(found.logits, self.score, self.head, segmenter.bank.temperature)
        return found, doubt[0].cpu().numpy()

    def read(self, path: Path) -> NDArray[np.uint8]:
        """The image at the working size.

        Raises:
            DataError: If it cannot be read.
        """
        info = self.checkpoint.info
        image = read_image(path, info.input.channels, reading(info.data, info.input))
        return resize_image(image, info.input.resize)

    def draft(self, path: Path, name: str, keep: Keep) -> Draft:
        """What is predicted for an image, at its own size, without what ``keep`` drops.

        Raises:
            DataError: If it cannot be read.
        """
        info = self.checkpoint.info
        image = read_image(path, info.input.channels, reading(info.data, info.input))
        found, _ = self.look(resize_image(image, info.input.resize))
        with inference(self.checkpoint.segmenter):
            label, confidence = score(upsample(found.logits, *image.shape[:2]), self.head)
        labels, scores = label[0].cpu().numpy().astype(np.uint8), confidence[0].cpu().numpy()
        return Draft(path, name, keep.apply(labels, scores), scores)

    def scan(self, images: Sequence[FoundImage], what: str) -> Scan:
        """Score images one by one with a progress bar; those that cannot be read are named and left out."""
        found = Scan()
        pause = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(total=len(images), desc=what, unit="image", mininterval=pause) as bar:
            for item in images:
                try:
                    result, doubt = self.look(self.read(item.path))
                except DataError as error:
                    found.skipped.append(str(error))
                    bar.write(f"skipped: {error}", file=sys.stderr)
                else:
                    found.images.append(item)
                    found.scores.append(float(doubt.mean(dtype=np.float64)))
                    found.embeddings.append(result.embedding)
                    found.encoder.append(result.encoder)
                bar.update()
        return found

    def doubtful_classes(self, labels: NDArray[np.int64], doubt: NDArray[np.float32]) -> dict[str, float]:
        """Predicted classes by their part of the image's suspicion, largest first: the first few."""
        names = [item.name for item in self.checkpoint.info.classes]
        parts = np.bincount(labels.ravel(), doubt.ravel(), len(names)) / max(float(doubt.sum()), 1e-12)
        order = np.argsort(-parts, kind="stable")[:CLASSES_SHOWN]
        return {names[c]: round(float(parts[c]), 4) for c in order if parts[c] >= SMALLEST_SHARE}
