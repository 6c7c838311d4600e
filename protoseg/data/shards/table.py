"""What a shard holds: a row for each image, in arrays that are kept on the disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoseg.data.compact import Names

ROW = np.dtype([
    ("offset", "<i8"), ("size", "<i8"), ("mask_offset", "<i8"), ("mask_size", "<i8"), ("key", "<i8"),
    ("length", "<u2"), ("ending", "<u2"), ("mask_ending", "<u2"),
])  # fmt: skip
"""Of a tar: bytes of image and mask (``mask_offset`` -1: none). Of a parquet file: row group and row."""
NO_MASK = -1


@dataclass
class Table:
    """Images of one shard or several."""

    rows: NDArray[np.void]
    """``(N,)`` of ``ROW``."""
    keys: NDArray[np.uint8]
    """Bytes of all keys."""
    endings: list[str]
    """Endings of names, by number."""
    left: dict[str, tuple[int, str]] = field(default_factory=dict)
    """What was left out: reason -> count and the first name."""

    def __len__(self) -> int:
        return len(self.rows)

    def names(self) -> Names:
        """The keys."""
        starts = self.rows["key"].astype(np.int64)
        return Names(self.keys, starts, starts + self.rows["length"])

    def with_mask(self) -> NDArray[np.bool_]:
        """``(N,)`` whether an image has a mask."""
        found: NDArray[np.bool_] = self.rows["mask_offset"] != NO_MASK
        return found

    def save(self, path: Path) -> None:
        """Write to a ``.npz``."""
        text = json.dumps({"endings": self.endings, "left": self.left})
        np.savez(path, rows=self.rows, keys=self.keys, text=np.frombuffer(text.encode(), np.uint8))


class Rows:
    """Takes the rows of a shard one by one."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._keys = bytearray()
        self._endings: dict[str, int] = {}
        self._left: dict[str, tuple[int, str]] = {}

    def add(
        self,
        key: str,
        place: tuple[int, int],
        ending: str,
        mask: tuple[int, int] | None,
        mask_ending: str = "",
    ) -> None:
        """Note an image at ``place`` (offset and size) and its mask."""
        name = key.encode()
        numbers = [self._endings.setdefault(text, len(self._endings)) for text in (ending, mask_ending)]
        self._rows.append((*place, *(mask or (NO_MASK, 0)), len(self._keys), len(name), *numbers))
        self._keys += name

    def leave_out(self, reason: str, name: str) -> None:
        """Note a file that is not read."""
        count, first = self._left.get(reason, (0, name))
        self._left[reason] = (count + 1, first)

    def table(self) -> Table:
        """All of them."""
        keys = np.frombuffer(bytes(self._keys), np.uint8)
        return Table(np.array(self._rows, ROW), keys, list(self._endings), self._left)


def load_table(path: Path) -> Table:
    """Read what ``Table.save`` wrote.

    Raises:
        OSError, ValueError, KeyError: If it is missing or damaged.
    """
    with np.load(path, allow_pickle=False) as file:
        told = json.loads(file["text"].tobytes())
        left = {reason: (int(count), str(name)) for reason, (count, name) in told["left"].items()}
        rows = file["rows"]
        if rows.dtype != ROW:
            raise ValueError("rows of another form")
        return Table(rows, file["keys"], [str(text) for text in told["endings"]], left)


def join_tables(tables: Sequence[Table]) -> tuple[Table, NDArray[np.int64]]:
    """One table of all rows, and ``(S + 1,)`` where the rows of each begin."""
    firsts = np.concatenate([[0], np.cumsum([len(table) for table in tables])]).astype(np.int64)
    rows = np.empty(int(firsts[-1]), ROW)
    endings: dict[str, int] = {}
    left: dict[str, tuple[int, str]] = {}
    shift = 0
    for table, first in zip(tables, firsts.tolist(), strict=False):
        part = rows[first : first + len(table)]
        part[:] = table.rows
        part["key"] += shift
        shift += len(table.keys)
        number = np.array(
            [endings.setdefault(text, len(endings)) for text in table.endings] or [0], np.uint16
        )
        for name in ("ending", "mask_ending"):
            part[name] = number[part[name]]
        for reason, (count, example) in table.left.items():
            before, name = left.get(reason, (0, example))
            left[reason] = (before + count, name)
    keys = np.concatenate([table.keys for table in tables]) if tables else np.zeros(0, np.uint8)
    return Table(rows, keys, list(endings), left), firsts
