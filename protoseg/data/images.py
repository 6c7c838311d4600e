"""Decodes, resizes and writes images. Pillow and numpy only: serving follows the same rules."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.members import File
from protoseg.data.palette import Color, voc_palette
from protoseg.data.pictures import (
    DECODE_ERRORS,
    PLAIN,
    Reading,
    check_pages,
    check_pixels,
    load_array,
    open_picture,
    read_orientation,
)
from protoseg.data.tiff import (
    BACK,
    TiffLayout,
    as_channels,
    decode_deep,
    is_deep_png,
    is_tiff,
    read_bands,
    read_layout,
    turn,
    unsigned,
)
from protoseg.errors import DataError
from protoseg.files import write_whole
from protoseg.input_rule import FULL_16_BIT, ResizeConfig, to_bytes

PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
IGNORE_COLOR: Color = (224, 224, 192)


def read_image(path: File, channels: int = 3, how: Reading = PLAIN) -> NDArray[np.uint8]:
    """Read an image upright, as 8-bit HWC.

    Grey, palette, CMYK and RGBA (alpha dropped) images are converted. Values of more than 8 bits become bytes
    by ``how.value_range``; without one 16-bit grey values are divided by 257 and rounded, so that 65535
    becomes 255 (colours of 16 bit keep their high byte, at most one less). ``.npy`` files hold (H, W, C).

    Args:
        path: Image file.
        channels: 1 (grey), 3 (RGB), 4 (RGBA), or as many bands as the file has or ``how.bands`` names.
        how: Value range, orientation, page and bands.

    Returns:
        ``(H, W, channels)`` uint8 in [0, 255], writable.

    Raises:
        DataError: If the file is missing, damaged, of several pages or has another number of channels.
    """
    return stored_to_bytes(read_stored(path, channels, how), how, f"image {path}")


def stored_to_bytes(stored: NDArray[Any], how: Reading, what: str) -> NDArray[np.uint8]:
    """Values of any type as bytes, by the rule of ``read_image``; uint8 stays as it is.

    Raises:
        DataError: If they are no unsigned values of at most 16 bits and ``how`` has no range for them.
    """
    if stored.dtype == np.uint8:
        return stored
    if how.value_range is not None:
        return to_bytes(stored, how.value_range)
    floats = not np.issubdtype(stored.dtype, np.integer)
    finite = stored[np.isfinite(stored)] if floats else stored
    low, high = (finite.min(), finite.max()) if finite.size else (0, 1)
    if floats or low < 0 or high > 65535:
        held = (
            f"floats ({low:g} to {high:g})" if floats else f"values {low} to {high}, not of unsigned 16 bit"
        )
        cure = f"set data.value_range=[{low:g},{high:g}], or another range that fits all images"
        none = "the network was trained on images of 8 or 16 bit"
        raise DataError(f"{what} holds {held}; {cure if how.settings else none}")
    return to_bytes(stored, FULL_16_BIT)


def read_stored(path: File, channels: int, how: Reading) -> NDArray[Any]:
    """As ``read_image``, but values of more than 8 bits stay as they are.

    Returns:
        ``(H, W, channels)`` of uint8 or the file's own type.

    Raises:
        DataError: As ``read_image``.
    """
    if path.suffix.lower() == ".npy":
        return _choose(load_array(path, "image", floats=True), None, channels, how, path)
    try:
        with path.open("rb") as file:
            head = file.read(32)
        layout = read_layout(path) if is_tiff(head) else None
        if layout is not None:
            plain = layout.plain and how.bands is None
            legacy = how.value_range is None and layout.colors == 3 and layout.chunky
            legacy = legacy and layout.kind == "unsigned" and layout.bits <= 16
            if not plain and not (legacy and how.bands is None):
                check_pixels(path, layout.size, how)
                page = check_pages(path, layout.pages, how)
                bands = _choose(read_bands(path, layout, page, "image"), layout, channels, how, path)
                return turn(bands, layout.orientation if how.upright else 1)
        elif how.bands is not None:
            raise DataError(f"image {path} is no TIFF or .npy, which data.bands is for; set data.bands=null")
        with open_picture(path, how, "image") as image:
            orientation = read_orientation(image)
            image.load()
            array = _values(image, head, channels, how, path)
            if array is None:
                shape = (image.height, image.width, len(image.getbands()))
                found = f"{image.format} pixels of {'+'.join(image.getbands())}"
                raise DataError(_channels_text(path, found, channels, shape, how))
            # Pillow has turned TIFFs already
            turned = orientation if image.format == "TIFF" else 1
            wanted = orientation if how.upright else 1
            array = turn(array, wanted if turned == 1 else 1 if wanted == turned else BACK[turned])
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"image {path} not found") from None
    except DECODE_ERRORS as error:
        raise DataError(f"image {path} cannot be decoded ({_reason(error)}); replace or unlist it") from error
    return array


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _values(image: Image.Image, head: bytes, channels: int, how: Reading, path: File) -> NDArray[Any] | None:
    """``(H, W, channels)`` of a loaded picture, as Pillow converts it; None where it cannot."""
    if channels not in PILLOW_MODES:
        return None
    if how.value_range is not None and is_deep_png(head):
        deep = decode_deep(path.read_bytes())
        if deep is not None:
            return as_channels(deep, channels)
    if image.format == "PPM" and image.mode.startswith("I"):
        # Pillow has scaled it by the largest value that the file names
        return to_bytes(as_channels(np.asarray(image)[..., None], channels), FULL_16_BIT)
    if image.mode.startswith("I") or image.mode == "F":
        return as_channels(unsigned(image)[..., None], channels)
    array = np.array(image.convert(PILLOW_MODES[channels]))
    return array.reshape(array.shape[0], array.shape[1], channels)


def _choose(
    array: NDArray[Any], layout: TiffLayout | None, channels: int, how: Reading, path: File
) -> NDArray[Any]:
    """The bands that become channels."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise DataError(f"image {path} has shape {array.shape}, expected (H, W, {channels})")
    bands = array.shape[2]
    if how.bands is not None:
        if max(how.bands) > bands:
            raise DataError(
                f"image {path} has {bands} band(s), data.bands={list(how.bands)} names band {max(how.bands)}"
            )
        return np.ascontiguousarray(array[..., [band - 1 for band in how.bands]])
    if bands == channels:
        return np.array(array)
    explained = layout is not None and layout.photometric <= 2 and layout.colors > 0
    if explained and channels in (1, 3, 4):
        return as_channels(array, channels)
    found = layout.describe() if layout is not None else f"shape {array.shape}"
    raise DataError(_channels_text(path, found, channels, array.shape, how))


def _channels_text(path: File, found: str, channels: int, shape: tuple[int, ...], how: Reading) -> str:
    bands = shape[-1]
    text = f"image {path} has {found}, expected (H, W, {channels}) by data.in_channels={channels}; "
    if not how.settings:
        return f"image {path} has {found}; the network takes {channels} channel(s)"
    if shape[0] == channels and found.startswith("shape"):
        return text + "store the channels last"
    numbers = ",".join(map(str, range(1, channels + 1)))
    choice = f", or choose bands, as data.bands=[{numbers}]" if bands > channels else ""
    return text + f"set data.in_channels={bands} (data.mean and data.std to as many numbers, or null){choice}"


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
    save_map(path, mask_picture(labels, palette))


def mask_picture(labels: NDArray[np.uint8], palette: Sequence[Color]) -> Image.Image:
    """Labels as a palette image, see ``save_mask``."""
    colors = [*palette, *voc_palette(255)[len(palette) :], IGNORE_COLOR]
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette([channel for color in colors for channel in color])
    return image


def save_image(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write a ``(H, W, 3)`` RGB (or ``(H, W)`` grey) uint8 image, whole or not at all.

    Raises:
        DataError: If the file cannot be written.
    """
    save_whole(path, Image.fromarray(np.ascontiguousarray(rgb)))


def save_whole(path: Path, image: Image.Image, **options: Any) -> None:
    """Write a Pillow image beside ``path`` and move it there; ``options`` as ``Image.save`` takes them.

    Raises:
        DataError: If the file cannot be written.
    """
    _write(path, lambda beside: image.save(beside, **options))


def save_map(path: Path, image: Image.Image) -> None:
    """Write labels or scores as a PNG: runs of equal differences are all that there is to find in them.

    Raises:
        DataError: If the file cannot be written.
    """
    # a fourth of the time of a search for repetitions, and no larger (benchmarks/README.md)
    save_whole(path, image, compress_type=zlib.Z_RLE)


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
