"""What the embedded scenes are drawn with: dice, textures, and lit solids that stand on a ground.

Only operations that IEEE 754 rounds exactly are used (+, -, *, /, square root, floor, comparisons), on
float32 arrays and Python numbers, and random bits come from PCG64 itself: NumPy promises its stream, but
not that of the distributions. So a scene has the same bytes on every machine and with every version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Color = tuple[float, float, float]


class Dice:
    """Random numbers of one scene."""

    def __init__(self, entropy: Sequence[int]) -> None:
        """Start the stream that belongs to ``entropy``."""
        self._bits = np.random.PCG64(np.random.SeedSequence(list(entropy)))

    def real(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def whole(self, low: int, high: int) -> int:
        """Uniform in low, ..., high."""
        return low + (int(self._bits.random_raw()) >> 11) * (high - low + 1) // 2**53

    def weighted(self, odds: Sequence[int]) -> int:
        """Position in ``odds``, drawn in proportion to them."""
        left = self.whole(0, sum(odds) - 1)
        for position, weight in enumerate(odds):
            left -= weight
            if left < 0:
                return position
        raise AssertionError("whole() stays below the sum")

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """``count`` uniform bytes."""
        raw = np.asarray(self._bits.random_raw(-(-count // 8)), np.uint64)
        return raw.astype("<u8").view(np.uint8)[:count]

    def lattice(self) -> Floats:
        """(32, 32) uniform values in [0, 1), the knots of a noise."""
        return self.bytes(1024).reshape(32, 32).astype(np.float32) / 256.0

    def turn(self) -> tuple[float, float]:
        """Cosine and sine of an angle in (-90, 90) degrees, small ones more often."""
        return unit(self.real(-1.0, 1.0))


def unit(tangent: float) -> tuple[float, float]:
    """Cosine and sine of the angle whose half has this tangent; needs no libm."""
    square = tangent * tangent
    return (1.0 - square) / (1.0 + square), 2.0 * tangent / (1.0 + square)


def noise(a: Floats, b: Floats, knots: Floats) -> Floats:
    """Smooth noise in [0, 1) at coordinates (...); one knot a unit."""
    i, j = np.floor(a), np.floor(b)
    u, v = a - i, b - j
    u *= u * (3.0 - 2.0 * u)
    v *= v * (3.0 - 2.0 * v)
    y, x = i.astype(np.int32) & 31, j.astype(np.int32) & 31
    y <<= 5
    flat, right, down = knots.ravel(), (x + 1) & 31, (y + 32) & 1023
    top, low = flat.take(y + x), flat.take(down + x)
    top += (flat.take(y + right) - top) * v
    low += (flat.take(down + right) - low) * v
    found: Floats = top + (low - top) * u
    return found


def _soft(value: Floats) -> Floats:
    """``value`` cut to [0, 1]."""
    return np.minimum(np.maximum(value, 0.0), 1.0)


def _wave(a: Floats) -> Floats:
    """Triangle wave of period 1 in [0, 1]."""
    return np.abs(2.0 * (a - np.floor(a)) - 1.0)


TEXTURES = ("plain", "stripes", "checks", "dots", "bands", "marble")


def texture(name: str, a: Floats, b: Floats, knots: Floats) -> Floats:
    """Share of the second colour, in [0, 1], at surface coordinates (...) in radii of the solid."""
    if name == "plain":
        return 0.15 * noise(3.0 * a, 3.0 * b, knots)
    if name == "stripes":
        return _soft(8.0 * (_wave(1.6 * a) - 0.5) + 0.5)
    if name == "checks":
        p, q = 8.0 * (_wave(1.3 * a) - 0.5), 8.0 * (_wave(1.3 * b) - 0.5)
        p, q = np.minimum(np.maximum(p, -1.0), 1.0), np.minimum(np.maximum(q, -1.0), 1.0)
        return 0.5 + 0.5 * p * q
    if name == "dots":
        p, q = _wave(1.7 * a), _wave(1.7 * b)
        return _soft(6.0 * (0.42 - (p * p + q * q)) + 0.5)
    if name == "bands":
        return _soft(8.0 * (_wave(1.1 * b) - 0.55) + 0.5)
    grain = noise(2.0 * a, 2.0 * b, knots)
    return _soft(7.0 * (_wave(1.5 * grain + 0.6 * a) - 0.5) + 0.5)


@dataclass(frozen=True)
class View:
    """How the ground is seen at a place: a circle on it looks ``flat`` times as high as wide, and what
    stands on it ``tall`` times as high as it is."""

    flat: float
    tall: float


@dataclass(frozen=True)
class Surface:
    """What is seen of a solid in its window: where, normals (right, up, towards the eye), coordinates."""

    inside: Bools
    normal: tuple[Floats, Floats, Floats]
    a: Floats
    b: Floats


def _root(value: Floats) -> Floats:
    return np.sqrt(np.maximum(value, 0.0))


def _tilted(right: Floats, up: Floats, away: Floats, view: View) -> tuple[Floats, Floats, Floats]:
    """A normal in the ground's axes as the eye has it."""
    return right, up * view.tall + away * view.flat, up * view.flat - away * view.tall


def ball(x: Floats, y: Floats, view: View, turn: tuple[float, float], height: float) -> Surface:
    """A sphere."""
    y = y - 0.92
    front = _root(1.0 - x * x - y * y)
    a, b = x / (0.6 + front), y / (0.6 + front)
    c, s = turn
    return Surface(x * x + y * y <= 1.0, (x, y, front), c * a + s * b, c * b - s * a)


def dome(x: Floats, y: Floats, view: View, turn: tuple[float, float], height: float) -> Surface:
    """Half a sphere, lying on its cut."""
    front = _root(1.0 - x * x - y * y)
    inside = (x * x + y * y <= 1.0) & (y >= -view.flat * _root(1.0 - x * x))
    return Surface(inside, (x, y, front), x / (0.6 + front), y / (0.6 + front))


def block(
    x: Floats, y: Floats, view: View, turn: tuple[float, float], height: float,
    half: tuple[float, float] = (0.85, 0.85),
) -> Surface:  # fmt: skip
    """A cuboid with half sides ``half``, of which two sides and the top are seen."""
    c, s = turn
    s = s if abs(s) > 0.2 else (0.2 if s >= 0 else -0.2)
    c = max(c, 0.2)
    length = float(np.sqrt(c * c + s * s))
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


def bar(x: Floats, y: Floats, view: View, turn: tuple[float, float], height: float) -> Surface:
    """A long flat cuboid."""
    return block(x, y, view, turn, 0.35 * height, (1.5, 0.42))


def can(x: Floats, y: Floats, view: View, turn: tuple[float, float], height: float) -> Surface:
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


def cone(x: Floats, y: Floats, view: View, turn: tuple[float, float], height: float) -> Surface:
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
    size = float(np.sqrt(1.0 + 1.0 / (high * high)))
    normal = _tilted(sine / size, np.full_like(x, 1.0 / high / size), -cosine / size, view)
    return Surface(inside, normal, sine / (0.6 + cosine), high * (1.0 - rho))


def ring(x: Floats, y: Floats, view: View, turn: tuple[float, float], height: float) -> Surface:
    """A torus that lies flat."""
    away = (y - 0.15) / view.flat
    rho = np.sqrt(x * x + away * away + 1e-6)
    across = (rho - 0.78) / 0.38
    up = _root(1.0 - across * across)
    normal = _tilted(x / rho * across, up, away / rho * across, view)
    c, s = turn
    return Surface(np.abs(across) <= 1.0, normal, (c * x + s * away) * 1.5, across)


SOLIDS = {"ball": ball, "box": block, "can": can, "cone": cone, "ring": ring, "bar": bar, "dome": dome}


def shade(surface: Surface, light: Color, ambient: float, gloss: float) -> tuple[Floats, Floats]:
    """Light that a surface sends back: share of its colour, and white of the highlight."""
    right, up, front = surface.normal
    facing = right * light[0] + up * light[1] + front * light[2]
    diffuse = np.maximum(facing, 0.0)
    # halfway between light and eye, as Blinn has it
    length = float(np.sqrt(light[0] * light[0] + light[1] * light[1] + (light[2] + 1.0) * (light[2] + 1.0)))
    mirror = np.maximum((right * light[0] + up * light[1] + front * (light[2] + 1.0)) / length, 0.0)
    for _ in range(5):
        mirror = mirror * mirror
    return ambient * (0.75 + 0.25 * up) + (1.0 - ambient) * diffuse, gloss * mirror
