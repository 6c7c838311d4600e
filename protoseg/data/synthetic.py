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
from protoseg.errors import DataError, guarded
from protoseg.manifest import ClassInfo

IGNORE = 255
_SHAPES = ("background", "disc", "square", "triangle", "cross", "ring", "bar", "half_disc")
_TEXTURES = ("plain", "stripes", "checks", "dots", "gradient", "noise")
_HUES = (
    (206, 60, 52), (60, 150, 70), (58, 92, 200), (222, 186, 60),
    (150, 74, 178), (60, 176, 186), (226, 128, 50), (196, 196, 190),
)  # fmt: skip
_MODE_ODDS = (8, 5, 3, 2)
_BITS = 10
_ONE = 1 << _BITS  # fixed point: 1.0 of a rotation or a blend

Ints = NDArray[np.int32]


def synthetic_classes(config: SyntheticConfig) -> list[ClassInfo]:
    """The classes of the embedded set, named after their shapes; id 0 is the background."""
    colors = voc_palette(config.num_classes)
    return [ClassInfo(name=_SHAPES[i], color=colors[i]) for i in range(config.num_classes)]


@dataclass(frozen=True)
class Appearance:
    """Texture and colours (RGB) of one mode of a class."""

    texture: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]


def appearance(class_id: int, mode: int) -> Appearance:
    """The look of a mode of a class.

    Within a class all textures and first colours differ; no two classes share a texture with the
    same first colour.
    """
    hue = (2 * class_id + 3 * mode) % len(_HUES)
    other = (hue + 1 + (class_id + 2 * mode) % (len(_HUES) - 1)) % len(_HUES)
    return Appearance(_TEXTURES[(class_id + mode) % len(_TEXTURES)], _HUES[hue], _HUES[other])


class SyntheticScenes:
    """Scenes of one split, drawn on demand."""

    def __init__(self, config: SyntheticConfig, split: Split) -> None:
        """Prepare the split.

        Args:
            config: Size, classes, modes and seed.
            split: ``labeled``, ``unlabeled`` or ``val``; splits never share a scene.
        """
        self.config = config
        self.split: Split = split
        self._length = int(getattr(config, f"num_{split}"))
        self._last: tuple[int, NDArray[np.uint8], NDArray[np.uint8]] | None = None
        y, x = np.mgrid[0 : config.height, 0 : config.width].astype(np.int32)
        self._y: Ints = y
        self._x: Ints = x

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
            self._last = (index, *self._draw(index))
        return self._last[1], self._last[2]

    def _draw(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        config = self.config
        entropy = [config.seed, SPLITS.index(self.split), index]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        height, width = config.height, config.width
        labels = np.zeros((height, width), np.uint8)
        ground = _paint(self._y, self._x, 0, self._mode(rng), rng, min(height, width) // 6)
        # the background is paler than objects, yet made of the same colours and textures
        canvas = (ground * 5 + 128 * 3) >> 3
        for number in range(int(rng.integers(2, 6))):
            first = 1 + index % (config.num_classes - 1)
            class_id = first if number == 0 else int(rng.integers(1, config.num_classes))
            self._place(canvas, labels, class_id, rng)
        return self._light(canvas, rng), _with_border(labels)

    def _mode(self, rng: np.random.Generator) -> int:
        odds = np.cumsum(_MODE_ODDS[: self.config.modes])
        return int(np.searchsorted(odds, rng.integers(odds[-1]), side="right"))

    def _place(
        self, canvas: Ints, labels: NDArray[np.uint8], class_id: int, rng: np.random.Generator
    ) -> None:
        height, width = labels.shape
        side = min(height, width)
        radius = int(rng.integers(max(5, side // 8), max(6, side // 4) + 1))
        cy, cx = int(rng.integers(0, height)), int(rng.integers(0, width))
        reach = radius * 3 // 2
        top, bottom = max(0, cy - reach), min(height, cy + reach + 1)
        left, right = max(0, cx - reach), min(width, cx + reach + 1)
        cos, sin = _rotation(int(rng.integers(256)))
        y = self._y[top:bottom, left:right] - cy
        x = self._x[top:bottom, left:right] - cx
        u, v = (cos * x + sin * y), (cos * y - sin * x)
        inside = _shape(class_id, u, v, radius * _ONE)
        period = max(6, radius // 2)
        v, u = v[inside] >> _BITS, u[inside] >> _BITS
        paint = _paint(v, u, class_id, self._mode(rng), rng, period)
        canvas[top:bottom, left:right][inside] = paint
        labels[top:bottom, left:right][inside] = class_id

    def _light(self, canvas: Ints, rng: np.random.Generator) -> NDArray[np.uint8]:
        height, width = canvas.shape[:2]
        gain = int(rng.integers(700, 1200))
        slope_y, slope_x = (int(v) for v in rng.integers(-250, 251, 2))
        light = gain + slope_y * (2 * self._y - height) // height // 2
        light = light + slope_x * (2 * self._x - width) // width // 2
        tint = rng.integers(-60, 61, 3).astype(np.int32)
        # the sum of two uniform draws is a triangular noise that needs no floats
        noise = rng.integers(-14, 15, (2, height, width, 3), dtype=np.int8)
        lit = canvas * (light[..., None] + tint) >> _BITS
        lit += noise[0]
        lit += noise[1]
        image: NDArray[np.uint8] = np.clip(lit, 0, 255).astype(np.uint8)
        return image


def _rotation(step: int) -> tuple[int, int]:
    """Cosine and sine of ``step`` / 256 of a turn, in units of 1 / 1024."""
    angle = 2 * np.pi * step / 256
    return round(_ONE * float(np.cos(angle))), round(_ONE * float(np.sin(angle)))


def _shape(class_id: int, u: Ints, v: Ints, r: int) -> NDArray[np.bool_]:
    """Pixels inside the class's shape of radius ``r``; all lengths in units of 1 / 1024 pixel."""
    small = _ONE // 16
    distance = (u // small) ** 2 + (v // small) ** 2
    limit = (r // small) ** 2
    name = _SHAPES[class_id]
    if name == "disc":
        return distance <= limit
    if name == "square":
        return (np.abs(u) <= r * 7 // 8) & (np.abs(v) <= r * 7 // 8)
    if name == "triangle":
        return (v <= r * 5 // 8) & (7 * np.abs(u) // 4 - v <= r)
    if name == "cross":
        arm = r * 3 // 8
        return ((np.abs(u) <= arm) & (np.abs(v) <= r * 9 // 8)) | (
            (np.abs(v) <= arm) & (np.abs(u) <= r * 9 // 8)
        )
    if name == "ring":
        return (distance <= limit * 5 // 4) & (distance >= limit * 5 // 16)
    if name == "bar":
        return (np.abs(u) <= r * 11 // 8) & (np.abs(v) <= r * 3 // 8)
    return (distance <= limit * 5 // 4) & (v >= -r // 8)


def _paint(v: Ints, u: Ints, class_id: int, mode: int, rng: np.random.Generator, period: int) -> Ints:
    """Colours (..., 3) of a mode at local coordinates (...) in pixels; phase and shade vary."""
    look = appearance(class_id, mode)
    period = max(2, period)
    phase_v, phase_u = (int(p) for p in rng.integers(0, 2 * period, 2))
    a, b = v + phase_v, u + phase_u
    if look.texture == "plain":
        blend = np.zeros_like(v)
    elif look.texture == "stripes":
        blend = ((a % period) * 2 >= period) * _ONE
    elif look.texture == "checks":
        blend = ((a // period + b // period) & 1) * _ONE
    elif look.texture == "dots":
        da, db = 2 * (a % period) - period, 2 * (b % period) - period
        blend = (da * da + db * db <= period * period * 2 // 5) * _ONE
    elif look.texture == "gradient":
        low = int(v.min(initial=0))
        span = int(v.max(initial=0)) - low + 1
        blend = (v - low) * _ONE // span
    else:
        cells = rng.integers(0, _ONE + 1, (16, 16)).astype(np.int32)
        blend = cells[(a // 3) % 16, (b // 3) % 16]
    shade = rng.integers(-24, 25, 3).astype(np.int32)
    first = np.array(look.first, np.int32) + shade
    second = np.array(look.second, np.int32) + shade
    mixed: Ints = first + ((second - first) * blend[..., None] >> _BITS)
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
