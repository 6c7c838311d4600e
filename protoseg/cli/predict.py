"""``protoseg predict``: in this process, or with ``--ray`` on the machines of a Ray cluster."""

from __future__ import annotations

import sys

from protoseg.cli.commands import Command
from protoseg.cli.parsers import called, main_of

HERE = Command("predict", "protoseg.predict.__main__", "", "")
CLUSTER = Command("predict", "protoseg.distributed.__main__", "", "")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    on_cluster = any(text == "--ray" or text.startswith("--ray=") for text in given)
    chosen = CLUSTER if on_cluster else HERE
    with called(chosen.own_name, "protoseg predict"):
        return main_of(chosen)(given)
