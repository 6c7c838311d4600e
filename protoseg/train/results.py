"""What a run leaves behind: checkpoints with their description, pictures, and the last lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from protoseg.checkpoint import (
    BEST_DIR,
    CHECKPOINT_DIR,
    CheckpointInfo,
    git_revision,
    package_versions,
    save_checkpoint,
)
from protoseg.config.sections import Config, DataConfig, PrototypeConfig
from protoseg.data.lists import portable_root
from protoseg.data.sources import EvalSamples
from protoseg.draw import plots
from protoseg.draw.panel import panel
from protoseg.evaluate.measure import evaluate_segmenter
from protoseg.evaluate.results import EvalResult, format_table
from protoseg.inference import Autocast
from protoseg.manifest import InputRule
from protoseg.method.step import Networks
from protoseg.models.segmenter import Segmenter
from protoseg.processes import Processes
from protoseg.train.data import RunData
from protoseg.train.log import RunLog, read_metrics
from protoseg.train.progress import Progress
from protoseg.train.sharing import copy_checkpoint
from protoseg.train.state import States

PICTURE_DIR = "pictures"
PANEL_IMAGES = 4


def network_info(
    config: Config, data: RunData, prototypes: PrototypeConfig, stride_multiple: int
) -> CheckpointInfo:
    """Description of the run's network before any step.

    Args:
        config: All settings.
        data: Classes and normalisation.
        prototypes: Settings of the prototype head as it was built.
        stride_multiple: Images are padded to a multiple of this.
    """
    return CheckpointInfo(
        name=config.run.name,
        step=0,
        model=config.model,
        prototypes=prototypes,
        classes=data.classes,
        ignore_index=config.data.ignore_index,
        input=InputRule(
            channels=config.data.in_channels,
            mean=data.mean,
            std=data.std,
            stride_multiple=stride_multiple,
            resize=config.data.resize,
            crop=config.views.crop,
            value_range=data.value_range,
            exif=config.data.exif,
        ),
        data=_with_absolute_root(config.data.model_copy(update={"value_range": data.value_range})),
        eval=config.eval,
        data_hashes=data.hashes,
        metrics={},
        method=config.method.preset,
        weights_sha256="",
        versions=package_versions(),
        git_revision=git_revision(),
    )


class Results:
    """Evaluations of a run, and the checkpoints and pictures that come of them.

    Args:
        folder: The run folder.
        networks: Teacher, student and prototypes.
        info: See ``network_info``.
        samples: Validation images.
        processes: Who shares them.
        autocast: Gives the context of a forward pass.
        log: Is told.
        states: Keep what was trained when the images cannot be measured.
    """

    def __init__(
        self, folder: Path, networks: Networks, info: CheckpointInfo, samples: EvalSamples,
        processes: Processes, autocast: Autocast, log: RunLog, states: States,
    ) -> None:  # fmt: skip
        self.folder, self.networks, self.info = folder, networks, info
        self.samples, self.processes, self.autocast = samples, processes, autocast
        self.log, self.states = log, states
        self.segmenter = Segmenter(networks.teacher, networks.bank).eval()

    @property
    def best_folder(self) -> Path | None:
        """The best checkpoint so far, if there is one."""
        return self.folder / BEST_DIR if (self.folder / BEST_DIR).exists() else None

    def evaluate(
        self, step: int, *, unlabeled: bool, after_warmup: bool, min_delta: float
    ) -> EvalResult:  # fmt: skip
        """Measure the teacher on the validation images, each counted once over all processes, and keep it.

        Args:
            step: Optimiser steps done.
            unlabeled: Whether unlabelled images are in use.
            after_warmup: Whether it uses up ``train.patience`` if it is not better.
            min_delta: How much higher an mIoU counts as better for that.
        """
        with self.log.paused(), self.states.saved_on_error():
            result = evaluate_segmenter(
                self.segmenter, self.info, self.samples, self.processes, boundary=False,
                autocast=self.autocast, label=f"val {step}", progress=self.log.terminal.live,
            )  # fmt: skip
        self.log.log_evaluation(step, result, unlabeled=unlabeled)
        best = self.states.progress.note(result.miou, min_delta=min_delta, counts=after_warmup)
        if self.processes.rank == 0:
            self._save(step, result, best=best)
        return result

    def _save(self, step: int, result: EvalResult, *, best: bool) -> None:
        """Write checkpoint and pictures; ``best`` also keeps the checkpoint as the best so far."""
        metrics = {"step": step, "val": result.to_json([c.name for c in self.info.classes])}
        info = self.info.model_copy(update={"step": step, "metrics": metrics})
        checkpoint = self.folder / CHECKPOINT_DIR
        save_checkpoint(checkpoint, self.segmenter, info, self.networks.network)
        if best:
            copy_checkpoint(checkpoint, self.folder / BEST_DIR)
        picture = picture_path(self.folder, step)
        count = len(self.samples)
        chosen = np.linspace(0, count - 1, min(PANEL_IMAGES, count)).round().astype(int)
        panel(
            picture,
            self.segmenter,
            [self.samples[int(i)] for i in chosen],
            info.classes,
            ignore_index=info.ignore_index,
            resize=info.input.resize,
            config=info.eval,
            crop=info.input.crop,
        )
        plots.curves(read_metrics(self.folder / "metrics.jsonl"), self.folder / "curves.png")
        self.log.trackers.picture(picture, step)


def picture_path(folder: Path, step: int) -> Path:
    """The picture of the evaluation at a step."""
    return folder / PICTURE_DIR / f"step_{step:08d}.png"


def end_report(
    folder: Path, class_names: Sequence[str], result: EvalResult, progress: Progress, *, early: bool
) -> str:
    """The last lines of a run: IoU by class and head, where things are, what to do next.

    Args:
        folder: The run folder.
        class_names: Names by class id.
        result: The last evaluation.
        progress: How far it is, and its best evaluation.
        early: Whether the patience ended it.
    """
    lines = ["", "on the validation images:", format_table(result, class_names)]
    if progress.skipped_images:
        lines.append(f"{progress.skipped_images} unreadable image(s) were passed over")
    if early:
        lines += [
            "",
            f"stopped early at step {progress.step}: the last {progress.stale} evaluations brought no better "
            f"mIoU of the {progress.best_head} head (train.patience)",
        ]
    taken = folder / BEST_DIR if early else folder
    lines += ["", f"checkpoint  {folder / CHECKPOINT_DIR}"]
    if progress.best_value >= 0:
        since = f" at step {progress.best_step}" if progress.best_step else ""
        lines.append(
            f"best        {folder / BEST_DIR} ({progress.best_head} {progress.best_value:.2%}{since})"
        )
    lines += [
        f"pictures    {picture_path(folder, progress.step)}, {folder / 'curves.png'}",
        f"metrics     {folder / 'metrics.jsonl'}",
        "",
        f"next: python -m export.onnx {taken}",
        f"      python -m protoseg.predict {taken} IMAGES -o out",
    ]
    return "\n".join(lines)


def where(folder: Path, progress: Progress, *, early: bool) -> dict[str, Any]:
    """What ``end_report`` says, for machines."""
    best = {"head": progress.best_head, "miou": progress.best_value, "step": progress.best_step}
    return {
        "step": progress.step,
        "skipped_images": progress.skipped_images,
        "checkpoint": str(folder / CHECKPOINT_DIR),
        "best": {**best, "checkpoint": str(folder / BEST_DIR)} if progress.best_value >= 0 else None,
        "pictures": str(folder / PICTURE_DIR),
        "metrics": str(folder / "metrics.jsonl"),
        "next": f"python -m export.onnx {folder / BEST_DIR if early else folder}",
    }


def _with_absolute_root(data: DataConfig) -> DataConfig:
    """Lists are relative to the root; an absolute root finds them from any folder."""
    if data.kind == "synthetic":
        return data
    return data.model_copy(update={"root": portable_root(data)})
