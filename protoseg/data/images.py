"""Decodes, resizes and writes images. Pillow and numpy only: serving follows the same rules."""

from __future__ import annotations

import struct
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.palette import Color, voc_palette
from protoseg.data.tiff import TiffLayout, decode_deep, is_tiff, read_bands, read_layout
from protoseg.errors import DataError
from protoseg.files import write_whole
from protoseg.manifest import FULL_16_BIT, InputRule, ResizeConfig, ValueRange, to_bytes

if TYPE_CHECKING:
    from protoseg.config.sections import DataConfig

# the limit that counts is data.max_pixels, and it is looked at before any pixel is decoded
Image.MAX_IMAGE_PIXELS = None
# what is wrong with a file's metadata is no reason for a line that names a module of Pillow
warnings.filterwarnings("ignore", module="PIL")

# what Pillow's plugins raise for damaged files; SyntaxError is theirs for broken PNG chunks
DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_EXIF_ORIENTATION = 0x0112
BACK = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""The orientation that takes back one."""
HEIC_SUFFIXES = (".heic", ".heif")
IGNORE_COLOR: Color = (224, 224, 192)


@dataclass(frozen=True)
class Reading:
    """How the pixels of a file are read; see ``DataConfig`` and ``InputRule`` for the fields of the same name."""

    value_range: ValueRange | None = None
    upright: bool = True
    page: int | None = None
    bands: tuple[int, ...] | None = None
    max_pixels: int = 178_956_970


PLAIN = Reading()


def reading(config: DataConfig, rule: InputRule | None = None) -> Reading:
    """How images are read for a run, or as a network's input rule says where there is one."""
    source = rule or config
    return Reading(
        value_range=source.value_range,
        upright=source.exif == "apply",
        page=config.page,
        bands=tuple(config.bands) if config.bands is not None else None,
        max_pixels=config.max_pixels,
    )


def read_image(path: Path, channels: int = 3, how: Reading = PLAIN) -> NDArray[np.uint8]:
    """Read an image upright, as 8-bit HWC.

    Grey, palette, CMYK and RGBA (alpha dropped) images are converted. Values of more than 8 bits become bytes
    by ``how.value_range``; without one 16-bit grey values are divided by 257 and rounded, so that 65535 becomes
    255 (colours of 16 bit keep their high byte, which is at most one less). ``.npy`` files hold (H, W, C).

    Args:
        path: Image file.
        channels: 1 (grey), 3 (RGB), 4 (RGBA), or as many bands as the file has or ``how.bands`` names.
        how: Value range, orientation, page and bands.

    Returns:
        ``(H, W, channels)`` uint8 in [0, 255], writable.

    Raises:
        DataError: If the file is missing, damaged, of several pages or has another number of channels.
    """
    stored = read_stored(Path(path), channels, how)
    if stored.dtype == np.uint8:
        return stored
    low, high = (stored.min(), stored.max())
    if how.value_range is not None:
        return to_bytes(stored, how.value_range)
    if not np.issubdtype(stored.dtype, np.integer):
        raise DataError(
            f"image {path} holds floats ({low:g} to {high:g}); set data.value_range=[{low:g}, {high:g}], or "
            "another range that fits all images"
        )
    if low < 0 or high > 65535:
        raise DataError(
            f"image {path} has values {low} to {high}, more than unsigned 16 bit; set "
            f"data.value_range=[{low}, {high}], or another range that fits all images"
        )
    return to_bytes(stored, FULL_16_BIT)


def read_stored(path: Path, channels: int, how: Reading) -> NDArray[Any]:
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
                raise DataError(_channels_text(path, found, channels, shape))
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


def _values(
    image: Image.Image, head: bytes, channels: int, how: Reading, path: Path
) -> NDArray[Any] | None:
    """``(H, W, channels)`` of a loaded picture, as Pillow converts it; None where it cannot."""
    if channels not in _MODES:
        return None
    if how.value_range is not None and is_deep_png(head):
        deep = decode_deep(path.read_bytes())
        if deep is not None:
            return _colors(deep, channels)
    if image.mode.startswith("I") or image.mode == "F":
        return _colors(unsigned(image)[..., None], channels)
    array = np.array(image.convert(_MODES[channels]))
    return array.reshape(array.shape[0], array.shape[1], channels)


def is_deep_png(head: bytes) -> bool:
    """Whether a file that begins so (32 bytes) is a PNG of more than one band of 16 bit."""
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")


def unsigned(image: Image.Image) -> NDArray[Any]:
    """Values of a loaded one-band picture; Pillow knows no unsigned 32-bit and no signed 8-bit pixels."""
    array = np.asarray(image)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, kind = tags.get(258, (1,)), tags.get(339, (1,))
        if bits == (32,) and kind == (1,) and array.dtype == np.int32:
            return array.view(np.uint32)
        if bits == (8,) and kind == (2,) and array.dtype == np.uint8:
            return array.view(np.int8)
    return array


def _colors(array: NDArray[Any], channels: int) -> NDArray[Any]:
    """Grey, grey with alpha, RGB or RGBA values as 1, 3 or 4 channels."""
    bands = array.shape[2]
    if bands == channels:
        return np.array(array)
    if bands > 2 and channels == 1:
        grey = array[..., :3] @ np.array([0.299, 0.587, 0.114])
        return np.array(grey if array.dtype.kind == "f" else np.round(grey), array.dtype)[..., None]
    base = np.repeat(array[..., :1], 3, axis=2) if bands < 3 else array[..., :3]
    if channels != 4:
        return np.array(base[..., :channels])
    top = 1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    alpha = array[..., -1:] if bands in (2, 4) else np.full_like(array[..., :1], top)
    return np.concatenate([base, alpha], axis=2)


def _choose(
    array: NDArray[Any], layout: TiffLayout | None, channels: int, how: Reading, path: Path
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
        return _colors(array, channels)
    found = layout.describe() if layout is not None else f"shape {array.shape}"
    raise DataError(_channels_text(path, found, channels, array.shape))


def _channels_text(path: Path, found: str, channels: int, shape: tuple[int, ...]) -> str:
    bands = shape[-1]
    text = f"image {path} has {found}, expected (H, W, {channels}) by data.in_channels={channels}; "
    if shape[0] == channels:
        return text + "store the channels last"
    numbers = ", ".join(map(str, range(1, channels + 1)))
    choice = f", or choose bands, as data.bands=[{numbers}]" if bands > channels else ""
    return text + f"set data.in_channels={bands} (data.mean and data.std to as many numbers, or null){choice}"


@contextmanager
def open_picture(path: Path, how: Reading, what: str) -> Iterator[Image.Image]:
    """Open a picture with Pillow within ``how``'s limits, at its page.

    Raises:
        DataError: If it is too large or has several pages and none is chosen.
        OSError, ...: If it is damaged, see ``DECODE_ERRORS``.
    """
    if path.suffix.lower() in HEIC_SUFFIXES:
        _know_heic(path, what)
    with Image.open(path) as image:
        check_pixels(path, image.size[::-1], how, what)
        frames = read_layout(path).pages if image.format == "TIFF" else getattr(image, "n_frames", 1)
        # the further pictures of these are previews of the first and the like
        page = 0 if image.format in ("MPO", "HEIF") else check_pages(path, frames, how, what)
        if page:
            image.seek(page)
        yield image


def _know_heic(path: Path, what: str) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise DataError(
            f"{what} {path} is HEIC, which needs another package: pip install 'protoseg[heic]', or convert it "
            "to PNG or JPEG"
        ) from None
    pillow_heif.register_heif_opener()


def check_pixels(path: Path, size: tuple[int, int], how: Reading, what: str = "image") -> None:
    """Refuse a (height, width) beyond the limit.

    Raises:
        DataError: With the limit.
    """
    pixels = size[0] * size[1]
    if pixels > how.max_pixels:
        raise DataError(
            f"{what} {path} is {size[1]}x{size[0]}, {pixels} pixels; the limit is {how.max_pixels}: set "
            f"data.max_pixels={pixels} to read it whole (about {pixels * 3 / 2**30:.1f} GiB for each loader), or "
            "cut image and mask into tiles"
        )


def check_pages(path: Path, pages: int, how: Reading, what: str = "image") -> int:
    """The page to read.

    Raises:
        DataError: If there are several and none is chosen, or not that many.
    """
    if pages > 1 and how.page is None:
        raise DataError(
            f"{what} {path} has {pages} pages, and only one is read from a file: split it into one file a page, "
            "or set data.page=0 to use the first page of every file"
        )
    if pages > 1 and how.page is not None and how.page >= pages:
        raise DataError(f"{what} {path} has {pages} pages, counted from 0; data.page={how.page} is none of them")
    return how.page or 0 if pages > 1 else 0


def load_array(path: Path, what: str, ndim: int | None = None, *, floats: bool = False) -> NDArray[Any]:
    """Load a ``.npy`` of numbers without unpickling.

    Raises:
        DataError: If it is missing, damaged, of another rank or not of integers (``floats``: or floats).
    """
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{what} {path} not found") from None
    except (*DECODE_ERRORS, tokenize.TokenError) as error:
        raise DataError(f"{what} {path} cannot be read ({error}); replace the file") from error
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    fits = np.issubdtype(array.dtype, np.integer) or (floats and np.issubdtype(array.dtype, np.floating))
    if not fits or array.size == 0:
        raise DataError(f"{what} {path} has dtype {array.dtype}, shape {array.shape}; expected uint8")
    if ndim is not None and array.ndim != ndim:
        raise DataError(f"{what} {path} has shape {array.shape}; expected {ndim} axes")
    return array


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation of an opened picture, 1 to 8; ask before its pixels are loaded."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except DECODE_ERRORS:
        # broken metadata says nothing about the pixels
        return 1
    return value if value in range(1, 9) else 1


def file_orientation(path: Path) -> tuple[int, tuple[int, int]]:
    """EXIF orientation, and (height, width) as stored, of an image file; (1, (0, 0)) where they cannot be had."""
    if path.suffix.lower() == ".npy":
        return 1, (0, 0)
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if is_tiff(head):
            layout = read_layout(path)
            return layout.orientation, layout.size
        if head.startswith(b"\x89PNG") and not _png_has_tag(path):
            return 1, (0, 0)
        with open_picture(path, Reading(page=0, max_pixels=2**62), "image") as image:
            return read_orientation(image), (image.height, image.width)
    except (DataError, *DECODE_ERRORS):
        return 1, (0, 0)


def _png_has_tag(path: Path) -> bool:
    # Pillow decodes a whole PNG to be sure that no tag follows the pixels
    data = path.read_bytes()
    return any(mark in data for mark in (b"eXIf", b"Orientation", b"Raw profile type exif"))


def turn(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation (2 to 8) of ``(H, W, ...)``."""
    if orientation not in range(2, 9):
        return array
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1) if orientation in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if orientation in (2, 3, 6, 7) else slice(None)
    return np.ascontiguousarray(array[rows, columns])


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
