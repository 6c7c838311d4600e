"""Solids that stand on a ground: what is seen of them, and how light falls on it.

Each is drawn in its window of a picture, whose coordinates ``x`` (right) and ``y`` (up) count in radii from
where it stands. ``turn`` is cosine and sine of its turn on the ground or of its pattern's; ``height``
stretches it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protoseg.data.scenes.patterns import Color, Floats

Turn = tuple[float, float]


@dataclass(frozen=True)
class View:
    """How a place is seen: a circle on the ground ``flat`` as high as wide, an upright ``tall`` as long."""

    flat: float
    tall: float


@dataclass(frozen=True)
class Surface:
    """What is seen of a solid in its window: where, normals (right, up, towards the eye), coordinates."""

    inside: NDArray[np.bool_]
    normal: tuple[Floats, Floats, Floats]
    a: Floats
    b: Floats


def _root(value: Floats) -> Floats:
    return np.sqrt(np.maximum(value, 0.0))


def _tilted(right: Floats, up: Floats, away: Floats, view: View) -> tuple[Floats, Floats, Floats]:
    """A normal in the ground's axes as the eye has it."""
    return right, up * view.tall + away * view.flat, up * view.flat - away * view.tall


def ball(x: Floats, y: Floats, view: View, turn: Turn, height: float) -> Surface:
    """A sphere."""
    y = y - 0.92
    front = _root(1.0 - x * x - y * y)
    a, b = x / (0.6 + front), y / (0.6 + front)
    c, s = turn
    return Surface(x * x + y * y <= 1.0, (x, y, front), c * a + s * b, c * b - s * a)


def dome(x: Floats, y: Floats, view: View, turn: Turn, height: float) -> Surface:
    """Half a sphere, lying on its cut."""
    front = _root(1.0 - x * x - y * y)
    inside = (x * x + y * y <= 1.0) & (y >= -view.flat * _root(1.0 - x * x))
    return Surface(inside, (x, y, front), x / (0.6 + front), y / (0.6 + front))


def block(
    x: Floats, y: Floats, view: View, turn: Turn, height: float,
    half: tuple[float, float] = (0.85, 0.85),
) -> Surface:  # fmt: skip
    """A cuboid with half sides ``half``, of which two sides and the top are seen."""
    c, s = turn
    s = s if abs(s) > 0.2 else (0.2 if s >= 0 else -0.2)
    c = max(c, 0.2)
    length = math.sqrt(c * c + s * s)
    c, s = c / length, s / length
    sides = [((c, s), (-s, c), half), ((-s, c), (-c, -s), (half[1], half[0]))]
    inside = np.zeros(x.shape, np.bool_)
    right, up, away, a, b = (np.zeros_like(x) for _ in range(5))
    for out, along, (far, wide) in sides:
        sign = -1.0 if out[1] > 0 else 1.0
        out = (sign * out[0], sign * out[1])
        q = (x - far * out[0]) / along[0]
        t = (y - view.flat * (far * out[1] + q * along[1])) / view.tall
        seen = (np.abs(q) <= wide) & (t >= 0.0) & (t <= height)
        for field, value in ((right, out[0]), (away, out[1]), (a, q), (b, t)):
            np.copyto(field, np.float32(value), where=seen)
        inside |= seen
    lid = (y - view.tall * height) / view.flat
    p, q = c * x + s * lid, c * lid - s * x
    seen = (np.abs(p) <= half[0]) & (np.abs(q) <= half[1])
    for field, value in ((right, 0.0), (away, 0.0), (up, 1.0), (a, p), (b, q)):
        np.copyto(field, np.float32(value), where=seen)
    return Surface(inside | seen, _tilted(right, up, away, view), a, b)


def bar(x: Floats, y: Floats, view: View, turn: Turn, height: float) -> Surface:
    """A long flat cuboid."""
    return block(x, y, view, turn, 0.35 * height, (1.5, 0.42))


def can(x: Floats, y: Floats, view: View, turn: Turn, height: float) -> Surface:
    """An upright cylinder."""
    x = x * 1.25
    y = y * 1.25
    front = _root(1.0 - x * x)
    t = (y + view.flat * front) / view.tall
    side = (np.abs(x) <= 1.0) & (t >= 0.0) & (t <= 1.5 * height)
    lid = (y - view.tall * 1.5 * height) / view.flat
    top = x * x + lid * lid <= 1.0
    zero, one = np.zeros_like(x), np.ones_like(x)
    normal = _tilted(np.where(top, zero, x), np.where(top, one, zero), np.where(top, zero, -front), view)
    return Surface(side | top, normal, np.where(top, x, x / (0.6 + front)), np.where(top, lid, t))


def cone(x: Floats, y: Floats, view: View, turn: Turn, height: float) -> Surface:
    """An upright cone: the near root of where a line of sight meets it."""
    high = 2.2 * height
    rise = max(view.tall * high, view.flat + 0.3)
    drop = rise - y
    steep = rise * rise - view.flat * view.flat
    under = drop * drop - x * x * steep
    rho = (drop * rise - view.flat * _root(under)) / steep
    inside = (under >= 0.0) & (drop >= 0.0) & (rho <= 1.0)
    safe = np.maximum(rho, 0.05)
    sine = np.minimum(np.maximum(x / safe, -1.0), 1.0)
    cosine = _root(1.0 - sine * sine)
    size = math.sqrt(1.0 + 1.0 / (high * high))
    normal = _tilted(sine / size, np.full_like(x, 1.0 / high / size), -cosine / size, view)
    return Surface(inside, normal, sine / (0.6 + cosine), high * (1.0 - rho))


def ring(x: Floats, y: Floats, view: View, turn: Turn, height: float) -> Surface:
    """A torus that lies flat."""
    away = (y - 0.15) / view.flat
    rho = np.sqrt(x * x + away * away + 1e-6)
    across = (rho - 0.78) / 0.38
    up = _root(1.0 - across * across)
    normal = _tilted(x / rho * across, up, away / rho * across, view)
    c, s = turn
    return Surface(np.abs(across) <= 1.0, normal, (c * x + s * away) * 1.5, across)


SOLIDS: dict[str, Callable[[Floats, Floats, View, Turn, float], Surface]] = {
    "ball": ball, "box": block, "can": can, "cone": cone, "ring": ring, "bar": bar, "dome": dome,
}  # fmt: skip


def unit_length(vector: Color) -> Color:
    """A direction of length 1."""
    length = math.sqrt(sum(part * part for part in vector))
    return vector[0] / length, vector[1] / length, vector[2] / length


def shade(surface: Surface, light: Color, ambient: float, gloss: float) -> tuple[Floats, Floats]:
    """Light that a surface sends back: share of its colour, and white of the highlight.

    Args:
        surface: What is seen.
        light: Direction to the light (right, up, towards the eye), of length 1.
        ambient: Share of the light that comes from everywhere.
        gloss: Strength of the highlight (Blinn's, with the exponent 32).
    """
    right, up, front = surface.normal
    diffuse = np.maximum(right * light[0] + up * light[1] + front * light[2], 0.0)
    half = unit_length((light[0], light[1], light[2] + 1.0))
    mirror = np.maximum(right * half[0] + up * half[1] + front * half[2], 0.0)
    for _ in range(5):
        mirror = mirror * mirror
    return ambient * (0.75 + 0.25 * up) + (1.0 - ambient) * diffuse, gloss * mirror
