"""Which images to label next: ``python -m protoseg.suggest CKPT IMAGES... [-n 24] [-o DIR]``.

Chooses images that show the prototypes of all classes evenly, labelled images included; where there are no
prototypes, one of each cluster of the encoder's features, and so with ``--encoder`` before anything is
trained. Writes, all or nothing:

* ``DIR/suggested.txt``: the chosen images, one a line, most useful first;
* ``DIR/suggested.json``: score, nearest image taken before, and the classes that are in doubt;
* ``DIR/sheet.png``: image, prediction and suspicion of each;
* with ``--format``, drafts of their masks for an annotation tool.

docs/suggest.md says how well this works and where it does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from protoseg.annotate.draft import names_of
from protoseg.annotate.write import Options, add_arguments, options_of, write
from protoseg.checkpoint import Checkpoint, load_checkpoint
from protoseg.draw.tiles import Tile
from protoseg.errors import DataError, UserError
from protoseg.inference import HEADS, HeadName, guarded_on_device, score, usable_device
from protoseg.suggest.candidates import collect, listed_images, trained_images, without
from protoseg.suggest.choice import Pick, pick_clustered, pick_diverse, pick_evenly
from protoseg.suggest.first import PretrainedEncoder, suggest_first
from protoseg.suggest.results import (
    LIST_NAME,
    SHEET_IMAGES,
    SHEET_NAME,
    all_evidence,
    evidence,
    headline,
    write_results,
)
from protoseg.suggest.score_images import Scan, Suggester
from protoseg.suggest.sheet import make_tile, suggestion_sheet
from protoseg.suggest.uncertainty import NEED_PROTOTYPES, SCORES, ScoreName

DEFAULT_SCORE: ScoreName = "linear"
DEFAULT_DISTANCE = 0.06
DEFAULT_OUT = Path("suggestions")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.suggest",
        description="Choose the images to label next: those that show the classes' prototypes most evenly, "
        "labelled images included; without prototypes, and with --encoder, one of each cluster of the "
        "encoder's features.",
        epilog=all_evidence(),
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="run folder, checkpoint folder, or a file in it; none with "
        "--encoder")  # fmt: skip
    add("inputs", metavar="IMAGES", nargs="*", type=Path,
        help="images, folders of images, or lists as training reads them")  # fmt: skip
    add("--encoder", metavar="NAME", help="the first images, before anything is trained: one of each "
        "cluster of this pretrained encoder's features, as tf_efficientnet_lite0")  # fmt: skip
    add("--weights", help="--encoder's weights: package, timm or a file (default: the package of those that "
        "have one, else timm)")  # fmt: skip
    add("-n", "--count", type=int, default=24, help="images to suggest (default: 24)")
    add("-o", "--output", metavar="DIR", type=Path, default=DEFAULT_OUT, help=f"folder for the results "
        f"(default: {DEFAULT_OUT})")  # fmt: skip
    add("--score", choices=SCORES, help="choose by this doubt of pixels and the distance to what is taken, "
        "in place of the way that beat random choices more clearly")  # fmt: skip
    add("--labeled", metavar="LIST", type=Path, help="images that are labelled already: never suggested, and "
        "suggestions are unlike them (default: those that the checkpoint was trained with)")  # fmt: skip
    add("--exclude", metavar="LIST", type=Path, help="images that are not to be suggested")
    add("--root", metavar="DIR", type=Path, help="folder that the lines of lists are relative to (default: "
        "the list's folder, here, or the training data's folder)")  # fmt: skip
    add("--min-distance", type=float, default=DEFAULT_DISTANCE, help="an image nearer than this to a chosen "
        f"or labelled one is a near duplicate, 0 to 1 (default: {DEFAULT_DISTANCE})")  # fmt: skip
    add("--head", choices=("auto", *HEADS), default="auto",
        help="head that labels (default: the one with the highest validation mIoU)")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:1, ... (default: what accelerate finds)")
    add_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.encoder is not None:
        arguments.inputs.insert(0, Path(arguments.checkpoint))
        of_network = {"--score": arguments.score is not None, "--head": arguments.head != "auto",
                      "--format": arguments.format is not None}  # fmt: skip
        if needless := [name for name, is_given in of_network.items() if is_given]:
            parser.error(f"{needless[0]} needs a trained network, leave it out with --encoder")
        if arguments.weights == "none":
            parser.error("--weights none has nothing to choose by; give package, timm or a file")
    elif arguments.weights is not None:
        parser.error("--weights needs --encoder")
    elif not arguments.inputs:
        parser.error("the following arguments are required: IMAGES")
    if arguments.count < 1:
        parser.error(f"--count must be at least 1, got {arguments.count}")
    if not 0 <= arguments.min_distance <= 1:
        parser.error(f"--min-distance must be in [0, 1], got {arguments.min_distance}")
    return arguments


def open_suggester(arguments: argparse.Namespace) -> Suggester:
    """The checkpoint on its device, with a head and a score that it has.

    Raises:
        UserError, ValueError: With a text for the user.
    """
    checkpoint = load_checkpoint(arguments.checkpoint)
    head: HeadName = checkpoint.info.best_head() if arguments.head == "auto" else arguments.head
    if not bool(checkpoint.segmenter.bank.active.any()):
        if arguments.head not in ("auto", "linear"):
            raise UserError(f"--head {head} needs prototypes, this checkpoint has none; use --head linear")
        if arguments.score in NEED_PROTOTYPES:
            raise UserError(
                f"--score {arguments.score} needs prototypes, this checkpoint has none; "
                f"use --score {DEFAULT_SCORE}"
            )
        head = "linear"
        sys.stderr.write(
            "note: no prototypes in this checkpoint; images are compared by their mean feature\n"
        )
    checkpoint.segmenter.to(device_of(arguments))
    return Suggester(checkpoint, head, arguments.score or DEFAULT_SCORE)


def choose(
    arguments: argparse.Namespace, scan: Scan, labeled: Scan, has_prototypes: bool
) -> tuple[str, list[Pick], int]:
    """How images are chosen, which ones, and how many of the others are near duplicates."""
    rest = scan.matrix(0), labeled.matrix(len(scan.embeddings[0])), arguments.count, arguments.min_distance
    if arguments.score is not None:
        return "score", *pick_diverse(np.array(scan.scores, np.float32), *rest)
    if has_prototypes:
        return "prototypes", *pick_evenly(*rest)
    return "clusters", *pick_clustered(np.stack(scan.encoder), *rest)


def describe(
    suggester: Suggester, scan: Scan, labeled: Scan, picks: Sequence[Pick]
) -> tuple[list[dict[str, Any]], list[Tile]]:
    """Records of the chosen images, and tiles of the first ones, from a second look at them.

    Raises:
        DataError: If one of them can no longer be read.
    """
    everything = [*scan.images, *labeled.images]
    records, tiles = [], []
    for rank, pick in enumerate(picks, start=1):
        item, value = scan.images[pick.index], scan.scores[pick.index]
        image = suggester.read(item.path)
        found, doubt = suggester.look(image)
        labels = score(found.logits, suggester.head).label[0].cpu().numpy()
        classes = suggester.doubtful_classes(labels, doubt)
        nearest = None
        if pick.nearest is not None:
            nearest = {
                "image": everything[pick.nearest].name,
                "labeled": pick.nearest >= len(scan.images),
                "distance": round(pick.distance or 0.0, 4),
            }
        records.append({"rank": rank, "image": item.name, "score": round(value, 4), "nearest": nearest,
                        "cluster_size": pick.cluster_size, "doubtful_classes": classes})  # fmt: skip
        if rank <= SHEET_IMAGES:
            tiles.append(make_tile(
                f"{rank}   {item.name}", value, pick.distance, classes, image, labels.astype(np.uint8), doubt,
                suggester.checkpoint.info.classes,
            ))  # fmt: skip
    return records, tiles


def write_drafts(out: Path, suggester: Suggester, chosen: Sequence[Path], given: Sequence[Path],
                 options: Options) -> str:  # fmt: skip
    """Write drafts of the chosen images, which are named by their place among those given; says where.

    Raises:
        UserError, OSError: If they cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    names, info = names_of(given), suggester.checkpoint.info
    drafts = (suggester.draft(path, names[path], options.keep) for path in chosen)
    version = f"{info.name} {info.step}"
    return write(out, drafts, info.classes, options, images=given, model_version=version) + "\n"


def table(records: Sequence[dict[str, Any]]) -> str:
    """What was chosen, a line for each image."""
    lines = [f"{'rank':>4}  {'score':>6}  {'distance':>8}  {'image':<40}  doubtful classes"]
    for row in records:
        distance = f"{row['nearest']['distance']:.3f}" if row["nearest"] else "-"
        classes = ", ".join(f"{name} {part:.0%}" for name, part in row["doubtful_classes"].items())
        lines.append(f"{row['rank']:>4}  {row['score']:>6.3f}  {distance:>8}  {row['image']:<40}  {classes}")
    return "\n".join(lines)


def next_step(out: Path, checkpoint: Checkpoint) -> str:
    """What to do with the list."""
    config = checkpoint.path.parent / "config.yaml"
    shown = config if config.is_file() else "YOUR.yaml"
    return (
        f"next: label the images of {out / LIST_NAME} from the top, add their `image mask` lines to a copy "
        f"of your labelled list, then\n  accelerate launch --quiet -m protoseg.train --config {shown} "
        f"run.name={checkpoint.info.name}_2 data.labeled=YOUR_LIST"
    )


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device that was named, or what accelerate finds.

    Raises:
        UserError: If it cannot be used.
    """
    return usable_device(arguments.device) if arguments.device else PartialState().device


def run_first(arguments: argparse.Namespace) -> None:
    """Suggest the first images and write.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    encoder = PretrainedEncoder(arguments.encoder, arguments.weights, device_of(arguments))
    known = [path for path in (arguments.labeled, arguments.exclude) if path is not None]
    text = suggest_first(arguments.inputs, known, arguments.root, encoder, arguments.count, arguments.output)
    sys.stdout.write(text)


def run(arguments: argparse.Namespace) -> None:
    """Suggest and write.

    Raises:
        UserError, OSError, ValueError: With a text for the user.
    """
    suggester = open_suggester(arguments)
    drafting = options_of(arguments, suggester.checkpoint.info.classes)
    checkpoint, out = suggester.checkpoint, arguments.output
    data, root = checkpoint.info.data, arguments.root
    given, problems = collect(arguments.inputs, out=out, root=root, data=data, skip=[out / SHEET_NAME])
    for text in problems:
        sys.stderr.write(f"skipped: {text}\n")
    excluded = listed_images(arguments.exclude, root, data)
    named = listed_images(arguments.labeled, root, data)
    labeled_images = trained_images(data, "labeled") if arguments.labeled is None else named
    left = without(given, [*labeled_images, *excluded])
    # what was chosen by a network and then labelled would make its validation look better than it is
    candidates = without(left, trained_images(data, "val"))
    if not candidates:
        raise DataError(
            f"all {len(given)} images are labelled or excluded already, or for validation; give other images"
        )
    scan = suggester.scan(candidates, "score")
    skipped = [*problems, *scan.skipped]
    if not scan.images:
        raise DataError(f"none of the {len(candidates)} images could be read, see above")
    labeled = suggester.scan(labeled_images, "labeled") if labeled_images else Scan()
    has_prototypes = bool(checkpoint.segmenter.bank.active.any())
    way, picks, repeats = choose(arguments, scan, labeled, has_prototypes)
    counts = {
        "given": len(given) + len(problems), "labeled_or_excluded": len(given) - len(left),
        "validation": len(left) - len(candidates), "skipped": len(skipped), "scored": len(scan.images),
        "near_duplicates": repeats, "suggested": len(picks), "labeled_compared": len(labeled.images),
    }  # fmt: skip
    if not picks:
        sys.stdout.write(f"nothing to suggest: all {repeats} images are near duplicates of labelled ones; "
                         "lower --min-distance to see them\n")  # fmt: skip
        return
    records, tiles = describe(suggester, scan, labeled, picks)
    info = checkpoint.info
    record = {
        "checkpoint": info.name, "step": info.step, "weights_sha256": info.weights_sha256,
        "choice": way, "score": suggester.score, "head": suggester.head,
        "min_distance": arguments.min_distance,
        "embedding": "prototype shares" if has_prototypes else "mean feature",
        "counts": counts, "suggested": records, "skipped": skipped,
    }  # fmt: skip
    title = headline(len(picks), len(scan.images), f"next, {info.name} at step {info.step}")
    drafted = ""
    if drafting is not None:
        chosen = [scan.images[pick.index].path for pick in picks]
        drafted = write_drafts(out, suggester, chosen, [item.path for item in given], drafting)
    sheet = suggestion_sheet(title, tiles, info.classes)
    write_results(out, [row["image"] for row in records], record, sheet)
    sys.stdout.write(
        f"{table(records)}\n\n{len(picks)} of {len(scan.images)} images in {out}; {repeats} others are near "
        f"duplicates, {counts['labeled_or_excluded']} are labelled or excluded, {counts['validation']} for "
        f"validation, {len(skipped)} could not be read\n"
        f"{evidence(suggester.score if way == 'score' else way)}\n{drafted}{next_step(out, checkpoint)}\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 when nothing could be read, 130 after Ctrl-C."""
    arguments = parse_arguments(argv)
    body = run if arguments.encoder is None else run_first
    return guarded_on_device(lambda: body(arguments))


if __name__ == "__main__":
    sys.exit(main())
