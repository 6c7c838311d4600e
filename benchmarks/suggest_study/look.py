"""What a checkpoint says about images.

Shape legend: ``N`` images, ``h w`` working size, ``Y X`` map of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from benchmarks.suggest_study.choose import Looks
from protoseg.checkpoint import Checkpoint
from protoseg.data.images import read_image, resize_image
from protoseg.inference import HeadLogits, image_batch, inference, score
from protoseg.models.segmenter import NetworkOutput
from protoseg.suggest.embedding import look
from protoseg.suggest.uncertainty import ScoreName, suspicion

OF_LINEAR_HEAD: tuple[ScoreName, ...] = ("entropy", "margin", "confidence")


class Looker:
    """Passes images through a checkpoint that ``protoseg novelty`` was run on."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.info, self.segmenter = checkpoint.info, checkpoint.segmenter
        self.head = self.info.best_head()
        self._seen: list[NetworkOutput] = []
        self.segmenter.network.register_forward_hook(lambda _m, _i, output: self._seen.append(output))

    def read(self, path: Path) -> NDArray[np.uint8]:
        """The image at the working size."""
        return resize_image(read_image(path, self.info.input.channels), self.info.input.resize)

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """Numbers of one image, (h, w, C_in) uint8."""
        with inference(self.segmenter):
            batch = image_batch([image], self.segmenter.bank.prototypes.device)
            found = look(self.segmenter, batch)
            output = self._seen.pop()
            label = score(found.logits, self.head).label[0]
            doubt = suspicion(found.logits, "linear", self.head, self.segmenter.bank.temperature)[0]
            maps = {"linear": doubt, **self._scores(found.logits, output, *image.shape[:2])}
        classes = len(self.info.classes)
        flat, pixels = label.flatten(), label.numel()
        return {
            "scores": {name: float(values.double().mean()) for name, values in maps.items()},
            "classes": (torch.bincount(flat, minlength=classes) / pixels).numpy(),
            "doubts": (torch.bincount(flat, doubt.flatten(), classes) / pixels).numpy(),
            "prototypes": found.embedding,
            "encoder": found.encoder,
        }

    def _scores(self, logits: HeadLogits, output: NetworkOutput, h: int, w: int) -> dict[str, Tensor]:
        segmenter = self.segmenter
        found = {name: suspicion(logits, name, "linear", segmenter.bank.temperature)
                 for name in OF_LINEAR_HEAD}  # fmt: skip
        if segmenter.novelty is not None and bool(segmenter.bank.active.any()):
            novelty = segmenter.novelty(output.stage, output.linear_logits)
            cosine = segmenter.bank.similarity_map(output.features)[:, segmenter.bank.active]
            far = 1 - cosine.flatten(1, 2).amax(1, keepdim=True)
            found |= {"novelty": segmenter.network.upsample(novelty, h, w),
                      "far": segmenter.network.upsample(far, h, w)}  # fmt: skip
        return found


def looks(looker: Looker, paths: Iterable[Path], what: str) -> Looks:
    """Look at images one by one."""
    rows = [looker(looker.read(path)) for path in tqdm(list(paths), desc=what, unit="image", mininterval=10)]
    scores = {name: np.array([row["scores"][name] for row in rows], np.float32)
              for name in rows[0]["scores"]}  # fmt: skip
    parts = {name: np.stack([row[name] for row in rows]).astype(np.float32)
             for name in ("classes", "doubts", "prototypes", "encoder")}  # fmt: skip
    return Looks(scores, **parts)
