"""Images that lie on the training device, and the batches made of them there (``data.cache=device``).

The order, the draws and what replaces an unreadable image are those of ``protoseg.data.stream``, and so are
the views, within what ``batched_views`` says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from protoseg.config.data import DataConfig, ViewConfig
from protoseg.data.batched_views import make_views
from protoseg.data.sources import CachedSource
from protoseg.data.stream import (
    MAX_REPLACEMENTS,
    GiveLabels,
    OnError,
    Sample,
    Stream,
    StreamSampler,
    padding_fill,
    too_many_unreadable,
    unequal_sizes,
)
from protoseg.data.views import draw_color, draw_geometry
from protoseg.errors import ConfigError, DataError
from protoseg.seeds import generator

logger = logging.getLogger("protoseg")

MIB = 2**20
CHUNK_BYTES = 64 * MIB
"""Images go over together: a piece of memory for each would be as many allocations."""
TRIED = 16
"""Images by which the memory of all is estimated."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return 1024 * int(fields["MemAvailable"].split()[0]) if "MemAvailable" in fields else None


class DeviceImages:
    """The images of a stream with what belongs to them, at the working size, on a device.

    Attributes:
        planes: (C + M, H, W) uint8 of each image: its channels, then its mask (labelled, M = 1) or the labels
            that it was given (M = 3; 0 without); None for an image that cannot be read.

    Args:
        source: Images at the working size; none stays in the host's memory.
        stream: ``labeled`` or ``unlabeled``.
        device: Where they go.
        on_error: Stop at an unreadable image, or leave it out.
        labels: See ``TrainDataset``.

    Raises:
        DataError: If an image cannot be read, and ``on_error`` is ``raise``.
        ConfigError: If they do not fit.
    """

    def __init__(
        self,
        source: CachedSource,
        stream: Stream,
        device: torch.device,
        *,
        on_error: OnError = "raise",
        labels: GiveLabels | None = None,
    ) -> None:
        self.source, self.stream, self.device = source, stream, device
        self.on_error, self.labels = on_error, labels
        self.kind = stream.replace("labeled", "labelled")
        self.planes: list[Tensor | None] = []
        self.num_bytes = 0
        began = time.perf_counter()
        self._check_room(self._estimate())
        waiting: list[NDArray[np.uint8] | None] = []
        size = 0
        # None: not where the standard error is no terminal
        silent = None if logger.isEnabledFor(logging.INFO) else True
        indices = range(len(source))
        for index in tqdm(indices, f"{self.kind} images", unit="image", leave=False, disable=silent):
            found = self._read(index)
            waiting.append(found)
            size += 0 if found is None else found.size
            if size >= CHUNK_BYTES:
                self._take(waiting)
                waiting, size = [], 0
        self._take(waiting)
        logger.info("data.cache=device: %d %s images, %.0f MiB on %s, read in %.0f s", len(source), self.kind,
                    self.num_bytes / MIB, device, time.perf_counter() - began)  # fmt: skip

    def _read(self, index: int) -> NDArray[np.uint8] | None:
        try:
            return self._stacked(index)
        except DataError as error:
            if self.on_error == "raise":
                raise
            logger.warning("skipped: %s", error)
            return None
        finally:
            self.source.forget(index)

    def _stacked(self, index: int) -> NDArray[np.uint8]:
        image = self.source.image(index)
        parts = [image.transpose(2, 0, 1)]
        if self.stream == "labeled":
            mask = self.source.mask(index)
            if mask.shape != image.shape[:2]:
                raise unequal_sizes(self.source.source.name(index), image.shape[:2], mask.shape)
            parts.append(mask[None])
        elif self.labels is not None:
            parts.append(self.labels(index, (image.shape[0], image.shape[1])))
        return np.concatenate(parts)

    def _estimate(self) -> int:
        """Bytes of all by a few of them."""
        length = len(self.source)
        tried = {place * length // TRIED for place in range(TRIED)}
        sizes: list[int] = []
        for index in sorted(tried):
            try:
                image = self.source.image(index)
            except DataError:
                continue  # told when its turn comes
            planes = image.shape[2] + (1 if self.stream == "labeled" else 3 if self.labels else 0)
            sizes.append(image.shape[0] * image.shape[1] * planes)
        return round(length * sum(sizes) / max(1, len(sizes)))

    def _check_room(self, needed: int) -> None:
        free = free_memory(self.device)
        if free is not None and needed > free:
            raise ConfigError(
                f"data.cache=device: {len(self.source)} {self.kind} images need about "
                f"{(self.num_bytes + needed) / MIB:.0f} MiB, {self.device} has {free / MIB:.0f} MiB free; "
                "take data.cache=true (the host's memory) and data.num_workers, or a smaller data.resize"
            )

    def _take(self, waiting: list[NDArray[np.uint8] | None]) -> None:
        read = [item for item in waiting if item is not None]
        if read:
            flat = torch.from_numpy(np.concatenate([item.ravel() for item in read]))
            self._check_room(len(flat))
            pieces = iter(torch.split(flat.to(self.device), [item.size for item in read]))
            self.num_bytes += len(flat)
        self.planes += [None if item is None else next(pieces).view(item.shape) for item in waiting]

    def instead_of(self, index: int) -> tuple[Tensor, int]:
        """The planes of an image, or of the next that can be read, and how many were passed over.

        Raises:
            DataError: If too many in a row cannot be read.
        """
        for attempt in range(MAX_REPLACEMENTS):
            found = self.planes[(index + attempt) % len(self.planes)]
            if found is not None:
                return found, attempt
        raise too_many_unreadable(self.source, index)


def device_batches(
    images: DeviceImages,
    sampler: StreamSampler,
    views: ViewConfig,
    *,
    fill: Tensor,
    ignore_index: int,
) -> Iterator[Sample]:
    """Batches as ``TrainDataset`` and a loader make them, on the device; ``replaced`` stays on the host.

    Args:
        images: The images.
        sampler: Which image comes at which position.
        views: View settings.
        fill: (C,) uint8 value of padding, on the device.
        ignore_index: Target value of padding.
    """
    labeled = images.stream == "labeled"
    count = int(views.labeled_jitter) if labeled else views.strong_views
    for batch in sampler:
        planes, geometries, colors, replaced = [], [], [], []
        for index, position in batch:
            found, passed = images.instead_of(index)
            rng = generator(sampler.seed, images.stream, position)
            geometries.append(draw_geometry(views, found.shape[1], found.shape[2], rng))
            colors.append([draw_color(views, rng) for _ in range(count)])
            planes.append(found)
            replaced.append(passed)
        made = make_views(planes, geometries, colors, views.crop, fill)
        sample = {"replaced": torch.tensor(replaced)}
        if labeled:
            target = torch.where(made.valid, made.labels[:, 0], ignore_index).long()
            yield sample | {"image": made.strong[:, 0] if count else made.weak, "target": target}
            continue
        sample |= {"weak": made.weak, "strong": made.strong, "valid": made.valid}
        if images.labels is not None:
            sample["given"] = made.labels * made.valid[:, None]
        yield sample


def make_device_stream(
    source: CachedSource,
    sampler: StreamSampler,
    *,
    data: DataConfig,
    views: ViewConfig,
    mean: list[float],
    device: torch.device,
    labels: GiveLabels | None = None,
) -> Iterator[Sample]:
    """``make_stream`` with the images on ``device``; they are put there at once."""
    images = DeviceImages(source, sampler.stream, device, on_error=data.on_error, labels=labels)
    return device_batches(images, sampler, views, fill=padding_fill(mean).to(device),
                          ignore_index=data.ignore_index)  # fmt: skip
