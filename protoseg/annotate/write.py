"""Writes drafts in a tool's format: options of the commands that do, and the one call behind them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

from protoseg.annotate.draft import Draft, Keep, common_folder, normal, skipped_ids
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
    add("--min-pixels", type=int, metavar="N", help="drop regions smaller than this (default: 0)")
    add("--min-confidence", type=float, metavar="P", help="drop regions whose mean confidence is lower, "
        "0 to 1 (default: 0)")  # fmt: skip
    add("--simplify", type=float, metavar="PIXELS", help="labelme: how far an outline may be moved for fewer "
        f"points; 0: exact (default: {Options.simplify:g})")  # fmt: skip
    add("--image-url", metavar="PREFIX", help="Label Studio: what stands before an image's path in its "
        f"address (default: {LOCAL_FILES})")  # fmt: skip
    add("--document-root", type=Path, metavar="DIR", help="Label Studio: folder that these paths begin "
        "below, its LOCAL_FILES_DOCUMENT_ROOT (default: the one above the folder of all images)")  # fmt: skip


_OF_ONE = {"simplify": "labelme", "image_url": "label-studio", "document_root": "label-studio"}


def options_of(arguments: argparse.Namespace, classes: Sequence[ClassInfo]) -> Options | None:
    """Options from a command line; None without ``--format``.

    Raises:
        UserError: If one is out of range, names no class, or is for another format.
    """
    for key in ("skip", "min_pixels", "min_confidence", *_OF_ONE):
        needed = _OF_ONE.get(key, arguments.format)
        if getattr(arguments, key) is not None and (needed is None or needed != arguments.format):
            raise UserError(f"--{key.replace('_', '-')} needs --format {needed or '|'.join(FORMATS)}")
    if arguments.format is None:
        return None
    simplify = Options.simplify if arguments.simplify is None else arguments.simplify
    if not simplify >= 0:
        raise UserError(f"--simplify must be at least 0, got {simplify:g}")
    skip = skipped_ids(arguments.skip, classes)
    keep = Keep(skip, arguments.min_pixels or 0, arguments.min_confidence or 0.0)
    root = None if arguments.document_root is None else normal(arguments.document_root)
    address = LOCAL_FILES if arguments.image_url is None else arguments.image_url
    return Options(arguments.format, keep, simplify, address, root)


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
        place = normal(image)
        if not place.is_relative_to(root):
            raise UserError(
                f"{image} is not below --document-root {root}; name a folder that holds all images"
            )
        return prefix + quote(place.relative_to(root).as_posix())

    return address
