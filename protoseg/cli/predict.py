"""``protoseg predict``: from a checkpoint or a bundle here; with ``--ray`` on machines of a cluster."""

from __future__ import annotations

import sys

from protoseg.api.predict import is_bundle
from protoseg.cli.commands import Command
from protoseg.cli.parsers import called, main_of
from protoseg.predict.command import parse_arguments

HERE = Command("predict", "protoseg.predict.__main__", "", "")
BUNDLE = Command("predict", "protoseg.api.predict", "", "")
CLUSTER = Command("predict", "protoseg.distributed.__main__", "", "")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    on_cluster = any(text == "--ray" or text.startswith("--ray=") for text in given)
    chosen = CLUSTER if on_cluster else HERE
    with called("-m protoseg.predict" if not on_cluster else CLUSTER.own_name, "protoseg predict"):
        if not on_cluster and is_bundle(parse_arguments(given).model):
            chosen = BUNDLE
        return main_of(chosen)(given)
