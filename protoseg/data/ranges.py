"""The range of values of images of more than 8 bits, found in the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from protoseg.config.data import DataConfig
from protoseg.data.images import read_stored
from protoseg.data.lines import Entry
from protoseg.data.members import File
from protoseg.data.pictures import Reading, deep_kind, reading
from protoseg.errors import DataError
from protoseg.input_rule import FULL_16_BIT, ValueRange

SAMPLED = 32
"""Images of each list that are looked at, evenly spread."""


@dataclass(frozen=True)
class Values:
    """Smallest and largest values of images of more than 8 bits."""

    low: float
    high: float
    whole: bool
    """They are integers."""

    def joined(self, other: Values) -> Values:
        """Over both."""
        whole = self.whole and other.whole
        return Values(min(self.low, other.low), max(self.high, other.high), whole)

    def range(self) -> ValueRange:
        """The range that becomes 0 to 255.

        Integers from 0 on: to the largest number of as many bits (4095, 65535), so that a brighter image
        than those
        seen fits too. Floats within [0, 1]: that. Others: as found.
        """
        if self.whole and self.low >= 0:
            return 0, max(255, 2 ** int(self.high).bit_length() - 1)
        if self.low >= 0 and self.high <= 1:
            return 0, 1
        return self.low, self.high if self.high > self.low else self.low + 1


def image_values(path: File, channels: int, how: Reading) -> Values | None:
    """Values of one image; None where it has 8 bits, or says itself what its largest value is.

    Raises:
        DataError: If it cannot be read.
    """
    if not deep_kind(path):
        return None
    # colours of 16 bit are read whole only when a range is known
    stored = read_stored(path, channels, replace(how, value_range=FULL_16_BIT))
    if stored.dtype == np.uint8:
        return None
    finite = stored if stored.dtype.kind != "f" else stored[np.isfinite(stored)]
    if finite.size == 0:
        raise DataError(f"image {path} holds no finite number")
    return Values(float(finite.min()), float(finite.max()), stored.dtype.kind in "iu")


def sample_values(config: DataConfig, *lists: Sequence[Entry]) -> Values | None:
    """Values of up to ``SAMPLED`` images of each list; the doctor names those that cannot be read."""
    found = None
    for entries in lists:
        for index in _spread(len(entries)):
            try:
                values = image_values(entries[index].image, config.in_channels, reading(config))
            except DataError:
                continue
            if values is not None:
                found = values if found is None else found.joined(values)
    return found


def _spread(length: int) -> Iterable[int]:
    count = min(SAMPLED, length)
    return (i * length // count for i in range(count))


def with_value_range(config: DataConfig, labeled: Sequence[Entry], unlabeled: Sequence[Entry]) -> DataConfig:
    """``config`` with ``value_range`` filled in where it is null and the images have more than 8 bits.

    The same lists give the same range.
    """
    if config.kind != "files" or config.value_range is not None:
        return config
    found = sample_values(config, labeled, unlabeled)
    return config if found is None else config.model_copy(update={"value_range": found.range()})
