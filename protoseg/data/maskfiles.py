"""What a mask file holds, before any value has a meaning. Nothing that changes values is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.data.members import File
from protoseg.data.pictures import (
    DECODE_ERRORS,
    Reading,
    file_orientation,
    load_array,
    open_picture,
    read_orientation,
)
from protoseg.data.tiff import (
    BACK,
    decode_deep,
    is_deep_png,
    is_tiff,
    read_bands,
    read_layout,
    turn,
    unsigned,
)
from protoseg.errors import DataError

_LOSSY_TIFF = {6: "JPEG", 7: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}


@dataclass(frozen=True)
class StoredMask:
    """A mask file as it is, unturned."""

    values: NDArray[Any]
    """``(H, W)`` values or ``(H, W, 3)`` colours of uint8."""
    palette: NDArray[np.uint8] | None = None
    """``(N, 3)`` colours of a palette image."""
    clear: NDArray[np.bool_] | None = None
    """``(H, W)`` pixels of alpha 0."""
    orientation: int = 1


def load_mask(path: File, white: int, how: Reading) -> StoredMask:
    """Read a mask file; one-bit white becomes ``white``.

    Raises:
        DataError: If it is missing, damaged, lossy, or no mask by its bands.
    """
    if path.suffix.lower() == ".npy":
        return StoredMask(load_array(path, "mask", ndim=2))
    try:
        with path.open("rb") as file:
            head = file.read(32)
        _refuse_lossy(path, head)
        if is_tiff(head):
            layout = read_layout(path)
            if layout.kind == "float":
                raise DataError(f"mask {path} holds floats (mode F); save it as whole numbers")
            plain = layout.plain or (layout.bands, layout.bits, layout.kind) == (1, 8, "signed")
            if not plain and layout.bands in (3, 4) and layout.colors == 3:
                with open_picture(path, how, "mask"):
                    bands = read_bands(path, layout, how.page or 0, "mask")
                return _colored(path, bands, layout.alpha, layout.orientation)
            if not plain:
                raise DataError(
                    f"mask {path} has {layout.describe()}; a mask has one band of values of at most 32 "
                    "bits, or three of colours"
                )
        if is_deep_png(head):
            deep = decode_deep(path.read_bytes())
            if deep is not None:
                if head[25] == 4 and bool((deep[..., :1] == deep[..., :3]).all()):
                    return StoredMask(deep[..., 0], clear=deep[..., -1] == 0, orientation=_tag(path))
                return _colored(path, deep, head[25] != 2, _tag(path))
        with open_picture(path, how, "mask") as image:
            # Pillow stretches 2 and 4 bit grey to 0..255; class ids need the stored value
            rawmode = image.tile[0].args if image.tile else None  # type: ignore[attr-defined]
            scale = {"L;2": 85, "L;4": 17}.get(rawmode if isinstance(rawmode, str) else "", 1)
            if image.format == "TIFF" and image.tag_v2.get(259) in _LOSSY_TIFF:  # type: ignore[attr-defined]
                raise DataError(_lossy_text(path, "JPEG"))
            orientation = read_orientation(image)
            image.load()
            if image.format == "TIFF" and orientation != 1:
                # Pillow has turned it; it is turned again below, where it is wanted
                return _restored(_from_picture(image, white, scale, path), orientation)
            found = _from_picture(image, white, scale, path)
            return StoredMask(found.values, found.palette, found.clear, orientation)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"mask {path} not found") from None
    except DECODE_ERRORS as error:
        raise DataError(f"mask {path} cannot be decoded ({error}); replace the file") from error


def _from_picture(image: Image.Image, white: int, scale: int, path: File) -> StoredMask:
    mode = image.mode
    if mode == "1":
        return StoredMask(np.asarray(image, np.uint8) * np.uint8(white))
    if mode == "L":
        return StoredMask(unsigned(image) if scale == 1 else np.asarray(image) // np.uint8(scale))
    if mode == "P":
        colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        indices = np.asarray(image)
        hidden = image.info.get("transparency")
        table = np.zeros(256, bool)
        if isinstance(hidden, bytes):
            table[: len(hidden)] = np.frombuffer(hidden, np.uint8)[:256] == 0
        elif isinstance(hidden, int) and hidden < 256:
            table[hidden] = True
        return StoredMask(indices, colors, table[indices] if table.any() else None)
    if mode.startswith("I"):
        return StoredMask(unsigned(image))
    if mode in ("LA", "PA"):
        array = np.asarray(image.convert("LA"))
        return StoredMask(array[..., 0], clear=array[..., 1] == 0)
    if mode in ("RGB", "RGBA", "RGBX"):
        array = np.asarray(image)
        return StoredMask(array[..., :3], clear=array[..., 3] == 0 if mode == "RGBA" else None)
    raise DataError(f"mask {path} has mode {mode}; save it as an 8-bit grey, palette or RGB PNG")


def _restored(found: StoredMask, orientation: int) -> StoredMask:
    back = BACK[orientation]
    clear = None if found.clear is None else turn(found.clear, back)
    return StoredMask(turn(found.values, back), found.palette, clear, orientation)


def _colored(path: File, bands: NDArray[Any], alpha: bool, orientation: int) -> StoredMask:
    """Colours of more than 8 bits: class values in three equal bands, bytes, or bytes times 257."""
    if bands.shape[2] == 4 and not alpha:
        raise DataError(f"mask {path} has 4 bands; a mask has one band of values, or three of colours")
    colors, clear = bands[..., :3], bands[..., 3] == 0 if alpha else None
    if bool((colors == colors[..., :1]).all()):
        return StoredMask(colors[..., 0], clear=clear, orientation=orientation)
    if colors.max() > 255 and bool((colors % 257 == 0).all()) and colors.max() <= 65535:
        colors = colors // 257
    if colors.min() < 0 or colors.max() > 255:
        raise DataError(f"mask {path} has colours of more than 8 bits; save it as an 8-bit PNG")
    return StoredMask(colors.astype(np.uint8), clear=clear, orientation=orientation)


def _tag(path: File) -> int:
    return file_orientation(path)[0]


def _refuse_lossy(path: File, head: bytes) -> None:
    if head[:3] == b"\xff\xd8\xff":
        raise DataError(_lossy_text(path, "JPEG"))
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8 ":
        raise DataError(_lossy_text(path, "lossy WebP"))


def _lossy_text(path: File, kind: str) -> str:
    called = "" if path.suffix.lower() in (".jpg", ".jpeg") or kind != "JPEG" else ", whatever its name says"
    return (
        f"mask {path} holds {kind} data{called}: {kind} is lossy and changes mask values; export masks as "
        "PNG from the tool that drew them (to convert this file keeps the damage)"
    )
