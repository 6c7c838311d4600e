"""Measures a network on labelled images, each counted once on any number of processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from protoseg.checkpoint import CheckpointInfo
from protoseg.config.data import DataConfig
from protoseg.config.load import apply_override
from protoseg.config.training import EvalConfig
from protoseg.data.images import resize_image, resize_mask
from protoseg.data.sources import EvalSamples, open_source
from protoseg.errors import ConfigError, DataError
from protoseg.evaluate.results import Accumulator, EvalResult
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
from protoseg.input_rule import ResizeConfig
from protoseg.models.segmenter import Segmenter
from protoseg.processes import Processes
from protoseg.records import explain_validation

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class Samples(Protocol):
    """Images with their masks: uint8 (H, W, C_in) and (H, W), both at their own size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


def evaluate_segmenter(
    segmenter: Segmenter,
    info: CheckpointInfo,
    samples: Samples,
    processes: Processes,
    *,
    config: EvalConfig | None = None,
    heads: Sequence[HeadName] = HEADS,
    boundary: bool = True,
    autocast: Autocast = nullcontext,
    label: str = "evaluate",
    progress: bool = True,
) -> EvalResult:
    """Measure a network on labelled images, each counted once on any number of processes.

    Args:
        segmenter: Network and prototypes; moved to the device, its mode is restored.
        info: Its description: classes, preprocessing.
        samples: Images and masks at their own size.
        processes: Who shares the images, and where to compute.
        config: Whole image or windows, and the size at which to score; None as in training.
        heads: Heads to measure; without prototypes only ``linear`` is.
        boundary: Measure the boundary F-score (the slowest part on a CPU).
        autocast: Gives the context of a forward pass, as ``accelerator.autocast``.
        label: Beside the bar.
        progress: Show a bar.

    Returns:
        The metrics over all processes, the same on each.

    Raises:
        DataError: If there is no image, or an image and its mask differ in size.
        ConfigError: If none of the heads can be used.
    """
    if len(samples) == 0:
        raise DataError("there is no image to evaluate; check data.val")
    config, device = config or info.eval, processes.device
    used = available_heads(segmenter, heads)
    if not used:
        raise ConfigError(f"heads {list(heads)} need prototypes, this network has none; use head 'linear'")
    counts = Accumulator.empty(len(used), len(info.classes), device)
    bar = tqdm(total=len(processes.mine(len(samples))), desc=label, unit="image", leave=False,
               disable=processes.rank > 0 or not progress, dynamic_ncols=True,
               mininterval=0.5 if sys.stderr.isatty() else 10.0)  # fmt: skip
    with bar, inference(segmenter.to(device)):
        for images, masks in _batches(samples, info.input.resize, config, processes):
            batch = image_batch(images, device)
            logits = image_logits(segmenter, batch, config, info.input.crop, autocast)
            for index, mask in enumerate(masks):
                full = upsample(logits.of_image(index), *mask.shape)
                target = torch.from_numpy(mask.astype(np.int64)).to(device)
                counts.add([score(full, head) for head in used], target, info.ignore_index, boundary)
            bar.update(len(masks))
    return counts.reduced(processes.reduce).result(used, boundary=boundary)


def _batches(
    samples: Samples, resize: ResizeConfig, config: EvalConfig, processes: Processes
) -> Iterator[tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]]:
    """This process's images at the working size with the masks to score: consecutive ones of one size."""
    size = config.batch_size if config.mode == "whole" else 1
    images: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.uint8]] = []
    for index in processes.mine(len(samples)):
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


def current_processes(device: str | None) -> Processes:
    """The processes that share the images, as ``accelerate launch`` starts them.

    Args:
        device: Where this one computes; None takes what accelerate finds.

    Raises:
        UserError: If the device cannot be used.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device is not None and not several:
        return Processes(device=usable_device(device))
    # sums of CPU tensors need another backend than CUDA's; without a GPU accelerate joins processes only
    # when it is told that they are for the CPU, and each would measure all images
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    state = PartialState(cpu=device == "cpu" or (several and on_cpu))
    chosen = state.device if device is None else usable_device(device)
    return Processes(state.process_index, state.num_processes, chosen)
