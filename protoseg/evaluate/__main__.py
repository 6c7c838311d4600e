"""Measures a checkpoint on labelled images.

``python -m protoseg.evaluate CKPT`` prints a table per class and writes ``evaluation.json`` and
``confusion.png`` into the run folder; ``accelerate launch -m protoseg.evaluate CKPT`` shares the images
among processes, each counted once.

Shape legend: ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from protoseg.checkpoint import STUDENT_NAME, load_checkpoint
from protoseg.data.images import write_text
from protoseg.draw.plots import confusion_picture
from protoseg.errors import guarded
from protoseg.evaluate.measure import current_processes, evaluate_segmenter, override_data, read_samples
from protoseg.evaluate.results import format_table
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
    teacher = load_checkpoint(arguments.checkpoint)
    info = teacher.info
    names = [item.name for item in info.classes]
    data = override_data(info.data, arguments.data)
    samples, digest = read_samples(data, arguments.split, info)
    config = info.eval if arguments.mode is None else info.eval.model_copy(update={"mode": arguments.mode})
    processes = current_processes(arguments.device)
    results = {}
    networks = {"teacher": teacher}
    if not arguments.teacher_only and (teacher.path / STUDENT_NAME).is_file():
        networks["student"] = load_checkpoint(teacher.path, student=True)
    for name, checkpoint in networks.items():
        results[name] = evaluate_segmenter(
            checkpoint.segmenter, info, samples, processes, config=config, heads=arguments.heads,
            boundary=not arguments.no_boundary, label=name,
        )  # fmt: skip
    if processes.rank > 0:
        return 0
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
    return 0


def print_lines(*lines: str) -> None:
    """Write lines to the standard output."""
    sys.stdout.write("\n".join(lines) + "\n\n")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
