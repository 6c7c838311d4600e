"""Run-length codes of annotation tools. Every decoder gives a ``(height, width)`` mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoseg.errors import DataError

Mask = NDArray[np.bool_]


def decode_counts(counts: Sequence[int] | NDArray[Any], height: int, width: int, *, columns: bool) -> Mask:
    """Decode run lengths that alternate between outside and inside, outside first.

    Args:
        counts: Run lengths.
        height: Rows of the mask.
        width: Columns of the mask.
        columns: Whether pixels are counted down the columns (COCO) or along the rows (CVAT).

    Raises:
        DataError: If the runs do not fill the mask exactly.
    """
    runs = np.asarray(counts, np.int64)
    total = int(runs.sum())
    if runs.ndim != 1 or (runs < 0).any() or total != height * width:
        raise DataError(f"run lengths cover {total} pixels, expected {height} x {width} = {height * width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T if columns else flat.reshape(height, width)


def decode_coco_string(text: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed form: 5 bits a character, differences to the last but one.

    Raises:
        DataError: If a character is none of the code or the last number is cut off.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        bits = code - 48
        if not 0 <= bits < 64:
            raise DataError(f"compressed run lengths hold {chr(code)!r}, which is none of their characters")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError("compressed run lengths end within a number")
    return counts


def decode_coco(rle: Any) -> Mask:
    """Decode a COCO ``{"size": [height, width], "counts": ...}``, compressed or not.

    Raises:
        DataError: If it is damaged.
    """
    height, width = (int(side) for side in rle["size"])
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        counts = decode_coco_string(counts)
    return decode_counts(counts, height, width, columns=True)


def decode_label_studio(data: Sequence[int], height: int, width: int) -> Mask:
    """Decode a Label Studio brush region: four bytes a pixel, of which the last (alpha) is the mask.

    The code is a stream of bits: the number of values in 32, their width less one in 5, four run
    sizes less one in 4 each; then runs of a flag (1: one value repeated), 2 bits that choose the run size,
    the run length less one, and the value or values.

    Raises:
        DataError: If the stream ends early or holds another number of values.
    """
    try:
        bits = "".join(f"{byte:08b}" for byte in bytes(data))
        number = int(bits[:32], 2)
        word = int(bits[32:37], 2) + 1
        sizes = [int(bits[37 + 4 * i : 41 + 4 * i], 2) + 1 for i in range(4)]
        if number != height * width * 4 or word != 8:
            raise DataError(
                f"brush region has {number} values of {word} bits, expected {height} x {width} pixels of "
                "4 values of 8 bits"
            )
        values = np.zeros(number, np.uint8)
        at, position = 53, 0
        while position < number:
            repeated = bits[at] == "1"
            size = sizes[int(bits[at + 1 : at + 3], 2)]
            at += 3
            end = position + 1 + int(bits[at : at + size], 2)
            at += size
            if repeated:
                values[position:end] = int(bits[at : at + 8], 2)
                at += 8
            else:
                chunk = bits[at : at + 8 * (end - position)]
                values[position:end] = [int(chunk[i : i + 8], 2) for i in range(0, len(chunk), 8)]
                at += 8 * (end - position)
            position = end
        if at > len(bits) or position > number:
            raise DataError("brush region is damaged (it ends within a run)")
    except (ValueError, IndexError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"brush region is damaged ({error})") from error
    mask: Mask = values.reshape(height, width, 4)[..., 3] > 0
    return mask
