"""Proves that a bundle computes what was trained: ``python -m export.parity BUNDLE``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from export.bundle import (
    OpenVino,
    verify_bundle,
    weight_note,
    with_openvino,
    with_reports,
    write_manifest,
)
from export.proof.judge import format_report
from export.proof.prove import prove_again
from export.runners.openvino import processor_and_version
from protoseg.errors import guarded
from protoseg.manifest import Manifest, ParityReport


def kept(manifest: Manifest, reports: dict[str, ParityReport], runtime: OpenVino | None) -> Manifest:
    """The manifest with what a repetition may change in it."""
    if runtime is not None:
        return with_openvino(manifest, runtime, reports, processor_and_version())
    # samples prove less than the checkpoint did: they can take a pass away, not give one
    lost = {
        item.name: reports[item.name]
        for item in manifest.files
        if item.parity.status == "passed" and item.name in reports
        and reports[item.name].status != "passed"
    }  # fmt: skip
    return with_reports(manifest, lost)


def main(argv: list[str] | None = None) -> int:
    """Repeat parity of a bundle and print it; exit code 1 unless everything passed."""
    parser = argparse.ArgumentParser(
        prog="python -m export.parity",
        description="Prove again, from samples/ and without the checkpoint, that a bundle's networks "
        "compute what was trained. A file that fails is marked so in manifest.json and is served no more; "
        "exit code 1 unless all passed.",
    )
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--no-write", action="store_true", help="leave manifest.json as it is")
    parser.add_argument(
        "--runtime", choices=get_args(OpenVino),
        help="prove the files for CPUs (fp32, int8-cpu) in OpenVINO instead, in float32 or in bfloat16; the "
        "manifest keeps the result, which opens that runtime to the service",
    )  # fmt: skip
    args = parser.parse_args(argv)

    def body() -> int:
        manifest = verify_bundle(args.bundle)
        reports = prove_again(args.bundle, manifest, args.runtime)
        for item in manifest.files:
            if item.name in reports:
                sys.stdout.write(format_report(item.name, reports[item.name]) + "\n")
                if note := weight_note(item):
                    sys.stdout.write(f"  {note}\n")
            elif args.runtime is None:
                sys.stdout.write(
                    f"{item.name}: left as it was; prove engines with python -m export.tensorrt\n"
                )
        if not args.no_write:
            write_manifest(args.bundle, kept(manifest, reports, args.runtime))
        return 0 if reports and all(r.status == "passed" for r in reports.values()) else 1

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
