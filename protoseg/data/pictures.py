"""Opens pictures within limits: pages, size, orientation and kinds that need another package. Torch-free."""

from __future__ import annotations

import struct
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.members import File, Member
from protoseg.data.names import know_heif
from protoseg.data.tiff import is_tiff, read_layout
from protoseg.errors import DataError
from protoseg.input_rule import InputRule, ValueRange

if TYPE_CHECKING:
    from protoseg.config.data import DataConfig

# the limit that counts is data.max_pixels, and it is looked at before any pixel is decoded
Image.MAX_IMAGE_PIXELS = None
# what is wrong with a file's metadata is no reason for a line that names a module of Pillow; what it says of
# our own calls (DeprecationWarning) is shown
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# what Pillow's plugins raise for damaged files; SyntaxError is theirs for broken PNG chunks
DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

_EXIF_ORIENTATION = 0x0112
HEIC_SUFFIXES = (".heic", ".heif")


@dataclass(frozen=True)
class Reading:
    """How the pixels of a file are read; see ``DataConfig`` for the fields of the same name."""

    value_range: ValueRange | None = None
    upright: bool = True
    page: int | None = None
    bands: tuple[int, ...] | None = None
    max_pixels: int = 178_956_970
    settings: bool = True
    """Messages may propose settings of a training."""


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
        settings=rule is None,
    )


@contextmanager
def open_picture(path: File, how: Reading, what: str) -> Iterator[Image.Image]:
    """Open a picture with Pillow within ``how``'s limits, at its page.

    Raises:
        DataError: If it is too large or has several pages and none is chosen.
        OSError, ...: If it is damaged, see ``DECODE_ERRORS``.
    """
    if path.suffix.lower() in HEIC_SUFFIXES:
        _know_heic(path, what)
    with path.open("rb") as file:
        # Pillow maps plain TIFFs of a named file into memory, and garbles those that it turns by a quarter
        tiff = is_tiff(file.read(8))
        file.seek(0)
        with Image.open(file if tiff or isinstance(path, Member) else path) as image:
            check_pixels(path, image.size[::-1], how, what)
            layout = read_layout(path) if tiff else None
            frames = layout.pages if layout is not None else getattr(image, "n_frames", 1)
            # the further pictures of these are previews of the first and the like
            page = 0 if image.format in ("MPO", "HEIF") else check_pages(path, frames, how, what)
            page = layout.frames[page] if layout is not None else page
            if page:
                image.seek(page)
            yield image


def _know_heic(path: File, what: str) -> None:
    if not know_heif():
        raise DataError(
            f"{what} {path} is HEIC, which needs another package: pip install pi-heif, or convert it to PNG "
            "or JPEG"
        )


def check_pixels(path: File, size: tuple[int, int], how: Reading, what: str = "image") -> None:
    """Refuse a (height, width) beyond the limit.

    Raises:
        DataError: With the limit.
    """
    pixels = size[0] * size[1]
    if pixels > how.max_pixels:
        memory = f"about {pixels * 3 / 2**30:.1f} GiB for each loader"
        whole = f"set data.max_pixels={pixels} to read it whole ({memory}), or " if how.settings else ""
        tiles = "cut image and mask into tiles" if how.settings else "cut it into tiles"
        raise DataError(
            f"{what} {path} is {size[1]}x{size[0]}, {pixels} pixels; the limit is {how.max_pixels}: "
            f"{whole}{tiles}"
        )


def check_pages(path: File, pages: int, how: Reading, what: str = "image") -> int:
    """The page to read.

    Raises:
        DataError: If there are several and none is chosen, or not that many.
    """
    if pages > 1 and how.page is None:
        first = ", or set data.page=0 to use the first page of every file" if how.settings else ""
        raise DataError(
            f"{what} {path} has {pages} pages, and only one is read from a file; split it into one file a "
            f"page{first}"
        )
    if pages > 1 and how.page is not None and how.page >= pages:
        raise DataError(
            f"{what} {path} has {pages} pages, counted from 0; data.page={how.page} is none of them"
        )
    return how.page or 0 if pages > 1 else 0


def load_array(path: File, what: str, ndim: int | None = None, *, floats: bool = False) -> NDArray[Any]:
    """Load a ``.npy`` of numbers without unpickling.

    Raises:
        DataError: If it is missing, damaged, of another rank or not of integers (``floats``: or floats).
    """
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.load(file, allow_pickle=False)
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


def file_orientation(path: File) -> tuple[int, tuple[int, int]]:
    """EXIF orientation, and (height, width) as stored, of an image file; (1, (0, 0)) if unknown."""
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


def _png_has_tag(path: File) -> bool:
    # Pillow decodes a whole PNG to be sure that no tag follows the pixels
    data = path.read_bytes()
    return any(mark in data for mark in (b"eXIf", b"Orientation", b"Raw profile type exif"))


def _array_type(file: BinaryIO) -> np.dtype[Any]:
    """Type of the numbers of a ``.npy``, from its head."""
    read = np.lib.format.read_array_header_1_0
    if np.lib.format.read_magic(file) != (1, 0):
        read = np.lib.format.read_array_header_2_0
    found: np.dtype[Any] = read(file)[2]
    return found


def deep_kind(path: File) -> bool:
    """Whether an image file holds values of more than 8 bits of unknown range; False if unreadable."""
    if path.suffix.lower() in (".jpg", ".jpeg", ".bmp", ".webp"):
        return False
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return _array_type(file) not in (np.uint8, np.bool_)
        with path.open("rb") as file:
            head = file.read(32)
        if is_tiff(head):
            return read_layout(path).deep
        return head[:4] == b"\x89PNG" and head[24] == 16
    except DECODE_ERRORS:
        return False
