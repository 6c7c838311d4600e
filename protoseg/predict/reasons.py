"""Why an image was segmented so, from a checkpoint and the atlas of its run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoseg.checkpoint import Checkpoint
from protoseg.data.images import resize_image
from protoseg.errors import UserError
from protoseg.explain.atlas import Atlas, fitting_atlas
from protoseg.explain.make import atlas_folder
from protoseg.explain.reasons import Grounds
from protoseg.explain.search import nearest_of
from protoseg.inference import Autocast, inference
from protoseg.input_rule import InputRule
from protoseg.models.segmenter import Segmenter


@dataclass(frozen=True)
class Explainer:
    """What it takes to explain an image."""

    folder: Path
    """Folder of the atlas."""
    atlas: Atlas
    """The training patches of each prototype."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Explainer:
        """With the atlas of a checkpoint's run.

        Raises:
            UserError: If there is none for these weights.
        """
        if not bool(checkpoint.segmenter.bank.active.any()):
            raise UserError(
                f"there is nothing to explain by: the checkpoint {checkpoint.path} has no prototypes (method "
                f"{checkpoint.info.method}); do not ask for an explanation"
            )
        folder, run = atlas_folder(checkpoint.path), checkpoint.path
        atlas = fitting_atlas(folder, checkpoint.info.weights_sha256)
        if atlas is None:
            raise UserError(
                f"an explanation needs the training patches of these weights' prototypes, and {folder} has "
                f"none; make them with: python -m protoseg.explain {run}"
            )
        return cls(folder, atlas)

    def grounds(
        self,
        segmenter: Segmenter,
        image: NDArray[np.uint8],
        rule: InputRule,
        autocast: Autocast = nullcontext,
    ) -> Grounds:
        """What an image is explained by, from the whole image at once.

        Args:
            segmenter: Network and prototypes; its mode is restored.
            image: (H, W, C_in) uint8 at its own size.
            rule: How it becomes the network's input.
            autocast: Gives the context of the forward pass.
        """
        with inference(segmenter), autocast():
            nearest, _ = nearest_of(segmenter, resize_image(image, rule.resize))
        return Grounds.of(nearest, self.folder, self.atlas)
