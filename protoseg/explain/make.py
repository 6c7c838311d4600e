"""Makes the atlas of a checkpoint and writes it beside the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from protoseg.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from protoseg.data.images import save_whole
from protoseg.data.sources import Source, open_source
from protoseg.errors import DataError, UserError
from protoseg.evaluate.measure import override_data
from protoseg.explain.atlas import (
    ATLAS_DIR,
    ATLAS_NAME,
    SHEET_NAME,
    Atlas,
    fitting_atlas,
    read_thumbnails,
    run_strips,
    write_atlas,
)
from protoseg.explain.search import find_patches
from protoseg.explain.sheet import atlas_sheet
from protoseg.files import folder_whole
from protoseg.inference import usable_device
from protoseg.manifest import ClassInfo
from protoseg.models.segmenter import Segmenter

NUM_IMAGES = 512
"""Largest number of labelled images that are looked at, unless asked otherwise."""


@dataclass(frozen=True, repr=False)
class Made:
    """An atlas that was written."""

    folder: Path
    """Its folder."""
    atlas: Atlas
    """What it says."""
    skipped: Sequence[str]
    """A text for each image that could not be used."""

    def __repr__(self) -> str:
        atlas = self.atlas
        doubtful = sum(bool(item.doubts) for item in atlas.prototypes)
        return (
            f"<Atlas of {atlas.name} in {self.folder}: {len(atlas.prototypes)} prototypes, {doubtful} "
            f"doubtful; {atlas.num_images} labelled images>"
        )

    def _repr_png_(self) -> bytes:
        """The picture for a notebook."""
        return (self.folder / SHEET_NAME).read_bytes()

    @property
    def notes(self) -> list[str]:
        """What the user should know: images that were passed over, and classes that none shows."""
        classes = sorted({item.class_id for item in self.atlas.prototypes if item.use_share is None})
        return [f"skipped: {text}" for text in self.skipped] + [
            f"note: no labelled pixel of {self.atlas.classes[index]} was seen, so that its patches are of "
            "other classes; name a list that shows it with --data labeled=LIST"
            for index in classes
        ]


def atlas_folder(checkpoint: Path) -> Path:
    """Where the atlas of a checkpoint folder is: beside it, in the run's folder."""
    return checkpoint.parent / ATLAS_DIR


def make_atlas(
    segmenter: Segmenter,
    info: CheckpointInfo,
    source: Source,
    folder: Path,
    *,
    num_images: int = NUM_IMAGES,
    patch: int | None = None,
    progress: bool = True,
) -> Made:
    """Search the labelled images and write ``folder``, whole or not at all.

    Args:
        segmenter: Network and prototypes, on the device to use.
        info: Their description, with the hash of the weights.
        source: Labelled images of the training.
        folder: Target; an earlier atlas is replaced.
        num_images: Largest number of images to look at.
        patch: Side of a patch in pixels of the working size; None takes a third of the crop.
        progress: Show a bar.

    Raises:
        DataError: If no image can be used, or the folder holds something else.
    """
    if folder.exists() and not (folder / ATLAS_NAME).is_file() and any(folder.iterdir()):
        raise DataError(f"{folder} exists and holds no {ATLAS_NAME}; choose another folder with -o")
    pause = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(total=min(num_images, len(source)), desc="explain", unit="image", disable=not progress,
              dynamic_ncols=True, mininterval=pause, leave=False) as bar:  # fmt: skip
        found = find_patches(segmenter, info, source, num_images=num_images, patch=patch, seen=bar.update)
    atlas, thumbnails = _with_known(folder, found.atlas, found.thumbnails)
    save_atlas(folder, atlas, thumbnails, info.classes)
    return Made(folder, atlas, found.skipped)


def save_atlas(
    folder: Path, atlas: Atlas, thumbnails: Mapping[str, list[Image.Image]], classes: Sequence[ClassInfo]
) -> None:
    """Write an atlas with its picture, whole or not at all; an earlier one is replaced.

    Args:
        folder: Target.
        atlas: What it says.
        thumbnails: By the name of the strip.
        classes: Names and colours by id.
    """
    pictures = {item.index: thumbnails[item.strip] for item in atlas.prototypes}
    with folder_whole(folder) as partial:
        write_atlas(partial, atlas, run_strips(thumbnails))
        save_whole(partial / SHEET_NAME, atlas_sheet(atlas, pictures, classes))


def _with_known(
    folder: Path, atlas: Atlas, thumbnails: dict[str, list[Image.Image]]
) -> tuple[Atlas, dict[str, list[Image.Image]]]:
    """With what an earlier atlas of these weights says of classes that no image showed this time.

    ``protoseg adapt`` leaves one behind: the training's images are not labelled with a class that it added.
    """
    before = fitting_atlas(folder, atlas.weights_sha256)
    known = before.by_index() if before is not None else {}
    entries = []
    for item in atlas.prototypes:
        earlier = known.get(item.index)
        if before and earlier and earlier.use_share is not None and item.use_share is None:
            entries.append(earlier)
            thumbnails = {**thumbnails, earlier.strip: read_thumbnails(folder, before, earlier.index)}
        else:
            entries.append(item)
    return atlas.model_copy(update={"prototypes": entries}), thumbnails


def explain_checkpoint(
    path: str | os.PathLike[str],
    folder: Path | None = None,
    *,
    num_images: int = NUM_IMAGES,
    patch: int | None = None,
    device: str | None = None,
    data: Sequence[str] = (),
) -> Made:
    """The atlas of a checkpoint on the disk; see ``make_atlas``.

    Args:
        path: Run folder, checkpoint folder, or a file in it.
        folder: Target; None takes the one where models look for it.
        num_images: See ``make_atlas``.
        patch: Likewise.
        device: ``cpu``, ``cuda``, ...; None takes what accelerate finds.
        data: Data settings over the stored ones, ``key.sub=value``.

    Raises:
        UserError: If it cannot be loaded, has no prototypes, or its images are not there.
    """
    checkpoint = load_checkpoint(Path(path))
    info = checkpoint.info.model_copy(update={"data": override_data(checkpoint.info.data, data)})
    checkpoint.segmenter.to(usable_device(device) if device else PartialState().device)
    return checkpoint_atlas(replace(checkpoint, info=info), folder, num_images=num_images, patch=patch)


def checkpoint_atlas(
    checkpoint: Checkpoint,
    folder: Path | None = None,
    *,
    num_images: int = NUM_IMAGES,
    patch: int | None = None,
    progress: bool = True,
) -> Made:
    """The atlas of a checkpoint from the labelled images that it was trained with; see ``make_atlas``.

    Raises:
        UserError: If it has no prototypes, or its images are not there.
    """
    info = checkpoint.info
    if not bool(checkpoint.segmenter.bank.active.any()):
        raise UserError(
            f"there is nothing to explain by: the checkpoint {checkpoint.path} has no prototypes (method "
            f"{info.method})"
        )
    source = open_source(info.data, "labeled", info.classes)
    target = folder or atlas_folder(checkpoint.path)
    return make_atlas(
        checkpoint.segmenter, info, source, target, num_images=num_images, patch=patch, progress=progress
    )
