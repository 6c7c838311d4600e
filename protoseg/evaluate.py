"""Measures a checkpoint on labelled images.

``python -m protoseg.evaluate CKPT`` prints a table per class and writes ``evaluation.json`` and
``confusion.png`` into the run folder; ``accelerate launch -m protoseg.evaluate CKPT`` shares the images
among processes, each counted once.

Shape legend: ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
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

from protoseg.checkpoint import STUDENT_NAME, Checkpoint, CheckpointError, CheckpointInfo, load_checkpoint
from protoseg.config import ConfigError, DataConfig, EvalConfig, ResizeConfig, apply_override
from protoseg.counts import Accumulator, EvalResult, Reduce, format_table
from protoseg.data.datasets import EvalSamples, open_source
from protoseg.data.errors import DataError
from protoseg.data.images import resize_image, resize_mask, write_text
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
from protoseg.manifest import explain_validation
from protoseg.models.segmenter import Segmenter
from protoseg.plots import confusion_picture

__all__ = ["EvalResult", "Samples", "evaluate_checkpoint", "evaluate_segmenter", "main"]

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


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.evaluate",
        description="Measure a checkpoint on labelled images: IoU by class, mIoU, pixel accuracy, boundary "
        "F-score, expected calibration error, for the teacher and the student and for each head.",
        epilog="Several processes: accelerate launch -m protoseg.evaluate CKPT; each image counts once.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="run folder, checkpoint folder, or a file in it")
    add("--json", metavar="FILE", type=Path, help="where to write the numbers (default: the run folder)")
    add(
        "--confusion",
        metavar="PNG",
        type=Path,
        help="where to write the confusion matrix (default: likewise)",
    )
    add("--split", choices=("val", "labeled"), default="val", help="images to measure on (default: val)")
    add("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="heads to measure (default: all)")
    add("--mode", choices=("whole", "sliding"), help="whole images, or overlapping windows with averaged "
        "logits (default: as in training)")  # fmt: skip
    add("--teacher-only", action="store_true", help="leave out the student")
    add("--no-boundary", action="store_true", help="leave out the boundary F-score, the slowest part")
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    add("--data", nargs="+", default=[], action="extend", metavar="key.sub=value",
        help="data settings over the stored ones, as root=/data/camvid val=test.txt")  # fmt: skip
    return parser.parse_intermixed_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and write the results.

    Raises:
        CheckpointError, ConfigError, DataError, ValueError: With a text for the user.
    """
    teacher = load_checkpoint(arguments.checkpoint)
    info = teacher.info
    names = [item.name for item in info.classes]
    data = override_data(info.data, arguments.data)
    samples, digest = read_samples(data, arguments.split, info)
    config = info.eval if arguments.mode is None else info.eval.model_copy(update={"mode": arguments.mode})
    processes = Processes.current(arguments.device)
    results = {}
    networks = {"teacher": teacher}
    if not arguments.teacher_only and (teacher.path / STUDENT_NAME).is_file():
        networks["student"] = load_checkpoint(teacher.path, student=True)
    for name, checkpoint in networks.items():
        results[name] = evaluate_checkpoint(
            checkpoint, samples, processes, config=config, heads=arguments.heads,
            boundary=not arguments.no_boundary, label=name,
        )  # fmt: skip
    if processes.rank > 0:
        return
    suffix = "" if arguments.split == "val" else f"_{arguments.split}"
    run_folder = teacher.path.parent
    json_path = arguments.json or run_folder / f"evaluation{suffix}.json"
    picture_path = arguments.confusion or run_folder / f"confusion{suffix}.png"
    report = {
        "name": info.name, "step": info.step, "weights_sha256": info.weights_sha256,
        "split": arguments.split, "list_sha256": digest, "eval": config.model_dump(mode="json"),
        **results["teacher"].to_json(names),
        "confusion": {head: table.tolist() for head, table in results["teacher"].confusion.items()},
    }  # fmt: skip
    if "student" in results:
        report["student"] = results["student"].to_json(names)
    for path in (json_path, picture_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, allow_nan=False)
    # a row of counts on a line, so that people can read the tables
    text = re.sub(r"\[\s+([\d\s,]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    write_text(json_path, text + "\n")
    confusion_picture(results["teacher"].confusion, names, picture_path)
    for name, result in results.items():
        print_lines(
            f"{name}, {result.num_images} images of {arguments.split}, step {info.step}",
            format_table(result, names),
        )
    print_lines(f"numbers    {json_path}", f"confusion  {picture_path}")


def print_lines(*lines: str) -> None:
    """Write lines to the standard output."""
    sys.stdout.write("\n".join(lines) + "\n\n")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except (CheckpointError, ConfigError, DataError, ValueError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank == 0:
            sys.stderr.write(f"error: {error}\n")
        elif isinstance(error, DataError):  # it may be about an image that no other process reads
            sys.stderr.write(f"error (process {rank}): {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
