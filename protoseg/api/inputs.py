"""Images as a caller has them, as the pixels that a network's input rule asks for. Torch-free.

Shape legend: ``H W`` image, ``C`` channels.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.find import FoundImage
from protoseg.data.images import PILLOW_MODES, read_image, stored_to_bytes
from protoseg.data.pictures import DECODE_ERRORS, Reading, read_orientation
from protoseg.data.tiff import as_channels, turn, unsigned
from protoseg.errors import DataError
from protoseg.input_rule import InputRule

Pixels: TypeAlias = NDArray[np.uint8]


class TensorLike(Protocol):
    """A ``torch.Tensor``, which can be had without torch being imported here."""

    def detach(self) -> Any:
        """The values without their history."""
        ...


ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | TensorLike | FoundImage
"""A path, a file's bytes, a Pillow image, an array ``(H, W, C)`` or ``(H, W)``, a tensor ``(C, H, W)`` or
``(H, W)``, or an image that ``protoseg.data.find`` found."""


@dataclass(frozen=True)
class Origin:
    """Where an image is from."""

    source: str
    """Path, or ``<array 1f0c...>`` and the like for what is no file: different for each image."""
    name: str
    """Name for its results: the path below the folder that was searched, without its suffix."""

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return None if self.source.startswith("<") else Path(self.source)


@dataclass(frozen=True)
class FileReader:
    """Reads files for a network as training does.

    Args:
        channels: The network's.
        how: Value range, orientation and the like.
    """

    channels: int
    how: Reading

    @classmethod
    def of(cls, rule: InputRule) -> FileReader:
        """A reader by an input rule alone."""
        return cls(rule.channels, Reading(rule.value_range, rule.exif == "apply", settings=False))

    def file(self, path: Path) -> Pixels:
        """A file's pixels.

        Raises:
            DataError: If they cannot be had.
        """
        return read_image(path, self.channels, self.how)

    def data(self, data: bytes) -> Pixels:
        """The pixels of a file's bytes.

        Raises:
            DataError: If they cannot be had.
        """
        # the readers go by files: TIFF, .npy and HEIC are read with other packages than the rest
        with tempfile.TemporaryDirectory(prefix="protoseg-") as folder:
            path = Path(folder) / f"image{file_suffix(data)}"
            path.write_bytes(data)
            try:
                return self.file(path)
            except DataError as error:
                raise DataError(str(error).replace(str(path), f"of {len(data)} bytes")) from None


def file_suffix(data: bytes) -> str:
    """The suffix by which readers know what the bytes of a file hold."""
    if data.startswith(b"\x93NUMPY"):
        return ".npy"
    return ".heic" if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1") else ".img"


def origin_of(image: ImageInput) -> Origin:
    """Where an image is from, without a look at its pixels.

    Raises:
        DataError: If it is none of the kinds of ``ImageInput``.
    """
    if isinstance(image, FoundImage):
        return Origin(str(image.path), image.place.with_suffix("").as_posix())
    if isinstance(image, str) and "://" in image:
        raise DataError(f"{image} is an address; download it and give its bytes")
    if isinstance(image, str | os.PathLike):
        path = Path(image).expanduser()
        return Origin(str(path), path.stem)
    file = getattr(image, "filename", None) if isinstance(image, Image.Image) else None
    if isinstance(file, str) and file:
        return Origin(file, PurePath(file).stem)
    for kind, name in (((bytes, bytearray, memoryview), "bytes"), (Image.Image, "picture"),
                       (np.ndarray, "array")):  # fmt: skip
        if isinstance(image, kind):
            return Origin(f"<{name} {uuid.uuid4().hex[:12]}>", "image")
    if _is_tensor(image):
        return Origin(f"<tensor {uuid.uuid4().hex[:12]}>", "image")
    raise DataError(
        f"cannot segment a {type(image).__name__}; give a path, bytes of a file, a PIL image, a numpy array "
        "(H, W, C) or (H, W), a torch tensor (C, H, W), or a list of them"
    )


def read_pixels(image: ImageInput, channels: int, reader: Any, how: Reading) -> Pixels:
    """The pixels of an image.

    Args:
        image: Any of ``ImageInput``.
        channels: The network's.
        reader: Has ``file(path)`` and ``data(bytes)``, as ``FileReader`` does.
        how: Value range and orientation for what is no file.

    Returns:
        ``(H, W, channels)`` uint8 in [0, 255].

    Raises:
        DataError: If they cannot be had.
    """
    if isinstance(image, FoundImage):
        return _read_file(image.path, reader.file)
    if isinstance(image, str | os.PathLike):
        return _read_file(Path(image).expanduser(), reader.file)
    if isinstance(image, bytes | bytearray | memoryview):
        pixels: Pixels = reader.data(bytes(image))
        return pixels
    if isinstance(image, Image.Image):
        return _picture_pixels(image, channels, how)
    array = image if isinstance(image, np.ndarray) else tensor_array(image)
    return _array_pixels(array, channels, how)


def _read_file(path: Path, read: Callable[[Path], Pixels]) -> Pixels:
    if path.is_dir():
        raise DataError(f"{path} is a folder; segment its images with model.stream({str(path)!r})")
    try:
        return read(path)
    except DataError:
        raise
    except OSError as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DataError(f"image {path} {reason}") from error


def _picture_pixels(image: Image.Image, channels: int, how: Reading) -> Pixels:
    if channels not in PILLOW_MODES:
        raise DataError(f"the network takes {channels} channels; give an array (H, W, {channels})")
    try:
        image.load()
    except DECODE_ERRORS as error:
        raise DataError(f"the picture {origin_of(image).source} cannot be decoded: {error}") from error
    # asked after loading, which turns a TIFF and takes its tag away
    orientation = read_orientation(image) if how.upright else 1
    if image.mode.startswith("I") or image.mode == "F":
        deep = as_channels(unsigned(image)[..., None], channels)
        return turn(stored_to_bytes(deep, how, f"the picture (mode {image.mode})"), orientation)
    array = np.array(image.convert(PILLOW_MODES[channels]))
    return turn(array.reshape(*array.shape[:2], channels), orientation)


def _array_pixels(array: NDArray[Any], channels: int, how: Reading) -> Pixels:
    grey = array[..., None] if array.ndim == 2 else array
    if grey.ndim == 4:
        raise DataError(f"the array has shape {array.shape}; give several images as a list: list(array)")
    fits = grey.ndim == 3 and 0 not in grey.shape
    fits = fits and (grey.shape[2] == channels or (grey.shape[2] <= 4 and channels in PILLOW_MODES))
    if not fits:
        first = grey.ndim == 3 and grey.shape[0] in (channels, 1, 3, 4)
        cure = "; move the channels last: array.transpose(1, 2, 0)" if first else ""
        raise DataError(f"the array has shape {array.shape}, expected (H, W, {channels}) or (H, W){cure}")
    if array.dtype == np.bool_ or (how.value_range is None and array.dtype.kind not in "u"):
        raise DataError(
            f"the array holds {array.dtype}, expected uint8 in [0, 255]; for values in [0, 1]: "
            "(255 * array).round().astype('uint8')"
        )
    return stored_to_bytes(as_channels(np.ascontiguousarray(grey), channels), how, "the array")


def _is_tensor(image: object) -> bool:
    # torch need not be there, and is not imported to find that out
    return any(base.__module__.split(".")[0] == "torch" for base in type(image).__mro__) and hasattr(
        image, "detach"
    )


def tensor_array(tensor: Any) -> NDArray[Any]:
    """A torch tensor ``(C, H, W)`` or ``(H, W)`` on any device as an array with its channels last.

    Raises:
        DataError: If it is no tensor, or of another rank.
    """
    if not _is_tensor(tensor):
        origin_of(tensor)
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    if array.ndim not in (2, 3):
        raise DataError(
            f"the tensor has shape {tuple(array.shape)}, expected (C, H, W); "
            "give several as a list: list(tensor)"
        )
    if array.ndim == 3 and array.shape[0] > 4 and array.shape[2] in (1, 3, 4):
        raise DataError(
            f"the tensor has shape {tuple(array.shape)}, expected (C, H, W): tensor.permute(2, 0, 1)"
        )
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array
