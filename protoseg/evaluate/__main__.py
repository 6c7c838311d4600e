"""Measures a checkpoint on labelled images.

``python -m protoseg.evaluate CKPT`` prints a table per class and writes ``evaluation.json`` and
``confusion.png`` into the run folder; ``accelerate launch -m protoseg.evaluate CKPT`` shares the images
among processes, each counted once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from protoseg.errors import guarded
from protoseg.evaluate.report import evaluate_checkpoint
from protoseg.inference import HEADS


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


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and write the results; returns the exit code.

    Raises:
        UserError: With a text for the user.
    """
    found = evaluate_checkpoint(
        arguments.checkpoint, split=arguments.split, heads=arguments.heads, mode=arguments.mode,
        student=not arguments.teacher_only, boundary=not arguments.no_boundary, device=arguments.device,
        data=arguments.data, json_path=arguments.json, confusion_path=arguments.confusion,
    )  # fmt: skip
    if found is not None:
        sys.stdout.write(f"{found}\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
