"""Images on their way to the trainer: sources, training samples, and the order they come in.

Nothing here holds random state. Which image comes at which position, and how it is cropped and
coloured, is a function of (seed, stream, position). A resumed run therefore continues with the very
next image, whatever the number of loader processes, and several processes share one global order.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from protoseg.config.sections import Config, DataConfig, ViewConfig
from protoseg.data.images import read_image, resize_image, resize_mask
from protoseg.data.lists import Entry, read_entries
from protoseg.data.masks import MaskReader, mask_reader
from protoseg.data.synthetic import SyntheticScenes
from protoseg.data.views import apply_geometry, color_view, draw_geometry
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

logger = logging.getLogger(__name__)

Split = Literal["labeled", "unlabeled", "val"]
Draw = tuple[int, int]
Sample = dict[str, Tensor]
STREAMS = {"labeled": 1, "unlabeled": 2, "steps": 3, "global": 4}
MAX_REPLACEMENTS = 20


class Source(Protocol):
    """Decoded images of one split."""

    sha256: str
    """Hash of what is in the split."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H, W, C) at its own size."""
        ...

    def mask(self, index: int) -> NDArray[np.uint8]:
        """(H, W) of class ids and ignore_index, at its own size."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...


class FileSource:
    """Images and masks from files."""

    def __init__(
        self, entries: tuple[Entry, ...], channels: int, masks: MaskReader | None, sha256: str
    ) -> None:
        self.entries, self.channels, self.masks, self.sha256 = entries, channels, masks, sha256

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode image ``index``.

        Raises:
            DataError: Naming the file.
        """
        return read_image(self.entries[index].image, self.channels)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Decode mask ``index``.

        Raises:
            DataError: Naming the file, if it is unreadable or has an unknown value.
        """
        path = self.entries[index].mask
        if path is None or self.masks is None:
            raise DataError(f"{self.entries[index].image} has no mask in this list")
        return self.masks.read(path)

    def name(self, index: int) -> str:
        """Path of the image."""
        return str(self.entries[index].image)


class SyntheticSource:
    """The embedded scenes."""

    def __init__(self, scenes: SyntheticScenes, split: Split) -> None:
        self.scenes, self.split = scenes, split
        self.sha256 = f"synthetic-{split}"

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Paint image ``index``."""
        return self.scenes.image(index)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Paint mask ``index``."""
        return self.scenes.mask(index)

    def name(self, index: int) -> str:
        """Split and number."""
        return f"synthetic {self.split} image {index}"


def open_source(config: DataConfig, split: Split, classes: list[ClassInfo]) -> Source:
    """The images of a split.

    Raises:
        DataError: If a list or file is missing.
    """
    if config.kind == "synthetic":
        return SyntheticSource(SyntheticScenes(config.synthetic, split), split)
    listed = read_entries(config, split)
    masks = None if split == "unlabeled" else mask_reader(config, classes)
    return FileSource(listed.entries, config.in_channels, masks, listed.sha256)


class CachedSource:
    """Images and masks of a source at the working size, decoded once when ``cache`` is set."""

    def __init__(self, source: Source, config: DataConfig) -> None:
        self.source, self.config = source, config
        self.kept: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H, W, C) at the working size."""
        found = self.kept.get(("image", index))
        if found is None:
            found = resize_image(self.source.image(index), self.config.resize)
            self._keep(("image", index), found)
        return found

    def mask(self, index: int) -> NDArray[np.uint8]:
        """(H, W) at the working size.

        Raises:
            DataError: If mask and image differ in size.
        """
        found = self.kept.get(("mask", index))
        if found is None:
            found = resize_mask(self.source.mask(index), self.config.resize)
            self._keep(("mask", index), found)
        return found

    def _keep(self, key: tuple[str, int], value: NDArray[np.uint8]) -> None:
        if self.config.cache:
            self.kept[key] = value


class TrainDataset(Dataset[Sample]):
    """Training views, addressed by (index of the image, position in the stream).

    Labelled samples: ``image`` (C, H, W) uint8, ``target`` (H, W) int64. Unlabelled samples: ``weak``
    (C, H, W) uint8, ``strong`` (V, C, H, W) uint8 and ``valid`` (H, W) bool, false in padding. Both:
    ``replaced``, the number of unreadable images passed over.

    Args:
        source: Images at the working size.
        views: View settings.
        stream: ``labeled`` or ``unlabeled``.
        seed: Seed of the run.
        fill: (C,) uint8 value of padding.
        ignore_index: Target value of padding.
        on_error: Stop at an unreadable image, or take the next one and count.
    """

    def __init__(
        self,
        source: CachedSource,
        views: ViewConfig,
        stream: Literal["labeled", "unlabeled"],
        *,
        seed: int,
        fill: Tensor,
        ignore_index: int,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.source, self.views, self.stream, self.seed = source, views, stream, seed
        self.fill, self.ignore_index, self.on_error = fill, ignore_index, on_error

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> Sample:
        """The sample of one draw.

        Raises:
            DataError: If the image is unreadable and ``on_error`` is ``raise``, or if too many are.
        """
        index, position = draw
        for attempt in range(MAX_REPLACEMENTS):
            rng = np.random.default_rng([self.seed, STREAMS[self.stream], position])
            try:
                sample = self._sample((index + attempt) % len(self), rng)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                logger.warning("skipped: %s", error)
                continue
            sample["replaced"] = torch.tensor(attempt)
            return sample
        raise DataError(
            f"{MAX_REPLACEMENTS} images in a row cannot be read, the last one "
            f"{self.source.source.name((index + attempt) % len(self))}; run python -m protoseg.check"
        )

    def _sample(self, index: int, rng: np.random.Generator) -> Sample:
        image = to_tensor(self.source.image(index))
        geometry = draw_geometry(self.views, image.shape[1], image.shape[2], rng)
        weak = apply_geometry(image, geometry, self.views.crop, self.fill)
        if self.stream == "labeled":
            mask = torch.from_numpy(np.ascontiguousarray(self.source.mask(index)))[None]
            if mask.shape[1:] != image.shape[1:]:
                raise DataError(
                    f"{self.source.source.name(index)}: the image is {image.shape[1]}x{image.shape[2]}, its "
                    f"mask {mask.shape[1]}x{mask.shape[2]} (height x width); they must be equal"
                )
            ignore = torch.tensor([self.ignore_index], dtype=torch.uint8)
            target = apply_geometry(mask, geometry, self.views.crop, ignore, nearest=True)[0]
            if self.views.labeled_jitter:
                weak = color_view(weak, self.views, rng)
            return {"image": weak, "target": target.long()}
        inside = torch.ones(1, *image.shape[1:], dtype=torch.uint8)
        outside = torch.zeros(1, dtype=torch.uint8)
        valid = apply_geometry(inside, geometry, self.views.crop, outside, nearest=True)[0].bool()
        strong = [color_view(weak, self.views, rng) for _ in range(self.views.strong_views)]
        return {"weak": weak, "strong": torch.stack(strong), "valid": valid}


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, C) uint8 array -> (C, H, W) uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class StreamSampler(Sampler[list[Draw]]):
    """Batches of draws, from a global order that every process knows.

    Position ``p`` of the stream is image ``order(p // n)[p % n]`` with a new random order each pass.
    Micro-step ``m`` of process ``r`` takes positions ``(m * world + r) * B`` and the B - 1 after it.

    Args:
        length: Images in the list.
        batch_size: B, images of one process and micro-step.
        seed: Seed of the run.
        stream: Which order.
        start: First micro-step.
        stop: Micro-step before which to end.
        rank: This process.
        world: Number of processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        stream: Literal["labeled", "unlabeled"],
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.length, self.batch_size, self.seed, self.stream = length, batch_size, seed, stream
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def order(self, number: int) -> NDArray[np.int64]:
        """Order of pass ``number`` over the list."""
        key = [self.seed, 100 + STREAMS[self.stream], number]
        return np.random.default_rng(key).permutation(self.length)

    def __iter__(self) -> Iterator[list[Draw]]:
        known: dict[int, NDArray[np.int64]] = {}
        for micro_step in range(self.start, self.stop):
            first = (micro_step * self.world + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                number, place = divmod(position, self.length)
                if number not in known:
                    known = {k: v for k, v in known.items() if k >= number - 1}
                    known[number] = self.order(number)
                batch.append((int(known[number][place]), position))
            yield batch


@dataclass(frozen=True)
class Streams:
    """Endless training batches from a given micro-step on."""

    labeled: Iterator[Sample]
    unlabeled: Iterator[Sample] | None


def padding_fill(mean: list[float]) -> Tensor:
    """(C,) uint8: the grey level that normalisation turns into (about) zero."""
    return torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)


def make_stream(
    config: Config,
    source: CachedSource,
    stream: Literal["labeled", "unlabeled"],
    *,
    mean: list[float],
    start: int,
    stop: int,
    rank: int,
    world: int,
) -> Iterator[Sample]:
    """Batches of one stream for one process, micro-steps ``start`` to ``stop``."""
    dataset = TrainDataset(
        source,
        config.views,
        stream,
        seed=config.train.seed,
        fill=padding_fill(mean),
        ignore_index=config.data.ignore_index,
        on_error=config.data.on_error,
    )
    sampler = StreamSampler(
        len(source),
        config.train.batch_size,
        seed=config.train.seed,
        stream=stream,
        start=start,
        stop=stop,
        rank=rank,
        world=world,
    )
    workers = config.data.num_workers
    loader: DataLoader[Sample] = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_work_until_the_trainer_ends,
        # a generator of its own: making the iterator must not draw from the global one
        generator=torch.Generator().manual_seed(config.train.seed),
    )
    return _with_plain_errors(loader)


def _work_until_the_trainer_ends(number: int) -> None:
    """Make a loader process deaf to signals that are meant for the trainer.

    Terminals and job managers signal every process. Without its loader processes the trainer could not
    finish the step and save its state. SIGTERM from the trainer itself still ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    # torch's handler ends the process whoever sent the signal; blocked, it waits for the thread below
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trainer = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _with_plain_errors(loader: DataLoader[Sample]) -> Iterator[Sample]:
    """The batches; a loader process's error without the traceback that torch puts around its text."""
    try:
        yield from loader
    except DataError as error:
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None


class EvalSamples:
    """Validation pairs at their own size, as ``evaluate_segmenter`` takes them."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, C) and mask (H, W)."""
        return self.source.image(index), self.source.mask(index)

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        return Path(self.source.name(index)).stem
