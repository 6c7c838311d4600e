"""Finds the images that a command is given as files, folders and lists, each by the name it was given by."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from protoseg.config.data import DataConfig
from protoseg.data.folders import scan_folder
from protoseg.data.lines import Resolver
from protoseg.data.listed import read_listed
from protoseg.data.lists import data_root
from protoseg.data.names import IMAGE_SUFFIXES, MASK_ENDINGS, beside_ending, ends_with
from protoseg.data.text import read_text, refuse_annotations
from protoseg.errors import DataError

RESULT_FOLDERS = ("masks", "overlays", "confidence", "disagreement")
"""Folders of pictures that ``protoseg.predict`` makes; what is in them is no input."""
EXPLAIN_FOLDER = "explain"
"""The same of ``protoseg.predict --explain``."""
NOVELTY = "novelty"
"""Likewise, of checkpoints that tell novelty."""
_PROBED_LINES = 20


@dataclass(frozen=True)
class FoundImage:
    """One image."""

    name: str
    """As given: the path below a list's root, or the path from the command line."""
    path: Path
    """Where it is."""
    place: PurePath
    """Path below the folder that was searched; the file's name alone for one that was named."""


@dataclass
class Found:
    """Images of a command's inputs, each file once."""

    images: list[FoundImage] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What was left out, a line for each folder."""


def find_images(inputs: Sequence[Path], out: Path) -> Found:
    """Images named, and those below folders in sorted order; results of an earlier call are left out.

    Args:
        inputs: Files, taken as images whatever they are called, and folders.
        out: Folder of results.

    Raises:
        DataError: If an input does not exist or there is no image at all.
    """
    found = Found()
    results = [(out / part).resolve() for part in (*RESULT_FOLDERS, EXPLAIN_FOLDER, NOVELTY)]
    for path in inputs:
        if path.is_dir():
            root = path.resolve()
            scanned = scan_folder(path, IMAGE_SUFFIXES, {p: "" for p in results if p != root})
            names = {file: file.relative_to(path).as_posix() for file in scanned.files}
            stems = {ends_with(name, None) for name in names.values()}
            for file, name in names.items():
                ending = beside_ending(name, stems, MASK_ENDINGS)
                if ending is None:
                    found.images.append(FoundImage(file.as_posix(), file, PurePath(name)))
                else:
                    scanned.left.add(f"mask(s) beside their images (ending {ending})", file)
            if scanned.left.count:
                found.remarks.append(scanned.left.describe(path))
        elif path.is_file():
            found.images.append(FoundImage(path.as_posix(), path, PurePath(path.name)))
        else:
            raise DataError(f"{path} is neither a file nor a folder; give images or folders of images")
    if not found.images:
        names_given = ", ".join(map(str, inputs))
        more = "".join(f"\n{text}" for text in found.remarks)
        raise DataError(f"no image in {names_given}; looked for {', '.join(IMAGE_SUFFIXES)}{more}")
    once: dict[Path, FoundImage] = {}
    for item in found.images:
        once.setdefault(item.path.resolve(), item)
    found.images = list(once.values())
    return found


def list_roots(root: Path | None, listed: Path, data: DataConfig) -> list[Path]:
    """Folders that the lines of a list may be relative to.

    ``root`` alone when given; else the list's own folder, the working directory, and where the checkpoint's
    training data was.
    """
    if root is not None:
        return [root.absolute()]
    found = [listed.absolute().parent, Path.cwd()]
    if data.kind == "files":
        # the training data need not be on this machine
        with contextlib.suppress(DataError):
            found.append(data_root(data))
    return list(dict.fromkeys(found))


def read_list(path: Path, roots: Sequence[Path], image_dir: str | None) -> tuple[list[FoundImage], list[str]]:
    """Images of a list in any form that training reads; masks in it are ignored.

    Args:
        path: Text file.
        roots: Tried in order: the first below which one of the first lines exists is the root of all.
        image_dir: ``data.image_dir``, for lists of bare stems.

    Returns:
        The images that exist, and a text for each line that names none.

    Raises:
        DataError: If the list cannot be read, is empty, or no root fits.
    """
    try:
        text = read_text(path)
    except DataError as error:
        raise DataError(f"{path} is neither an image nor a list that can be read: {error}") from error
    refuse_annotations(path, text, "list")
    lines = [line.strip() for line in text.split("\n")]
    first = next((line for line in lines if line), None)
    if first is None:
        raise DataError(f"list {path} is empty; it needs one image a line")
    for root in roots:
        resolver = Resolver(root, image_dir, None, need_mask=False)
        if read_listed(lines[:_PROBED_LINES], resolver).entries:
            break
    else:
        places = ", ".join(map(str, roots))
        raise DataError(
            f"no image of list {path} was found (first line: {first!r}; looked below {places}); "
            "name the folder that its lines are relative to with --root"
        )
    listed = read_listed(lines, resolver)
    found = []
    for image in (entry.image for entry in listed.entries if isinstance(entry.image, Path)):
        name = image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
        found.append(FoundImage(name, image, PurePath(image.name)))
    return found, [f"{path}, line {number}: {text}" for number, text in listed.problems]
