"""Reads masks of any usual encoding into class ids.

What a mask file holds -> ``(H, W)`` uint8 of class ids and ``ignore_index``:

* grey PNG (1, 2, 4, 8 or 16 bit) or ``.npy``: the value; palette PNG: the palette index, or its
  colour when ``data.label_map`` has colours;
* RGB: the colour by ``data.label_map``; three equal channels count as grey.

``data.label_map`` translates values (``"255"``) and colours (``"128,0,0"``); without it values are
class ids. Pixels of the value ``data.ignore_index`` stay ignored unless the map says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoseg.config.sections import DataConfig
from protoseg.data.classes import IGNORE_NAMES, parse_color, read_labelmap
from protoseg.data.images import DECODE_ERRORS, load_array
from protoseg.data.lists import data_root, find_file
from protoseg.data.palette import Color
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

_UNKNOWN = -1


def mask_reader(config: DataConfig, classes: Sequence[ClassInfo]) -> MaskReader:
    """The reader for the masks that ``config`` describes.

    Raises:
        DataError: If ``data.label_map`` has a key or value that means nothing.
    """
    names = [item.name for item in classes]
    label_map: Mapping[str, int | str]
    if config.label_map is None:
        return MaskReader(len(names), config.ignore_index)
    if isinstance(config.label_map, str):
        path = find_file(data_root(config), config.label_map, "data.label_map")
        table = read_labelmap(path)
        unknown = [n for n in table if n not in names and n.lower() not in IGNORE_NAMES]
        if unknown:
            raise DataError(
                f"{path} names {unknown}, which data.classes does not have; add them to data.classes"
            )
        label_map = {
            ",".join(map(str, color)): name if name in names else "ignore" for name, color in table.items()
        }
    else:
        label_map = config.label_map
    values: dict[int, int] = {}
    colors: dict[Color, int] = {}
    for key, target in label_map.items():
        label = _target(key, target, names, config.ignore_index)
        if "," in key:
            colors[parse_color(key, "data.label_map")] = label
        elif key.strip().isdecimal() and int(key) <= 65535:
            values[int(key)] = label
        else:
            raise DataError(f'data.label_map key {key!r} must be a value ("255") or a colour ("128,0,0")')
    return MaskReader(len(names), config.ignore_index, values, colors)


@dataclass(frozen=True)
class MaskReader:
    """Turns mask files into class ids. Build one with ``mask_reader``.

    ``values`` and ``colors`` are the label map; both empty means that values are class ids.
    """

    num_classes: int
    ignore_index: int
    values: dict[int, int] = field(default_factory=dict)
    colors: dict[Color, int] = field(default_factory=dict)
    _lut: NDArray[np.int16] = field(init=False, repr=False)
    _keys: NDArray[np.uint32] = field(init=False, repr=False)
    _labels: NDArray[np.int16] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lut = np.full(65536, _UNKNOWN, np.int16)
        lut[self.ignore_index] = self.ignore_index
        if not self.values and not self.colors:
            lut[: self.num_classes] = np.arange(self.num_classes)
        for (r, g, b), label in self.colors.items():
            if r == g == b:
                lut[r] = label
        for value, label in self.values.items():
            lut[value] = label
        table = {(r << 16) | (g << 8) | b: label for (r, g, b), label in self.colors.items()}
        for value, label in self.values.items():
            if value < 256:
                table.setdefault(value * 0x010101, label)
        keys = np.array(sorted(table), np.uint32)
        object.__setattr__(self, "_lut", lut)
        object.__setattr__(self, "_keys", keys)
        object.__setattr__(self, "_labels", np.array([table[int(k)] for k in keys], np.int16))

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Class ids of a mask.

        Returns:
            ``(H, W)`` uint8 of class ids and ``ignore_index``.

        Raises:
            DataError: If the file cannot be read, or has values that mean nothing.
        """
        labels, unknown = self.decode(path)
        if unknown:
            raise DataError(self.explain(path, unknown))
        return labels

    def decode(self, path: Path) -> tuple[NDArray[np.uint8], dict[str, int]]:
        """As ``read``, but values without a meaning become ``ignore_index`` and are counted.

        Returns:
            The labels, and pixels by unknown value (``"7"`` or ``"128,0,0"``), frequent ones first.

        Raises:
            DataError: If the file cannot be read as a mask.
        """
        raw, palette = _load(path, white=255 if self._white_is_255 else 1)
        names: list[str] | None = None
        if raw.ndim == 3 and not self.colors and bool((raw == raw[..., :1]).all()):
            raw = raw[..., 0]
        if palette is not None and self.colors:
            # look up the few colours of the palette instead of every pixel's
            lut = np.full(256, _UNKNOWN, np.int16)
            lut[: len(palette)] = self._by_color(palette[:, None, :])[:, 0]
            labels = lut[raw]
            names = [",".join(map(str, c)) for c in palette.tolist()]
            names += [f"index {i}" for i in range(len(names), 256)]
        elif raw.ndim == 3:
            labels = self._by_color(raw.astype(np.uint8))
        elif raw.dtype in (np.uint8, np.uint16):
            labels = self._lut[raw]
        else:
            inside = (raw >= 0) & (raw < 65536)
            labels = np.where(inside, self._lut[np.where(inside, raw, 0)], np.int16(_UNKNOWN))
        bad = labels == _UNKNOWN
        if not bad.any():
            return labels.astype(np.uint8), {}
        labels[bad] = self.ignore_index
        return labels.astype(np.uint8), _count(raw[bad], names)

    @property
    def _white_is_255(self) -> bool:
        return 1 not in self.values and (255 in self.values or (255, 255, 255) in self.colors)

    def _by_color(self, rgb: NDArray[np.uint8]) -> NDArray[np.int16]:
        if not len(self._keys):
            return np.full(rgb.shape[:2], _UNKNOWN, np.int16)
        packed = _pack(rgb)
        at = np.minimum(np.searchsorted(self._keys, packed), len(self._keys) - 1)
        return np.where(self._keys[at] == packed, self._labels[at], np.int16(_UNKNOWN))

    def explain(self, path: Path, unknown: Mapping[str, int]) -> str:
        """What is wrong with a mask that has unknown values, and what to do."""
        shown = ", ".join(f"{v} ({n} pixels)" for v, n in list(unknown.items())[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        kind = "colour" if any("," in value for value in unknown) else "value"
        return f"mask {path} has {kind}(s) without a class: {shown}{more}; {self._hint(path, unknown)}"

    def _hint(self, path: Path, unknown: Mapping[str, int]) -> str:
        first = next(iter(unknown))
        colors = [value for value in unknown if "," in value]
        if path.suffix.lower() in (".jpg", ".jpeg"):
            return "JPEG is lossy and changes mask values: save masks as PNG"
        if colors:
            return (
                f'add the colours to data.label_map, as {{"{colors[0]}": 1}}, or give the labelmap.txt '
                "that your annotation tool wrote"
            )
        if set(unknown) <= {"0", "255"}:
            return 'for a two-value mask set data.label_map={"0": 0, "255": 1}'
        if _is_palette(path):
            return (
                "values of a palette PNG are palette indices: map those, or its colours, as "
                'data.label_map={"128,0,0": 1}'
            )
        if self.values or self.colors:
            return f'add it to data.label_map, as {{"{first}": "ignore"}}'
        return (
            f"values must be class ids 0 to {self.num_classes - 1}, or {self.ignore_index} (ignored): add "
            f'classes, or map values, as data.label_map={{"0": 0, "{first}": "ignore"}}'
        )


def _target(key: str, target: int | str, names: list[str], ignore_index: int) -> int:
    """Class id (or ignore_index) that a label map value names."""
    if isinstance(target, str):
        if target in names:
            return names.index(target)
        if target.lower() in IGNORE_NAMES:
            return ignore_index
        if not target.strip().isdecimal():
            raise DataError(
                f"data.label_map: {key!r} maps to {target!r}, which is no class; data.classes has {names}"
            )
        target = int(target)
    if target != ignore_index and not 0 <= target < len(names):
        raise DataError(
            f"data.label_map: {key!r} maps to {target}, but class ids go from 0 to {len(names) - 1}"
        )
    return target


def _load(
    path: Path, white: int
) -> tuple[NDArray[np.uint8 | np.uint16 | np.int32], NDArray[np.uint8] | None]:
    """Raw values ``(H, W)`` or colours ``(H, W, 3)``, and the palette of a palette image."""
    if path.suffix.lower() == ".npy":
        return load_array(path, "mask", ndim=2), None
    try:
        with Image.open(path) as image:
            # Pillow stretches 2 and 4 bit grey to 0..255; class ids need the stored value
            rawmode = image.tile[0].args if image.tile else None
            scale = {"L;2": 85, "L;4": 17}.get(rawmode if isinstance(rawmode, str) else "", 1)
            image.load()
            mode = image.mode
            if mode == "1":
                return np.asarray(image, np.uint8) * np.uint8(white), None
            if mode == "L":
                return np.asarray(image) // np.uint8(scale), None
            if mode == "P":
                colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
                return np.asarray(image), colors
            if mode.startswith("I"):
                return np.asarray(image), None
            if mode in ("LA", "PA"):
                return np.asarray(image.convert("LA"))[..., 0], None
            if mode in ("RGB", "RGBA", "RGBX"):
                return np.asarray(image)[..., :3], None
    except FileNotFoundError:
        raise DataError(f"mask {path} not found") from None
    except DECODE_ERRORS as error:
        raise DataError(f"mask {path} cannot be decoded ({error}); replace the file") from error
    raise DataError(f"mask {path} has mode {mode}; save it as an 8-bit grey, palette or RGB PNG")


def _is_palette(path: Path) -> bool:
    if path.suffix.lower() == ".npy":
        return False
    with Image.open(path) as image:
        return image.mode == "P"


def _pack(rgb: NDArray[np.uint8]) -> NDArray[np.uint32]:
    wide = rgb.astype(np.uint32)
    sixteen, eight = np.uint32(16), np.uint32(8)
    return (wide[..., 0] << sixteen) | (wide[..., 1] << eight) | wide[..., 2]


def _count(values: NDArray[np.generic], names: Sequence[str] | None) -> dict[str, int]:
    """Pixels by value (``(N,)``) or colour (``(N, 3)``), most frequent first."""
    if values.ndim == 2:
        packed, counts = np.unique(_pack(values.astype(np.uint8)), return_counts=True)
        keys = [f"{p >> 16},{(p >> 8) & 255},{p & 255}" for p in packed.tolist()]
    else:
        found, counts = np.unique(values, return_counts=True)
        keys = [names[v] if names is not None else str(v) for v in found.tolist()]
    order = np.argsort(-counts, kind="stable")
    return {keys[i]: int(counts[i]) for i in order}
