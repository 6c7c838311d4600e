"""The images that a command is given: files, folders, and list files, each with the name it was given by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from protoseg.config.sections import DataConfig
from protoseg.data.lines import IMAGE_SUFFIXES, Resolver
from protoseg.data.lists import data_root
from protoseg.errors import DataError
from protoseg.predict.images import find_images

_PROBED_LINES = 20


@dataclass(frozen=True)
class Candidate:
    """One image."""

    name: str
    """As given: the path below a list's root, or the path from the command line."""
    path: Path
    """Where it is."""


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


def read_list(path: Path, roots: Sequence[Path], image_dir: str | None) -> tuple[list[Candidate], list[str]]:
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
    found: list[Candidate] = []
    problems: list[str] = []
    for number, line in numbered:
        try:
            image = resolver.resolve(line)[0].image
        except DataError as error:
            problems.append(f"{path}, line {number}: {error}")
            continue
        name = image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
        found.append(Candidate(name, image))
    return found, problems


def _resolves(resolver: Resolver, line: str) -> bool:
    try:
        resolver.resolve(line)
    except DataError:
        return False
    return True


def collect(
    inputs: Sequence[Path], *, out: Path, root: Path | None, data: DataConfig, skip: Sequence[Path] = ()
) -> tuple[list[Candidate], list[str]]:
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
    found: list[Candidate] = []
    problems: list[str] = []
    for path in inputs:
        if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
            listed, broken = read_list(path, list_roots(root, path, data), data.image_dir)
            found += listed
            problems += broken
        else:
            found += [Candidate(image.as_posix(), image) for image in find_images([path], out)]
    own = {path.resolve() for path in skip}
    once: dict[Path, Candidate] = {}
    for item in found:
        place = item.path.resolve()
        if place not in own:
            once.setdefault(place, item)
    return list(once.values()), problems


def without(candidates: Iterable[Candidate], others: Iterable[Candidate]) -> list[Candidate]:
    """Candidates that are none of the others' files."""
    known = {item.path.resolve() for item in others}
    return [item for item in candidates if item.path.resolve() not in known]
