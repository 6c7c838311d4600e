"""Label maps that formats share: masks as pictures, masks by colour, and the Cityscapes ids."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.convert.rle import Mask
from protoseg.data.palette import Color
from protoseg.data.pictures import DECODE_ERRORS
from protoseg.errors import DataError

# official id: (name, colour) of the 19 classes that are evaluated; every other id is ignored
CITYSCAPES: dict[int, tuple[str, Color]] = {
    7: ("road", (128, 64, 128)), 8: ("sidewalk", (244, 35, 232)), 11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)), 13: ("fence", (190, 153, 153)), 17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)), 20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)), 22: ("terrain", (152, 251, 152)), 23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)), 25: ("rider", (255, 0, 0)), 26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)), 28: ("bus", (0, 60, 100)), 31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)), 33: ("bicycle", (119, 11, 32)),
}  # fmt: skip
CITYSCAPES_NAMES = [name for name, _ in CITYSCAPES.values()]
CITYSCAPES_COLORS = dict(CITYSCAPES.values())
CITYSCAPES_VOID = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground",
    "parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer",
)  # fmt: skip


def cityscapes_values() -> dict[int, str | None]:
    """Names of the ids -1 to 33, which 8-bit files hold as 255 and 0 to 33."""
    return {i: CITYSCAPES[i][0] if i in CITYSCAPES else None for i in [*range(34), 255]}


def decode_base64(text: Any, where: str) -> bytes:
    """Bytes of a base64 text.

    Raises:
        DataError: If it is damaged.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError(f"{where}: damaged base64 ({error})") from error


def decode_mask(data: bytes, where: str) -> Mask:
    """The mask in a picture: alpha if that varies, else grey; anything above 0 belongs to it.

    Raises:
        DataError: If it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode in ("RGBA", "LA"):
                alpha = np.asarray(picture.getchannel("A"))
                if alpha.min() < alpha.max():
                    return alpha > 0
            return np.asarray(picture.convert("L")) > 0
    except DECODE_ERRORS as error:
        raise DataError(f"{where}: the mask is no readable picture ({error})") from error


def load_values(source: Path | bytes, where: str) -> NDArray[Any]:
    """Values ``(H, W)``, or colours ``(H, W, 3)``, of a mask picture; a palette picture gives its indices.

    Raises:
        DataError: If it cannot be decoded, or is lossy.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.format in ("JPEG", "MPO"):
                raise DataError(f"{where} is JPEG, which changes label values; export PNG")
            # Pillow stretches 2 and 4 bit grey to 0..255; ids need the stored value
            rawmode = image.tile[0].args if image.tile else None
            scale = {"L;2": 85, "L;4": 17}.get(rawmode if isinstance(rawmode, str) else "", 1)
            if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
                return np.asarray(image).astype(np.int64) // scale
            if image.mode in ("LA", "PA"):
                return np.asarray(image)[..., 0].astype(np.int64)
            if image.mode in ("RGB", "RGBA"):
                rgb = np.asarray(image)[..., :3]
                return rgb[..., 0].astype(np.int64) if (rgb == rgb[..., :1]).all() else rgb
            raise DataError(f"{where} has mode {image.mode}, which is no label map")
    except DataError:
        raise
    except DECODE_ERRORS as error:
        raise DataError(f"{where} cannot be decoded ({error})") from error


def map_loader(path: Path, colors: Mapping[Color, int] | None = None) -> Callable[[], NDArray[Any]]:
    """A function that loads a label map; with ``colors``, colours (also those of a palette) become their ids.

    Grey pictures hold ids in either case.

    Raises:
        DataError: From the function, if a colour is unknown.
    """

    def load() -> NDArray[Any]:
        if colors is None:
            values = load_values(path, str(path))
            if values.ndim == 3:
                raise DataError(
                    f"{path} holds colours, expected class ids; a labelmap.txt beside it would name them"
                )
            return values
        try:
            with Image.open(path) as image:
                if image.mode in ("1", "L"):
                    return load_values(path, str(path))
                rgb = np.asarray(image.convert("RGB")).astype(np.int64)
        except DECODE_ERRORS as error:
            raise DataError(f"{path} cannot be decoded ({error})") from error
        packed = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
        found, inverse = np.unique(packed, return_inverse=True)
        table = {(r << 16) | (g << 8) | b: label for (r, g, b), label in colors.items()}
        unknown = [f"{c >> 16},{(c >> 8) & 255},{c & 255}" for c in found.tolist() if c not in table]
        if unknown:
            raise DataError(f"{path} has colours that no label names: {'; '.join(unknown[:8])}")
        return np.array([table[c] for c in found.tolist()])[inverse].reshape(packed.shape)

    return load


def read_labelmap_colors(text: str, where: str) -> dict[str, Color]:
    """Colours by name of CVAT's ``name:r,g,b:parts:actions`` lines.

    Raises:
        DataError: If a line has another form.
    """
    table: dict[str, Color] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.match(r"^(.+?):(\d+),\s*(\d+),\s*(\d+)(:|$)", line.strip())
        if match is not None:
            table[match[1].strip()] = (int(match[2]), int(match[3]), int(match[4]))
        elif line.strip() and not line.startswith("#"):
            raise DataError(f"{where}, line {number}: expected name:r,g,b:: as CVAT writes, got {line!r}")
    return table
