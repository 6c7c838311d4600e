"""What a run leaves behind: checkpoints with their description, pictures, and the last lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from protoseg.checkpoint import BEST_DIR, CHECKPOINT_DIR, CheckpointInfo, read_info, save_checkpoint
from protoseg.config.data import DataConfig
from protoseg.config.method import PrototypeConfig
from protoseg.config.sections import Config
from protoseg.data.lists import portable_root
from protoseg.data.sources import EvalSamples, Source
from protoseg.data.stream import Sample
from protoseg.draw import plots, views
from protoseg.draw.panel import panel
from protoseg.evaluate.measure import evaluate_segmenter
from protoseg.evaluate.results import EvalResult, format_table
from protoseg.explain.atlas import ATLAS_DIR, SHEET_NAME
from protoseg.explain.make import make_atlas
from protoseg.inference import Autocast
from protoseg.input_rule import InputRule
from protoseg.method.inputs import Networks
from protoseg.method.labelling import StrongViews
from protoseg.models.segmenter import Segmenter
from protoseg.processes import Processes
from protoseg.train.data import RunData
from protoseg.train.labeled import ClassCount
from protoseg.train.log import RunLog, read_metrics
from protoseg.train.progress import Progress
from protoseg.train.sharing import copy_checkpoint
from protoseg.train.state import States
from protoseg.train.tracker_kinds import PICTURE
from protoseg.versions import git_revision, package_versions

PICTURE_DIR = "pictures"
PANEL_IMAGES = 4
LOOKS = 10
"""Batches within which one is waited for that is mixed."""
ATLAS_SHEET = f"{ATLAS_DIR}/{SHEET_NAME}"
PICTURES = ("views.png", "labels.png", "curves.png", "class_curves.png", ATLAS_SHEET)
"""Pictures in the run folder; those in ``PICTURE_DIR`` are of one evaluation each."""


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
        labeled: What is labelled of each class.
        samples: Validation images.
        processes: Who shares them.
        autocast: Gives the context of a forward pass.
        log: Is told.
        states: Keep what was trained when the images cannot be measured.
    """

    def __init__(
        self, folder: Path, networks: Networks, info: CheckpointInfo, labeled: ClassCount,
        samples: EvalSamples, processes: Processes, autocast: Autocast, log: RunLog, states: States,
    ) -> None:  # fmt: skip
        self.folder, self.networks, self.info, self.labeled = folder, networks, info, labeled
        self.samples, self.processes, self.autocast = samples, processes, autocast
        self.log, self.states = log, states
        self.segmenter = Segmenter(networks.teacher, networks.bank).eval()
        self.looks = 0
        self.last: EvalResult | None = None

    @property
    def best_folder(self) -> Path | None:
        """The best checkpoint so far, if there is one."""
        return self.folder / BEST_DIR if (self.folder / BEST_DIR).exists() else None

    def evaluate(self, step: int, *, unlabeled: bool, after_warmup: bool, min_delta: float) -> None:
        """Measure the teacher on the validation images, each counted once over all processes, and keep it.

        Args:
            step: Optimiser steps done.
            unlabeled: Whether unlabelled images are in use.
            after_warmup: Whether it uses up ``train.patience`` if it is not better.
            min_delta: How much higher an mIoU counts as better for that.
        """
        with self.log.paused():
            with self.states.saved_on_error():
                result = evaluate_segmenter(
                    self.segmenter, self.info, self.samples, self.processes, boundary=False,
                    autocast=self.autocast, label=f"val {step}", progress=self.log.terminal.live,
                )  # fmt: skip
            self.log.log_evaluation(step, result, unlabeled=unlabeled)
            best = self.states.progress.note(result.miou, min_delta=min_delta, counts=after_warmup)
            if self.processes.rank == 0:
                self._save(step, result, best=best)
                self._draw(step, result)
        self.last = result

    def explain(self, step: int, labeled: Source, num_images: int) -> None:
        """Search the patches that the prototypes of the last checkpoint stand for, if it has any.

        Args:
            step: Optimiser steps done.
            labeled: Labelled images.
            num_images: Largest number of them to look at; 0 for none.
        """
        if self.processes.rank > 0 or num_images == 0 or not bool(self.networks.bank.active.any()):
            return
        with self._drawing(self.folder / ATLAS_SHEET, step, ATLAS_DIR) as sheet:
            info = read_info(self.folder / CHECKPOINT_DIR)
            make_atlas(self.segmenter, info, labeled, sheet.parent, num_images=num_images, progress=False)

    def draw_views(
        self, step: int, labeled: Sample, unlabeled: Sample | None, *, begins: bool
    ) -> Callable[[StrongViews], None] | None:
        """Draw what the networks are given, once: the labelled images, later the unlabelled ones.

        Args:
            step: Optimiser steps done.
            labeled: A labelled batch.
            unlabeled: An unlabelled batch, if there is one yet.
            begins: Whether labelled or unlabelled images are used for the first time.

        Returns:
            What draws the unlabelled images once they have pseudo-labels; None where nothing is to be drawn.
        """
        if self.processes.rank > 0:
            return None
        path, classes = self.folder / "views.png", self.info.classes
        if begins:
            self.looks = LOOKS if unlabeled is not None else 0
            if step == 0:
                self._draw_labels(step, {}, {})
                if unlabeled is None:
                    with self._drawing(path, step):
                        views.labeled_views(path, labeled, classes, step)
        if unlabeled is None or self.looks == 0:
            return None
        batch = unlabeled

        def draw(strong: StrongViews) -> None:
            mixed = views.first_mixed(batch, strong) is not None
            if begins or mixed:
                with self._drawing(path, step):
                    views.unlabeled_views(path, batch, strong, classes, step)
            # a batch is mixed or not by chance, and the picture is to show it
            self.looks = 0 if mixed else self.looks - 1

        return draw

    def _save(self, step: int, result: EvalResult, *, best: bool) -> None:
        """Write the checkpoint; ``best`` also keeps it as the best so far."""
        metrics = {"step": step, "val": result.to_json([c.name for c in self.info.classes])}
        info = self.info.model_copy(update={"step": step, "metrics": metrics})
        checkpoint = self.folder / CHECKPOINT_DIR
        save_checkpoint(checkpoint, self.segmenter, info, self.networks.network)
        if best:
            copy_checkpoint(checkpoint, self.folder / BEST_DIR)

    def _draw(self, step: int, result: EvalResult) -> None:
        """Draw how it goes."""
        info, count = self.info, len(self.samples)
        with self._drawing(picture_path(self.folder, step), step, PICTURE) as picture:
            chosen = np.linspace(0, count - 1, min(PANEL_IMAGES, count)).round().astype(int)
            panel(
                picture, self.segmenter, [self.samples[int(i)] for i in chosen], info.classes,
                ignore_index=info.ignore_index, resize=info.input.resize, config=info.eval,
                crop=info.input.crop,
            )  # fmt: skip
        records = read_metrics(self.folder / "metrics.jsonl")
        with self._drawing(self.folder / "curves.png", step) as path:
            plots.curves(records, path)
        best = self.states.progress.best_head
        head = best if best in result.per_class else next(iter(result.per_class))
        with self._drawing(self.folder / "class_curves.png", step) as path:
            plots.class_curves(records, info.classes, head, path)
        pixels = next(iter(result.confusion.values())).sum(1).double()
        shares = {"validation": (pixels / pixels.sum().clamp(min=1)).tolist()}
        believed = [r["pseudo_label/class_share"] for r in records if "pseudo_label/class_share" in r]
        if believed:  # those of the last log line
            shares["believed pseudo-labels"] = believed[-1]
        self._draw_labels(step, shares, {"validation": result.class_images})

    def _draw_labels(
        self, step: int, shares: Mapping[str, Sequence[float]], images: Mapping[str, Sequence[int]]
    ) -> None:
        """Draw how much there is of each class: what is labelled, beside more."""
        labeled = self.labeled
        with self._drawing(self.folder / "labels.png", step) as path:
            plots.label_histogram(
                {"labelled": labeled.shares, **shares}, {"labelled": labeled.images, **images},
                self.info.classes, path,
            )  # fmt: skip

    @contextmanager
    def _drawing(self, path: Path, step: int, name: str | None = None) -> Iterator[Path]:
        """Draw a picture and hand it to the trackers; no fault of it ends a run."""
        try:
            yield path
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            text = f"warning: step {step}: {path.name} is not drawn: {reason}. The run goes on without it"
            self.log.terminal.say(text, logging.WARNING)
        else:
            self.log.trackers.picture(path, step, name or path.stem)


def picture_path(folder: Path, step: int) -> Path:
    """The picture of the evaluation at a step."""
    return folder / PICTURE_DIR / f"step_{step:08d}.png"


def run_pictures(folder: Path, step: int) -> list[Path]:
    """The pictures of a run that are there, that of the evaluation at ``step`` first."""
    paths = [picture_path(folder, step), *(folder / name for name in PICTURES)]
    return [path for path in paths if path.is_file()]


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
        "pictures    " + "\n            ".join(map(str, run_pictures(folder, progress.step))),
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
        "picture_files": [str(path) for path in run_pictures(folder, progress.step)],
        "metrics": str(folder / "metrics.jsonl"),
        "next": f"python -m export.onnx {folder / BEST_DIR if early else folder}",
    }


def _with_absolute_root(data: DataConfig) -> DataConfig:
    """Lists are relative to the root; an absolute root finds them from any folder."""
    if data.kind == "synthetic":
        return data
    return data.model_copy(update={"root": portable_root(data)})
