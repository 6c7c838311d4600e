"""Images for calibration and parity: found through the checkpoint, or in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.proof.cases import NamedImage
from protoseg.checkpoint import CheckpointInfo
from protoseg.data.images import read_image, resize_image, resize_mask
from protoseg.data.lines import Entry
from protoseg.data.lists import read_entries
from protoseg.data.masks import MaskReader, mask_reader
from protoseg.data.pictures import reading
from protoseg.data.synthetic import SyntheticScenes
from protoseg.errors import DataError, ExportError

Split = Literal["labeled", "unlabeled", "val"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".npy")
LARGEST_SIDE = 1024


def images_hash(images: Sequence[NamedImage]) -> str:
    """SHA-256 over names and pixels: two exports calibrated alike have the same."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{Path(image.name).name} {image.pixels.shape}\n".encode())
        digest.update(np.ascontiguousarray(image.pixels).tobytes())
    return digest.hexdigest()


def spread(items: Sequence[Entry], count: int) -> list[Entry]:
    """``count`` entries at even distances (lists are often sorted by scene)."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _limited(image: NDArray[np.uint8], mask: NDArray[np.uint8] | None, name: str) -> NamedImage:
    # a crop, not a shrink: objects keep the size that the network was trained on
    pixels = np.ascontiguousarray(image[:LARGEST_SIDE, :LARGEST_SIDE])
    cut = None if mask is None else np.ascontiguousarray(mask[:LARGEST_SIDE, :LARGEST_SIDE])
    return NamedImage(name, pixels, cut)


def _read(entries: Iterable[Entry], info: CheckpointInfo, reader: MaskReader | None) -> Iterator[NamedImage]:
    rule = info.input.resize
    for entry in entries:
        pixels = read_image(entry.image, info.input.channels, reading(info.data, info.input))
        image = resize_image(pixels, rule)
        mask = None
        if reader is not None and entry.mask is not None:
            mask = resize_mask(reader.read(entry.mask, entry.image), rule)
        yield _limited(image, mask, entry.image.name)


def checkpoint_images(info: CheckpointInfo, split: Split, count: int) -> list[NamedImage]:
    """Up to ``count`` images of the run's own data, spread over the split, at the working size.

    Masks come with ``labeled`` and ``val``. A run without unlabelled images gives its labelled ones.

    Raises:
        ExportError: If the files have gone or are damaged.
    """
    if info.data.kind == "synthetic":
        scenes = SyntheticScenes(info.data.synthetic, split)
        if len(scenes) == 0:
            scenes = SyntheticScenes(info.data.synthetic, "labeled")
        steps = [i * len(scenes) // min(count, len(scenes)) for i in range(min(count, len(scenes)))]
        rule = info.input.resize
        return [
            _limited(
                resize_image(scenes.image(i), rule),
                None if split == "unlabeled" else resize_mask(scenes.mask(i), rule),
                f"{scenes.split}-{i}.png",
            )
            for i in steps
        ]
    try:
        entries = read_entries(info.data, split).entries
        if not entries and split == "unlabeled":
            entries = read_entries(info.data, "labeled").entries
        reader = None if split == "unlabeled" else mask_reader(info.data, info.classes)
        return list(_read(spread(entries, count), info, reader))
    except DataError as error:
        # without its cure, which is a setting of the trainer
        reason = str(error).splitlines()[0].partition("; ")[0]
        raise ExportError(
            f"the {split} images of the training run are not where they were: {reason}; "
            "name a folder of images with --calibrate FOLDER"
        ) from error


def folder_images(folder: Path, info: CheckpointInfo, count: int) -> list[NamedImage]:
    """Up to ``count`` images below ``folder``, at the working size, without masks.

    Raises:
        ExportError: If there is no image, or one is damaged.
    """
    if not folder.is_dir():
        raise ExportError(f"--calibrate {folder}: no such folder")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise ExportError(f"--calibrate {folder}: no image ({', '.join(SUFFIXES)}) in it or below it")
    try:
        return list(islice(_read(spread([Entry(f, None) for f in files], count), info, None), count))
    except DataError as error:
        raise ExportError(f"--calibrate {folder}: {error}") from error
