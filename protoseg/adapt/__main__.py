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
import time
from pathlib import Path

from accelerate import PartialState

from protoseg.adapt.adapt import OTHER_IMAGES, Adapted, Change, Kind, adapt
from protoseg.adapt.measure import compare, format_comparison
from protoseg.adapt.write import write_adapted
from protoseg.checkpoint import CHECKPOINT_DIR, Checkpoint, load_checkpoint
from protoseg.data.classes import parse_color
from protoseg.errors import ConfigError
from protoseg.inference import guarded_on_device, usable_device

KINDS: tuple[Kind, ...] = ("add", "mend", "merge", "remove", "rename")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.adapt",
        description="Change the classes of a trained network without training: add one from a few labelled "
        "images, mend, merge, remove or rename one.",
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
    add("--images", metavar="PATH", type=Path, help="folder of images that show the class, which needs "
        "--masks, or a list of `image mask` lines")  # fmt: skip
    add("--masks", metavar="DIR", type=Path, help="folder of their masks, with the same stems")
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


def change_of(arguments: argparse.Namespace) -> Change:
    """What the command line asks for.

    Raises:
        UserError: If options do not go together.
    """
    kind = next(kind for kind in KINDS if getattr(arguments, kind) is not None)
    given = getattr(arguments, kind)
    name, other = given if isinstance(given, list) else (given, "")
    needs_images = kind in ("add", "mend")
    for option in ("images", "masks", "value"):
        if not needs_images and getattr(arguments, option) is not None:
            raise ConfigError(f"--{option} has no meaning with --{kind}; leave it out")
    if arguments.color is not None and kind != "add":
        raise ConfigError(f"--color has no meaning with --{kind}; leave it out")
    color = None if arguments.color is None else parse_color(arguments.color, "--color")
    return Change(
        kind, name, other, images=arguments.images, masks=arguments.masks, value=arguments.value, color=color,
        others=arguments.others, other_images=arguments.other_images,
    )  # fmt: skip


def check_output(out: Path) -> None:
    """Refuse a folder that holds a checkpoint.

    Raises:
        ConfigError: With what to do.
    """
    if (out / CHECKPOINT_DIR).exists():
        raise ConfigError(f"{out} holds a checkpoint already; name another folder with -o")


def run(arguments: argparse.Namespace) -> None:
    """Change, measure, write.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    wanted, out = change_of(arguments), arguments.output
    if not arguments.dry_run:
        check_output(out)
    source = load_checkpoint(arguments.checkpoint)
    source.segmenter.to(usable_device(arguments.device) if arguments.device else PartialState().device)
    start = time.perf_counter()
    name = source.info.name if out is None else out.absolute().name
    found = adapt(source, wanted, name)
    seconds = time.perf_counter() - start
    found.checkpoint.segmenter.to(source.segmenter.bank.prototypes.device)
    sys.stdout.write("".join(f"{note}\n" for note in [*found.notes, told(source, found, wanted, seconds)]))
    comparison = None
    if arguments.val is not None:
        comparison = compare(source, found.checkpoint, arguments.val)
        sys.stdout.write(f"\n{format_comparison(comparison)}\n\n")
    if arguments.dry_run:
        sys.stdout.write("nothing was written (--dry-run)\n")
        return
    for line in write_adapted(out, source, found, comparison):
        sys.stdout.write(f"{line}\n")


def told(source: Checkpoint, found: Adapted, wanted: Change, seconds: float) -> str:
    """What was done, in a line."""
    names = [item.name for item in found.checkpoint.info.classes]
    done = {
        "add": f"{wanted.name} added as class {found.label} from {len(found.given)} images",
        "mend": f"{wanted.name} mended from {len(found.given)} images",
        "merge": f"{wanted.other} merged into {wanted.name}, class {found.label}",
        "remove": f"{wanted.name} removed",
        "rename": f"{wanted.name} renamed to {wanted.other}",
    }[wanted.kind]
    before = f"{source.info.name} had {len(source.info.classes)} classes"
    return f"{done} in {seconds:.1f} s; {before}, now there are {len(names)}"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded_on_device(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
