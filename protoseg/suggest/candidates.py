"""The images to choose from: what the command was given, without what is labelled or excluded."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Literal

from protoseg.config.data import DataConfig
from protoseg.data.find import FoundImage, find_images, list_roots, read_list
from protoseg.data.lists import scan_entries
from protoseg.data.names import IMAGE_SUFFIXES
from protoseg.errors import DataError

_NOTES = {
    "labeled": "labelled images of training are not here ({problem}); name them with --labeled",
    "val": "validation images of training are not here ({problem}); name them with --exclude",
}


def collect(
    inputs: Sequence[Path], *, out: Path, root: Path | None, data: DataConfig, skip: Sequence[Path] = ()
) -> tuple[list[FoundImage], list[str]]:
    """All images of the inputs, each file once, in the order given.

    Args:
        inputs: Images, folders (searched in sorted order), and lists: files that do not end as images do.
        out: Folder of results, which are never taken as inputs.
        root: Folder that lists are relative to, or None to find it.
        data: The checkpoint's data settings.
        skip: Further results, which are never taken as inputs either.

    Returns:
        The images, and a text for each line of a list that names none.

    Raises:
        DataError: If an input does not exist, or there is no image at all.
    """
    found: list[FoundImage] = []
    problems: list[str] = []
    for path in inputs:
        if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
            listed, broken = read_list(path, list_roots(root, path, data), data.image_dir)
            found += listed
            problems += broken
        else:
            given = find_images([path], out)
            found += given.images
            for text in given.remarks:
                sys.stderr.write(f"note: {text}\n")
    own = {path.resolve() for path in skip}
    once: dict[Path, FoundImage] = {}
    for item in found:
        place = item.path.resolve()
        if place not in own:
            once.setdefault(place, item)
    return list(once.values()), problems


def listed_images(path: Path | None, root: Path | None, data: DataConfig) -> list[FoundImage]:
    """Images of a list that was named, none without one; lines that name no image are printed.

    Raises:
        DataError: If it cannot be read.
    """
    if path is None:
        return []
    found, problems = read_list(path, list_roots(root, path, data), data.image_dir)
    for text in problems:
        sys.stderr.write(f"skipped: {text}\n")
    return found


def trained_images(data: DataConfig, split: Literal["labeled", "val"]) -> list[FoundImage]:
    """The labelled or validation images of a training, those that are here; says so when some are not."""
    if data.kind != "files":
        return []
    try:
        listed, problems = scan_entries(data, split)
        found = [
            FoundImage(str(entry.image), entry.image, PurePath(entry.image.name))
            for entry in listed.entries
            if isinstance(entry.image, Path)
        ]
    except DataError as error:
        found, problems = [], [str(error)]
    if problems:
        sys.stderr.write(
            f"note: {_NOTES[split].format(problem=problems[0])}, or suggestions may repeat them\n"
        )
    return found


def without(candidates: Iterable[FoundImage], others: Iterable[FoundImage]) -> list[FoundImage]:
    """Candidates that are none of the others' files."""
    known = {item.path.resolve() for item in others}
    return [item for item in candidates if item.path.resolve() not in known]
