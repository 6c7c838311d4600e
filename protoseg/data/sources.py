"""The images and masks of a split by index, whether they are files or drawn scenes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoseg.config.data import DataConfig
from protoseg.data.images import read_image, resize_image, resize_mask
from protoseg.data.lines import Entry
from protoseg.data.lists import EntryList, Split, read_entries
from protoseg.data.long_list import ListedEntries
from protoseg.data.masks import MaskReader, mask_reader
from protoseg.data.members import Member
from protoseg.data.pictures import PLAIN, Reading, reading
from protoseg.data.synthetic import SyntheticScenes
from protoseg.errors import DataError
from protoseg.files import sha256_file
from protoseg.manifest import ClassInfo

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Labels:
    """A decoded mask."""

    ids: Pixels
    """(H, W) of class ids and ignore_index."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Pixels by value without a class; in ``ids`` they are ignored."""
    complaint: str = ""
    """What is wrong with unknown values."""


class Source(ABC):
    """Decoded images of one split, at their own size."""

    sha256: str
    """Hash of what is in the split."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the image in a message."""

    @abstractmethod
    def image(self, index: int) -> Pixels:
        """(H, W, C).

        Raises:
            DataError: Naming the file, if it cannot be read.
        """

    @abstractmethod
    def labels(self, index: int) -> Labels | None:
        """The mask, with what is unknown in it.

        Returns:
            None for an image without a mask.

        Raises:
            DataError: Naming the file, if it cannot be read.
        """

    @abstractmethod
    def digest(self, index: int) -> str:
        """Hash of the image's content.

        Raises:
            DataError: If it cannot be read.
        """

    def mask(self, index: int) -> Pixels:
        """(H, W) of class ids and ignore_index.

        Raises:
            DataError: Naming the file, if there is no mask, it is unreadable or has an unknown value.
        """
        found = self.labels(index)
        if found is None:
            raise DataError(f"{self.name(index)} has no mask in this list")
        if found.complaint:
            raise DataError(found.complaint)
        return found.ids


class FileSource(Source):
    """Entries of a list or folder; without a reader they have no masks."""

    def __init__(
        self,
        entries: Sequence[Entry],
        channels: int,
        masks: MaskReader | None,
        sha256: str,
        how: Reading = PLAIN,
    ) -> None:
        self.entries, self.channels, self.masks, self.sha256 = entries, channels, masks, sha256
        self.how = how

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """Path of the image, or what a long list calls it."""
        if isinstance(self.entries, ListedEntries):
            # it need not be there
            return self.entries.texts[index]
        return str(self.entries[index].image)

    def image(self, index: int) -> Pixels:
        """The decoded image."""
        return read_image(self.entries[index].image, self.channels, self.how)

    def labels(self, index: int) -> Labels | None:
        """The decoded mask."""
        path = self.entries[index].mask
        if path is None or self.masks is None:
            return None
        ids, unknown = self.masks.decode(path, self.entries[index].image)
        return Labels(ids, unknown, self.masks.explain(path, unknown) if unknown else "")

    def digest(self, index: int) -> str:
        """SHA-256 of the file."""
        image = self.entries[index].image
        try:
            return (
                hashlib.sha256(image.read_bytes()).hexdigest()
                if isinstance(image, Member)
                else sha256_file(image)
            )
        except OSError as error:
            raise DataError(f"image {self.name(index)} cannot be read: {error}") from error


class SceneSource(Source):
    """The embedded scenes; unlabelled ones have no masks."""

    def __init__(self, scenes: SyntheticScenes) -> None:
        self.scenes, self.sha256 = scenes, f"synthetic-{scenes.split}"

    def __len__(self) -> int:
        return len(self.scenes)

    def name(self, index: int) -> str:
        """Split and number."""
        return f"synthetic {self.scenes.split} image {index}"

    def image(self, index: int) -> Pixels:
        """The drawn image."""
        return self.scenes.image(index)

    def labels(self, index: int) -> Labels | None:
        """The drawn mask."""
        return None if self.scenes.split == "unlabeled" else Labels(self.scenes.mask(index))

    def digest(self, index: int) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self.image(index).tobytes()).hexdigest()


def open_source(config: DataConfig, split: Split, classes: list[ClassInfo]) -> Source:
    """The images of a split.

    Raises:
        DataError: If a list or file is missing.
    """
    if config.kind == "synthetic":
        return SceneSource(SyntheticScenes(config.synthetic, split))
    return listed_source(config, split, read_entries(config, split), classes)


def listed_source(config: DataConfig, split: Split, listed: EntryList, classes: list[ClassInfo]) -> Source:
    """The images of a split whose list was read."""
    masks = None if split == "unlabeled" else mask_reader(config, classes)
    return FileSource(listed.entries, config.in_channels, masks, listed.sha256, reading(config))


class CachedSource:
    """Images and masks of a source at the working size, decoded once when ``cache`` is set."""

    def __init__(self, source: Source, config: DataConfig) -> None:
        self.source, self.config = source, config
        self.kept: dict[tuple[str, int], Pixels] = {}

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Pixels:
        """(H, W, C) at the working size."""
        found = self.kept.get(("image", index))
        if found is None:
            found = resize_image(self.source.image(index), self.config.resize)
            self._keep(("image", index), found)
        return found

    def mask(self, index: int) -> Pixels:
        """(H, W) at the working size."""
        found = self.kept.get(("mask", index))
        if found is None:
            found = resize_mask(self.source.mask(index), self.config.resize)
            self._keep(("mask", index), found)
        return found

    def forget(self, index: int) -> None:
        """Keep an image and its mask no longer."""
        for kind in ("image", "mask"):
            self.kept.pop((kind, index), None)

    def _keep(self, key: tuple[str, int], value: Pixels) -> None:
        if self.config.cache:
            self.kept[key] = value


class EvalSamples:
    """Validation pairs at their own size, as ``evaluate_segmenter`` takes them."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Pixels, Pixels]:
        """Image (H, W, C) and mask (H, W)."""
        return self.source.image(index), self.source.mask(index)

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        return Path(self.source.name(index)).stem
