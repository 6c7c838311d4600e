"""Why an image was segmented so: what ``--explain`` writes beside its mask."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.checkpoint import Checkpoint, CheckpointInfo
from protoseg.data.images import resize_image, save_whole, write_text
from protoseg.errors import DataError, UserError
from protoseg.explain.atlas import Atlas, fitting_atlas, read_thumbnails
from protoseg.explain.make import atlas_folder
from protoseg.explain.reasons import Reasons, prototype_records
from protoseg.explain.search import nearest_of
from protoseg.explain.sheet import reason_sheet, shown_regions
from protoseg.inference import HeadName, inference
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
            raise UserError("--explain needs prototypes, this checkpoint has none; leave it out")
        folder, run = atlas_folder(checkpoint.path), checkpoint.path
        atlas = fitting_atlas(folder, checkpoint.info.weights_sha256)
        if atlas is None:
            raise UserError(
                f"--explain needs the training patches of this checkpoint's prototypes, and {folder} has "
                f"none; make them with: python -m protoseg.explain {run}"
            )
        return cls(folder, atlas)

    def write(
        self,
        base: Path,
        title: str,
        segmenter: Segmenter,
        info: CheckpointInfo,
        image: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        head: HeadName,
    ) -> None:
        """Write ``BASE.json``, ``BASE.png`` (nearest prototypes, 16 bits) and ``BASE.jpg``, each whole.

        Args:
            base: Path without suffix; its folder is made.
            title: What the image is called.
            segmenter: Network and prototypes.
            info: Their description.
            image: (H, W, C_in) uint8 at its own size.
            labels: (H, W) predicted class ids.
            head: Head that predicted them.

        Raises:
            DataError: If they cannot be written.
        """
        try:
            base.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{base.parent} cannot be made: {error}") from error
        with inference(segmenter):
            nearest, _ = nearest_of(segmenter, resize_image(image, info.input.resize))
        names, count = [item.name for item in info.classes], self.atlas.num_prototypes
        regions, left_out = Reasons(nearest, labels, names, count).regions()
        known = self.atlas.by_index()
        named = prototype_records(known, names, (item["prototype"] for item in regions))
        record = {
            "image": title, "height": labels.shape[0], "width": labels.shape[1], "run": info.name,
            "step": info.step, "head": head, "regions": regions, "regions_left_out": left_out,
            "prototypes": named,
        }  # fmt: skip
        thumbnails = {
            index: read_thumbnails(self.folder, self.atlas, index)
            for index in {item["prototype"] for item in shown_regions(regions)} & set(known)
        }
        sheet = reason_sheet(base.name, image, labels, nearest, regions, info.classes, count, thumbnails)
        cells = np.ix_(*nearest.cells(labels.shape))
        places = Image.fromarray(nearest.prototype[cells].astype(np.uint16))
        save_whole(_named(base, ".png"), places)
        save_whole(_named(base, ".jpg"), sheet)
        write_text(_named(base, ".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _named(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)
