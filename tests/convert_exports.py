"""Encoders of annotation tools, written from their descriptions, for tests of ``protoseg.convert``."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def runs(flat: NDArray[np.bool_]) -> list[int]:
    """Run lengths, alternating, the first one outside."""
    counts, value = [0], False
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


def coco_string(counts: list[int]) -> str:
    """Numbers in groups of 5 bits, from the fourth on as differences to the last but one."""
    text = ""
    for i, count in enumerate(counts):
        left = count - (counts[i - 2] if i > 2 else 0)
        while True:
            bits, left = left & 31, left >> 5
            done = left == (-1 if bits & 16 else 0)
            text += chr(48 + (bits if done else bits | 32))
            if done:
                break
    return text


def brush(mask: NDArray[np.bool_], sizes: tuple[int, ...] = (3, 4, 8, 16), *, raw: bool = False) -> list[int]:
    """A mask as Label Studio's brush region: RGBA bytes as repeated or raw values in a stream of bits."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = (255, 120, 0, 255)
    flat = values.ravel().tolist()
    bits = f"{len(flat):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(flat):
        if raw:
            length = min(len(flat) - at, 2 ** sizes[0])
            bits += f"000{length - 1:0{sizes[0]}b}" + "".join(f"{v:08b}" for v in flat[at : at + length])
        else:
            length = 1
            while at + length < len(flat) and flat[at + length] == flat[at] and length < 2 ** sizes[-1]:
                length += 1
            choice = next(i for i, size in enumerate(sizes) if length <= 2**size)
            bits += f"1{choice:02b}{length - 1:0{sizes[choice]}b}{flat[at]:08b}"
        at += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def png_bytes(values: NDArray[Any]) -> bytes:
    """A PNG of an array; of bool with one bit a pixel."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()
