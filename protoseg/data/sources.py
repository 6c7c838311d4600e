"""Images and masks of one split by index, whether they are files or drawn scenes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protoseg.config.sections import DataConfig
from protoseg.data.images import read_image
from protoseg.data.lists import Entry
from protoseg.data.masks import MaskReader
from protoseg.data.synthetic import Split, SyntheticScenes
from protoseg.errors import DataError
from protoseg.files import sha256_file


class Source(Protocol):
    """What the doctor needs of a split."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H, W, C) uint8; raises DataError when it cannot be read."""
        ...

    def mask(self, index: int) -> tuple[NDArray[np.uint8], str] | None:
        """(H, W) labels and a complaint about unknown values ("" when there are none)."""
        ...

    def digest(self, index: int) -> str:
        """Hash of the image's content."""
        ...


class FileSource:
    """Entries of a list or folder."""

    def __init__(self, config: DataConfig, entries: Sequence[Entry], reader: MaskReader | None) -> None:
        self._channels = config.in_channels
        self._entries = entries
        self._reader = reader

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """Path of the image."""
        return str(self._entries[index].image)

    def image(self, index: int) -> NDArray[np.uint8]:
        """The decoded image."""
        return read_image(self._entries[index].image, self._channels)

    def mask(self, index: int) -> tuple[NDArray[np.uint8], str] | None:
        """The decoded mask, or None for an unlabelled entry."""
        path = self._entries[index].mask
        if path is None or self._reader is None:
            return None
        labels, unknown = self._reader.decode(path)
        return labels, self._reader.explain(path, unknown) if unknown else ""

    def digest(self, index: int) -> str:
        """SHA-256 of the file.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            return sha256_file(self._entries[index].image)
        except OSError as error:
            raise DataError(f"image {self.name(index)} cannot be read: {error}") from error


class SceneSource:
    """Scenes of the embedded data set."""

    def __init__(self, config: DataConfig, split: Split) -> None:
        self._scenes = SyntheticScenes(config.synthetic, split)
        self._split = split

    def __len__(self) -> int:
        return len(self._scenes)

    def name(self, index: int) -> str:
        """Split and number of the scene."""
        return f"{self._split} scene {index}"

    def image(self, index: int) -> NDArray[np.uint8]:
        """The drawn image."""
        return self._scenes.image(index)

    def mask(self, index: int) -> tuple[NDArray[np.uint8], str] | None:
        """The drawn mask, or None for an unlabelled scene."""
        return None if self._split == "unlabeled" else (self._scenes.mask(index), "")

    def digest(self, index: int) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self._scenes.image(index).tobytes()).hexdigest()
