"""What ``protoseg predict`` does alike with a checkpoint and with a bundle. Torch-free."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from tqdm import tqdm

from protoseg.ahead import ahead_in_order
from protoseg.annotate.write import Options, add_arguments, options_of, write
from protoseg.data.find import EXPLAIN_FOLDER, RESULT_FOLDERS, Found, FoundImage, find_images
from protoseg.errors import UserError
from protoseg.manifest import ClassInfo, Head
from protoseg.predict.drafts import Drafted
from protoseg.predict.table import TABLE_NAME, ResultTable


class Told(NamedTuple):
    """What became of an image."""

    skipped: str | None = None
    """Why it was skipped."""
    novel_share: float | None = None
    """Share of its pixels that are novel, where that is known."""


MOST_WORKERS = 8
"""Each holds the activations of an image."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.predict",
        description="Segment images: class-id masks, confidence and disagreement maps at the image's own "
        "size, and overlays with a legend.",
        epilog="Very many images, on the machines of a Ray cluster: protoseg predict --ray ADDRESS "
        "(docs/scaling.md).",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, checkpoint folder or a file in it; a bundle, or a "
        "network file in one, with the command `protoseg predict` (needs no torch)")  # fmt: skip
    add(
        "inputs", metavar="PATH", nargs="+", type=Path, help="images, or folders that are searched for images"
    )
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="folder for the results")
    add(
        "--head",
        choices=("auto", *get_args(Head)),
        default="auto",
        help="head that labels (default: the one with the highest validation mIoU of the checkpoint)",
    )
    for part in RESULT_FOLDERS[1:]:
        add(f"--no-{part.removesuffix('s')}", action="store_true", help=f"do not write OUT/{part}")
    add(
        "--no-novelty",
        action="store_true",
        help="do not write OUT/novelty (written if `protoseg novelty` was run)",
    )
    add("--no-legend", action="store_true", help="overlays of exactly the image's size, without the legend "
        "below")  # fmt: skip
    add("--soft", action="store_true", help="write OUT/soft too, probabilities of all classes "
        "for pseudo_labels.folder")  # fmt: skip
    add("--explain", action="store_true", help="write OUT/explain too: what each region resembles, from "
        "whole images (python -m protoseg.explain makes what it needs)")  # fmt: skip
    add("--sliding", action="store_true", help="overlapping windows of the training crop, averaged, "
        "instead of the whole image at once")  # fmt: skip
    add("--student", action="store_true", help="use the student's weights instead of the teacher's")
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    add("--workers", type=int, metavar="N", help="images that are read, computed and written at a time; "
        f"the cores are divided among them (default: one for each core, at most {MOST_WORKERS})")  # fmt: skip
    add_arguments(parser)
    return parser.parse_intermixed_args(argv)


def workers_for(asked: int | None, cores: int, images: int) -> int:
    """How many images are worked on at a time.

    Args:
        asked: What the user wants; None: one for each core, at most ``MOST_WORKERS``.
        cores: Cores, or threads, to divide.
        images: How many images there are.

    Raises:
        UserError: If less than one is asked for.
    """
    if asked is not None and asked < 1:
        raise UserError(f"--workers must be at least 1, got {asked}")
    return min(asked or min(cores, MOST_WORKERS), images)


def drafting_of(arguments: argparse.Namespace, classes: Sequence[ClassInfo]) -> Options | None:
    """What drafts are asked for.

    Raises:
        UserError: If options do not go together.
    """
    drafting = options_of(arguments, classes)
    if drafting is not None and drafting.keep.min_confidence and arguments.no_confidence:
        raise UserError("--min-confidence reads OUT/confidence; leave out --no-confidence")
    return drafting


def wanted_parts(arguments: argparse.Namespace) -> list[str]:
    """Folders of pictures that were not declined."""
    return [part for part in RESULT_FOLDERS if not getattr(arguments, f"no_{part.removesuffix('s')}", False)]


def find_inputs(arguments: argparse.Namespace) -> Found:
    """The images that were named; what was passed over is told.

    Raises:
        DataError: If an input does not exist or there is no image at all.
    """
    found = find_images(arguments.inputs, arguments.output)
    for text in found.remarks:
        sys.stderr.write(f"note: {text}\n")
    return found


def written_in_order(
    segment: Callable[[FoundImage, str], Told],
    images: Sequence[FoundImage],
    out: Path,
    parts: Sequence[str],
    *,
    head: str,
    run: str,
    version: int | str,
    workers: int,
) -> Iterator[tuple[Path, str | None]]:
    """Segment files, several at a time, and note in ``out/predictions.csv`` what is whose.

    Args:
        segment: Writes the results of an image under a name, in a thread.
        images: Files, with what to call them.
        out: Folder of results.
        parts: Folders of pictures that ``segment`` writes.
        head: Head that labels.
        run: Name of the run that trained the network.
        version: Its optimiser step, or the version of its bundle.
        workers: Images at a time.

    Yields:
        Each path in order, with None, or why it was skipped.

    Raises:
        DataError: If a result cannot be written, or the table of an earlier call cannot be read.
    """
    table = ResultTable(out)
    given = zip(images, table.reserve(images), strict=True)
    results = ahead_in_order(
        lambda pair: segment(*pair), given, workers=workers, ahead=workers + 1, name="protoseg-predict"
    )
    try:
        for (item, name), found in results:
            told = found.result()
            if told.skipped is None:
                table.done(name, parts, head, run, version, told.novel_share)
            yield item.path, told.skipped
    finally:
        results.close()
        table.write()


def follow(results: Iterable[tuple[Path, str | None]], total: int) -> int:
    """Show progress while results are made; returns how many images were skipped, each with its reason."""
    failed, pause = 0, 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=total, desc="predict", unit="image", mininterval=pause) as bar:
        for _path, reason in results:
            bar.update()
            if reason is not None:
                failed += 1
                bar.write(f"skipped: {reason}", file=sys.stderr)
    return failed


def finish(
    arguments: argparse.Namespace,
    total: int,
    failed: int,
    parts: Sequence[str],
    *,
    run: str,
    version: int | str,
    head: str,
    classes: Sequence[ClassInfo],
    drafting: Options | None,
) -> int:
    """Say what was written, and write drafts; returns the exit code.

    Args:
        arguments: The command's.
        total: Images.
        failed: Those that were skipped.
        parts: Folders of pictures.
        run: Name of the run that trained the network.
        version: Its optimiser step, or the version of its bundle.
        head: Head that labelled.
        classes: Its classes.
        drafting: See ``drafting_of``; drafts are of all that this network predicted into the folder.

    Raises:
        UserError, OSError: With a text for the user.
    """
    out: Path = arguments.output
    written = [*parts, *([EXPLAIN_FOLDER] if arguments.explain else []), TABLE_NAME]
    sys.stdout.write(f"{total - failed} of {total} images in {out} ({', '.join(written)}), {head} head\n")
    if drafting is not None:
        drafted = Drafted.of(out, run, version)
        for text in drafted.left_out:
            sys.stderr.write(f"note: {text}\n")
        if drafted.rows:
            line = write(out, drafted.drafts(drafting.keep), classes, drafting, images=list(drafted.rows),
                         model_version=f"{run} {version}")  # fmt: skip
            sys.stdout.write(f"{line}\n")
    if failed:
        sys.stderr.write(f"error: {failed} file(s) could not be read, see above; the others are done\n")
    return 1 if failed else 0
