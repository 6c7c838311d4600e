"""One embedded scene: camera, light, a ground with clutter, solids, their shadows, and the photograph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protoseg.data.scenes.patterns import (
    GROUNDS,
    TEXTURES,
    Color,
    Dice,
    Floats,
    clip,
    ground,
    mix,
    noise,
    texture,
    unit,
)
from protoseg.data.scenes.solids import SOLIDS, View, shade, unit_length

OVER = 2  # drawn at twice the size, then averaged: smooth edges
MODE_ODDS = (6, 5, 4, 3)
RADIUS = (0.20, 0.32)  # of the picture's shorter side, in front
MORE = (1, 3)  # solids beside the two that are due
PAINT = 0.2  # by how much a colour differs from one solid of an appearance to the next
# what a session has nearly the same of (``variety``): brightness, red over blue, darkness of a large shadow
EXPOSURE, TINT, SHADOW = (0.4, 2.0), (-0.35, 0.35), (0.1, 0.65)
_CREAM, _BLACK, _GRAY = (0.75, 0.70, 0.60), (0.05, 0.05, 0.06), (0.42, 0.40, 0.38)
_SECOND = (_CREAM, _BLACK, _GRAY, _CREAM)


@dataclass(frozen=True)
class Look:
    """Texture and colours of one appearance."""

    texture: str
    first: Color
    second: Color


def look_of(solid: int, mode: int) -> Look:
    """Appearance ``mode`` (0 to 3) of the solid with this number (0 to 6).

    Modes of a solid differ in texture and lie a quarter of the colour circle apart; their neighbours on the
    circle are other solids.
    """
    hue = (solid % 4 + 4 * mode + (0.5 if solid > 3 else 0.0)) / 16.0
    first = _on_circle(hue, 0.5 if mode % 2 else 0.75)
    return Look(TEXTURES[(solid + mode + 1) % len(TEXTURES)], first, _SECOND[(solid + mode + 1) % 4])


def _on_circle(turn: float, value: float) -> Color:
    """A saturated colour by its place on the colour circle, in turns."""
    red, green, blue = (abs((6.0 * turn + shift) % 6.0 - 3.0) - 1.0 for shift in (0.0, 4.0, 2.0))
    parts = [value * (0.06 + 0.94 * min(1.0, max(0.0, part))) for part in (red, green, blue)]
    return parts[0], parts[1], parts[2]


@dataclass(frozen=True)
class Item:
    """A solid in a scene; lengths in pixels of the canvas."""

    solid: int
    mode: int
    x: float
    y: float
    radius: float

    def apart(self, other: Item) -> bool:
        """Whether one hides little of the other."""
        reach = self.radius + other.radius
        return abs(self.x - other.x) > 0.85 * reach or abs(self.y - other.y) > 1.3 * reach


class Scene:
    """A scene, drawn by ``draw``.

    Attributes:
        items: Its solids, from far to near.
        seen: After ``draw``: what each pixel of the canvas shows, 0 the ground, from 1 on the items.
    """

    def __init__(
        self, size: tuple[int, int], solids: int, modes: int, number: int, dice: Dice, variety: float = 1.0
    ) -> None:
        """Set it up.

        Args:
            size: Height and width of the image in pixels.
            solids: Kinds of solids, the first ones of ``SOLIDS``.
            modes: Appearances of each kind and of the ground.
            number: Says which ground and which two solids are there at any rate, in turn: the first
                ``solids * (modes - 1)`` scenes show every appearance.
            dice: Everything else.
            variety: How much the light may differ from the usual one: 0 not at all, 1 from dusk to noon.
        """
        self.dice, self.mode_odds, self.variety = dice, MODE_ODDS[:modes], variety
        height, width = size[0] * OVER, size[1] * OVER
        self.size, self.side = (height, width), float(min(height, width))
        self.y, self.x = (v.astype(np.float32) for v in np.mgrid[0:height, 0:width])
        self.horizon = height * dice.real(-0.5, 0.12)
        slant = unit(dice.real(-1.0, 1.0))[1]
        self.light = unit_length((1.2 * slant, dice.real(0.5, 1.3), dice.real(0.3, 0.9)))
        self.ambient = dice.real(0.22, 0.5)
        row = number // solids
        # no ground goes with one kind of solid
        self.ground = list(GROUNDS)[(number + row) % modes]
        due = [(number % solids, row % modes), ((number + 1) % solids, (row + modes - 1) % modes)]
        self.items = self._items(due, solids)
        self.seen = np.zeros(self.size, np.uint8)

    def draw(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image (H, W, 3) and labels (H, W): 0 is the ground, 1 and up the solids."""
        canvas = self._ground()
        for item in self.items:
            self._shadow(canvas, item)
        for place, item in enumerate(self.items, 1):
            self._place(canvas, item, place)
        labels = np.array([0, *(1 + item.solid for item in self.items)], np.uint8)
        return self._photograph(canvas), labels[self.seen[1::OVER, 1::OVER]]

    def _items(self, due: Sequence[tuple[int, int]], solids: int) -> list[Item]:
        """Solids that cover each other little, those that are due first."""
        dice, (height, width) = self.dice, self.size
        wanted = list(due)
        for _ in range(dice.whole(*MORE)):
            wanted.append((dice.whole(0, solids - 1), dice.weighted(self.mode_odds)))
        items: list[Item] = []
        for rank, (solid, mode) in enumerate(wanted):
            for attempt in range(12):
                y = height * dice.real(0.3, 1.0)
                near = max(0.42, (y - self.horizon) / (height - self.horizon))
                radius = max(3.0, self.side * near * dice.real(*RADIUS))
                item = Item(solid, mode, width * dice.real(0.06, 0.94), y, radius)
                due_anyhow = rank < len(due) and attempt == 11
                if due_anyhow or all(item.apart(other) for other in items):
                    items.append(item)
                    break
        return sorted(items, key=lambda item: item.y)

    def _ground(self) -> Floats:
        """Colours (3, h, w) of ground, clutter and wall."""
        dice, (height, width) = self.dice, self.size
        c, s = dice.turn()
        scale, knots = dice.real(0.8, 1.6) / self.side, dice.lattice()
        # how large things are: 1 at the bottom, 0 on the horizon
        near = np.maximum((self.y - self.horizon) / (height - self.horizon), 0.02)
        across = (self.x - width * dice.real(0.2, 0.8)) / near * scale
        away = 1.1 * width * scale / near
        a, b = c * across + s * away, c * away - s * across
        canvas = mix(*GROUNDS[self.ground], ground(self.ground, a, b, knots))
        for _ in range(dice.whole(2, 6)):
            y, x = dice.whole(0, height - 1), dice.whole(0, width - 1)
            reach, thin = dice.real(0.03, 0.10), dice.real(1.0, 3.0)
            color, tone = _on_circle(dice.real(), 0.6), dice.real(0.2, 0.6)
            u, v = a - a[y, x], (b - b[y, x]) * thin
            far = u * u + v * v
            blot = far <= 1.6 * reach * reach
            blot[blot] = far[blot] <= reach * reach * (
                0.4 + 1.2 * noise(25.0 * a[blot], 25.0 * b[blot], knots)
            )
            for plane, part in zip(canvas, color, strict=True):
                plane[blot] = 0.35 * plane[blot] + tone * part
        rows = min(height, max(0, math.ceil(self.horizon)))
        paint, pale = _on_circle(dice.real(), 0.4), dice.real(0.2, 0.4)
        coat = 0.7 + 0.3 * noise(self.x[:rows] / self.side * 3.0, self.y[:rows] / self.side * 3.0, knots)
        for plane, part in zip(canvas, paint, strict=True):
            plane[:rows] = (pale + 0.5 * part) * coat
        return canvas

    def _view(self, y: float) -> View:
        flat = min(0.75, max(0.3, (y - self.horizon) / (1.15 * self.size[1])))
        return View(flat, math.sqrt(1.0 - flat * flat))

    def _window(self, item: Item, left: float, right: float, up: float, down: float) -> tuple[slice, slice]:
        """The part of the canvas that lies so many radii round an item's foot."""
        height, width = self.size
        ends = [
            (item.y - up * item.radius, item.y + down * item.radius, height),
            (item.x - left * item.radius, item.x + right * item.radius, width),
        ]
        rows, columns = (
            slice(min(most, max(0, int(low))), min(most, max(0, int(high) + 1))) for low, high, most in ends
        )
        return rows, columns

    def _shadow(self, canvas: Floats, item: Item) -> None:
        """Darken the ground where the light does not reach: near a line from the foot away from the light."""
        flat, reach = self._view(item.y).flat, min(1.6, 0.9 / max(self.light[1], 0.3))
        dx, dz = -1.6 * self.light[0] * reach, 0.8 * self.light[2] * reach
        window = self._window(item, 1.2 + max(0.0, -dx), 1.2 + max(0.0, dx), flat * (1.2 + dz), flat * 1.2)
        x = (self.x[window] - item.x) / item.radius
        z = (item.y - self.y[window]) / (item.radius * flat)
        along = clip((x * dx + z * dz) / (dx * dx + dz * dz + 1e-6))
        x -= along * dx
        z -= along * dz
        dark = clip((1.15 - np.sqrt(x * x + z * z)) / (0.2 + 0.35 * along))
        dark *= (1.0 - self.ambient) * (1.0 - 0.35 * along)
        canvas[:, *window] *= 1.0 - dark

    def _place(self, canvas: Floats, item: Item, place: int) -> None:
        """Draw a solid."""
        dice = self.dice
        turn, height, knots = dice.turn(), dice.real(0.85, 1.2), dice.lattice()
        paint = [dice.real(1.0 - PAINT, 1.0 + PAINT) for _ in range(3)]
        gloss = dice.real(0.0, 0.6)
        window = self._window(item, 1.9, 1.9, 3.0, 1.3)
        x, y = (self.x[window] - item.x) / item.radius, (item.y - self.y[window]) / item.radius
        surface = list(SOLIDS.values())[item.solid](x, y, self._view(item.y), turn, height)
        look = look_of(item.solid, item.mode)
        diffuse, mirror = shade(surface, self.light, self.ambient, gloss)
        # less light comes from everywhere down where the ground is near
        diffuse = diffuse * np.minimum(1.0, 0.7 + 0.4 * np.maximum(y, 0.0))
        color = mix(look.first, look.second, texture(look.texture, surface.a, surface.b, knots))
        for plane, part, gain in zip(canvas, color, paint, strict=True):
            np.copyto(plane[window], part * diffuse * gain + mirror, where=surface.inside)
        self.seen[window][surface.inside] = place

    def _usual(self, ends: tuple[float, float]) -> float:
        """Uniform between ``ends``, drawn to their middle where there is little variety."""
        middle = 0.5 * (ends[0] + ends[1])
        return middle + self.variety * (self.dice.real(*ends) - middle)

    def _photograph(self, canvas: Floats) -> NDArray[np.uint8]:
        """(H, W, 3): the light of the place and its colour, the lens and the sensor."""
        dice = self.dice
        half = canvas[:, 0::OVER] + canvas[:, 1::OVER]
        small = (half[:, :, 0::OVER] + half[:, :, 1::OVER]) * 0.25
        y = (self.y[::OVER, ::OVER] - 0.5 * self.size[0]) / self.side
        x = (self.x[::OVER, ::OVER] - 0.5 * self.size[1]) / self.side
        # the shadow of something outside the picture
        c, s = unit(dice.real(-3.0, 3.0))
        edge = c * x + s * y + 0.25 * noise(x * 3.0 + 8.0, y * 3.0 + 8.0, dice.lattice())
        shadow = clip((edge + dice.real(-0.6, 0.4)) * dice.real(3.0, 14.0) + 0.5)
        light = self._usual(EXPOSURE) * (1.0 - self._usual(SHADOW) * shadow)
        light = light * clip(1.0 - 0.35 * (x * x + y * y), 0.2)
        warm, strength = self._usual(TINT), dice.real(3.0, 9.0) / 256.0
        grain = dice.bytes(2 * small.size).reshape(2, *small.shape).astype(np.float32)
        grain = (grain[0] - grain[1]) * strength + 0.5
        for plane, gain in zip(small, (1.0 + warm, 1.0, 1.0 - warm), strict=True):
            plane *= light * gain
        # the square root is what a display undoes, nearly
        small = np.sqrt(np.minimum(small, 1.0)) * 255.0 + grain
        return np.ascontiguousarray(clip(small, 0.0, 255.0).astype(np.uint8).transpose(1, 2, 0))
