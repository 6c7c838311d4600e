"""Reads masks of any usual encoding into class ids.

What a mask file holds -> ``(H, W)`` uint8 of class ids and ``ignore_index``:

* grey PNG (1, 2, 4, 8 or 16 bit), TIFF of integers or ``.npy``: the value; palette PNG: the palette index,
or its
  colour when ``data.label_map`` has colours;
* RGB: the colour by ``data.label_map``; three equal channels count as grey;
* pixels of alpha 0 are no colour, but what ``data.label_map`` says of ``"transparent"``.

``data.label_map`` translates values (``"255"``) and colours (``"128,0,0"``); without it values are
class ids. Pixels of the value ``data.ignore_index`` stay ignored unless the map says otherwise. A mask is
turned by
its own EXIF tag; one without a tag that has the size of its image before turning is turned by the image's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.config.data import BUILT_IN_MAPS, DataConfig
from protoseg.data.classes import IGNORE_NAMES, parse_color, read_labelmap
from protoseg.data.known import known_map
from protoseg.data.lists import named_file
from protoseg.data.maskfiles import load_mask
from protoseg.data.members import File
from protoseg.data.palette import Color
from protoseg.data.pictures import PLAIN, Reading, file_orientation, reading
from protoseg.data.tiff import turn
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

TRANSPARENT = "transparent"
"""Key of ``data.label_map`` for pixels of alpha 0."""
_UNKNOWN = -1
_SOFT_VALUES = 5
"""From so many unknown values on, which all lie between known ones, edges are soft."""


def label_map_entries(config: DataConfig, names: Sequence[str]) -> dict[str, int | str] | None:
    """``data.label_map`` as a mapping, whichever way it is given; None without one.

    Raises:
        DataError: If its file cannot be read or names other classes.
    """
    if config.reduce_zero_label:
        return {"0": "ignore"} | {str(index + 1): index for index in range(len(names))}
    if not isinstance(config.label_map, str):
        return None if config.label_map is None else dict(config.label_map)
    if config.label_map in BUILT_IN_MAPS:
        table = known_map(config.label_map)
        lacking = sorted(set(table.values()) - set(names) - {"ignore"})
        if lacking:
            raise DataError(
                f"data.label_map={config.label_map} has classes that data.classes does not name, as "
                f"{lacking[0]}; "
                "set data.classes=null to take the map's own"
            )
        return dict(table)
    path = named_file(config, config.label_map, "data.label_map")
    colors = read_labelmap(path)
    unknown = [n for n in colors if n not in names and n.lower() not in IGNORE_NAMES]
    if unknown:
        raise DataError(f"{path} names {unknown}, which data.classes does not have; add them to data.classes")
    return {",".join(map(str, color)): name if name in names else "ignore" for name, color in colors.items()}


def mask_reader(config: DataConfig, classes: Sequence[ClassInfo]) -> MaskReader:
    """The reader for the masks that ``config`` describes.

    Raises:
        DataError: If ``data.label_map`` has a key or value that means nothing.
    """
    names = [item.name for item in classes]
    label_map = label_map_entries(config, names)
    how = reading(config)
    if label_map is None:
        return MaskReader(len(names), config.ignore_index, how=how)
    values: dict[int, int] = {}
    colors: dict[Color, int] = {}
    transparent = None
    for key, target in label_map.items():
        label = _target(key, target, names, config.ignore_index)
        if "," in key:
            colors[parse_color(key, "data.label_map")] = label
        elif key.strip().lower() == TRANSPARENT:
            transparent = label
        elif key.strip().removeprefix("-").isdecimal():
            values[int(key)] = label
        else:
            raise DataError(
                f'data.label_map key {key!r} must be a value ("255"), a colour ("128,0,0") or "{TRANSPARENT}"'
            )
    mapped = "_labelTrainIds" if config.label_map == "cityscapes" else ""
    return MaskReader(len(names), config.ignore_index, values, colors, transparent, how, mapped)


@dataclass(frozen=True)
class MaskReader:
    """Turns mask files into class ids. Build one with ``mask_reader``.

    ``values`` and ``colors`` are the label map; both empty means that values are class ids. ``transparent``
    is the
    label of pixels of alpha 0, which are an unknown value without one. ``mapped`` ends the names of files
    to which
    the map was already applied.
    """

    num_classes: int
    ignore_index: int
    values: dict[int, int] = field(default_factory=dict)
    colors: dict[Color, int] = field(default_factory=dict)
    transparent: int | None = None
    how: Reading = PLAIN
    mapped: str = ""
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
            if 0 <= value < len(lut):
                lut[value] = label
        table = {(r << 16) | (g << 8) | b: label for (r, g, b), label in self.colors.items()}
        for value, label in self.values.items():
            if 0 <= value < 256:
                table.setdefault(value * 0x010101, label)
        keys = np.array(sorted(table), np.uint32)
        object.__setattr__(self, "_lut", lut)
        object.__setattr__(self, "_keys", keys)
        object.__setattr__(self, "_labels", np.array([table[int(k)] for k in keys], np.int16))

    def read(self, path: File, image: File | None = None) -> NDArray[np.uint8]:
        """Class ids of a mask.

        Args:
            path: Mask file.
            image: Its image, whose EXIF tag counts where the mask has none and only that fits in size.

        Returns:
            ``(H, W)`` uint8 of class ids and ``ignore_index``.

        Raises:
            DataError: If the file cannot be read, or has values that mean nothing.
        """
        labels, unknown = self.decode(path, image)
        if unknown:
            raise DataError(self.explain(path, unknown))
        return labels

    def decode(self, path: File, image: File | None = None) -> tuple[NDArray[np.uint8], dict[str, int]]:
        """As ``read``, but values without a meaning become ``ignore_index`` and are counted.

        Returns:
            The labels, and pixels by unknown value (``"7"``, ``"128,0,0"`` or ``"transparent"``),
            frequent ones first.

        Raises:
            DataError: If the file cannot be read as a mask.
        """
        if self.mapped and path.stem.endswith(self.mapped):
            raise DataError(f"mask {path} holds train ids already; set data.label_map=null")
        stored = load_mask(path, 255 if self._white_is_255 else 1, self.how)
        raw, palette, clear = stored.values, stored.palette, stored.clear
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
            labels = self._by_color(raw)
        else:
            labels = self._by_value(raw)
            if palette is not None:
                clear = None  # each index has its own meaning, whatever it looks like
        orientation = self._orientation(stored.orientation, stored.values.shape[:2], image)
        labels = turn(labels, orientation)
        unknown: dict[str, int] = {}
        if clear is not None and clear.any():
            clear = turn(clear, orientation)
            labels[clear] = self.ignore_index if self.transparent is None else self.transparent
            if self.transparent is None:
                unknown[TRANSPARENT] = int(clear.sum())
        bad = labels == _UNKNOWN
        if bad.any():
            labels[bad] = self.ignore_index
            unknown |= _count(turn(raw, orientation)[bad], names)
        return labels.astype(np.uint8), dict(sorted(unknown.items(), key=lambda item: -item[1]))

    def _by_value(self, raw: NDArray[Any]) -> NDArray[np.int16]:
        if raw.dtype in (np.uint8, np.uint16):
            found: NDArray[np.int16] = self._lut[raw]
            return found
        inside = (raw >= 0) & (raw < len(self._lut))
        labels: NDArray[np.int16] = np.where(inside, self._lut[np.where(inside, raw, 0)], np.int16(_UNKNOWN))
        for value, label in self.values.items():
            if not 0 <= value < len(self._lut):
                labels[raw == value] = label
        return labels

    def _orientation(self, own: int, size: tuple[int, ...], image: File | None) -> int:
        """How to turn a mask: by its own tag, or by its image's where only that fits the image's size."""
        if not self.how.upright:
            return 1
        if own == 1 and image is not None:
            tag, stored = file_orientation(image)
            return tag if follows_image(tag, stored, size) else 1
        return own

    @property
    def _white_is_255(self) -> bool:
        return 1 not in self.values and (255 in self.values or (255, 255, 255) in self.colors)

    def _by_color(self, rgb: NDArray[np.uint8]) -> NDArray[np.int16]:
        if not len(self._keys):
            return np.full(rgb.shape[:2], _UNKNOWN, np.int16)
        packed = _pack(rgb)
        at = np.minimum(np.searchsorted(self._keys, packed), len(self._keys) - 1)
        return np.where(self._keys[at] == packed, self._labels[at], np.int16(_UNKNOWN))

    def explain(self, path: File, unknown: Mapping[str, int]) -> str:
        """What is wrong with a mask that has unknown values; the cure depends on all masks."""
        shown = ", ".join(f"{v} ({n} pixels)" for v, n in list(unknown.items())[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        kind = "colour" if any("," in value for value in unknown) else "value"
        text = f"mask {path} has {kind}(s) without a class: {shown}{more}"
        if self.soft_edges(unknown):
            return (
                f"{text}; these are soft edges (antialiasing, or a resize with interpolation) between "
                "values that have a class: export the mask without them, and resize masks by nearest "
                "neighbour only"
            )
        return text

    def soft_edges(self, unknown: Mapping[str, int]) -> bool:
        """Whether there are many unknown values that all lie between values of the label map."""
        found = [value for value in unknown if value != TRANSPARENT and not value.startswith("index")]
        if len(found) < _SOFT_VALUES:
            return False
        if "," in found[0]:
            known = np.array([*self.colors] or [(0, 0, 0), (255, 255, 255)], np.float64)
            between = np.array([[int(part) for part in value.split(",")] for value in found], np.float64)
            return bool(_on_segments(between, known).all())
        numbers = [int(value) for value in found]
        ends = [*self.values] or [0, 255]
        # class ids lie between 0 and 255 as well: without a map only a spread over the whole range tells
        spread_out = bool(self.values) or max(numbers) - min(numbers) > 128
        return min(ends) < min(numbers) and max(numbers) < max(ends) and spread_out


def follows_image(tag: int, stored: tuple[int, int], mask: tuple[int, ...]) -> bool:
    """Whether a mask without a tag fits its image of ``stored`` (height, width) only before it is turned."""
    return tag >= 5 and stored[0] != stored[1] and tuple(mask) == stored


def _on_segments(points: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which (N, 3) colours lie on a line between two of the (K, 3) known ones, within rounding."""
    near = np.zeros(len(points), bool)
    for first in known:
        for second in known:
            line = second - first
            length = float(line @ line)
            if length:
                place = np.clip((points - first) @ line / length, 0, 1)
                near |= np.abs(points - (first + place[:, None] * line)).max(axis=1) <= 3
    return near


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
