"""Teaches a checkpoint what it was never shown: ``python -m protoseg.novelty CKPT [--val LIST]``.

No training and no gradient. Labelled training pixels give prototypes of the encoder's last stage, from which
a pixel's distance is taken; labelled validation pixels give the threshold that only a share of them, the
false alarms, exceed. Both are written beside the weights, as ``checkpoint/novelty.safetensors``. From then on
``protoseg predict`` writes maps of novelty, and ``protoseg export --outputs agreement,novelty`` puts it into
the graph.

docs/novelty.md says how much it finds, and what it misses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from protoseg.checkpoint import Checkpoint, NoveltyInfo, load_checkpoint, save_novelty
from protoseg.data.sources import Source, open_source
from protoseg.errors import UserError
from protoseg.inference import guarded_on_device, usable_device
from protoseg.models.novelty import NoveltyHead, NoveltyScale
from protoseg.novelty.fit import Fitted, Pair, fit_prototypes, fit_scale, labelled_features

DEFAULT_FALSE_ALARMS = 0.05
SHOWN_CLASSES = 5
UNSCALED = NoveltyScale((0.0, 1.0), (0.0, 1.0), 0.0)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.novelty",
        description="Fit the score of pixels unlike everything labelled, and the threshold from which they "
        "are called novel; written beside the checkpoint's weights.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="run folder, checkpoint folder, or a file in it")
    add("--labeled", metavar="LIST", help="labelled images that are known (default: those that the "
        "checkpoint was trained with)")  # fmt: skip
    add("--val", metavar="LIST", help="other labelled images, for the threshold (default: the run's "
        "validation images)")  # fmt: skip
    add("--false-alarms", type=float, default=DEFAULT_FALSE_ALARMS, metavar="SHARE", help="share of "
        "validation pixels that may be called novel, in (0, 1) (default: "
        f"{DEFAULT_FALSE_ALARMS})")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.false_alarms < 1:
        parser.error(f"--false-alarms must be between 0 and 1, got {arguments.false_alarms:g}")
    return arguments


def open_lists(checkpoint: Checkpoint, labeled: str | None, val: str | None) -> tuple[Source, Source]:
    """Labelled and validation images, from the run's lists or others.

    Raises:
        UserError: If a list or file is missing, or empty.
    """
    info = checkpoint.info
    given = {"labeled": labeled, "val": val}
    # a list that was named is relative to here, those of the run to their data
    paths = {key: str(Path(text).absolute()) for key, text in given.items() if text is not None}
    if paths and info.data.kind != "files":
        raise UserError("this checkpoint was trained on the embedded scenes: leave --labeled and --val out")
    data = info.data.model_copy(update=paths)
    found = open_source(data, "labeled", info.classes), open_source(data, "val", info.classes)
    for name, source in zip(given, found, strict=True):
        if len(source) == 0:
            raise UserError(f"the list of --{name} has no image")
    return found


def pairs(source: Source, what: str) -> Iterator[Pair]:
    """Images and masks behind a bar."""
    pause = 0.1 if sys.stderr.isatty() else 10.0
    for number in tqdm(range(len(source)), desc=what, unit="image", leave=False, mininterval=pause):
        yield source.image(number), source.mask(number)


def report(checkpoint: Checkpoint, fitted: Fitted, path: Path, false_alarms: float) -> str:
    """What was fitted, and which classes it calls novel most often."""
    names = [item.name for item in checkpoint.info.classes]
    order = sorted(fitted.false_alarms, key=lambda label: -fitted.false_alarms[label])[:SHOWN_CLASSES]
    shares = ", ".join(f"{names[label]} {fitted.false_alarms[label]:.1%}" for label in order)
    return (
        f"{path}: {false_alarms:.1%} of validation pixels are above the threshold; most in {shares}\n"
        f"next: protoseg predict {checkpoint.path} IMAGES -o OUT writes OUT/novelty"
    )


def run(arguments: argparse.Namespace) -> None:
    """Fit and write.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    checkpoint = load_checkpoint(arguments.checkpoint)
    info, segmenter = checkpoint.info, checkpoint.segmenter
    if info.model.architecture == "dpt":
        raise UserError("novelty needs a convolutional encoder; this checkpoint has a vision transformer")
    labeled, val = open_lists(checkpoint, arguments.labeled, arguments.val)
    segmenter.to(usable_device(arguments.device) if arguments.device else PartialState().device)
    rng, resize = np.random.default_rng(0), info.input.resize
    features = labelled_features(segmenter, pairs(labeled, "labelled"), resize, rng)
    prototypes = fit_prototypes(features, info.prototypes.num_prototypes, rng)
    head = NoveltyHead(prototypes, UNSCALED).to(segmenter.bank.prototypes.device)
    fitted = fit_scale(segmenter, head, pairs(val, "val"), resize, arguments.false_alarms, rng)
    path = save_novelty(checkpoint.path, fitted.head, NoveltyInfo(
        weights_sha256=info.weights_sha256, labeled_images=len(labeled), val_images=len(val),
        data_hashes={"labeled": labeled.sha256, "val": val.sha256}, false_alarms=arguments.false_alarms,
        scale=fitted.head.scale,
    ))  # fmt: skip
    sys.stdout.write(report(checkpoint, fitted, path, arguments.false_alarms) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded_on_device(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
