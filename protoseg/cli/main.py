"""``protoseg COMMAND ...``: help, versions, and the way to each command's ``main``.

Imports nothing beyond the standard library before a command is chosen, so that help answers at once.
"""

from __future__ import annotations

import difflib
import sys
from importlib import metadata

from protoseg import __version__
from protoseg.cli.commands import COMMANDS

VERSIONS = (
    "torch", "torchvision", "accelerate", "timm", "segmentation-models-pytorch", "onnx", "onnxruntime",
    "onnxruntime-gpu", "bentoml", "tensorrt-cu13", "tensorrt-rtx-cu13",
)  # fmt: skip
"""Distributions that ``--version`` names, where they are installed."""

_WAY = """\
usage: protoseg COMMAND ...
       protoseg COMMAND --help
       protoseg --version

Train a segmentation network from a few labelled and many unlabelled images, export it with proof that its
outputs are those of training, and serve it over HTTP.

A first run, on embedded images:
  protoseg train                            a few minutes on two CPU cores; results in runs/quickstart

From your data to a service:
  protoseg convert EXPORT -o DIR            only for exports of annotation tools (CVAT, COCO, labelme, ...)
  protoseg init DIR                         finds images, masks and classes, and writes my.yaml
  protoseg check --config my.yaml           what is wrong with the data, before it costs a training
  protoseg train --config my.yaml           runs/NAME; --resume goes on after a stop
  protoseg evaluate runs/NAME               how good it is
  protoseg predict runs/NAME PHOTOS -o OUT  masks of images
  protoseg export runs/NAME                 runs/NAME/bundle, proven against the checkpoint
  protoseg serve runs/NAME                  http://localhost:3000
"""


def help_text() -> str:
    """What ``protoseg --help`` prints."""
    lines, group = [_WAY + "\nAll commands:"], None
    for command in COMMANDS.values():
        label = "" if command.group == group else command.group
        group = command.group
        lines.append(f"  {label:<9} {command.name:<20} {command.summary}")
    return "\n".join(lines) + "\n"


def version_text() -> str:
    """What ``protoseg --version`` prints: ours in the first line, then Python's and what was installed."""
    found = {"python": sys.version.split()[0]}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return (
        "\n".join([f"protoseg {__version__}", *(f"  {name} {text}" for name, text in found.items())]) + "\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: the command's, or 2 when there is no such command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if words[:1] in (["-h"], ["--help"]):
        sys.stdout.write(help_text())
        return 0
    if words[:1] in (["-V"], ["--version"]):
        sys.stdout.write(version_text())
        return 0
    if not words:
        sys.stderr.write(help_text())
        return 2
    name, *arguments = words
    if name not in COMMANDS:
        sys.stderr.write(f"error: {unknown(name)}\n")
        return 2
    return run(name, arguments)


def unknown(name: str) -> str:
    """What to say of a word that is no command."""
    if name.startswith("-"):
        return f"there is no option {name} before the command; protoseg COMMAND --help lists a command's own"
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=2)
    cure = f"did you mean {' or '.join(f'protoseg {item}' for item in near)}?" if near else ""
    return f"there is no command {name!r}; {cure or 'protoseg --help lists all'}"


def run(name: str, arguments: list[str]) -> int:
    """Run a command as its module would, under the name ``protoseg NAME``."""
    from protoseg.cli.parsers import called, main_of

    command = COMMANDS[name]
    # commands that tell how to go on read their own line there
    sys.argv = [f"protoseg {name}", *arguments]
    with called(command.own_name, f"protoseg {name}"):
        return main_of(command)(arguments)


if __name__ == "__main__":
    sys.exit(main())
