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
from pathlib import Path

from protoseg.inference import guarded_on_device
from protoseg.novelty.make import FALSE_ALARMS, fit_checkpoint


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.novelty",
        description="Fit the score of pixels unlike everything labelled, and the threshold from which they "
        "are called novel; written beside the checkpoint's weights.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="run folder, checkpoint folder, or a file in it")
    add("--labeled", metavar="LIST", type=Path, help="labelled images that are known (default: those that "
        "the checkpoint was trained with)")  # fmt: skip
    add("--val", metavar="LIST", type=Path, help="other labelled images, for the threshold (default: the "
        "run's validation images)")  # fmt: skip
    add("--false-alarms", type=float, default=FALSE_ALARMS, metavar="SHARE", help="share of "
        "validation pixels that may be called novel, in (0, 1) (default: "
        f"{FALSE_ALARMS})")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    add("--data", nargs="+", default=[], action="extend", metavar="key.sub=value",
        help="data settings over the stored ones, as root=/data/camvid")  # fmt: skip
    arguments = parser.parse_intermixed_args(argv)
    if not 0 < arguments.false_alarms < 1:
        parser.error(f"--false-alarms must be between 0 and 1, got {arguments.false_alarms:g}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Fit, write and print.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    fitted = fit_checkpoint(
        arguments.checkpoint, labeled=arguments.labeled, val=arguments.val,
        false_alarms=arguments.false_alarms, device=arguments.device, data=arguments.data,
    )  # fmt: skip
    for text in fitted.notes:
        sys.stderr.write(f"{text}\n")
    checkpoint = fitted.path.parent
    sys.stdout.write(
        f"{fitted}\nnext: protoseg predict {checkpoint} IMAGES -o OUT writes OUT/novelty; protoseg export "
        f"{checkpoint} --outputs agreement,novelty serves it\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded_on_device(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
