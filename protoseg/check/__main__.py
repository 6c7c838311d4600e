"""Looks at the data before training: ``python -m protoseg.check --config FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from protoseg.check.inspect import inspect, open_sources
from protoseg.check.sheet import draw_contact_sheet
from protoseg.config.load import load_config
from protoseg.data.classes import read_classes
from protoseg.data.images import write_text
from protoseg.errors import ConfigError, guarded


def main(argv: list[str] | None = None) -> int:
    """Print what is wrong with the data; 1 when there is an error. See ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.check",
        description="Check a run's images, masks, lists and settings, and draw a contact sheet. "
        "Exit code 1 when something is wrong.",
        epilog="example: python -m protoseg.check --config configs/nuclei_24_efficientnet_lite0.yaml "
        "data.root=~/nuclei",
    )
    parser.add_argument(
        "--config", default="configs/quickstart.yaml", help="YAML file of the run (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="contact sheet PNG (default: check.png in the run folder)")
    parser.add_argument("--json", type=Path, help="also write every finding to this file")
    parser.add_argument(
        "--processes", type=int, default=1, help="training processes, for the effective batch"
    )
    parser.add_argument(
        "--quick", action="store_true", help="only what a training checks at its start; no sheet"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changed settings")
    args = parser.parse_intermixed_args(argv)
    return guarded(lambda: check(args))


def check(args: argparse.Namespace) -> int:
    """Look at the data as the command line says; returns the exit code.

    Raises:
        UserError, OSError: With a text for the user.
    """
    if args.processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {args.processes}")
    config = load_config(args.config, args.overrides)
    report = inspect(config, quick=args.quick, processes=args.processes, progress=sys.stderr.isatty())
    lines = report.fact_lines()
    if not args.quick and report.facts:
        classes = read_classes(config.data)
        sheet = args.out or config.run.path / "check.png"
        shares = report.facts.get("class_shares", {})
        drawn = draw_contact_sheet(sheet, open_sources(config.data, classes), classes, shares)
        if drawn:
            lines.append(f"contact sheet of {drawn} images: {sheet}")
    if args.json is not None:
        write_text(args.json, json.dumps(report.to_json(), indent=2) + "\n")
    lines += report.problem_lines()
    errors, warnings = len(report.errors), len(report.warnings)
    verdict = "the data is fine" if report.ok else "the data needs attention"
    lines.append(f"{verdict}: {errors} kind(s) of error, {warnings} kind(s) of warning")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
