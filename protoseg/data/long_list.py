"""Lists and folders of very many unlabelled images: a line is looked up on the disk when its image is drawn.

A pass over the disk for a million lines would take minutes to hours, and objects for them gigabytes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from protoseg.data.columns import Header
from protoseg.data.compact import Names, join_names
from protoseg.data.lines import Entry, Resolver
from protoseg.data.listed import Listed, read_listed
from protoseg.data.names import IMAGE_SUFFIXES
from protoseg.errors import DataError

LONG = 10_000
"""Images from which on a list or folder is long."""
_HEAD, _SAMPLED = 100, 900
"""Lines that are looked up at the start: the first ones, and others evenly spread."""
_WHOLE = ("images", "bare stems", "VOC ids", "Cityscapes images")
_CUT = ("images with None", "space pairs", "space pairs, leading slash")
_TABS = ("tab pairs", "tab pairs, leading slash")


class MissingEntryError(DataError):
    """A line that names no image; found when the image was drawn."""


class LazyEntries(Sequence[Entry]):
    """Entries that are made when they are asked for; slices are lazy too."""

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """The entry of one image."""

    @abstractmethod
    def take(self, keep: NDArray[np.int64]) -> Sequence[Entry]:
        """Some of them."""

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        """The entry of one image, or those of several."""
        return self.take(np.arange(len(self))[index]) if isinstance(index, slice) else self.entry(index)


class FolderEntries(LazyEntries):
    """Unlabelled images below a folder.

    Args:
        folder: The folder.
        texts: ``(N,)`` relative names.
    """

    def __init__(self, folder: Path, texts: Names) -> None:
        self.folder, self.texts = folder, texts

    def __len__(self) -> int:
        return len(self.texts)

    def entry(self, index: int) -> Entry:
        """The entry of one image."""
        return Entry(self.folder / self.texts[index], None)

    def take(self, keep: NDArray[np.int64]) -> FolderEntries:
        """Some of them."""
        return FolderEntries(self.folder, self.texts.take(keep))

    def names(self) -> Names:
        """Names without folders."""
        return self.texts.last_parts()

    def stems(self) -> Names:
        """The same without suffix."""
        return self.names().without_endings(IMAGE_SUFFIXES)


class ListedEntries(LazyEntries):
    """Entries of a list's lines; each is looked up when it is asked for.

    Args:
        path: The list.
        lines: All its lines.
        which: ``(N,)`` lines that name images, counted from 0.
        resolver: What a line is read with.
        header: Columns, where a header line named them.
        texts: ``(N,)`` what each line calls its image.
    """

    def __init__(
        self, path: Path, lines: Names, which: NDArray[np.int64], resolver: Resolver, header: Header | None,
        texts: Names,
    ) -> None:  # fmt: skip
        self.path, self.lines, self.which = path, lines, which
        self.resolver, self.header, self.texts = resolver, header, texts

    def __len__(self) -> int:
        return len(self.which)

    def entry(self, index: int) -> Entry:
        """The entry of one image.

        Raises:
            MissingEntryError: Naming list and line, if there is no such file.
        """
        line = int(self.which[index])
        try:
            return self.resolver.resolve(self.lines[line], self.header)[0]
        except DataError as error:
            raise MissingEntryError(f"{self.path}, line {line + 1}: {error}") from error

    def take(self, keep: NDArray[np.int64]) -> ListedEntries:
        """Some of them."""
        texts = self.texts.take(keep)
        return ListedEntries(self.path, self.lines, self.which[keep], self.resolver, self.header, texts)

    def names(self) -> Names:
        """Names of the images as the list has them, without folders."""
        return self.texts.last_parts()

    def stems(self) -> Names:
        """The same without suffix."""
        return self.names().without_endings(IMAGE_SUFFIXES)


def read_long(path: Path, lines: Names, resolver: Resolver) -> tuple[ListedEntries, Listed] | None:
    """Entries of a long list, and what a look at some of its lines showed.

    Returns:
        None for forms in which only the disk tells what a line's image is: those are read line by line.

    Raises:
        DataError: If the header divides the images into parts.
    """
    head = min(_HEAD, len(lines))
    seen = read_listed([lines[i] for i in range(head)], resolver)
    named = lines.stops > lines.starts
    named[:head] = False
    named[[number - 1 for number in (*seen.numbers, *(number for number, _ in seen.problems))]] = True
    first = lines.data[np.minimum(lines.starts, max(0, len(lines.data) - 1))]
    for at in (np.flatnonzero(named[head:] & (first[head:] == ord("#"))) + head).tolist():
        try:
            resolver.resolve(lines[at], seen.header)
        except DataError:
            named[at] = False  # a comment
    which = np.flatnonzero(named)
    for place in range(min(_SAMPLED, len(which))):
        at = int(which[place * len(which) // min(_SAMPLED, len(which))])
        if at < head:
            continue
        try:
            seen.families[resolver.resolve(lines[at], seen.header)[1]] = None
        except DataError as error:
            seen.problems.append((at + 1, str(error)))
    texts = _image_texts(lines.take(which), seen)
    return None if texts is None else (ListedEntries(path, lines, which, resolver, seen.header, texts), seen)


def _image_texts(lines: Names, seen: Listed) -> Names | None:
    if seen.header is not None:
        try:
            return join_names([seen.header.pick(lines[i])[0] for i in range(len(lines))])
        except DataError:
            return None
    if not set(seen.families) <= {*_WHOLE, *_CUT, *_TABS}:
        return None
    texts = _cut(lines, b"\t")
    return _cut(texts, b" ") if set(seen.families) & set(_CUT) else texts


def _cut(lines: Names, separator: bytes) -> Names:
    """What is before the first separator."""
    places = np.flatnonzero(lines.data == separator[0])
    if not len(places):
        return lines
    at = places[np.minimum(np.searchsorted(places, lines.starts), len(places) - 1)]
    inside = (at >= lines.starts) & (at < lines.stops)
    return Names(lines.data, lines.starts, np.where(inside, at, lines.stops))
