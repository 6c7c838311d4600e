"""Writes drafts in a tool's format: options of the commands that do, and the one call behind them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

from protoseg.annotate.draft import Draft, Keep, common_folder, skipped_ids
from protoseg.annotate.formats import coco, cvat, label_studio, labelme
from protoseg.errors import UserError
from protoseg.manifest import ClassInfo

FORMATS: Mapping[str, ModuleType] = {
    "label-studio": label_studio, "cvat": cvat, "coco": coco, "labelme": labelme,
}  # fmt: skip
LOCAL_FILES = "/data/local-files/?d="


@dataclass(frozen=True)
class Options:
    """What of the predictions is written, and how."""

    format: str
    keep: Keep
    simplify: float = 1.0
    """labelme: largest distance in pixels that an outline may be moved."""
    address: str = LOCAL_FILES
    """Label Studio: what stands before an image's path in its address."""
    document_root: Path | None = None
    """Label Studio: folder that these paths begin below; None: the one above the folder of all images."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a command that writes drafts."""
    group = parser.add_argument_group("drafts for an annotation tool (docs/labelling.md)")
    add = group.add_argument
    add("--format", choices=tuple(FORMATS), help="; ".join(
        f"{name}: {form.TITLE} (OUT/{form.PLACE})" for name, form in FORMATS.items()
    ))  # fmt: skip
    add("--skip", metavar="NAMES", help="classes that are not proposed, split by commas; '' for none "
        "(default: background)")  # fmt: skip
    add("--min-pixels", type=int, default=0, metavar="N", help="drop regions smaller than this "
        "(default: %(default)s)")  # fmt: skip
    add("--min-confidence", type=float, default=0.0, metavar="P", help="drop regions whose mean confidence "
        "is lower, 0 to 1 (default: %(default)s)")  # fmt: skip
    add("--simplify", type=float, default=1.0, metavar="PIXELS", help="labelme: how far an outline may be "
        "moved for fewer points; 0: exact (default: %(default)s)")  # fmt: skip
    add("--image-url", default=LOCAL_FILES, metavar="PREFIX", help="Label Studio: what stands before an "
        "image's path in its address (default: %(default)s)")  # fmt: skip
    add("--document-root", type=Path, metavar="DIR", help="Label Studio: folder that these paths begin "
        "below, its LOCAL_FILES_DOCUMENT_ROOT (default: the one above the folder of all images)")  # fmt: skip


def options_of(arguments: argparse.Namespace, classes: Sequence[ClassInfo]) -> Options | None:
    """Options from a command line; None without ``--format``.

    Raises:
        UserError: If one is out of range, or names no class.
    """
    if arguments.format is None:
        given = {
            "--skip": arguments.skip, "--min-pixels": arguments.min_pixels,
            "--min-confidence": arguments.min_confidence, "--document-root": arguments.document_root,
        }  # fmt: skip
        ignored = [name for name, value in given.items() if value not in (None, 0)]
        if ignored:
            raise UserError(f"{', '.join(ignored)} needs --format ({', '.join(FORMATS)})")
        return None
    if not arguments.simplify >= 0:
        raise UserError(f"--simplify must be at least 0, got {arguments.simplify:g}")
    keep = Keep(skipped_ids(arguments.skip, classes), arguments.min_pixels, arguments.min_confidence)
    root = None if arguments.document_root is None else arguments.document_root.absolute()
    return Options(arguments.format, keep, arguments.simplify, arguments.image_url, root)


def write(
    out: Path, drafts: Iterable[Draft], classes: Sequence[ClassInfo], options: Options, *,
    images: Sequence[Path], model_version: str,
) -> str:  # fmt: skip
    """Write drafts below a folder, each file whole or not at all.

    Args:
        out: Folder of results, which exists.
        drafts: Taken one at a time; what ``options.keep`` drops is gone already.
        classes: All, by id.
        options: Format and its options.
        images: Files of all drafts.
        model_version: What Label Studio calls the predictions.

    Returns:
        One line for the user: what was written, and where.

    Raises:
        UserError, OSError: If it cannot be written; an earlier file is then as it was.
    """
    form = FORMATS[options.format]
    target = out / form.PLACE
    if options.format == "label-studio":
        root = options.document_root or common_folder(images).parent
        number = label_studio.write(
            target, drafts, classes, address=address_below(options.address, root), model_version=model_version
        )
        more = f", images below {root}" if options.address == LOCAL_FILES else ""
        return f"drafts of {number} images in {target}{more}"
    if options.format == "labelme":
        number = labelme.write(target, drafts, classes, simplify=options.simplify)
    else:
        number = form.write(target, drafts, classes)
    return f"drafts of {number} images in {target}"


def address_below(prefix: str, root: Path) -> Callable[[Path], str]:
    """Gives the address of an image: the prefix and its path below the root.

    Raises:
        UserError: From the function, if the image lies elsewhere.
    """

    def address(image: Path) -> str:
        place = image.absolute()
        if not place.is_relative_to(root):
            raise UserError(
                f"{image} is not below --document-root {root}; name a folder that holds all images"
            )
        return prefix + quote(place.relative_to(root).as_posix())

    return address
