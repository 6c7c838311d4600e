"""Finds the images that a command is given as files, folders and lists, each by the name it was given by."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protoseg.config.sections import DataConfig
from protoseg.data.lines import IMAGE_SUFFIXES, Resolver
from protoseg.data.lists import data_root
from protoseg.errors import DataError

RESULT_FOLDERS = ("masks", "overlays", "confidence", "disagreement")
"""Folders of pictures that ``protoseg.predict`` makes; what is in them is no input."""
_PROBED_LINES = 20


@dataclass(frozen=True)
class FoundImage:
    """One image."""

    name: str
    """As given: the path below a list's root, or the path from the command line."""
    path: Path
    """Where it is."""


def find_images(inputs: Sequence[Path], out: Path) -> list[Path]:
    """Images named, and those below folders in sorted order; results of an earlier call are left out.

    Args:
        inputs: Files, taken as images whatever they are called, and folders.
        out: Folder of results.

    Raises:
        DataError: If an input does not exist or there is no image at all.
    """
    found: list[Path] = []
    results = [(out / part).resolve() for part in RESULT_FOLDERS]
    for path in inputs:
        if path.is_dir():
            root = path.resolve()
            own = [folder for folder in results if folder != root and folder.is_relative_to(root)]
            found += [file for file in sorted(path.rglob("*")) if _is_input(file, path, own)]
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path} is neither a file nor a folder; give images or folders of images")
    if not found:
        names = ", ".join(map(str, inputs))
        raise DataError(f"no image in {names}; looked for {', '.join(IMAGE_SUFFIXES)}")
    return list({path.resolve(): path for path in found}.values())


def _is_input(file: Path, root: Path, results: Sequence[Path]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    if hidden or file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
        return False
    return not any(file.resolve().is_relative_to(folder) for folder in results)


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
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is neither an image nor a list that can be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if not numbered:
        raise DataError(f"list {path} is empty; it needs one image a line")
    for root in roots:
        resolver = Resolver(root, image_dir, None, need_mask=False)
        if any(_resolves(resolver, line) for _, line in numbered[:_PROBED_LINES]):
            break
    else:
        places = ", ".join(map(str, roots))
        raise DataError(
            f"no image of list {path} was found (first line: {numbered[0][1]!r}; looked below {places}); "
            "name the folder that its lines are relative to with --root"
        )
    found: list[FoundImage] = []
    problems: list[str] = []
    for number, line in numbered:
        try:
            image = resolver.resolve(line)[0].image
        except DataError as error:
            problems.append(f"{path}, line {number}: {error}")
            continue
        name = image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
        found.append(FoundImage(name, image))
    return found, problems


def _resolves(resolver: Resolver, line: str) -> bool:
    try:
        resolver.resolve(line)
    except DataError:
        return False
    return True
