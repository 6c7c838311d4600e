"""Masks of image files from a bundle, without torch: ``protoseg predict BUNDLE IMAGES... -o OUT``.

Folders and names of results are those of a checkpoint (``protoseg.predict``), as far as the exported network
has what they show. Very large images are computed in windows, as the service does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from protoseg.api.load import bundle_in, load
from protoseg.api.model import Model, Wanted
from protoseg.cores import usable_cores
from protoseg.data.find import EXPLAIN_FOLDER, NOVELTY, FoundImage
from protoseg.errors import UserError, guarded
from protoseg.explain.record import write_reasons
from protoseg.predict.command import (
    Told,
    drafting_of,
    find_inputs,
    finish,
    follow,
    parse_arguments,
    wanted_parts,
    workers_for,
    written_in_order,
)
from protoseg.predict.table import part_file
from protoseg.predict.write import save_part

SCORES = {"confidence": "confidence", "disagreement": "agreement", NOVELTY: NOVELTY}
"""What a picture shows, as a model calls it."""


def is_bundle(reference: str) -> bool:
    """Whether a path is a bundle, a network file in one, or a run folder that holds nothing else."""
    return bundle_in(Path(reference).expanduser(), "checkpoint") is not None


def predict_files(
    model: Model,
    images: Sequence[FoundImage],
    out: Path,
    wanted: Wanted,
    *,
    parts: Sequence[str],
    legend: bool = True,
    workers: int = 1,
) -> Iterator[tuple[Path, str | None]]:
    """Segment files, several at a time, write results, and note in ``out/predictions.csv`` what is whose.

    Args:
        model: May be used by several threads at a time.
        images: Files, with what to call them.
        out: Folder of results.
        wanted: What is asked of the model.
        parts: Folders of pictures to write.
        legend: Name the colours below each overlay.
        workers: Images at a time.

    Returns:
        Each path in order, with None, or why it was skipped.

    Raises:
        DataError: If a result cannot be written, or the table of an earlier call cannot be read.
    """
    info = model.info

    def segment(item: FoundImage, name: str) -> Told:
        try:
            result = model(item.path, **vars(wanted))
        except UserError as error:
            return Told(skipped=str(error))
        for part in parts:
            save_part(out / part_file(part, name), part, result.labels, info.classes, legend=legend,
                      image=result.image if part == "overlays" else None, confidence=result.confidence,
                      label_probability=result.agreement, novelty=result.novelty)  # fmt: skip
        if result.grounds is not None:
            about = {"image": item.name, "run": info.name, "step": info.version, "head": info.head}
            base = out / EXPLAIN_FOLDER / name
            write_reasons(base, result.image, result.labels, result.grounds, info.classes, about)
        return Told(novel_share=result.novel_share)

    return written_in_order(
        segment, images, out, parts, head=info.head, run=info.name, version=info.version, workers=workers
    )


def run(arguments: argparse.Namespace) -> int:
    """Predict; returns the exit code.

    Raises:
        UserError, OSError: With a text for the user.
    """
    for option in ("soft", "student"):
        if getattr(arguments, option):
            raise UserError(
                f"--{option} is for a checkpoint, and {arguments.model} is a bundle; name its run"
            )
    images = find_inputs(arguments).images
    cores = usable_cores()
    workers = workers_for(arguments.workers, cores, len(images))
    head = None if arguments.head == "auto" else arguments.head
    threads = max(1, cores // workers)
    with load(arguments.model, prefer="bundle", head=head, device=arguments.device, threads=threads) as model:
        asked = [*wanted_parts(arguments), *([] if arguments.no_novelty else [NOVELTY])]
        parts = [part for part in asked if part not in SCORES or SCORES[part] in model.tells]
        drafting = drafting_of(arguments, model.classes)
        if drafting is not None and drafting.keep.min_confidence and "confidence" not in parts:
            raise UserError(f"--min-confidence needs the output confidence, which {arguments.model} lacks")
        wanted = Wanted(
            scores=not {"confidence", "disagreement"}.isdisjoint(parts), windows=arguments.sliding,
            novelty=NOVELTY in parts, explain=arguments.explain,
        )  # fmt: skip
        results = predict_files(model, images, arguments.output, wanted, parts=parts,
                                legend=not arguments.no_legend, workers=workers)  # fmt: skip
        failed = follow(results, len(images))
        return finish(arguments, len(images), failed, parts, run=model.info.name, version=model.info.version,
                      head=model.head, classes=model.classes, drafting=drafting)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments(argv)
    return guarded(lambda: run(arguments))
