"""Masks for images: ``python -m protoseg.predict CKPT FILES|FOLDERS... -o OUT``.

For each image, upright as its EXIF says and at its own size:

* ``OUT/masks/NAME.png``: class ids, with the classes' colours as palette;
* ``OUT/overlays/NAME.jpg``: the mask over the image, with a legend below it (``--no-legend``);
* ``OUT/confidence/NAME.png``: probability of the predicted class, 0 to 255;
* ``OUT/disagreement/NAME.png``: how little the linear head believes the mask, whichever head made it, 0 to
  255: bright where the mask may be wrong;
* ``OUT/novelty/NAME.png``, once ``protoseg novelty`` was run: how unlike everything labelled a pixel is, 0 to
  255; from 128 on it is called novel;
* with ``--soft``, ``OUT/soft/NAME.npz``: the probability of each class at the working size, as bytes, for
  ``pseudo_labels.folder`` of a training;
* with ``--explain``, ``OUT/explain/NAME.json``: for each region its class, the prototype that it resembles
  with the cosine, the runner-up class, and the training patches behind that prototype; ``NAME.jpg``: the same
  to look at; ``NAME.png``: the index of each pixel's nearest prototype, 16 bits.

With ``--format`` it also writes drafts for an annotation tool, of all images in ``OUT/predictions.csv`` that
this checkpoint predicted: ``OUT/label-studio``, ``OUT/cvat.zip``, ``OUT/coco.json`` or ``OUT/labelme``.

``NAME`` is the image's path below the folder that was given, without its suffix. ``OUT/predictions.csv`` says
which result is whose; a later call replaces results of the same image only.

Shape legend: ``C`` classes, ``H W`` image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm import tqdm

from protoseg.annotate.write import Options, add_arguments, options_of, write
from protoseg.checkpoint import CheckpointInfo, load_checkpoint
from protoseg.data.find import EXPLAIN_FOLDER, NOVELTY, find_images
from protoseg.errors import UserError
from protoseg.inference import HEADS, HeadName, guarded_on_device, usable_device
from protoseg.predict.drafts import Drafted
from protoseg.predict.images import PARTS, SOFT, predict_files
from protoseg.predict.reasons import Explainer
from protoseg.predict.table import TABLE_NAME

MOST_WORKERS = 8
"""Each holds the activations of an image."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.predict",
        description="Segment images: class-id masks, confidence and disagreement maps at the image's own "
        "size, and overlays with a legend.",
        epilog="Very many images, on the machines of a Ray cluster: protoseg predict --ray ADDRESS "
        "(docs/scaling.md).",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="run folder, checkpoint folder, or a file in it")
    add(
        "inputs", metavar="PATH", nargs="+", type=Path, help="images, or folders that are searched for images"
    )
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    add(
        "--head",
        choices=("auto", *HEADS),
        default="auto",
        help="head that labels (default: the one with the highest validation mIoU of the checkpoint)",
    )
    for part in PARTS[1:]:
        add(f"--no-{part.removesuffix('s')}", action="store_true", help=f"do not write OUT/{part}")
    add(
        "--no-novelty",
        action="store_true",
        help="do not write OUT/novelty (written if `protoseg novelty` was run)",
    )
    add("--no-legend", action="store_true", help="overlays of exactly the image's size, without the legend "
        "below")  # fmt: skip
    add("--soft", action="store_true", help="write OUT/soft too, probabilities of all classes "
        "for pseudo_labels.folder")  # fmt: skip
    add("--explain", action="store_true", help="write OUT/explain too: what each region resembles, from "
        "whole images (python -m protoseg.explain makes what it needs)")  # fmt: skip
    add("--sliding", action="store_true", help="overlapping windows of the training crop, averaged, "
        "instead of the whole image at once")  # fmt: skip
    add("--student", action="store_true", help="use the student's weights instead of the teacher's")
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    add("--workers", type=int, metavar="N", help="images that are read, computed and written at a time; "
        f"the cores are divided among them (default: one for each core, at most {MOST_WORKERS})")  # fmt: skip
    add_arguments(parser)
    return parser.parse_intermixed_args(argv)


def run(arguments: argparse.Namespace) -> int:
    """Predict; returns the exit code.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    checkpoint = load_checkpoint(arguments.checkpoint, student=arguments.student)
    info, segmenter = checkpoint.info, checkpoint.segmenter
    head: HeadName = info.best_head() if arguments.head == "auto" else arguments.head
    if head != "linear" and not bool(segmenter.bank.active.any()):
        raise UserError(f"--head {head} needs prototypes, this checkpoint has none; use --head linear")
    drafting = options_of(arguments, info.classes)
    if drafting is not None and drafting.keep.min_confidence and arguments.no_confidence:
        raise UserError("--min-confidence reads OUT/confidence; leave out --no-confidence")
    out: Path = arguments.output
    found = find_images(arguments.inputs, out)
    for text in found.remarks:
        sys.stderr.write(f"note: {text}\n")
    parts = [part for part in PARTS if not getattr(arguments, f"no_{part.removesuffix('s')}", False)]
    if segmenter.novelty is not None and not arguments.no_novelty:
        parts.append(NOVELTY)
    parts += [SOFT] if arguments.soft else []
    explainer = Explainer.of(checkpoint) if arguments.explain else None
    device = usable_device(arguments.device) if arguments.device else PartialState().device
    segmenter.to(device)
    config = info.eval.model_copy(update={"mode": "sliding" if arguments.sliding else "whole"})
    failed = 0
    pause = 0.1 if sys.stderr.isatty() else 10.0
    on_cpu, count = device.type == "cpu", len(found.images)
    with (
        divided_cores(arguments.workers, count, on_cpu=on_cpu) as workers,
        tqdm(total=count, desc="predict", unit="image", mininterval=pause) as bar,
    ):
        results = predict_files(segmenter, info, found.images, out, head=head, config=config, parts=parts,
                                legend=not arguments.no_legend, explainer=explainer,
                                workers=workers)  # fmt: skip
        for _path, reason in results:
            bar.update()
            if reason is not None:
                failed += 1
                bar.write(f"skipped: {reason}", file=sys.stderr)
    done = f"{len(found.images) - failed} of {len(found.images)} images"
    written = [*parts, *([EXPLAIN_FOLDER] if explainer is not None else []), TABLE_NAME]
    sys.stdout.write(f"{done} in {out} ({', '.join(written)}), {head} head\n")
    if drafting is not None:
        write_drafts(out, info, drafting)
    if failed:
        sys.stderr.write(f"error: {failed} file(s) could not be read, see above; the others are done\n")
    return 1 if failed else 0


@contextmanager
def divided_cores(asked: int | None, images: int, *, on_cpu: bool) -> Iterator[int]:
    """How many images are worked on at a time; meanwhile each computes with its share of torch's threads.

    Small images keep one core busy and no more, whatever the threads, and files are read and written on one.

    Args:
        asked: What the user wants; None: one for each thread that torch has, at most ``MOST_WORKERS``.
        images: How many there are.
        on_cpu: Computes on the CPU.

    Raises:
        UserError: If less than one is asked for.
    """
    if asked is not None and asked < 1:
        raise UserError(f"--workers must be at least 1, got {asked}")
    threads = torch.get_num_threads()
    workers = min(asked or min(threads, MOST_WORKERS), images)
    if on_cpu:
        torch.set_num_threads(max(1, threads // workers))
    try:
        yield workers
    finally:
        torch.set_num_threads(threads)


def write_drafts(out: Path, info: CheckpointInfo, options: Options) -> None:
    """Write drafts of all that this checkpoint predicted into a folder, in this call and before.

    Raises:
        UserError, OSError: With a text for the user.
    """
    drafted = Drafted.of(out, info.name, info.step)
    for text in drafted.left_out:
        sys.stderr.write(f"note: {text}\n")
    if drafted.rows:
        line = write(out, drafted.drafts(options.keep), info.classes, options, images=list(drafted.rows),
                     model_version=f"{info.name} {info.step}")  # fmt: skip
        sys.stdout.write(f"{line}\n")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded_on_device(lambda: run(arguments), "use --sliding, or --device cpu")


if __name__ == "__main__":
    sys.exit(main())
