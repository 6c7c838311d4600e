"""Images that show what a class is not: without them a new class claims all that resembles it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from protoseg.adapt.cells import Cells, image_cells, joined
from protoseg.checkpoint import Checkpoint
from protoseg.data.find import find_images
from protoseg.data.images import read_image, resize_image, resize_mask
from protoseg.data.pictures import reading
from protoseg.data.sources import open_source

T = TypeVar("T")
CELLS = 6000
"""Cells that are kept of all images together: more change the time and nothing else."""


def counted(items: Sequence[T], what: str) -> Iterable[T]:
    """The same, with a bar on standard error."""
    pause = 0.5 if sys.stderr.isatty() else 10.0
    bar: Iterable[T] = tqdm(items, what, unit="image", dynamic_ncols=True, mininterval=pause, leave=False)
    return bar


def other_cells(
    source: Checkpoint, given: Path | Sequence[Path] | None, most: int, label: int | None
) -> tuple[Cells, int]:
    """Cells of up to ``most`` images, evenly spread over all there are, and how many images they are.

    Args:
        source: Its labelled images are taken where none are given.
        given: Folder of images that do not show the class, or such images, or None.
        most: Images to look at, at least 1.
        label: The class in the training's masks; None for one that they do not know.

    Raises:
        DataError: If they are not there or cannot be read.
    """
    info = source.info
    how, rule = reading(info.data, info.input), info.input.resize
    labeled = open_source(info.data, "labeled", info.classes) if given is None else None
    places = [given] if isinstance(given, Path) else list(given or [])
    found = find_images(places, places[0]).images if places else []
    total = len(found) if labeled is None else len(labeled)
    count, parts = min(most, total), []
    for number in counted(range(count), "other images"):
        index = number * total // count
        if labeled is None:
            image = resize_image(read_image(found[index].path, info.input.channels, how), rule)
            mask = np.zeros(image.shape[:2], np.uint8)
        else:
            image = resize_image(labeled.image(index), rule)
            mask = resize_mask(labeled.mask(index), rule)
        share = (mask == label) if label is not None and labeled is not None else np.zeros(mask.shape)
        valid = (mask != info.ignore_index) | (labeled is None)
        parts.append(
            image_cells(source, image, share.astype(np.float32), valid.astype(np.float32), CELLS // count)
        )
    return joined(parts), count
