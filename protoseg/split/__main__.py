"""Makes labelled, unlabelled and validation lists: ``python -m protoseg.split IMAGES MASKS``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from protoseg.errors import DataError, guarded
from protoseg.split.make import SplitResult, make_split


def main(argv: list[str] | None = None) -> int:
    """Write the lists and print how to use them. See ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.split",
        description="Divide a fully labelled set into labeled.txt, unlabeled.txt (images only) and "
        "val.txt. Every class that occurs is shown by a labelled image; the rest is random.",
        epilog="example: python -m protoseg.split images masks --labeled 46 --val 0.2 -o splits/46",
    )
    parser.add_argument(
        "images",
        help="folder of images, a list file of `image mask` lines, or a pattern of shards (set/train-*.tar)",
    )
    parser.add_argument("masks", nargs="?", help="folder of masks with the same stems")
    parser.add_argument("--labeled", required=True, help="labelled images: 46, 0.1 or 10%%")
    parser.add_argument("--val", default="10%", help="validation images, likewise (10%%; 0: none)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (%(default)s)")
    parser.add_argument("--root", help="data.root of the lists (default: the folder that holds both)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--classes", help="class names split by commas, or a file (data.classes)")
    parser.add_argument("--label-map", help="JSON mapping or labelmap.txt (data.label_map)")
    parser.add_argument("--ignore-index", type=int, default=255, help="ignored value (%(default)s)")
    parser.add_argument("--force", action="store_true", help="replace existing lists")
    args = parser.parse_intermixed_args(argv)

    def body() -> int:
        if args.seed < 0 or not 0 <= args.ignore_index <= 255:
            raise DataError("--seed must be at least 0 and --ignore-index between 0 and 255")
        result = make_split(
            args.images, args.masks, args.out, labeled=args.labeled, val=args.val, seed=args.seed,
            root=args.root, classes=args.classes, label_map=args.label_map,
            ignore_index=args.ignore_index, force=args.force, progress=sys.stderr.isatty(),
        )  # fmt: skip
        sys.stdout.write("\n".join(_describe(result)) + "\n")
        return 0

    return guarded(body)


def _describe(result: SplitResult) -> list[str]:
    lines = [f"{'images that show':<24} {'all':>7} {'labeled':>9} {'unlabeled':>10} {'val':>7}"]
    for name, row in result.coverage.items():
        lines.append(
            f"  {name:<22} {row['all']:>7} {row['labeled']:>9} {row['unlabeled']:>10} {row['val']:>7}"
        )
    parts = result.parts
    sizes = len(parts.labeled), len(parts.unlabeled), len(parts.val)
    lines.append(f"  {'(images)':<22} {sum(sizes):>7} {sizes[0]:>9} {sizes[1]:>10} {sizes[2]:>7}")
    lines.append(f"hash of the labelled list: {result.labeled_hash}")
    lines += [f"warning: {text}" for text in result.warnings]
    lines += ["", "for the configuration:", "data:", "  kind: files"]
    # JSON values are YAML values, and stay quoted where YAML would guess a type
    lines += [f"  {key}: {json.dumps(value)}" for key, value in result.settings.items()]
    return lines


if __name__ == "__main__":
    sys.exit(main())
