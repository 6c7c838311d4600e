"""What a run leaves behind: checkpoints with their description, pictures, and the last lines."""

from __future__ import annotations

from pathlib import Path

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
from protoseg.manifest import ClassInfo, InputRule
from protoseg.method.step import Networks
from protoseg.models.segmenter import Segmenter
from protoseg.processes import Processes
from protoseg.train.data import RunData
from protoseg.train.log import RunLog, read_metrics
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

    def evaluate(self, step: int, *, unlabeled: bool) -> EvalResult:
        """Measure the teacher on the validation images, each counted once over all processes, and keep it.

        Args:
            step: Optimiser steps done.
            unlabeled: Whether unlabelled images are in use.
        """
        with self.log.paused(), self.states.saved_on_error():
            result = evaluate_segmenter(
                self.segmenter, self.info, self.samples, self.processes, boundary=False,
                autocast=self.autocast, label=f"val {step}",
            )  # fmt: skip
        self.log.log_evaluation(step, result.miou, unlabeled=unlabeled)
        best = self.states.progress.is_best(result.miou["linear"])
        if self.processes.rank == 0:
            self._save(step, result, best=best)
        return result

    def _save(self, step: int, result: EvalResult, *, best: bool) -> None:
        """Write checkpoint and pictures; ``best`` also keeps the checkpoint as the best so far."""
        metrics = {"step": step, "val": result.to_json([c.name for c in self.info.classes])}
        info = self.info.model_copy(update={"step": step, "metrics": metrics})
        for name in (CHECKPOINT_DIR, BEST_DIR)[: 1 + best]:
            save_checkpoint(self.folder / name, self.segmenter, info, self.networks.network)
        count = len(self.samples)
        chosen = np.linspace(0, count - 1, min(PANEL_IMAGES, count)).round().astype(int)
        panel(
            self.folder / PICTURE_DIR / f"step_{step:08d}.png",
            self.segmenter,
            [self.samples[int(i)] for i in chosen],
            info.classes,
            ignore_index=info.ignore_index,
            resize=info.input.resize,
            config=info.eval,
            crop=info.input.crop,
        )
        plots.curves(read_metrics(self.folder / "metrics.jsonl"), self.folder / "curves.png")


def end_report(folder: Path, classes: list[ClassInfo], result: EvalResult, skipped_images: int) -> str:
    """The last lines of a run: IoU by class and head, where things are, what to do next."""
    lines = ["", "on the validation images:", format_table(result, [item.name for item in classes])]
    if skipped_images:
        lines.append(f"{skipped_images} unreadable image(s) were passed over")
    lines += [
        "",
        f"checkpoint  {folder / CHECKPOINT_DIR}",
        f"pictures    {folder / PICTURE_DIR}, {folder / 'curves.png'}",
        f"metrics     {folder / 'metrics.jsonl'}",
        "",
        f"next: python -m export.onnx {folder}",
    ]
    return "\n".join(lines)


def _with_absolute_root(data: DataConfig) -> DataConfig:
    """Lists are relative to the root; an absolute root finds them from any folder."""
    if data.kind == "synthetic":
        return data
    return data.model_copy(update={"root": portable_root(data)})
