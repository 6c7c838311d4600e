"""Turns an annotation tool's export into masks and lists: ``python -m protoseg.convert SOURCE -o DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from protoseg.convert.find import FORMATS
from protoseg.convert.lists import yaml_section
from protoseg.convert.write import Conversion, Options, convert
from protoseg.errors import DataError, guarded


def main(argv: list[str] | None = None) -> int:
    """Convert, and print what was found and how to use it. See ``--help``."""
    args = _parser().parse_args(argv)

    def body() -> int:
        if args.seed < 0:
            raise DataError(f"--seed must be at least 0, got {args.seed}")
        options = Options(
            format=args.format, images=args.images, classes=_names(args.classes),
            ignore=_names(args.ignore) or [], others=args.others, val=args.val, group=args.group,
            seed=args.seed, order=args.order, empty=args.empty, crowd=args.crowd,
            orientation=args.orientation, place=args.place, overwrite=args.overwrite,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        result = convert(args.source, args.out, options)
        sys.stdout.write("\n".join(_describe(result, args.out)) + "\n")
        return 0

    return guarded(body)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.convert",
        description="Turn the export of an annotation tool into palette masks, lists (labeled.txt; val.txt; "
        "unlabeled.txt: images without annotation), classes.txt and the data section of a configuration.",
        epilog="formats: " + "; ".join(f"{name}: {form.title}" for name, form in FORMATS.items()),
    )
    parser.add_argument("source", type=Path, help="folder of the export, or its annotation file")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder for the result, beside the source"
    )
    parser.add_argument("--format", choices=sorted(FORMATS), help="format (default: found from the files)")
    parser.add_argument("--images", type=Path, help="folder of the images (default: below the source)")
    parser.add_argument(
        "--classes", help="names by id, split by commas, or a file of one a line (default: the source's)"
    )
    parser.add_argument(
        "--ignore", help="classes whose pixels become 255 (ignored), split by commas, or a file"
    )
    parser.add_argument(
        "--others", choices=("error", "ignore", "background"), default="error",
        help="what classes that --classes lacks become (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--val", help="validation images: 30, 0.2 or 20%% (default: the export's own part, else 20%%)"
    )
    parser.add_argument(
        "--group", default="auto",
        help="images that stay together in val or out: auto, folder, none or an expression (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of val (%(default)s)")
    parser.add_argument(
        "--order", choices=("area", "file"),
        help="of overlapping objects the smaller (area) or the later (file) one is seen (default: file where "
        "the tool has an order of its own, else area)",
    )  # fmt: skip
    parser.add_argument(
        "--empty", choices=("unlabeled", "background"), default="unlabeled",
        help="what an image is whose annotation holds no object (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--crowd",
        choices=("ignore", "object"),
        default="ignore",
        help="COCO: what crowd regions are (%(default)s)",
    )
    parser.add_argument(
        "--orientation", choices=("auto", "upright", "stored"), default="auto",
        help="what was annotated of images with an EXIF orientation: the turned or the stored image "
        "(%(default)s: by its size)",
    )  # fmt: skip
    parser.add_argument(
        "--place", choices=("refer", "link", "copy"), default="refer",
        help="images: refer to them where they are, link or copy them into DIR/images (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    return parser


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    path = Path(text)
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return [name.strip() for name in names if name.strip()]


def _describe(result: Conversion, out: Path) -> list[str]:
    counts = result.counts
    lines = [
        f"format: {result.format} ({result.reason})",
        f"images: {sum(counts.values())}, "
        + ", ".join(f"{part} {n}" for part, n in counts.items() if n or part != "test"),
        f"val: {result.val_from}",
        f"masks: {sum(n for part, n in counts.items() if part != 'unlabeled')} below {out / 'masks'}",
        f"{'id':>3}  {'class':<24} {'in source':>9} {'images':>7} {'pixels':>7}",
    ]
    total = max(1, sum(result.pixels))
    below_objects = result.export.instances and result.table.background == 0
    for i, name in enumerate(result.table.names):
        number = result.export.source_ids.get(name, "added" if i == 0 and below_objects else "")
        share = f"{100 * result.pixels[i] / total:.1f}%"
        lines.append(f"{i:>3}  {name:<24} {number:>9} {result.images_with[i]:>7} {share:>7}")
    lines.append(f"255  {'(ignored)':<24} {'':>9} {'':>7} {100 * result.pixels[-1] / total:>6.1f}%")
    absent = [name for name, n in zip(result.table.names, result.images_with, strict=True) if not n]
    if absent:
        result.notes.warn(f"classes without a pixel: {', '.join(absent)}")
    lines += result.notes.lines()
    return [*lines, "", "for the configuration:", *yaml_section(result.settings).splitlines()]


if __name__ == "__main__":
    sys.exit(main())
