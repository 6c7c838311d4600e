"""Measures a network on labelled images, each counted once on any number of processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from accelerate.utils import reduce as reduce_tensor
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from tqdm import tqdm

from protoseg.checkpoint import Checkpoint, CheckpointInfo
from protoseg.config.load import apply_override
from protoseg.config.sections import DataConfig, EvalConfig
from protoseg.data.images import resize_image, resize_mask
from protoseg.data.sources import EvalSamples, open_source
from protoseg.errors import ConfigError, DataError
from protoseg.evaluate.results import Accumulator, EvalResult, Reduce
from protoseg.inference import (
    HEADS,
    Autocast,
    HeadName,
    available_heads,
    image_batch,
    image_logits,
    inference,
    score,
    upsample,
    usable_device,
)
from protoseg.manifest import ResizeConfig, explain_validation
from protoseg.models.segmenter import Segmenter

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class Samples(Protocol):
    """Images with their masks: uint8 (H, W, C_in) and (H, W), both at their own size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


def evaluate_segmenter(
    segmenter: Segmenter,
    samples: Samples,
    *,
    num_classes: int,
    ignore_index: int,
    resize: ResizeConfig,
    config: EvalConfig,
    crop: tuple[int, int],
    device: torch.device | str,
    reduce: Reduce | None = None,
    shard: tuple[int, int] = (0, 1),
    heads: Sequence[HeadName] = HEADS,
    boundary: bool = True,
    autocast: Autocast | None = None,
    progress: Callable[[int], object] | None = None,
) -> EvalResult:
    """Measure a network on labelled images, each counted once on any number of processes.

    Args:
        segmenter: Network and prototypes, already on ``device``; its mode is restored.
        samples: Images and masks at their own size.
        num_classes: C.
        ignore_index: Mask value that is not counted.
        resize: Working size rule.
        config: Whole image or windows, and the size at which to score.
        crop: Training crop (height, width), the default window.
        device: Where to compute.
        reduce: Sums an int64 tensor over processes; None for one process.
        shard: (rank, world); rank r takes images r, r + world, ...
        heads: Heads to measure; without prototypes only ``linear`` is.
        boundary: Measure the boundary F-score (the slowest part on a CPU).
        autocast: Gives the context of a forward pass, as ``accelerator.autocast``.
        progress: Called with the number of images done since the last call.

    Returns:
        The metrics over all processes, the same on each.

    Raises:
        ValueError: If there is no image, or an image and its mask differ in size.
    """
    if len(samples) == 0:
        raise ValueError("there is no image to evaluate; check data.val")
    device = torch.device(device)
    used = available_heads(segmenter, heads)
    if not used:
        raise ValueError(f"heads {list(heads)} need prototypes, this network has none; use head 'linear'")
    counts = Accumulator.empty(len(used), num_classes, device)
    with inference(segmenter):
        for images, masks in _batches(samples, resize, config, shard):
            logits = image_logits(
                segmenter, image_batch(images, device), config, crop, autocast or nullcontext
            )
            for index, mask in enumerate(masks):
                full = upsample(logits.of_image(index), *mask.shape)
                target = torch.from_numpy(mask.astype(np.int64)).to(device)
                counts.add([score(full, head) for head in used], target, ignore_index, boundary)
            if progress is not None:
                progress(len(masks))
    return counts.reduced(reduce or (lambda value: value)).result(used, boundary=boundary)


def _batches(
    samples: Samples, resize: ResizeConfig, config: EvalConfig, shard: tuple[int, int]
) -> Iterator[tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]]:
    """This process's images at the working size with the masks to score: consecutive ones of one size."""
    size = config.batch_size if config.mode == "whole" else 1
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.uint8]] = []
    for index in range(shard[0], len(samples), shard[1]):
        image, mask = samples[index]
        if image.shape[:2] != mask.shape:
            name = getattr(samples, "name", lambda number: f"number {number}")(index)
            raise DataError(
                f"validation image {name} is {image.shape[0]}x{image.shape[1]}, its mask {mask.shape[0]}x"
                f"{mask.shape[1]} (height x width); they must be equal"
            )
        image = resize_image(image, resize)
        if config.at_working_size:
            mask = resize_mask(mask, resize)
        if images and (image.shape != images[0].shape or len(images) == size):
            yield images, masks
            images, masks = [], []
        images.append(image)
        masks.append(mask)
    if images:
        yield images, masks


def read_samples(data: DataConfig, split: str, info: CheckpointInfo) -> tuple[EvalSamples, str]:
    """Images and masks of a split, and the hash of its list.

    Raises:
        DataError: If a list or file is missing.
    """
    if split not in ("val", "labeled"):
        raise DataError(f"split {split!r} has no masks; use val or labeled")
    source = open_source(data, "val" if split == "val" else "labeled", info.classes)
    return EvalSamples(source), source.sha256


def override_data(data: DataConfig, overrides: Sequence[str]) -> DataConfig:
    """The stored data settings with ``key.sub=value`` (or ``data.key.sub=value``) over them.

    Raises:
        ConfigError: If a key is unknown or a value does not fit.
    """
    raw: dict[str, Any] = {"data": data.model_dump()}
    for item in overrides:
        apply_override(raw, item if item.startswith("data.") else f"data.{item}")
    try:
        return DataConfig.model_validate(raw["data"])
    except ValidationError as error:
        raise ConfigError(f"--data: {explain_validation(error)}") from error


@dataclass(frozen=True)
class Processes:
    """The processes that share the images, as ``accelerate launch`` starts them."""

    device: torch.device
    rank: int
    world: int

    @classmethod
    def current(cls, device: str | None) -> Processes:
        """This process, on ``device`` or on what accelerate finds.

        Raises:
            ValueError: If the device cannot be used.
        """
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if device is not None and not several:
            return cls(usable_device(device), 0, 1)
        # sums of CPU tensors need another backend than CUDA's; without a GPU accelerate joins processes only
        # when it is told that they are for the CPU, and each would measure all images
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
        state = PartialState(cpu=device == "cpu" or (several and on_cpu))
        chosen = state.device if device is None else usable_device(device)
        return cls(chosen, state.process_index, state.num_processes)

    def reduce(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        return value if self.world == 1 else reduce_tensor(value, "sum")


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    samples: Samples,
    processes: Processes,
    *,
    config: EvalConfig,
    heads: Sequence[HeadName] = HEADS,
    boundary: bool = True,
    label: str = "evaluate",
) -> EvalResult:
    """Measure a loaded checkpoint with a progress bar; arguments as ``evaluate_segmenter``."""
    info = checkpoint.info
    mine = len(range(processes.rank, len(samples), processes.world))
    pause = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=mine, desc=label, unit="image", disable=processes.rank > 0, leave=False,
              mininterval=pause) as bar:  # fmt: skip
        return evaluate_segmenter(
            checkpoint.segmenter.to(processes.device),
            samples,
            num_classes=len(info.classes),
            ignore_index=info.ignore_index,
            resize=info.input.resize,
            config=config,
            crop=info.input.crop,
            device=processes.device,
            reduce=processes.reduce,
            shard=(processes.rank, processes.world),
            heads=heads,
            boundary=boundary,
            progress=bar.update,
        )
