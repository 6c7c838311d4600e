"""Values of more than 8 bits, and what a TIFF says of its bands. Serving reads by these rules, too.

Pillow guesses a colour mode from a table of kinds and turns what is not in it down, or drops bands; a file
whose bands are data (infrared, elevation, more than 8 bits) is read with OpenCV or tifffile instead.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from protoseg.data.members import File
from protoseg.errors import DataError

_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3}
"""Bands by photometric interpretation: white is zero, black is zero, RGB, palette, mask, CMYK, YCbCr, Lab."""
_NAMES = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned"}
BACK = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""The orientation that takes back one."""
_REDUCED, _MASK = 1, 4
_MAX_PAGES = 100_000


@dataclass(frozen=True)
class TiffLayout:
    """Description of the first page that is no reduced copy."""

    bands: int
    """Bands that are stored, alpha included."""
    bits: int
    """Bits of a value."""
    kind: str
    """``unsigned``, ``signed`` or ``float``."""
    photometric: int
    """TIFF tag 262."""
    alpha: bool
    """The file itself says that the last band is alpha."""
    chunky: bool
    """The bands of a pixel lie together."""
    orientation: int
    """TIFF tag 274, 1 to 8."""
    frames: tuple[int, ...]
    """Numbers of the pages in the file, without reduced copies and masks of others."""
    size: tuple[int, int]
    """(height, width) as stored."""

    @property
    def pages(self) -> int:
        """Pages, without reduced copies and masks of others."""
        return len(self.frames)

    @property
    def colors(self) -> int:
        """Bands without alpha where the photometric interpretation explains all of them, else 0."""
        known = _COLORS.get(self.photometric, 0)
        return known if self.bands == known + self.alpha else 0

    @property
    def plain(self) -> bool:
        """Pillow reads every band with its value."""
        if self.colors == 0 or (self.bands != self.colors and self.photometric > 2):
            return False
        if self.bands == 1:
            deep = {("unsigned", 16), ("signed", 16), ("unsigned", 32), ("signed", 32), ("float", 32)}
            return (self.kind == "unsigned" and self.bits <= 8) or (self.kind, self.bits) in deep
        return self.kind == "unsigned" and self.bits == 8

    @property
    def deep(self) -> bool:
        """Values are no bytes."""
        return self.bits > 8 or self.kind != "unsigned"

    def describe(self) -> str:
        """In words, as ``5 bands of 16 bit (grey and 4 more)``."""
        known = _COLORS.get(self.photometric, 0)
        name = _NAMES.get(self.photometric, f"photometric {self.photometric}")
        extra = self.bands - known
        of = f" ({name} and {extra} more)" if extra > 0 and not self.alpha else f" ({name})"
        of = f" ({name} and alpha)" if self.alpha and extra == 1 else of
        return f"{self.bands} band{'s' * (self.bands > 1)} of {self.bits} bit {self.kind}{of}"


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or a BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_layout(data: File | bytes) -> TiffLayout:
    """Read the description of a TIFF's first page, and count its pages.

    Raises:
        OSError, ValueError, SyntaxError, KeyError, struct.error: If it is damaged.
    """
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
        head = file.read(8)
        if head[2:3] == b"+" or head[3:4] == b"+":
            head += file.read(8)
        first: dict[int, Any] | None = None
        frames: list[int] = []
        seen: set[int] = set()
        directory = ImageFileDirectory_v2(head)
        at = directory.next
        while at and at not in seen and len(seen) < _MAX_PAGES:
            seen.add(at)
            file.seek(at)
            directory.load(file)
            # some writers use the older tag 255, where 2 is a reduced copy
            derived = _number(directory, 254, 0) & (_REDUCED | _MASK) or _number(directory, 255, 1) == 2
            if first is None or not (derived or frames):
                first = {tag: directory.get(tag) for tag in (256, 257, 258, 262, 277, 284, 338, 339, 274)}
            frames += [] if derived else [len(seen) - 1]
            at = directory.next or 0
    if first is None or not first[256] or not first[257]:
        raise ValueError("no image in this TIFF")
    bits = first[258] or (1,)
    bits = bits if isinstance(bits, tuple) else (bits,)
    samples = int(first[277] or (len(bits) if first[258] else 1))
    extra = first[338] or ()
    extra = extra if isinstance(extra, tuple) else (extra,)
    formats = first[339] or (1,)
    formats = formats if isinstance(formats, tuple) else (formats,)
    orientation = first[274] or 1
    return TiffLayout(
        bands=samples, bits=max(bits), kind=_KINDS.get(formats[0], "unsigned"),
        photometric=int(first[262] if first[262] is not None else 1),
        alpha=len(extra) == 1 and extra[0] in (1, 2), chunky=(first[284] or 1) == 1,
        orientation=orientation if orientation in range(1, 9) else 1, frames=tuple(frames) or (0,),
        size=(int(first[257]), int(first[256])),
    )  # fmt: skip


def _number(directory: ImageFileDirectory_v2, tag: int, default: int) -> int:
    value = directory.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def read_bands(path: File, layout: TiffLayout, page: int, what: str) -> NDArray[Any]:
    """The bands of a page as they are stored, unturned.

    Returns:
        ``(H, W, bands)`` of the file's own type.

    Raises:
        DataError: If no installed library reads this kind.
        OSError, ValueError, ...: If it is damaged.
    """
    found = cv_bands(path.read_bytes(), layout) if page == 0 else None
    if found is not None:
        return found
    try:
        import tifffile
    except ImportError:
        raise DataError(
            f"{what} {path} is a TIFF of {layout.describe()}, which needs another package: "
            "pip install 'protoseg[tiff]' (or store it as .npy of height, width, bands)"
        ) from None
    with path.open("rb") as opened, tifffile.TiffFile(opened) as file:
        try:
            array: NDArray[Any] = file.pages[layout.frames[page]].asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise DataError(
                f"{what} {path} is compressed in a way that needs another package ({error}): "
                "pip install 'protoseg[tiff]', or save it uncompressed or with deflate"
            ) from error
        if array.ndim == 2:
            return array[..., None]
        return array if layout.chunky else np.moveaxis(array, 0, -1)


def cv_bands(data: bytes, layout: TiffLayout) -> NDArray[Any] | None:
    """As ``read_bands``, of the kinds that OpenCV reads without a change; None for others."""
    rgb = layout.photometric == 2 and layout.chunky and layout.bands in (3, 4)
    # bytes with alpha are multiplied by it
    if not rgb or (layout.bits == 8 and layout.alpha) or (layout.kind, layout.bits) == ("float", 16):
        return None
    if layout.orientation != 1:
        return None  # versions differ in whether they turn
    return decode_deep(data)


def decode_deep(data: bytes) -> NDArray[Any] | None:
    """``(H, W, C)`` of the file's own type by OpenCV, colours in RGB order; None where it cannot."""
    import cv2  # not needed for most images

    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if array is None:
        return None
    if array.ndim == 2:
        return np.asarray(array)[..., None]
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(array.shape[2])
    return np.asarray(array if order is None else array[..., order])


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


def turn(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation (2 to 8) of ``(H, W, ...)``."""
    if orientation not in range(2, 9):
        return array
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1) if orientation in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if orientation in (2, 3, 6, 7) else slice(None)
    return np.ascontiguousarray(array[rows, columns])


def as_channels(array: NDArray[Any], channels: int) -> NDArray[Any]:
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
