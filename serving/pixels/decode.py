"""Decodes untrusted images: content and header limits first, then the same pixels as in training.

The rules are those of ``protoseg.data.images``; a test compares both over many formats.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from protoseg.manifest import ResizeConfig
from serving.errors import ServingError

# the limit that counts is ours and runs before Pillow sees the data
Image.MAX_IMAGE_PIXELS = None
# a stranger's metadata is no reason for a line on our standard error
warnings.filterwarnings("ignore", module="PIL")

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


def decode(data: bytes, limits: ImageLimits, channels: int = 3) -> Pixels:
    """Decode an image upright.

    Args:
        data: Whole file.
        limits: Checked before any pixel is decoded.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

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
        return _decode(data, name, limits, channels)
    except ServingError:
        raise
    # decoders raise about anything on damaged data; it is the client's data, not our bug
    except Exception:
        raise ServingError(422, "corrupt_image", "the image data cannot be decoded") from None


def _decode(data: bytes, name: str, limits: ImageLimits, channels: int) -> Pixels:
    if name == "webp":
        _check_size(*webp_size(data), limits)
    # opening reads the header only
    with Image.open(io.BytesIO(data), formats=[name.upper()]) as image:
        _check_size(*image.size, limits)
        orientation = _orientation(image)
        if name == "jpeg" and channels == 3 and image.mode in ("RGB", "L"):
            # the same libjpeg-turbo settings as Pillow's (slow DCT, smooth chroma), twice as fast;
            # it refuses harmless oddities that Pillow accepts, so Pillow has the last word
            with contextlib.suppress(ValueError, KeyError):
                return _turn(simplejpeg.decode_jpeg(data, colorspace="RGB"), orientation)
        image.load()
        if image.mode.startswith("I"):
            grey = _turn(_to_8bit(np.asarray(image))[..., None], orientation)
            if channels == 4:
                return np.concatenate([np.repeat(grey, 3, 2), np.full_like(grey, 255)], axis=2)
            return np.ascontiguousarray(np.repeat(grey, channels, axis=2))
        if image.mode == "F":
            raise ServingError(422, "corrupt_image", "images of floats are not supported")
        mode = _MODES[channels]
        converted = image if image.mode == mode else image.convert(mode)
        array = np.asarray(converted)
    return _turn(array.reshape(array.shape[0], array.shape[1], channels), orientation)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    # broken metadata says nothing about the pixels
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (2..8)."""
    if orientation not in range(2, 9):
        return np.ascontiguousarray(pixels)
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = slice(None, None, -1) if orientation in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if orientation in (2, 3, 6, 7) else slice(None)
    return np.ascontiguousarray(pixels[rows, columns])


def _to_8bit(array: NDArray[np.generic]) -> Pixels:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ServingError(422, "corrupt_image", "grey values must fit into 16 bits")
    # round(v / 257) in integers: 257 is odd, so there are no ties
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


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
