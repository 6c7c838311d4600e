"""Images on their way to the trainer: training samples, and the order they come in.

Nothing here holds random state. Which image comes at which position, and how it is cropped and
coloured, is a function of (seed, stream, position). A resumed run therefore continues with the very
next image, whatever the number of loader processes, and several processes share one global order.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from protoseg.config.data import DataConfig, ViewConfig
from protoseg.data.sources import CachedSource
from protoseg.data.views import apply_geometry, color_view, draw_geometry
from protoseg.errors import DataError
from protoseg.seeds import generator

logger = logging.getLogger(__name__)

Stream = Literal["labeled", "unlabeled"]
OnError = Literal["raise", "skip"]
Draw = tuple[int, int]
Sample = dict[str, Tensor]
GiveLabels = Callable[[int, tuple[int, int]], NDArray[np.uint8]]
MAX_REPLACEMENTS = 20


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
        labels: Gives labels of an unlabelled image, by its number and (height, width), as bytes (3, H, W),
            see ``SoftLabels.packed``; samples then have them as ``given``, (3, H, W) uint8.
    """

    def __init__(
        self,
        source: CachedSource,
        views: ViewConfig,
        stream: Stream,
        *,
        seed: int,
        fill: Tensor,
        ignore_index: int,
        on_error: OnError = "raise",
        labels: GiveLabels | None = None,
    ) -> None:
        self.labels = labels
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
            rng = generator(self.seed, self.stream, position)
            try:
                sample = self._sample((index + attempt) % len(self), rng)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                logger.warning("skipped: %s", error)
                continue
            sample["replaced"] = torch.tensor(attempt)
            return sample
        raise too_many_unreadable(self.source, index)

    def _sample(self, index: int, rng: np.random.Generator) -> Sample:
        image = to_tensor(self.source.image(index))
        geometry = draw_geometry(self.views, image.shape[1], image.shape[2], rng)
        weak = apply_geometry(image, geometry, self.views.crop, self.fill)
        if self.stream == "labeled":
            mask = torch.from_numpy(np.ascontiguousarray(self.source.mask(index)))[None]
            if mask.shape[1:] != image.shape[1:]:
                raise unequal_sizes(self.source.source.name(index), image.shape[1:], mask.shape[1:])
            ignore = torch.tensor([self.ignore_index], dtype=torch.uint8)
            target = apply_geometry(mask, geometry, self.views.crop, ignore, nearest=True)[0]
            if self.views.labeled_jitter:
                weak = color_view(weak, self.views, rng)
            return {"image": weak, "target": target.long()}
        inside = torch.ones(1, *image.shape[1:], dtype=torch.uint8)
        outside = torch.zeros(1, dtype=torch.uint8)
        valid = apply_geometry(inside, geometry, self.views.crop, outside, nearest=True)[0].bool()
        strong = [color_view(weak, self.views, rng) for _ in range(self.views.strong_views)]
        sample = {"weak": weak, "strong": torch.stack(strong), "valid": valid}
        if self.labels is not None:
            given = torch.from_numpy(self.labels(index, (image.shape[1], image.shape[2])))
            nothing = torch.zeros(3, dtype=torch.uint8)
            sample["given"] = apply_geometry(given, geometry, self.views.crop, nothing, nearest=True)
        return sample


def too_many_unreadable(source: CachedSource, index: int) -> DataError:
    """``MAX_REPLACEMENTS`` images from ``index`` on cannot be read."""
    last = source.source.name((index + MAX_REPLACEMENTS - 1) % len(source))
    return DataError(
        f"{MAX_REPLACEMENTS} images in a row cannot be read, the last one {last}; run python -m "
        "protoseg.check"
    )


def unequal_sizes(name: str, image: Sequence[int], mask: Sequence[int]) -> DataError:
    """Image and mask differ in (height, width)."""
    return DataError(
        f"{name}: the image is {image[0]}x{image[1]}, its mask {mask[0]}x{mask[1]} (height x width); they "
        "must be equal"
    )


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
        pick: The image at a position, in place of the random order.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        stream: Stream,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        pick: Callable[[int], int] | None = None,
    ) -> None:
        self.pick = pick
        self.length, self.batch_size, self.seed, self.stream = length, batch_size, seed, stream
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def order(self, number: int) -> NDArray[np.int64]:
        """Order of pass ``number`` over the list."""
        return generator(self.seed, f"{self.stream} order", number).permutation(self.length)

    def __iter__(self) -> Iterator[list[Draw]]:
        known: dict[int, NDArray[np.int64]] = {}
        for micro_step in range(self.start, self.stop):
            first = (micro_step * self.world + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if self.pick is not None:
                    batch.append((self.pick(position), position))
                    continue
                number, place = divmod(position, self.length)
                if number not in known:
                    known = {k: v for k, v in known.items() if k >= number - 1}
                    known[number] = self.order(number)
                batch.append((int(known[number][place]), position))
            yield batch


def padding_fill(mean: list[float]) -> Tensor:
    """(C,) uint8: the grey level that normalisation turns into (about) zero."""
    return torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)


def make_stream(
    source: CachedSource,
    sampler: StreamSampler,
    *,
    data: DataConfig,
    views: ViewConfig,
    mean: list[float],
    labels: GiveLabels | None = None,
) -> Iterator[Sample]:
    """Batches of one stream for one process.

    Args:
        source: Images at the working size.
        sampler: Which of them, when.
        data: For ``ignore_index``, ``on_error`` and ``num_workers``.
        views: View settings.
        mean: The network's mean in [0, 1], the value of padding.
        labels: See ``TrainDataset``.
    """
    dataset = TrainDataset(
        source, views, sampler.stream, seed=sampler.seed, fill=padding_fill(mean),
        ignore_index=data.ignore_index, on_error=data.on_error, labels=labels,
    )  # fmt: skip
    loader: DataLoader[Sample] = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=data.num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=data.num_workers > 0,
        worker_init_fn=_work_until_the_trainer_ends,
        # a generator of its own: making the iterator must not draw from the global one
        generator=torch.Generator().manual_seed(sampler.seed),
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
