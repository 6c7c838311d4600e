"""A model that segments images, whatever it was loaded from. Torch-free.

Shape legend: ``H W`` image, ``C`` channels.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from protoseg.ahead import ahead_in_order
from protoseg.api.inputs import FileReader, ImageInput, Origin, Pixels, origin_of, read_pixels
from protoseg.api.result import ModelInfo, Result
from protoseg.data.find import find_images
from protoseg.data.pictures import Reading
from protoseg.errors import DataError, UserError, check_choice
from protoseg.explain.reasons import Grounds
from protoseg.input_rule import InputRule
from protoseg.manifest import ClassInfo

logger = logging.getLogger(__name__)
NUM_READERS = 2


@dataclass(frozen=True)
class Maps:
    """What a network says about an image, at the image's own size."""

    labels: NDArray[np.uint8]
    """``(H, W)`` class ids."""
    confidence: NDArray[np.float32] | None
    """``(H, W)`` probability of the label in [0, 1]."""
    agreement: NDArray[np.float32] | None
    """``(H, W)`` probability that the linear head gives to the label, in [0, 1]."""
    novelty: NDArray[np.float32] | None = None
    """``(H, W)`` in [0, 1], novel from 0.5 on."""
    grounds: Grounds | None = None
    """What the image is explained by."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside labels, and how."""

    scores: bool = True
    """Confidence and agreement."""
    windows: bool = False
    """Overlapping windows of the image at its own size."""
    novelty: bool = False
    """Novelty."""
    explain: bool = False
    """What the image is explained by."""


class Model(ABC):
    """Images in, results out. ``protoseg.load`` makes one; as a context manager it is closed at the end.

    Args:
        path: Where it was loaded from.
        info: Name, version, head and classes.
        rule: How an image becomes the network's input.
        metrics: Validation metrics of its training.
        reader: Reads files; has ``file(path)`` and ``data(bytes)``.
        how: Value range and orientation for images that are no files.
    """

    kind: Literal["checkpoint", "bundle"]
    """What it was loaded from."""

    def __init__(
        self, path: Path, info: ModelInfo, rule: InputRule, metrics: dict[str, Any], reader: Any, how: Reading
    ) -> None:
        self.path, self.info, self.input, self.metrics = path, info, rule, metrics
        self._reader, self._how = reader, how

    def __repr__(self) -> str:
        names = ", ".join(self.names)
        return (
            f"<{type(self).__name__} {self.info.name} ({self.info.version}), {self.info.head} head on "
            f"{self.device}: {names}>"
        )

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """All classes by id, with names and colours."""
        return self.info.classes

    @property
    def names(self) -> list[str]:
        """Names of the classes by id."""
        return [item.name for item in self.info.classes]

    @property
    def head(self) -> str:
        """Head that labels."""
        return self.info.head

    @property
    @abstractmethod
    def tells(self) -> frozenset[str]:
        """What it can tell beside labels: of ``confidence``, ``agreement`` and ``novelty``."""

    @property
    @abstractmethod
    def device(self) -> str:
        """What it computes on."""

    @abstractmethod
    def _check(self, wanted: Wanted) -> None:
        """Refuse what this model cannot tell, before an image is read.

        Raises:
            UserError: With the command that makes what is missing.
        """

    @abstractmethod
    def _predict(self, image: Pixels, wanted: Wanted) -> Maps:
        """Segment ``(H, W, C)`` uint8; without ``scores`` the labels are enough."""

    @overload
    def __call__(
        self,
        image: ImageInput,
        *,
        scores: bool = True,
        windows: bool = False,
        novelty: bool = False,
        explain: bool = False,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        scores: bool = True,
        windows: bool = False,
        novelty: bool = False,
        explain: bool = False,
    ) -> list[Result]: ...

    def __call__(
        self,
        image: ImageInput | list[Any] | tuple[Any, ...],
        *,
        scores: bool = True,
        windows: bool = False,
        novelty: bool = False,
        explain: bool = False,
    ) -> Result | list[Result]:
        """Segment an image, or each of a list.

        Args:
            image: A path; the bytes of a file; a PIL image; a numpy array ``(H, W, C)`` or ``(H, W)``,
                uint8 in [0, 255], RGB; a torch tensor ``(C, H, W)`` or ``(H, W)``, likewise; or a list of
                these. Files are read as in training: turned upright by EXIF, more than 8 bits by the
                model's value range.
            scores: Compute confidence and agreement too; labels alone are cheaper.
            windows: Keep a large image at its own size and compute it in overlapping windows (a checkpoint:
                as ``protoseg.predict --sliding``; a bundle: as the service's ``tile=1``). A bundle does so by
                itself with images of more than 2.1 million pixels, as the service does.
            novelty: Tell how unlike everything labelled each pixel is (``Result.novelty``). A checkpoint can
                after ``protoseg novelty``, a bundle that was exported with the output ``novelty``.
            explain: Tell why pixels have their class (``Result.explain``). A checkpoint can where
                ``protoseg explain`` or its training has left the patches of its prototypes, a bundle that was
                exported with ``--explain`` (and there not of tiles).

        Raises:
            UserError: If the image cannot be read or does not fit the network, or the model cannot tell what
                is asked for.
        """
        wanted = Wanted(scores, windows, novelty, explain)
        if isinstance(image, list | tuple):
            return list(self.stream(image, **vars(wanted)))
        self._check(wanted)
        origin = origin_of(image)
        return self._segment(origin, self._read(image), wanted)

    def stream(
        self,
        images: str | os.PathLike[str] | Iterable[ImageInput],
        *,
        scores: bool = True,
        windows: bool = False,
        novelty: bool = False,
        explain: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        ahead: int = 4,
    ) -> Iterator[Result]:
        """Segment many images one after the other, with bounded memory.

        While one is computed the next ones are read in threads. Nothing is read before the first result is
        asked for.

        Args:
            images: A folder (searched for images as by ``protoseg.predict``; ``Result.save`` then names
                results by the path below it), a file, or any iterable of what a call takes.
            scores: As in a call.
            windows: As in a call.
            novelty: As in a call.
            explain: As in a call.
            on_error: What to do about an image that cannot be read: ``raise`` an error that names it, or
                ``skip`` it with a warning in the log.
            ahead: Images that are read in advance, at least 1; as many are in memory at a time.

        Yields:
            Results in the order of the images.

        Raises:
            UserError: As a call; if there is no image in a folder.
        """
        check_choice("on_error", on_error, ("raise", "skip"))
        if ahead < 1:
            raise UserError(f"ahead must be at least 1, got {ahead}")
        wanted = Wanted(scores, windows, novelty, explain)
        self._check(wanted)
        return self._stream(self._items(images), wanted, skip=on_error == "skip", ahead=ahead)

    def _items(self, images: str | os.PathLike[str] | Iterable[ImageInput]) -> Iterator[ImageInput]:
        if isinstance(images, str | os.PathLike):
            path = Path(images).expanduser()
            found = find_images([path], path if path.is_dir() else path.parent)
            for remark in found.remarks:
                logger.info("%s", remark)
            return iter(found.images)
        # an array of one image would be taken row by row
        one = getattr(images, "ndim", 4) < 4
        if one or not isinstance(images, Iterable):
            raise UserError(f"stream takes a folder or several images, got one {type(images).__name__}")
        return iter(images)

    def _stream(
        self, items: Iterator[ImageInput], wanted: Wanted, *, skip: bool, ahead: int
    ) -> Iterator[Result]:
        def read(item: ImageInput) -> tuple[Origin, Pixels]:
            return origin_of(item), self._read(item)

        given = ahead_in_order(read, items, workers=NUM_READERS, ahead=ahead, name="protoseg-read")
        try:
            for _, found in given:
                try:
                    origin, pixels = found.result()
                except DataError as error:
                    if not skip:
                        raise
                    logger.warning("skipped: %s", error)
                    continue
                yield self._segment(origin, pixels, wanted)
        finally:
            # also when the caller stops early: nothing more is read
            given.close()

    def _read(self, image: ImageInput) -> Pixels:
        return read_pixels(image, self.input.channels, self._reader, self._how)

    def _segment(self, origin: Origin, pixels: Pixels, wanted: Wanted) -> Result:
        maps = self._predict(pixels, wanted)
        return Result(
            maps.labels, maps.confidence, maps.agreement, self.info, origin, partial(_same, pixels),
            maps.novelty, maps.grounds,
        )  # fmt: skip

    @abstractmethod
    def close(self) -> None:
        """Free what the network holds; the model cannot be used any more."""

    def __enter__(self) -> Self:
        """The model itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the model."""
        self.close()


def _same(pixels: Pixels) -> Pixels:
    return pixels


def plain_reader(rule: InputRule) -> tuple[FileReader, Reading]:
    """How files, and images that are no files, are read by an input rule alone."""
    reader = FileReader.of(rule)
    return reader, reader.how
