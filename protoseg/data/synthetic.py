"""The embedded data set: drawn scenes whose classes each have several clearly different appearances.

A class is a shape (disc, square, triangle, ...) that comes in up to four *modes*: combinations of a
texture and two colours. Every colour and every texture occurs in several classes, so that no single
cue gives a class away, and modes are drawn with uneven odds, so that a few labelled images show some
modes often and others hardly at all. Drawing uses PCG64 and integers only: the same seed gives the
same bytes on any machine.

``python -m protoseg.data.synthetic FOLDER`` writes the set as files, to try the settings for own data.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.config.sections import SyntheticConfig
from protoseg.data.images import save_image, save_mask, write_text
from protoseg.data.lists import SPLITS, Split
from protoseg.data.palette import voc_palette
from protoseg.data.solids import SOLIDS, TEXTURES, Color, Dice, Floats, View, noise, shade, texture, unit
from protoseg.errors import DataError, guarded
from protoseg.manifest import ClassInfo

IGNORE = 255
_CLASSES = ("background", "ball", "box", "can", "cone", "ring", "bar", "dome")
_HUES: tuple[Color, ...] = (
    (0.62, 0.06, 0.05), (0.08, 0.36, 0.10), (0.06, 0.13, 0.55), (0.78, 0.52, 0.05),
    (0.36, 0.08, 0.46), (0.05, 0.40, 0.46), (0.72, 0.24, 0.04), (0.70, 0.68, 0.62),
)  # fmt: skip
_GROUNDS: tuple[tuple[Color, Color], ...] = (
    ((0.30, 0.17, 0.08), (0.48, 0.31, 0.17)),  # planks
    ((0.42, 0.41, 0.38), (0.20, 0.21, 0.23)),  # tiles
    ((0.07, 0.13, 0.04), (0.22, 0.28, 0.09)),  # grass
    ((0.26, 0.25, 0.25), (0.40, 0.38, 0.35)),  # concrete
)
_MODE_ODDS = (6, 5, 4, 3)
_OVER = 2  # drawn at twice the size, then averaged: smooth edges


def synthetic_classes(config: SyntheticConfig) -> list[ClassInfo]:
    """The classes of the embedded set, named after their solids; id 0 is the background."""
    colors = voc_palette(config.num_classes)
    return [ClassInfo(name=_CLASSES[i], color=colors[i]) for i in range(config.num_classes)]


@dataclass(frozen=True)
class Appearance:
    """Texture and colours (linear RGB in [0, 1]) of one mode of a class."""

    texture: str
    first: Color
    second: Color


def appearance(class_id: int, mode: int) -> Appearance:
    """The look of a mode of a class.

    Within a class all textures and first colours differ; no two classes share a texture with the
    same first colour.
    """
    hue = (2 * class_id + 3 * mode) % len(_HUES)
    other = (hue + 1 + (class_id + 2 * mode) % (len(_HUES) - 1)) % len(_HUES)
    return Appearance(TEXTURES[(class_id + mode) % len(TEXTURES)], _HUES[hue], _HUES[other])


@dataclass(frozen=True)
class _Item:
    """A solid in a scene; lengths in pixels of the canvas."""

    class_id: int
    mode: int
    x: float
    y: float
    radius: float


class SyntheticScenes:
    """Scenes of one split, drawn on demand."""

    def __init__(self, config: SyntheticConfig, split: Split) -> None:
        """Prepare the split.

        Args:
            config: Size, classes, modes and seed.
            split: ``labeled``, ``unlabeled`` or ``val``. Labelled and unlabelled scenes are one series,
                labelled ones first, so that more labels label the same images; no split shares a scene.
        """
        self.config = config
        self.split: Split = split
        self._length = int(getattr(config, f"num_{split}"))
        self._last: tuple[int, NDArray[np.uint8], NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image ``index`` as (H, W, 3) uint8 RGB."""
        return self._scene(index)[0].copy()

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Class ids of image ``index`` as (H, W) uint8; a thin border round objects is 255."""
        return self._scene(index)[1].copy()

    def _scene(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length} in split {self.split}")
        if self._last is None or self._last[0] != index:
            number = index + (self.config.num_labeled if self.split == "unlabeled" else 0)
            self._last = (index, *_Scene(self.config, number, val=self.split == "val").draw())
        return self._last[1], self._last[2]


class _Scene:
    """One scene: camera, light, ground, solids, photograph."""

    def __init__(self, config: SyntheticConfig, number: int, *, val: bool) -> None:
        self.config, self.number = config, number
        self.dice = Dice([config.seed, int(val), number])
        height, width = config.height * _OVER, config.width * _OVER
        self.size, self.side = (height, width), float(min(height, width))
        self.y, self.x = (v.astype(np.float32) for v in np.mgrid[0:height, 0:width])
        dice = self.dice
        self.horizon = height * dice.real(-0.5, 0.12)
        # nearness: 1 at the bottom, 0 on the horizon
        self.near = np.maximum((self.y - self.horizon) / (height - self.horizon), 0.02)
        side = dice.turn()[1]
        self.light = _normalised((1.2 * side, dice.real(0.5, 1.3), dice.real(0.3, 0.9)))
        self.ambient = dice.real(0.22, 0.5)

    def draw(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image and mask."""
        canvas = self._ground()
        labels = np.zeros(self.size, np.uint8)
        items = sorted(self._items(), key=lambda item: item.y)
        for item in items:
            self._shadow(canvas, item)
        for item in items:
            self._place(canvas, labels, item)
        return self._photograph(canvas), _with_border(labels[1::_OVER, 1::_OVER])

    def _view(self, y: float) -> View:
        flat = min(0.75, max(0.3, (y - self.horizon) / (1.15 * self.size[1])))
        return View(flat, math.sqrt(1.0 - flat * flat))

    def _mode(self) -> int:
        return self.dice.weighted(_MODE_ODDS[: self.config.modes])

    def _ground(self) -> Floats:
        """Colours (h, w, 3) of ground, wall and clutter."""
        dice, (height, width) = self.dice, self.size
        mode = self.number % self.config.modes
        c, s = dice.turn()
        scale = dice.real(0.8, 1.6) / self.side
        gx = (self.x - width * dice.real(0.2, 0.8)) / self.near * scale
        gz = 1.1 * width / self.near * scale
        a, b = c * gx + s * gz, c * gz - s * gx
        knots = dice.lattice()
        first, second = _GROUNDS[mode]
        if mode == 0:
            plank = np.floor(a * 5.0)
            tone = knots[plank.astype(np.int32) & 31, 7]
            grain = noise(a * 40.0, b * 3.0, knots)
            gap = np.minimum(1.0, 12.0 * np.abs(a * 5.0 - plank - 0.5) - 5.2)
            blend = 0.6 * tone + 0.4 * grain - 0.7 * np.maximum(gap, 0.0)
        elif mode == 1:
            i, j = np.floor(a * 3.0), np.floor(b * 3.0)
            odd = ((i + j).astype(np.int32) & 1).astype(np.float32)
            edge = np.maximum(np.abs(a * 3.0 - i - 0.5), np.abs(b * 3.0 - j - 0.5))
            tone = knots[i.astype(np.int32) & 31, j.astype(np.int32) & 31]
            blend = 0.75 * odd + 0.25 * tone + np.where(edge > 0.46, np.float32(0.5), np.float32(0.0))
        elif mode == 2:
            blend = 0.65 * noise(a * 34.0, b * 34.0, knots) + 0.35 * noise(a * 9.0, b * 9.0, knots)
        else:
            fine = noise(a * 45.0, b * 45.0, knots)
            blend = 0.7 * noise(a * 4.0, b * 4.0, knots) + 0.3 * fine - 0.8 * (fine > 0.86)
        canvas = _mix(first, second, blend)
        self._clutter(canvas, a, b, knots)
        wall = self.y < self.horizon
        if wall.any():
            paint = 0.25 + 0.5 * np.array(_HUES[dice.whole(0, 7)], np.float32)
            rows = (0.7 + 0.3 * noise(self.x / self.side * 3.0, self.y / self.side * 3.0, knots))[wall]
            canvas[wall] = rows[:, None] * paint
        return canvas

    def _clutter(self, canvas: Floats, a: Floats, b: Floats, knots: Floats) -> None:
        """Flat litter: blots of any colour that belong to the ground."""
        dice = self.dice
        for _ in range(dice.whole(2, 6)):
            color = np.array(_HUES[dice.whole(0, 7)], np.float32) * np.float32(dice.real(0.35, 0.9))
            y, x = dice.whole(0, self.size[0] - 1), dice.whole(0, self.size[1] - 1)
            reach, thin = dice.real(0.03, 0.10), dice.real(1.0, 3.0)
            u, v = a - a[y, x], (b - b[y, x]) * thin
            blot = u * u + v * v <= reach * reach * (0.4 + 1.2 * noise(a * 25.0, b * 25.0, knots))
            canvas[blot] = 0.35 * canvas[blot] + 0.65 * color

    def _items(self) -> list[_Item]:
        """Solids that cover each other a little at most.

        The first two follow from the scene's number, so that the first labelled scenes show every look.
        """
        dice, config, (height, width) = self.dice, self.config, self.size
        solids = config.num_classes - 1
        looks = solids * config.modes
        due = [self.number % looks, (self.number + max(1, looks * 3 // 4)) % looks]
        wanted = [(1 + look % solids, look // solids) for look in due]
        wanted += [(dice.whole(1, solids), self._mode()) for _ in range(dice.whole(0, 3))]
        items: list[_Item] = []
        for rank, (class_id, mode) in enumerate(wanted):
            for _ in range(12):
                y = height * dice.real(0.3, 1.0)
                near = max(0.35, (y - self.horizon) / (height - self.horizon))
                radius = max(3.0, self.side * near * dice.real(0.17, 0.28))
                item = _Item(class_id, mode, width * dice.real(0.06, 0.94), y, radius)
                if all(_apart(item, other) for other in items):
                    items.append(item)
                    break
            else:
                if rank < 2:
                    items.append(item)
        return items

    def _shadow(self, canvas: Floats, item: _Item) -> None:
        """Darken the ground where the light does not reach."""
        view = self._view(item.y)
        reach = min(1.6, 0.9 / max(self.light[1], 0.3))
        dx, dz = -self.light[0] * reach * 1.6, self.light[2] * reach * 0.8
        r = item.radius
        rows, columns = self._window(item, r * 3.2, r * 2.6, r * 1.6)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        x, z = (self.x[rows, columns] - item.x) / r, (item.y - self.y[rows, columns]) / (r * view.flat)
        along = np.minimum(np.maximum((x * dx + z * dz) / (dx * dx + dz * dz + 1e-6), 0.0), 1.0)
        u, v = x - along * dx, z - along * dz
        rim = np.sqrt(u * u + v * v)
        dark = np.minimum(np.maximum((1.15 - rim) / (0.2 + 0.35 * along), 0.0), 1.0)
        dark *= (1.0 - self.ambient) * (1.0 - 0.35 * along)
        canvas[rows, columns] *= (1.0 - dark)[..., None]

    def _window(self, item: _Item, wide: float, up: float, down: float) -> tuple[slice, slice]:
        height, width = self.size
        return (
            slice(max(0, int(item.y - up)), max(0, min(height, int(item.y + down) + 1))),
            slice(max(0, int(item.x - wide)), max(0, min(width, int(item.x + wide) + 1))),
        )

    def _place(self, canvas: Floats, labels: NDArray[np.uint8], item: _Item) -> None:
        """Draw a solid."""
        dice, r = self.dice, item.radius
        rows, columns = self._window(item, r * 1.9, r * 3.0, r * 1.3)
        turn, tall, knots = dice.turn(), dice.real(0.85, 1.2), dice.lattice()
        gains = [dice.real(0.8, 1.2) for _ in range(3)]
        gloss = dice.real(0.0, 0.6)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        x, y = (self.x[rows, columns] - item.x) / r, (item.y - self.y[rows, columns]) / r
        surface = SOLIDS[_CLASSES[item.class_id]](x, y, self._view(item.y), turn, tall)
        look = appearance(item.class_id, item.mode)
        blend = texture(look.texture, surface.a, surface.b, knots)
        color = _mix(look.first, look.second, blend) * np.array(gains, np.float32)
        diffuse, mirror = shade(surface, self.light, self.ambient, gloss)
        # the ground's own shade: what is near it gets less light
        diffuse = diffuse * np.minimum(1.0, 0.7 + 0.4 * np.maximum(y, 0.0))
        inside = surface.inside
        canvas[rows, columns][inside] = (color * diffuse[..., None] + mirror[..., None])[inside]
        labels[rows, columns][inside] = item.class_id

    def _photograph(self, canvas: Floats) -> NDArray[np.uint8]:
        """(H, W, 3) uint8: the light of the place, its colour, the lens and the sensor."""
        dice, (height, width) = self.dice, self.size
        y, x = self.y / self.side - 0.5, self.x / self.side - 0.5 * width / height
        knots = dice.lattice()
        # the shadow of something outside the picture
        c, s = unit(dice.real(-3.0, 3.0))
        edge = c * x + s * y + 0.25 * (noise(x * 3.0 + 8.0, y * 3.0 + 8.0, knots) - 0.5) + dice.real(-0.5, 0.5)
        inside = np.minimum(np.maximum(edge * dice.real(3.0, 14.0) + 0.5, 0.0), 1.0)
        light = dice.real(0.6, 1.7) * (1.0 - dice.real(0.1, 0.65) * inside)
        light = light * (1.0 - 0.35 * (x * x + y * y))
        warm = dice.real(-0.25, 0.25)
        tint = np.array([1.0 + warm, 1.0, 1.0 - warm], np.float32)
        seen = np.minimum(canvas * light[..., None] * tint, 1.0)
        half = seen[0::2] + seen[1::2]
        small = np.sqrt((half[:, 0::2] + half[:, 1::2]) * 0.25)
        size = small.size
        grain = dice.bytes(2 * size).astype(np.float32).reshape(2, *small.shape)
        strength = dice.real(4.0, 14.0) / 256.0
        noisy = small * 255.0 + (grain[0] - grain[1]) * strength + 0.5
        image: NDArray[np.uint8] = np.minimum(np.maximum(noisy, 0.0), 255.0).astype(np.uint8)
        return image


def _normalised(light: Color) -> Color:
    length = math.sqrt(sum(part * part for part in light))
    return light[0] / length, light[1] / length, light[2] / length


def _apart(one: _Item, other: _Item) -> bool:
    wide = abs(one.x - other.x) / (one.radius + other.radius)
    deep = abs(one.y - other.y) / (one.radius + other.radius)
    return wide > 0.85 or deep > 1.3


def _mix(first: Color, second: Color, blend: Floats) -> Floats:
    """Colours (..., 3) between two, ``blend`` (...) is the share of the second."""
    low, high = np.array(first, np.float32), np.array(second, np.float32)
    mixed: Floats = low + (high - low) * np.minimum(np.maximum(blend, 0.0), 1.0)[..., None]
    return mixed


def _with_border(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels with 255 on both pixels of every edge between two classes."""
    out = labels.copy()
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    out[1:][down] = IGNORE
    out[:-1][down] = IGNORE
    out[:, 1:][right] = IGNORE
    out[:, :-1][right] = IGNORE
    return out


def write_dataset(config: SyntheticConfig, folder: Path) -> dict[str, Any]:
    """Write the set as files: ``images/``, ``masks/``, three lists and ``classes.txt``.

    Args:
        config: The set.
        folder: Made when missing; existing files of these names are replaced.

    Returns:
        The ``data`` section that reads the folder back.

    Raises:
        DataError: If a file cannot be written.
    """
    folder = Path(folder)
    classes = synthetic_classes(config)
    try:
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error}") from error
    for split in SPLITS:
        scenes = SyntheticScenes(config, split)
        lines = []
        for index in range(len(scenes)):
            name = f"{split}_{index:04d}.png"
            save_image(folder / "images" / name, scenes.image(index))
            line = f"images/{name}"
            if split != "unlabeled":
                save_mask(folder / "masks" / name, scenes.mask(index), [item.color for item in classes])
                line += f" masks/{name}"
            lines.append(line)
        write_text(folder / f"{split}.txt", "".join(f"{line}\n" for line in lines))
    write_text(folder / "classes.txt", "".join(f"{item.name}\n" for item in classes))
    return {
        "kind": "files", "root": str(folder), "labeled": "labeled.txt",
        "unlabeled": "unlabeled.txt" if config.num_unlabeled else None,
        "val": "val.txt", "classes": "classes.txt",
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Write the embedded data set as files; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m protoseg.data.synthetic",
        description="Write the embedded data set as images, masks and lists, to try the settings "
        "for own data.",
    )
    parser.add_argument("folder", type=Path, help="folder to write to")
    for name, info in SyntheticConfig.model_fields.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=info.default, help=f"{info.description} (%(default)s)")
    args = vars(parser.parse_args(argv))
    folder = args.pop("folder")

    def body() -> int:
        section = write_dataset(SyntheticConfig(**args), folder)
        sys.stdout.write("data:\n" + "".join(f"  {k}: {v}\n" for k, v in section.items() if v is not None))
        return 0

    return guarded(body, ValueError)


if __name__ == "__main__":
    sys.exit(main())
