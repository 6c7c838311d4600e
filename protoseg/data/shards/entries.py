"""Images of a set of shards as entries of a list."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from protoseg.data.compact import Names
from protoseg.data.lines import Entry
from protoseg.data.long_list import LazyEntries
from protoseg.data.members import Member
from protoseg.data.shards.index import ShardSet
from protoseg.data.shards.parquet import read_cell
from protoseg.data.shards.table import NO_MASK
from protoseg.data.storage import read_range


class ShardEntries(LazyEntries):
    """Entries of some rows of a set; each is made when it is asked for.

    Args:
        shards: The set.
        which: ``(N,)`` rows of it.
        masks: Whether entries have their masks.
    """

    def __init__(self, shards: ShardSet, which: NDArray[np.int64], masks: bool) -> None:
        self.shards, self.which, self.masks = shards, which, masks

    def __len__(self) -> int:
        return len(self.which)

    def take(self, keep: NDArray[np.int64]) -> ShardEntries:
        """Some of them."""
        return ShardEntries(self.shards, self.which[keep], self.masks)

    def entry(self, index: int) -> Entry:
        """The entry of one image."""
        at = int(self.which[index])
        shard, table = self.shards.shard_of(at), self.shards.table
        row = table.rows[at]
        start = int(row["key"])
        key = table.keys[start : start + int(row["length"])].tobytes().decode()
        image = _member(shard, key, table.endings[row["ending"]], int(row["offset"]), int(row["size"]))
        mask = None
        if self.masks and row["mask_offset"] != NO_MASK:
            ending = table.endings[row["mask_ending"]]
            mask = _member(shard, key, ending, int(row["mask_offset"]), int(row["mask_size"]))
        return Entry(image, mask)

    def keys(self) -> Names:
        """Keys of the images."""
        return self.shards.table.names().take(self.which)

    def stems(self) -> Names:
        """What the images' names are without folders and suffixes."""
        return self.keys().last_parts()

    def places(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each shard with the numbers of its rows that are here."""
        numbers = np.searchsorted(self.shards.firsts, self.which, side="right") - 1
        for number in np.unique(numbers).tolist():
            yield self.shards.shards[number], self.which[numbers == number] - self.shards.firsts[number]


def _member(shard: str, key: str, ending: str, offset: int, size: int) -> Member:
    if shard.endswith(".parquet"):
        # of two pictures of a row each needs a name of its own
        column = ending.partition(".")[0]
        return Member(
            shard, f"{key.rpartition('/')[2]}/{column}", key, partial(read_cell, shard, ending, offset, size)
        )
    return Member(shard, f"{key}{ending}", key, partial(read_range, shard, offset, size))
