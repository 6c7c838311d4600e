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

import torch
from accelerate import PartialState

from protoseg.allocator import keep_freed_memory
from protoseg.checkpoint import load_checkpoint
from protoseg.data.find import NOVELTY
from protoseg.errors import UserError
from protoseg.inference import HeadName, guarded_on_device, usable_device
from protoseg.predict.command import (
    drafting_of,
    find_inputs,
    finish,
    follow,
    parse_arguments,
    wanted_parts,
    workers_for,
)
from protoseg.predict.images import SOFT, predict_files
from protoseg.predict.reasons import Explainer


def run(arguments: argparse.Namespace) -> int:
    """Predict; returns the exit code.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    device = usable_device(arguments.device) if arguments.device else PartialState().device
    if device.type == "cpu":
        keep_freed_memory(threads=True)
    checkpoint = load_checkpoint(arguments.model, student=arguments.student)
    info, segmenter = checkpoint.info, checkpoint.segmenter
    head: HeadName = info.best_head() if arguments.head == "auto" else arguments.head
    if head != "linear" and not bool(segmenter.bank.active.any()):
        raise UserError(f"--head {head} needs prototypes, this checkpoint has none; use --head linear")
    drafting = drafting_of(arguments, info.classes)
    images = find_inputs(arguments).images
    parts = wanted_parts(arguments)
    if segmenter.novelty is not None and not arguments.no_novelty:
        parts.append(NOVELTY)
    parts += [SOFT] if arguments.soft else []
    explainer = Explainer.of(checkpoint) if arguments.explain else None
    segmenter.to(device)
    config = info.eval.model_copy(update={"mode": "sliding" if arguments.sliding else "whole"})
    with divided_cores(arguments.workers, len(images), on_cpu=device.type == "cpu") as workers:
        results = predict_files(segmenter, info, images, arguments.output, head=head, config=config,
                                parts=parts, legend=not arguments.no_legend, explainer=explainer,
                                workers=workers)  # fmt: skip
        failed = follow(results, len(images))
    return finish(arguments, len(images), failed, parts, run=info.name, version=info.step, head=head,
                  classes=info.classes, drafting=drafting)  # fmt: skip


@contextmanager
def divided_cores(asked: int | None, images: int, *, on_cpu: bool) -> Iterator[int]:
    """How many images are worked on at a time; meanwhile each computes with its share of torch's threads.

    Small images keep one core busy and no more, whatever the threads, and files are read and written on one.

    Args:
        asked: What the user wants, see ``workers_for``.
        images: How many there are.
        on_cpu: Computes on the CPU.

    Raises:
        UserError: If less than one is asked for.
    """
    threads = torch.get_num_threads()
    workers = workers_for(asked, threads, images)
    if on_cpu:
        torch.set_num_threads(max(1, threads // workers))
    try:
        yield workers
    finally:
        torch.set_num_threads(threads)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded_on_device(lambda: run(arguments), "use --sliding, or --device cpu")


if __name__ == "__main__":
    sys.exit(main())
