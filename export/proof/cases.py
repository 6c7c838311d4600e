"""The batches that parity compares: real images, awkward sizes, batches and extreme pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.errors import ExportError

MAX_REAL = 24
PIXEL_BUDGET = MAX_REAL * 512 * 512
MAX_BATCH = 4


@dataclass(frozen=True)
class NamedImage:
    """An image at the working size, with its mask when there is one."""

    name: str
    """File name or synthetic index."""
    pixels: NDArray[np.uint8]
    """(H, W, C)."""
    mask: NDArray[np.uint8] | None = None
    """(H, W) class ids."""


@dataclass(frozen=True)
class Case:
    """One batch."""

    name: str
    """Name in reports."""
    batch: NDArray[np.uint8]
    """(B, C, H, W)."""
    natural: bool
    """A real image (resized or not), or a made one."""
    mask: NDArray[np.uint8] | None = None
    """(B, H, W) class ids of an unresized real image."""

    def on_multiple(self, multiple: int) -> bool:
        """Whether height and width are multiples of ``multiple``."""
        height, width = self.batch.shape[2:]
        return bool(height % multiple == 0 and width % multiple == 0)


def _resized(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    bands = [
        np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize((width, height)))
        for c in range(pixels.shape[2])
    ]
    return np.stack(bands, axis=2)


def _batch(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _made(height: int, width: int, channels: int) -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    shape = (height, width, channels)
    board = np.indices((height, width)).sum(0) % 2 * 255
    ramp = np.linspace(0, 255, width)
    return {
        "noise": rng.integers(0, 256, shape, dtype=np.uint8),
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "grey": np.full(shape, 127, np.uint8),
        "checkerboard": np.broadcast_to(board[..., None], shape).astype(np.uint8),
        "ramp": np.broadcast_to(ramp[None, :, None], shape).astype(np.uint8),
    }


def _sizes(crop: tuple[int, int], m: int) -> dict[str, tuple[int, int]]:
    small = max(m, 16)
    return {
        "crop": crop,
        "multiple": (3 * m, 5 * m),
        "odd": (2 * small + 1, 3 * small + 3),
        "tall": (5 * m, small + 5),
        "wide": (m, 5 * m + 1),
        "tile": (m, m),
        "tiny": (3, 5),
    }


def within_budget(images: Sequence[NamedImage]) -> list[NamedImage]:
    """As many images as parity has time for: 24 of 512 x 512 pixels, fewer large ones, at least four."""
    pixels = 0
    chosen: list[NamedImage] = []
    for image in images[:MAX_REAL]:
        pixels += image.pixels.shape[0] * image.pixels.shape[1]
        if len(chosen) >= MAX_BATCH and pixels > PIXEL_BUDGET:
            break
        chosen.append(image)
    return chosen


def dynamic_cases(images: Sequence[NamedImage], crop: tuple[int, int], multiple: int) -> list[Case]:
    """Batches for a graph with dynamic axes; see ``make_cases``."""
    cases = []
    for image in within_budget(images):
        mask = None if image.mask is None else image.mask[None]
        cases.append(Case(image.name, _batch([image.pixels]), True, mask))
    first = images[0].pixels
    for name, (height, width) in _sizes(crop, multiple).items():
        natural = name not in ("tile", "tiny")
        cases.append(Case(f"size-{name}", _batch([_resized(first, height, width)]), natural))
    for size in (2, MAX_BATCH):
        stack = [_resized(images[i % len(images)].pixels, *crop) for i in range(size)]
        cases.append(Case(f"batch-{size}", _batch(stack), True))
    side = 2 * max(multiple, 16)
    for name, pixels in _made(side, side + 1, first.shape[2]).items():
        cases.append(Case(name, _batch([pixels]), False))
    return cases


def make_cases(
    images: Sequence[NamedImage],
    crop: tuple[int, int],
    multiple: int,
    static: tuple[int, int, int] | None,
) -> list[Case]:
    """The batches that fit a graph's axes.

    Args:
        images: At least one real image at the working size.
        crop: Training crop (height, width).
        multiple: Stride multiple.
        static: Fixed (batch, height, width), or None for dynamic axes.

    Raises:
        ExportError: If there is no image.
    """
    if not images:
        raise ExportError("parity needs at least one real image; name a folder with --calibrate FOLDER")
    return static_cases(images, static) if static else dynamic_cases(images, crop, multiple)


def static_cases(
    images: Sequence[NamedImage], shape: tuple[int, int, int], limit: int = MAX_REAL
) -> list[Case]:
    """Batches for a graph whose (batch, height, width) are fixed."""
    size, height, width = shape
    cases = []
    for start in range(0, min(len(images), limit), size):
        chosen = [images[(start + i) % len(images)] for i in range(size)]
        pixels = [_resized(image.pixels, height, width) for image in chosen]
        masks: list[Any] = [
            None if image.mask is None else _nearest(image.mask, height, width) for image in chosen
        ]
        mask = None if any(m is None for m in masks) else np.stack(masks)
        cases.append(Case(chosen[0].name, _batch(pixels), True, mask))
    for name, made in _made(height, width, images[0].pixels.shape[2]).items():
        cases.append(Case(name, _batch([made] * size), False))
    return cases


def _nearest(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
