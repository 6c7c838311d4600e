"""Changes classes of a trained network: ``python -m protoseg.adapt CKPT --add NAME ...``.

A class is added from a few labelled images, mended from corrected masks, merged with another, removed or
renamed. Nothing is trained: a row of the linear head is fitted while all others stay, and the prototypes of
the class are centres of its features. Writes:

* ``OUT/checkpoint``: an ordinary checkpoint, which is evaluated, exported and served as any other; its
  ``config.json`` says under ``adapted`` what was done, with the hashes of the images that were given;
* ``OUT/adapt.png``: the images that were given, their masks, and the prediction before and after;
* ``OUT/adapt.json``: with ``--val``, IoU by class before and after.

docs/adapt.md says how well this works and where it does not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from protoseg.adapt.adapt import OTHER_IMAGES
from protoseg.adapt.run import change_checkpoint, change_of
from protoseg.inference import guarded_on_device


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.adapt",
        description="Change the classes of a trained network without training: add one from a few labelled "
        "images, mend, merge, remove or rename one. An added class is there to label on from; with some "
        "dozens of masks train: train.start_from=OUT goes on from the result.",
        epilog="example: python -m protoseg.adapt runs/NAME --add fox --images fox/ --masks fox_masks/ -o "
        "runs/with_fox",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CKPT",
        help="run folder, checkpoint folder, or a file in it; it must have prototypes",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--add", metavar="NAME", help="a class that the network does not know")
    what.add_argument(
        "--mend", metavar="NAME", help="a class that it should know better, from corrected masks"
    )
    what.add_argument("--remove", metavar="NAME", help="a class whose pixels go to the next likely one")
    what.add_argument("--merge", nargs=2, metavar=("NAME", "OTHER"), help="OTHER becomes a part of NAME")
    what.add_argument("--rename", nargs=2, metavar=("NAME", "NEW"), help="a class gets another name")
    add("--images", metavar="PATH", type=Path, help="folder of images that show the class, or one image, "
        "which need --masks; or a list of `image mask` lines")  # fmt: skip
    add("--masks", metavar="PATH", type=Path, help="folder of their masks, with the same stems; or a mask")
    add("--value", metavar="V", help="what the class is in the masks, a value (255) or a colour (128,0,0); "
        "all others are not the class (default: told by the masks where it is sure)")  # fmt: skip
    add("--color", metavar="R,G,B", help="colour of a new class (default: one unlike the others')")
    add("--others", metavar="DIR", type=Path, help="images that do not show the class (default: labelled "
        "images of the training)")  # fmt: skip
    add("--other-images", metavar="N", type=int, default=OTHER_IMAGES,
        help="such images to look at, at most; 0: none (%(default)s)")  # fmt: skip
    add("--val", metavar="LIST", type=Path, help="measure before and after on a list of `image mask` lines; "
        "a new class has the next id in its masks")  # fmt: skip
    add("-o", "--output", metavar="OUT", type=Path, help="folder for the changed network")
    add("--dry-run", action="store_true", help="say what would come of it; write nothing")
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    arguments = parser.parse_args(argv)
    if arguments.output is None and not arguments.dry_run:
        parser.error("say where the changed network goes with -o OUT (or use --dry-run)")
    if arguments.other_images < 0:
        parser.error(f"--other-images must be at least 0, got {arguments.other_images}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Change, measure, write.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    change_checkpoint(
        arguments.checkpoint, change_of(vars(arguments)), None if arguments.dry_run else arguments.output,
        val=arguments.val, device=arguments.device, say=lambda line: sys.stdout.write(f"{line}\n"),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded_on_device(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
