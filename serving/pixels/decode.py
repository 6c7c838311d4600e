"""Decodes untrusted images: content and header limits first, then the same pixels as in training.

The rules are those of ``protoseg.data.images``; a test compares both over many formats.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.tiff import (
    BACK,
    TiffLayout,
    as_channels,
    cv_bands,
    decode_deep,
    is_deep_png,
    read_layout,
    turn,
    unsigned,
)
from protoseg.input_rule import FULL_16_BIT, ResizeConfig, ValueRange, to_bytes
from serving.errors import ServingError

# the limit that counts is ours and runs before Pillow sees the data
Image.MAX_IMAGE_PIXELS = None
# a stranger's metadata is no reason for a line on our standard error
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Pixels = NDArray[np.uint8]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_EXIF_ORIENTATION = 0x0112
_FILTER = Image.Resampling.BILINEAR
# a progressive JPEG costs a pass over the image for each scan; encoders write about ten
_MAX_JPEG_SCANS = 100
_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "bmp": "BMP", "tiff": "TIFF", "gif": "GIF"}


@dataclass(frozen=True)
class ImageLimits:
    """What is decoded."""

    max_pixels: int
    """Pixels of an image."""
    max_side: int
    """Longest side in pixels."""
    formats: tuple[str, ...]
    """Accepted formats by our lower-case names."""


def sniff(data: bytes) -> str | None:
    """Format name by the first bytes, or None."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM":
        return "bmp"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    return None


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the first bytes, because Pillow's WebP decoder wants memory before it tells them.

    Raises:
        struct.error: If the header is cut short.
    """
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return width, height
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ServingError(422, "corrupt_image", f"the image claims to be {width}x{height} pixels")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ServingError(
            413, "too_many_pixels",
            f"the image is {width}x{height}; at most {limits.max_pixels} pixels and "
            f"{limits.max_side} on a side are accepted",
        )  # fmt: skip


def decode(
    data: bytes,
    limits: ImageLimits,
    channels: int = 3,
    value_range: ValueRange | None = None,
    exif: str = "apply",
) -> Pixels:
    """Decode an image upright.

    Args:
        data: Whole file.
        limits: Checked before any pixel is decoded.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        value_range: Values of more than 8 bits that become 0 and 255, as the manifest's input rule says.
        exif: ``ignore`` leaves pixels as they are stored.

    Returns:
        ``(H, W, channels)`` uint8 in [0, 255]; the first frame of an animation.

    Raises:
        ServingError: 400 for no bytes, 415 for another format, 413 for too many pixels, 422 for
            damaged data.
    """
    if not data:
        raise ServingError(400, "empty_body", "the request holds no image bytes")
    name = sniff(data)
    if name is None or name not in limits.formats:
        accepted = ", ".join(_NAMES[item] for item in limits.formats)
        raise ServingError(415, "unsupported_image", f"the data is not one of {accepted}")
    if name == "jpeg" and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise ServingError(422, "corrupt_image", f"the JPEG has over {_MAX_JPEG_SCANS} scans")
    try:
        return _decode(data, name, limits, channels, value_range, upright=exif == "apply")
    except ServingError:
        raise
    # decoders raise about anything on damaged data; it is the client's data, not our bug
    except Exception:
        raise ServingError(422, "corrupt_image", "the image data cannot be decoded") from None


def _decode(
    data: bytes,
    name: str,
    limits: ImageLimits,
    channels: int,
    value_range: ValueRange | None,
    *,
    upright: bool,
) -> Pixels:
    if name == "webp":
        _check_size(*webp_size(data), limits)
    layout = read_layout(data) if name == "tiff" else None
    if layout is not None:
        _check_size(layout.size[1], layout.size[0], limits)
        legacy = value_range is None and layout.colors == 3 and layout.bits <= 16
        if not layout.plain and not (legacy and layout.chunky and layout.kind == "unsigned"):
            return turn(_bands(data, layout, channels, value_range), layout.orientation if upright else 1)
    # opening reads the header only
    with Image.open(io.BytesIO(data), formats=[name.upper()]) as image:
        _check_size(*image.size, limits)
        orientation = _orientation(image) if upright else 1
        if name == "jpeg" and channels == 3 and image.mode in ("RGB", "L"):
            # the same libjpeg-turbo settings as Pillow's (slow DCT, smooth chroma), twice as fast;
            # it refuses harmless oddities that Pillow accepts, so Pillow has the last word
            with contextlib.suppress(ValueError, KeyError):
                return np.ascontiguousarray(turn(simplejpeg.decode_jpeg(data, colorspace="RGB"), orientation))
        image.load()
        if layout is not None:
            # Pillow has turned it
            orientation = 1 if upright else BACK[layout.orientation]
        if value_range is not None and is_deep_png(data[:32]):
            deep = decode_deep(data)
            if deep is not None:
                return np.ascontiguousarray(
                    turn(to_bytes(as_channels(deep, channels), value_range), orientation)
                )
        if image.mode.startswith("I") or image.mode == "F":
            grey = _to_8bit(unsigned(image)[..., None], value_range)
            return np.ascontiguousarray(turn(as_channels(grey, channels), orientation))
        mode = _MODES[channels]
        converted = image if image.mode == mode else image.convert(mode)
        array = np.asarray(converted)
    array = array.reshape(array.shape[0], array.shape[1], channels)
    return np.ascontiguousarray(turn(array, orientation))


def _bands(data: bytes, layout: TiffLayout, channels: int, value_range: ValueRange | None) -> Pixels:
    """Bands that Pillow does not read as they are."""
    fits = layout.bands == channels or (layout.colors == 3 and channels in (1, 3, 4))
    array = cv_bands(data, layout) if fits else None
    if array is None:
        text = f"the TIFF has {layout.describe()}; send an image of {channels} band(s) of 8 or 16 bit"
        raise ServingError(422, "corrupt_image", text)
    return _to_8bit(as_channels(array, channels), value_range)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    # broken metadata says nothing about the pixels
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _to_8bit(array: NDArray[Any], value_range: ValueRange | None) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if value_range is None:
        low, high = array.min(), array.max()
        if array.dtype.kind == "f" or low < 0 or high > 65535:
            raise ServingError(422, "corrupt_image", "values must be whole numbers of at most 16 bits")
    return to_bytes(array, value_range or FULL_16_BIT)


def resize(pixels: Pixels, rule: ResizeConfig) -> Pixels:
    """Bring an image to the working size: Pillow's bilinear filter, antialiased when it shrinks.

    Args:
        pixels: ``(H, W, C)`` uint8.
        rule: Working size rule of the manifest.

    Returns:
        ``(h, w, C)`` uint8; the same array when the size does not change.
    """
    height, width = rule.target_size(*pixels.shape[:2])
    if (height, width) == pixels.shape[:2]:
        return pixels
    if pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).resize((width, height), _FILTER))
    # band by band: Pillow would weigh colours by the fourth channel
    bands = [
        np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., c])).resize((width, height), _FILTER))
        for c in range(pixels.shape[2])
    ]
    return np.stack(bands, axis=2)
