"""Dice, noise, and the patterns of grounds and solids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
"""Of float32; to NumPy's stubs a Python number makes them float64."""
Color = tuple[float, float, float]
"""Linear RGB in [0, 1]."""

TEXTURES = ("plain", "stripes", "checks", "dots", "bands", "marble")
GROUNDS: dict[str, tuple[Color, Color]] = {
    "planks": ((0.30, 0.17, 0.08), (0.48, 0.31, 0.17)),
    "tiles": ((0.42, 0.41, 0.38), (0.20, 0.21, 0.23)),
    "grass": ((0.07, 0.13, 0.04), (0.22, 0.28, 0.09)),
    "concrete": ((0.26, 0.25, 0.25), (0.40, 0.38, 0.35)),
}


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
        return low + ((int(self._bits.random_raw()) >> 11) * (high - low + 1) >> 53)

    def weighted(self, odds: Sequence[int]) -> int:
        """Position in ``odds``, drawn in proportion to them."""
        left, position = self.whole(1, sum(odds)), 0
        while left > odds[position]:
            left -= odds[position]
            position += 1
        return position

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """``count`` uniform bytes."""
        raw = np.asarray(self._bits.random_raw(-(-count // 8)), np.uint64)
        return raw.astype("<u8").view(np.uint8)[:count]

    def lattice(self) -> Floats:
        """(32, 32) uniform values in [0, 1), the knots of a noise."""
        return self.bytes(1024).reshape(32, 32).astype(np.float32) / 256.0

    def turn(self) -> tuple[float, float]:
        """Cosine and sine of an angle in [-90, 90) degrees."""
        return unit(self.real(-1.0, 1.0))


def unit(tangent: float) -> tuple[float, float]:
    """Cosine and sine of the angle whose half has this tangent."""
    square = tangent * tangent
    return (1.0 - square) / (1.0 + square), 2.0 * tangent / (1.0 + square)


def clip(value: Floats, low: float = 0.0, high: float = 1.0) -> Floats:
    """``value`` cut to [low, high]."""
    return np.minimum(np.maximum(value, low), high)


def mix(first: Color, second: Color, share: Floats) -> Floats:
    """Colours (3, ...) between two; ``share`` (...) of the second is cut to [0, 1]."""
    share = clip(share)
    return np.stack([a + (b - a) * share for a, b in zip(first, second, strict=True)])


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
    low -= top
    low *= u
    top += low
    found: Floats = top
    return found


def _wave(a: Floats) -> Floats:
    """Triangle wave of period 1 in [-1, 1]."""
    return 2.0 * np.abs(2.0 * (a - np.floor(a)) - 1.0) - 1.0


def texture(name: str, a: Floats, b: Floats, knots: Floats) -> Floats:
    """Share of the second colour at surface coordinates (...) in radii of the solid."""
    if name == "plain":
        return 0.15 * noise(3.0 * a, 3.0 * b, knots)
    if name == "stripes":
        return 0.5 + 4.0 * _wave(1.6 * a)
    if name == "bands":
        return 0.3 + 4.0 * _wave(1.1 * b)
    if name == "checks":
        return 0.5 + 0.5 * clip(4.0 * _wave(1.3 * a), -1.0, 1.0) * clip(4.0 * _wave(1.3 * b), -1.0, 1.0)
    if name == "dots":
        p, q = 1.0 + _wave(1.7 * a), 1.0 + _wave(1.7 * b)
        return 3.0 - 1.5 * (p * p + q * q)
    return 0.5 + 3.5 * _wave(1.5 * noise(2.0 * a, 2.0 * b, knots) + 0.6 * a)


def ground(name: str, a: Floats, b: Floats, knots: Floats) -> Floats:
    """Share of the second colour at places (...) of the ground; 1 is about the picture's height in front."""
    if name == "planks":
        plank = np.floor(a * 5.0)
        tone, grain = knots[7].take(plank.astype(np.int32) & 31), noise(a * 40.0, b * 3.0, knots)
        gap = clip(12.0 * np.abs(a * 5.0 - plank - 0.5) - 5.2)
        blend: Floats = 0.6 * tone + 0.4 * grain - 0.7 * gap
        return blend
    if name == "tiles":
        i, j = np.floor(a * 3.0), np.floor(b * 3.0)
        edge = np.maximum(np.abs(a * 3.0 - i - 0.5), np.abs(b * 3.0 - j - 0.5))
        y, x = i.astype(np.int32), j.astype(np.int32)
        tone = knots.ravel().take(((y & 31) << 5) + (x & 31))
        odd = ((y + x) & 1).astype(np.float32)
        return 0.75 * odd + 0.25 * tone + 0.5 * (edge > 0.46).astype(np.float32)
    if name == "grass":
        return 0.65 * noise(a * 34.0, b * 34.0, knots) + 0.35 * noise(a * 9.0, b * 9.0, knots)
    fine = noise(a * 45.0, b * 45.0, knots)
    return 0.7 * noise(a * 4.0, b * 4.0, knots) + 0.3 * fine - 0.8 * (fine > 0.86).astype(np.float32)
