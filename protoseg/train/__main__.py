"""Train: images and a few masks in, a checkpoint out.

    accelerate launch --quiet -m protoseg.train                # configs/quickstart.yaml
    accelerate launch --quiet -m protoseg.train --config FILE train.max_steps=2000
    accelerate launch --quiet -m protoseg.train --config FILE --resume   # go on after a kill

``python -m protoseg.train`` does the same in one process. Without ``--quiet`` accelerate prints a
traceback of its own after an error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from protoseg.config.load import load_config
from protoseg.config.reference import describe_settings
from protoseg.errors import guarded

DEFAULT_CONFIG = "configs/quickstart.yaml"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch --quiet -m protoseg.train",
        description="Train a segmentation network from a few labelled and many unlabelled images.",
        epilog="Without arguments: configs/quickstart.yaml on embedded data. Launcher flags "
        "(--num_processes, --mixed_precision) go before -m.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file, see configs/ (default: quickstart.yaml)")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the run's last saved state (or start, if none)"
    )
    parser.add_argument(
        "--settings", action="store_true", help="list every setting with its default, and stop"
    )
    parser.add_argument(
        "--stopped-code",
        type=int,
        default=0,
        metavar="N",
        help="exit code when a signal stopped the run before its last step (default 0); job managers "
        "that start failed jobs again need another one",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--quiet", action="store_const", dest="output", const="quiet", default="text",
        help="show warnings and errors alone",
    )  # fmt: skip
    shown.add_argument(
        "--json", action="store_const", dest="output", const="json",
        help="one JSON object a line on the standard output, see docs/training.md",
    )  # fmt: skip
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="settings over the file, as train.max_steps=2000",
    )
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    if arguments.settings:
        sys.stdout.write(describe_settings())
        return 0

    def run() -> int:
        config = load_config(arguments.config or DEFAULT_CONFIG, arguments.overrides)
        # torch and its company take seconds to import: a wrong setting is reported before that
        from protoseg.train.loop import train

        return train(
            config, resume=arguments.resume, stopped_code=arguments.stopped_code, output=arguments.output
        )

    code = guarded(run)
    if code not in (0, arguments.stopped_code):
        _explain_launcher()
    return code


def _explain_launcher() -> None:
    """Say that what follows is not ours: ``accelerate launch`` prints a traceback when its child fails."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or {"LOCAL_RANK", "_PROTOSEG_STARTED_AS"} & {
        *os.environ
    }:
        return
    with contextlib.suppress(OSError):
        if {b"--quiet", b"-q"} & set(Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")):
            return
    sys.stderr.write(
        "what follows is the launcher's; to end with the error: accelerate launch --quiet -m ...\n"
    )


if __name__ == "__main__":
    sys.exit(main())
