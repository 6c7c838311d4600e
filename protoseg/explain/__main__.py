"""What each prototype stands for: ``python -m protoseg.explain CKPT [-o DIR]``.

Looks at the labelled images of the training and writes, whole or not at all, into ``RUN/prototypes``:

* ``prototypes.png``: a row for each class, six patches for each prototype with its share of use; doubtful
  ones have a red frame;
* ``atlas.json``: for each prototype the nearest patches (image, pixel, cosine, label), at most one of an
  image, its use, and what speaks against it;
* ``INDEX.jpg``: the patches of a prototype.

``protoseg predict --explain`` and ``protoseg export --explain`` use it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from protoseg.explain.atlas import SHEET_NAME, Atlas
from protoseg.explain.make import NUM_IMAGES, explain_checkpoint
from protoseg.inference import guarded_on_device


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.explain",
        description="Find the training patches that each prototype is nearest to: RUN/prototypes with "
        "prototypes.png to look at, and what predict --explain and export --explain need.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="run folder, checkpoint folder, or a file in it")
    add("-o", "--output", metavar="DIR", type=Path, help="folder for the results (default: prototypes in the "
        "run's folder, where predict and export look for it)")  # fmt: skip
    add("--images", metavar="N", type=int, default=NUM_IMAGES, help="labelled images to look at, spread "
        f"evenly over the list (default: {NUM_IMAGES}, or as many as there are)")  # fmt: skip
    add("--patch", metavar="PIXELS", type=int, help="side of a patch at the working size (default: a third "
        "of the training crop's shorter side, at least 24)")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    add("--data", nargs="+", default=[], action="extend", metavar="key.sub=value",
        help="data settings over the stored ones, as root=/data/camvid")  # fmt: skip
    arguments = parser.parse_intermixed_args(argv)
    for name in ("images", "patch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return arguments


KEY = """(use: labelled pixels of its class that are nearest to it, of the class's prototypes; own: of the
pixels that are nearest to it, of all prototypes, those of its class; cosine: of its patches)"""


def table(atlas: Atlas) -> str:
    """A line for each prototype."""
    lines = [f"{'prototype':<28} {'use':>6}  {'own':>6}  {'cosine':>13}  doubts"]
    for item in atlas.prototypes:
        name = f"{atlas.classes[item.class_id]} {item.number}"
        use, own = ("-" if value is None else f"{value:.1%}" for value in (item.use_share, item.precision))
        cosines = [patch.cosine for patch in item.patches]
        span = f"{max(cosines):.3f}-{min(cosines):.3f}" if cosines else "-"
        lines.append(f"{name:<28} {use:>6}  {own:>6}  {span:>13}  {'; '.join(item.doubts)}".rstrip())
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Search, write and print.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    made = explain_checkpoint(
        arguments.checkpoint, arguments.output, num_images=arguments.images, patch=arguments.patch,
        device=arguments.device, data=arguments.data,
    )  # fmt: skip
    for text in made.notes:
        sys.stderr.write(f"{text}\n")
    atlas = made.atlas
    doubtful = sum(bool(item.doubts) for item in atlas.prototypes)
    sys.stdout.write(
        f"{table(atlas)}\n{KEY}\n\n{len(atlas.prototypes)} prototypes, {doubtful} doubtful; "
        f"{atlas.num_images} labelled images; look at {made.folder / SHEET_NAME}\n"
        f"next: python -m protoseg.predict {arguments.checkpoint} IMAGES -o out --explain\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded_on_device(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
