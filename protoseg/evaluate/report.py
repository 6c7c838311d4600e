"""Measures a checkpoint and writes the numbers down: what the command and ``protoseg.evaluate`` do.

Shape legend: ``C`` classes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from protoseg.checkpoint import STUDENT_NAME, load_checkpoint
from protoseg.data.images import write_text
from protoseg.draw.plots import confusion_picture
from protoseg.evaluate.measure import current_processes, evaluate_segmenter, override_data, read_samples
from protoseg.evaluate.results import EvalResult, format_table
from protoseg.inference import HEADS, HeadName

Split = Literal["val", "labeled"]


@dataclass(frozen=True)
class Evaluation:
    """Numbers of a checkpoint on labelled images."""

    results: dict[str, EvalResult]
    """Of the ``teacher`` and, where it was measured, the ``student``."""
    report: dict[str, Any]
    """What was written as JSON: the teacher's metrics by name and head, ``student``, ``confusion``, ..."""
    classes: tuple[str, ...]
    """Names of the classes by id."""
    json_path: Path
    """Where the numbers are."""
    confusion_path: Path
    """Where the picture of the confusion matrix is."""

    @property
    def miou(self) -> dict[str, float]:
        """The teacher's mean IoU by head, in [0, 1]."""
        return self.results["teacher"].miou

    def __repr__(self) -> str:
        values = ", ".join(f"{head} {value:.1%}" for head, value in self.miou.items())
        return f"<Evaluation on {self.report['split']}, step {self.report['step']}: mIoU {values}>"

    def __str__(self) -> str:
        blocks = [
            f"{name}, {result.num_images} images of {self.report['split']}, step {self.report['step']}\n"
            f"{format_table(result, self.classes)}\n"
            for name, result in self.results.items()
        ]
        return "\n".join([*blocks, f"numbers    {self.json_path}\nconfusion  {self.confusion_path}\n"])


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    split: Split = "val",
    heads: Sequence[HeadName] = HEADS,
    mode: Literal["whole", "sliding"] | None = None,
    student: bool = True,
    boundary: bool = True,
    device: str | None = None,
    data: Sequence[str] = (),
    json_path: str | os.PathLike[str] | None = None,
    confusion_path: str | os.PathLike[str] | None = None,
) -> Evaluation | None:
    """Measure a checkpoint, shared among the processes that run this, and write the numbers.

    Args:
        checkpoint: Run folder, checkpoint folder, or a file in it.
        split: Images to measure on.
        heads: Heads to measure.
        mode: Whole images, or overlapping windows with averaged logits; None as in training.
        student: Measure the student too, where the checkpoint has it.
        boundary: Measure the boundary F-score, the slowest part.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; None takes what accelerate finds.
        data: Data settings over the stored ones, as ``root=/data/camvid``.
        json_path: Where to write the numbers; None: into the run folder.
        confusion_path: Where to write the confusion matrix; None: likewise.

    Returns:
        The numbers; None on all processes but the first.

    Raises:
        UserError: With a text for the user.
    """
    teacher = load_checkpoint(Path(checkpoint))
    info = teacher.info
    names = [item.name for item in info.classes]
    samples, digest = read_samples(override_data(info.data, data), split, info)
    config = info.eval if mode is None else info.eval.model_copy(update={"mode": mode})
    processes = current_processes(device)
    networks = {"teacher": teacher}
    if student and (teacher.path / STUDENT_NAME).is_file():
        networks["student"] = load_checkpoint(teacher.path, student=True)
    results = {
        name: evaluate_segmenter(
            network.segmenter, info, samples, processes, config=config, heads=heads, boundary=boundary,
            label=name,
        )
        for name, network in networks.items()
    }  # fmt: skip
    if processes.rank > 0:
        return None
    suffix = "" if split == "val" else f"_{split}"
    folder = teacher.path.parent
    about = {
        "name": info.name, "step": info.step, "weights_sha256": info.weights_sha256,
        "split": split, "list_sha256": digest, "eval": config.model_dump(mode="json"),
    }  # fmt: skip
    found = Evaluation(
        results, about | _numbers(results, names), tuple(names),
        Path(json_path or folder / f"evaluation{suffix}.json"),
        Path(confusion_path or folder / f"confusion{suffix}.png"),
    )  # fmt: skip
    _write(found)
    return found


def _numbers(results: Mapping[str, EvalResult], names: Sequence[str]) -> dict[str, Any]:
    """The teacher's, and the student's where it was measured."""
    teacher = results["teacher"]
    numbers = teacher.to_json(names)
    numbers["confusion"] = {head: table.tolist() for head, table in teacher.confusion.items()}
    if "student" in results:
        numbers["student"] = results["student"].to_json(names)
    return numbers


def _write(found: Evaluation) -> None:
    for path in (found.json_path, found.confusion_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found.report, indent=2, allow_nan=False)
    # a row of counts on a line, so that people can read the tables
    text = re.sub(r"\[\s+([\d\s,]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    write_text(found.json_path, text + "\n")
    confusion_picture(found.results["teacher"].confusion, list(found.classes), found.confusion_path)
