"""What labels in place of the moving average, and what labelled images say about a teacher's confidences."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from protoseg.checkpoint import Checkpoint, load_checkpoint
from protoseg.config.method import PseudoLabelConfig
from protoseg.config.sections import Config
from protoseg.data.lists import data_root, expand_path
from protoseg.data.soft_labels import SoftLabels
from protoseg.data.sources import CachedSource
from protoseg.data.stream import to_tensor
from protoseg.errors import CheckpointError
from protoseg.method.calibration import LOWEST_LOG, Calibration, Evidence, describe, judge
from protoseg.method.inputs import Autocast, Networks
from protoseg.method.labelling import teacher_scores
from protoseg.method.pseudo_labels import fuse
from protoseg.models.depthwise import cheap_depthwise
from protoseg.processes import Processes
from protoseg.train.data import RunData
from protoseg.train.numerics import channels_last

logger = logging.getLogger("protoseg")

Scores = Callable[[int, Tensor], Tensor]
"""Number of a labelled image, and the image (1, C_in, H, W) uint8 -> scores (1, C, H, W)."""


class FrozenTeacher:
    """A trained network that labels weak views and never changes.

    Args:
        checkpoint: The network; its best head labels.
        scale: Factors of height and width by which images are resized for it.
        device: Where it computes.
        layout: Whether memory is channels last, as the student's.
        autocast: Gives the context of the forward pass.
    """

    def __init__(
        self, checkpoint: Checkpoint, scale: tuple[float, float], device: torch.device, *,
        layout: bool, autocast: Autocast,
    ) -> None:  # fmt: skip
        self.segmenter = checkpoint.segmenter.requires_grad_(False).eval()
        self.head, self.scale, self.autocast = checkpoint.info.best_head(), scale, autocast
        if layout:
            self.segmenter.network.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            cheap_depthwise(self.segmenter.network)
        self.segmenter.to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C_in, H, W) uint8 -> scores (B, C, H, W): logits, or logarithms of probabilities."""
        with torch.inference_mode():
            scores = self._scores(images)
        return scores.clone()  # an inference tensor may not take part in a training step

    def _scores(self, images: Tensor) -> Tensor:
        own = (images.shape[2], images.shape[3])
        size = max(1, round(own[0] * self.scale[0])), max(1, round(own[1] * self.scale[1]))
        pixels = images.float()
        if size != own:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
        with self.autocast():
            output = self.segmenter(pixels)
        linear, prototype = output.linear_logits.float(), output.prototype_logits.float()
        scores = {"linear": linear, "prototype": prototype}.get(self.head)
        if scores is None:
            scores = fuse(linear, prototype).clamp(min=LOWEST_LOG).log()
        return (
            scores if size == own else F.interpolate(scores, size=own, mode="bilinear", align_corners=False)
        )


class FolderLabels:
    """Labels of the unlabelled images from a folder, at the working size; kept with ``data.cache``.

    Args:
        files: Of the unlabelled images.
        num_classes: C.
        cache: Keep them in memory.
    """

    def __init__(self, files: SoftLabels, num_classes: int, *, cache: bool) -> None:
        self.files, self.cache = files, cache
        self.temperature = torch.ones(num_classes)
        self.kept: dict[int, NDArray[np.uint8]] = {}

    def __call__(self, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """(3, H, W) bytes, see ``SoftLabels.packed``."""
        found = self.kept.get(index)
        if found is None:
            found = self.files.packed(index, size, self.temperature)
            if self.cache:
                self.kept[index] = found
        return found


@dataclass(frozen=True)
class Outside:
    """What labels in place of the moving average."""

    name: str
    """The setting and its value."""
    sha256: str
    """Hash of the weights, or of the folder's names and sizes."""
    scores: Scores
    """Its scores of a labelled image."""
    network: FrozenTeacher | None = None
    labels: FolderLabels | None = None

    def record(self, calibration: Calibration | None) -> dict[str, Any]:
        """What a checkpoint says about it."""
        found: dict[str, Any] = {"from": self.name, "sha256": self.sha256}
        if calibration is not None:
            found["temperature"] = [round(value, 4) for value in calibration.temperature.tolist()]
            found["threshold"] = float(calibration.threshold)
        return found


def open_outside(config: Config, data: RunData, device: torch.device, autocast: Autocast) -> Outside | None:
    """The teacher from outside, or None.

    Raises:
        CheckpointError, DataError: If it is missing or does not fit the run.
    """
    settings = config.pseudo_labels
    if not (config.method.unlabeled and settings.from_outside):
        return None
    names = [item.name for item in data.classes]
    if settings.folder is not None:
        root, folder = data_root(config.data), expand_path(settings.folder).absolute()
        any_ratio = config.data.resize.mode == "fixed"
        assert data.unlabeled is not None

        def files(source: CachedSource) -> SoftLabels:
            images = [Path(source.source.name(index)) for index in range(len(source))]
            return SoftLabels(folder, images, names, root, any_ratio=any_ratio)

        own = files(data.unlabeled)
        measured = files(data.held_out or data.labeled) if settings.measured else None

        def scores(index: int, image: Tensor) -> Tensor:
            assert measured is not None
            return measured.scores(index, (image.shape[2], image.shape[3]))[None]

        labels = FolderLabels(own, len(names), cache=config.data.cache is True)
        logger.info("pseudo-labels come from %d files of %s", len(own), folder)
        return Outside(f"pseudo_labels.folder={settings.folder}", own.fingerprint(), scores, labels=labels)
    assert settings.teacher is not None
    checkpoint = load_checkpoint(expand_path(settings.teacher))
    check_teacher(checkpoint, settings.teacher, data, names)
    crop, size = config.views.crop, settings.teacher_size or config.views.crop
    network = FrozenTeacher(
        checkpoint, (size[0] / crop[0], size[1] / crop[1]), device,
        layout=channels_last(config.train.channels_last, device), autocast=autocast,
    )  # fmt: skip
    info = checkpoint.info
    logger.info("pseudo-labels come from %s (%s on %s, step %d, %s head), weak views at %dx%d",
                checkpoint.path, info.model.architecture, info.model.encoder, info.step, network.head,
                *size)  # fmt: skip
    if settings.measured and info.data_hashes.get("labeled") == data.hashes["labeled"]:
        logger.warning(
            "warning: pseudo_labels.teacher was trained on the same labelled images: what they say about its "
            "confidences flatters it, unless it was trained with the same pseudo_labels.held_out and "
            "train.seed"
        )
    return Outside(f"pseudo_labels.teacher={settings.teacher}", info.weights_sha256,
                   lambda index, image: network(image.to(device)), network=network)  # fmt: skip


def check_teacher(checkpoint: Checkpoint, given: str, data: RunData, names: list[str]) -> None:
    """See that a teacher's images and classes are the run's.

    Raises:
        CheckpointError: If not.
    """
    theirs = [item.name for item in checkpoint.info.classes]
    if theirs != names:
        raise CheckpointError(
            f"pseudo_labels.teacher={given} has the classes {', '.join(theirs)}; this run has "
            f"{', '.join(names)}. They must be the same, in the same order"
        )
    rule = checkpoint.info.input
    if rule.channels != len(data.mean):
        raise CheckpointError(
            f"pseudo_labels.teacher={given} takes images of {rule.channels} channel(s), this run's have "
            f"{len(data.mean)}; set data.in_channels"
        )
    if rule.value_range is not None and data.value_range is not None and rule.value_range != data.value_range:
        raise CheckpointError(
            f"pseudo_labels.teacher={given} was trained with values of {rule.value_range[0]:g} to "
            f"{rule.value_range[1]:g}, this run has {data.value_range[0]:g} to {data.value_range[1]:g}; set "
            "data.value_range"
        )


def calibrate(
    calibration: Calibration,
    source: CachedSource,
    scores: Scores,
    settings: PseudoLabelConfig,
    processes: Processes,
    *,
    who: str,
) -> None:
    """Measure a teacher on labelled images, whole and unaugmented, and take over what comes of it.

    Args:
        calibration: Changed in place, alike on every process.
        source: Labelled images.
        scores: Of the teacher.
        settings: Which temperatures, and which precision.
        processes: Who shares the images.
        who: Name of the teacher for the log.
    """
    evidence = Evidence(len(calibration.temperature), processes.device)
    for index in processes.mine(len(source)):
        image = to_tensor(source.image(index))[None]
        target = torch.from_numpy(source.mask(index).astype(np.int64))[None].to(processes.device)
        evidence.add(scores(index, image).to(processes.device), target)
    verdict = judge(evidence.reduced(processes.reduce), settings.calibration, settings.target_precision)
    calibration.set(verdict)
    logger.info("%s, measured on %d labelled images: %s", who, len(source),
                describe(verdict, settings.target_precision))  # fmt: skip
    if not verdict.reached:
        logger.warning(
            "warning: no threshold reaches pseudo_labels.target_precision=%g; the strictest one is used",
            settings.target_precision,
        )


def calibrate_own(
    networks: Networks,
    source: CachedSource,
    settings: PseudoLabelConfig,
    processes: Processes,
    step: int,
    *,
    prototypes: bool,
    autocast: Autocast,
) -> None:
    """Measure the moving average before a step; see ``calibrate``."""
    assert networks.calibration is not None

    def scores(index: int, image: Tensor) -> Tensor:
        return teacher_scores(networks.teacher, networks.bank, image.to(processes.device), settings,
                              prototypes=prototypes, autocast=autocast).scores  # fmt: skip

    calibrate(networks.calibration, source, scores, settings, processes, who=f"step {step}: teacher")


def check_outside(settings: PseudoLabelConfig, run: Path) -> None:
    """See that a teacher does not lie in the run folder, which a new run moves aside.

    Raises:
        CheckpointError: If it does.
    """
    for key in ("teacher", "folder"):
        given = getattr(settings, key)
        if given is not None and expand_path(given).resolve().is_relative_to(run.resolve()):
            raise CheckpointError(
                f"pseudo_labels.{key}={given} lies in the folder of this run; give the run another run.name"
            )
