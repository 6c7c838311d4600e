"""Millions of names in three arrays: Python objects for them would take a hundred times the memory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.data.names import plain

_CHUNK = 65536


class Names:
    """Texts that are parts of one array of bytes.

    Args:
        data: ``(B,)`` uint8, UTF-8.
        starts: ``(N,)`` int64, where each text begins.
        stops: ``(N,)`` int64, where it ends.
    """

    def __init__(self, data: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        self.data, self.starts, self.stops = data, starts, stops

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        return self.data[self.starts[index] : self.stops[index]].tobytes().decode("utf-8", "replace")

    def take(self, which: NDArray[Any]) -> Names:
        """Some of them, by position or by a mask; the bytes are shared."""
        return Names(self.data, self.starts[which], self.stops[which])

    def bytes(self) -> Iterator[bytes]:
        """One after the other."""
        for first in range(0, len(self), _CHUNK):
            starts, stops = self.starts[first : first + _CHUNK], self.stops[first : first + _CHUNK]
            low, high = int(starts.min()), int(stops.max())
            if high - low > 4 * int((stops - starts).sum()) + _CHUNK:
                low, high = 0, 0  # far apart: each by itself
            near = self.data[low:high].tobytes()
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                # parts of a bytes object are made several times faster than those of an array
                yield near[start - low : stop - low] if high else self.data[start:stop].tobytes()

    def stripped(self) -> Names:
        """Without blanks, tabs and carriage returns at both ends."""
        starts, stops = self.starts.copy(), self.stops.copy()
        blank = np.zeros(256, bool)
        blank[[9, 11, 12, 13, 32]] = True
        for _ in range(len(self.data)):
            more = (stops > starts) & blank[self.data[np.maximum(stops - 1, 0)]]
            if not more.any():
                break
            stops[more] -= 1
        for _ in range(len(self.data)):
            more = (stops > starts) & blank[self.data[np.minimum(starts, len(self.data) - 1)]]
            if not more.any():
                break
            starts[more] += 1
        return Names(self.data, starts, stops)

    def last_parts(self) -> Names:
        """What follows the last slash."""
        at = self._last(ord("/"))
        return Names(self.data, np.where(at >= 0, at + 1, self.starts), self.stops)

    def without_endings(self, endings: Collection[str]) -> Names:
        """Without the last suffix where it is one of ``endings`` (with dot, lower case)."""
        known = {ending.encode() for ending in endings}
        at = self._last(ord("."))
        stops = self.stops.copy()
        found = np.flatnonzero(at > self.starts)
        ends = Names(self.data, at[found], self.stops[found])
        hits = np.fromiter((end.lower() in known for end in ends.bytes()), bool, len(found))
        stops[found[hits]] = at[found[hits]]
        return Names(self.data, self.starts, stops)

    def _last(self, byte: int) -> NDArray[np.int64]:
        """Where each text has a byte for the last time, -1 where it has none."""
        places = np.flatnonzero(self.data == byte)
        if not len(places):
            return np.full(len(self), -1, np.int64)
        before = np.searchsorted(places, self.stops) - 1
        found = places[np.maximum(before, 0)]
        return np.where((before >= 0) & (found >= self.starts), found, -1)

    def hashes(self) -> NDArray[np.int64]:
        """``(N,)`` hashes; equal texts have equal ones, within this process."""
        return np.fromiter((hash(text) for text in self.bytes()), np.int64, len(self))

    def find(self, wanted: Collection[str]) -> dict[str, list[int]]:
        """Where each of some texts is, in ascending order; those that are nowhere are left out."""
        texts = {text.encode(): text for text in wanted}
        found: dict[str, list[int]] = {}
        if not texts or not len(self):
            return found
        asked = np.fromiter((hash(text) for text in texts), np.int64, len(texts))
        for index in np.flatnonzero(np.isin(self.hashes(), asked)).tolist():
            text = texts.get(self.data[self.starts[index] : self.stops[index]].tobytes())
            if text is not None:
                found.setdefault(text, []).append(index)
        return found

    def first_repeated(self) -> tuple[int, str]:
        """How many texts are there more than once, and one of them."""
        hashes = self.hashes()
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        again = counts > 1
        return int(again.sum()), self[int(first[again].min())] if again.any() else ""

    def digest(self) -> str:
        """SHA-256 of the sorted texts in the composed Unicode form, joined by newlines."""
        lengths = self.stops - self.starts
        width = int(lengths.max(initial=1))
        if self.data.max(initial=0) > 127 or width > 1024:
            texts = sorted(plain(text.decode("utf-8", "replace")) for text in self.bytes())
            return hashlib.sha256("\n".join(texts).encode()).hexdigest()
        table = np.zeros((len(self), max(1, width)), np.uint8)
        for first in range(0, len(self), _CHUNK):
            some = slice(first, first + _CHUNK)
            inside = np.arange(table.shape[1]) < lengths[some, None]
            places = self.starts[some, None] + np.arange(table.shape[1])
            table[some][inside] = self.data[places[inside]]
        rows = table.view(f"S{table.shape[1]}")[:, 0]
        rows.sort()
        found = hashlib.sha256()
        for first in range(0, len(rows), _CHUNK):
            found.update((b"\n" if first else b"") + b"\n".join(rows[first : first + _CHUNK].tolist()))
        return found.hexdigest()


def split_lines(text: str) -> Names:
    """The lines of a text, without their ends and blanks around them; line n is at n - 1."""
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.flatnonzero(data == ord("\n")).astype(np.int64)
    starts = np.concatenate([[0], ends + 1]).astype(np.int64)
    return Names(data, starts, np.concatenate([ends, [len(data)]]).astype(np.int64)).stripped()


def join_names(texts: Collection[str]) -> Names:
    """Texts as ``Names``."""
    encoded = [text.encode() for text in texts]
    stops = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64) if len(stops) else stops
    return Names(np.frombuffer(b"".join(encoded), np.uint8), starts, stops)
