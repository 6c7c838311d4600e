"""Decodes, resizes and writes images. Pillow and numpy only: serving follows the same rules."""

from __future__ import annotations

import struct
import tokenize
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.palette import Color, voc_palette
from protoseg.errors import DataError
from protoseg.files import write_whole
from protoseg.manifest import ResizeConfig

# what Pillow's plugins raise for damaged files; SyntaxError is theirs for broken PNG chunks
DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
IGNORE_COLOR: Color = (224, 224, 192)


def read_image(path: Path, channels: int = 3) -> NDArray[np.uint8]:
    """Read an image upright, as 8-bit HWC.

    Grey, palette, CMYK, RGBA (alpha dropped) and 16-bit images are converted; 16-bit grey values
    are divided by 257 and rounded, so that 65535 becomes 255 (colour PNGs of 16 bit keep their high
    byte, which is at most one less). ``.npy`` files hold (H, W, C), uint8 or uint16.

    Args:
        path: Image file.
        channels: 1 (grey), 3 (RGB), 4 (RGBA); any other number needs ``.npy``.

    Returns:
        ``(H, W, channels)`` uint8 in [0, 255], writable.

    Raises:
        DataError: If the file is missing, damaged or has another number of channels.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        array = load_array(path, "image", ndim=3 if channels > 1 else None)
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or array.shape[2] != channels:
            raise DataError(
                f"image {path} has shape {array.shape}, expected (H, W, {channels}); "
                f"set data.in_channels or store the channels last"
            )
        return _to_8bit(array, path)
    if channels not in _MODES:
        raise DataError(
            f"image {path} cannot give {channels} channels; store it as .npy of (H, W, {channels}) uint8"
        )
    try:
        with Image.open(path) as image:
            image.load()
            upright = _upright(image)
            if upright.mode.startswith("I"):
                grey = _to_8bit(np.asarray(upright)[..., None], path)
                if channels == 4:
                    return np.concatenate([np.repeat(grey, 3, axis=2), np.full_like(grey, 255)], axis=2)
                return np.repeat(grey, channels, axis=2)
            if upright.mode == "F":
                raise DataError(
                    f"image {path} holds floats; store it as 8 or 16 bit, or as .npy with its channels"
                )
            array = np.array(upright.convert(_MODES[channels]))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"image {path} not found") from None
    except DECODE_ERRORS as error:
        raise DataError(f"image {path} cannot be decoded ({error}); replace or unlist it") from error
    return array.reshape(array.shape[0], array.shape[1], channels)


def load_array(path: Path, what: str, ndim: int | None) -> NDArray[Any]:
    """Load an integer ``.npy`` without unpickling.

    Raises:
        DataError: If it is missing, damaged, of another rank or not of integers.
    """
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{what} {path} not found") from None
    except (*DECODE_ERRORS, tokenize.TokenError) as error:
        raise DataError(f"{what} {path} cannot be read ({error}); replace the file") from error
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer) or array.size == 0:
        raise DataError(f"{what} {path} has dtype {array.dtype}, shape {array.shape}; expected uint8")
    if ndim is not None and array.ndim != ndim:
        raise DataError(f"{what} {path} has shape {array.shape}; expected {ndim} axes")
    return array


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        # broken metadata says nothing about the pixels
        return image
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _to_8bit(array: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.array(array)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise DataError(f"image {path} has values {low} to {high}; expected 8 or 16 bit, unsigned")
    # round(v / 257) in integers: 257 is odd, so there are no ties
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def resize_image(image: NDArray[np.uint8], rule: ResizeConfig) -> NDArray[np.uint8]:
    """Bring an image to the working size: Pillow's bilinear filter, antialiased when it shrinks.

    Args:
        image: ``(H, W, C)`` uint8.
        rule: Working size rule.

    Returns:
        ``(h, w, C)`` uint8; the same array when the size does not change.
    """
    height, width = rule.target_size(*image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    if image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    # band by band: Pillow would weigh colours by the fourth channel, which need not be alpha
    bands = [
        np.array(
            Image.fromarray(np.ascontiguousarray(image[..., c])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for c in range(image.shape[2])
    ]
    return np.stack(bands, axis=2)


def resize_mask(mask: NDArray[np.uint8], rule: ResizeConfig) -> NDArray[np.uint8]:
    """Bring a ``(H, W)`` uint8 mask to the working size by nearest neighbour."""
    height, width = rule.target_size(*mask.shape)
    if (height, width) == mask.shape:
        return mask
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def save_mask(path: Path, labels: NDArray[np.uint8], palette: Sequence[Color]) -> None:
    """Write labels as an 8-bit palette PNG, whole or not at all.

    Args:
        path: PNG file; its folder must exist.
        labels: ``(H, W)`` uint8; the values are stored unchanged.
        palette: Colours of the first values; later ones take VOC colours, 255 is pale.

    Raises:
        DataError: If the file cannot be written.
    """
    colors = [*palette, *voc_palette(255)[len(palette) :], IGNORE_COLOR]
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette([channel for color in colors for channel in color])
    save_whole(path, image)


def save_image(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write a ``(H, W, 3)`` RGB (or ``(H, W)`` grey) uint8 image, whole or not at all.

    Raises:
        DataError: If the file cannot be written.
    """
    save_whole(path, Image.fromarray(np.ascontiguousarray(rgb)))


def save_whole(path: Path, image: Image.Image) -> None:
    """Write a Pillow image beside ``path`` and move it there.

    Raises:
        DataError: If the file cannot be written.
    """
    _write(path, image.save)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text beside ``path`` and move it there.

    Raises:
        DataError: If the file cannot be written.
    """
    _write(path, lambda beside: beside.write_text(text, encoding="utf-8", newline="\n"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write_whole(path, write)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be written: {error}") from error
