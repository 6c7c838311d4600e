"""Pictures that lie within a larger file: what the readers need of a path, for bytes found elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO


@dataclass(frozen=True)
class Member:
    """A file within a shard. Its bytes are read when they are asked for, each time anew."""

    shard: str
    """Path or URL of the shard."""
    name_within: str
    """Name within the shard, with folders."""
    key: str = field(compare=False)
    """What lists call the sample."""
    fetch: Callable[[], bytes] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.shard}/{self.name_within}"

    @property
    def name(self) -> str:
        """File name without folders."""
        return PurePosixPath(self.name_within).name

    @property
    def stem(self) -> str:
        """The key without folders."""
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        """Last suffix with its dot."""
        return PurePosixPath(self.name_within).suffix

    def resolve(self) -> Member:
        """Itself: nothing within a shard is a link."""
        return self

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            DataError: If the shard cannot be read.
        """
        return self.fetch()

    def open(self, mode: str = "rb") -> BinaryIO:
        """The whole file as a stream; ``mode`` is there because paths have it.

        Raises:
            DataError: If the shard cannot be read.
        """
        assert mode == "rb"
        return io.BytesIO(self.fetch())


File = Path | Member
"""Where a picture is."""
