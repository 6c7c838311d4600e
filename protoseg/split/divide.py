"""Chooses the images of each part of a fully labelled set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protoseg.errors import DataError


@dataclass(frozen=True)
class Parts:
    """Positions of the images of each part, ascending; together each image once."""

    labeled: list[int]
    unlabeled: list[int]
    val: list[int]


def parse_amount(text: str, total: int, option: str) -> int:
    """Images that ``"46"``, ``"0.1"`` or ``"10%"`` of ``total`` stand for.

    Raises:
        DataError: If it is neither, or not between 0 and the total.
    """
    match = re.fullmatch(r"(\d+)|(\d*\.\d+)|(\d+(?:\.\d+)?)%", text.strip())
    if match is None:
        raise DataError(f"{option} {text!r}: give a count (46), a fraction (0.1) or a share (10%)")
    if match[1] is not None:
        count = int(match[1])
    else:
        share = float(match[2]) if match[2] is not None else float(match[3]) / 100
        count = round(share * total) if share == 0 else max(1, round(share * total))
    if count > total:
        raise DataError(f"{option} {text} asks for {count} of {total} images")
    return count


def divide(present: Sequence[frozenset[int]], labeled: int, val: int, seed: int) -> Parts:
    """Choose the images of each part.

    The labelled part is a cover first (for each class not yet shown, the rarest first, the image that
    shows most missing classes) and random images then; the validation part is random, so that it
    stays an unbiased sample of the rest.

    Args:
        present: Class ids shown by each image.
        labeled: Images with a mask.
        val: Validation images.
        seed: Same seed, same parts.

    Raises:
        DataError: If the numbers do not fit the set, or no cover is that small.
    """
    total = len(present)
    if labeled < 1 or val < 0 or labeled + val > total:
        raise DataError(
            f"{labeled} labelled and {val} validation images do not fit a set of {total}; lower one"
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(total).tolist()
    images_of: dict[int, list[int]] = {}
    for index in order:
        for label in present[index]:
            images_of.setdefault(label, []).append(index)
    chosen: dict[int, None] = {}
    missing = set(images_of)
    for label in sorted(images_of, key=lambda c: (len(images_of[c]), c)):
        if label in missing:
            best = max(images_of[label], key=lambda i: len(present[i] & missing))
            chosen[best] = None
            missing -= present[best]
    if len(chosen) > labeled:
        raise DataError(
            f"{labeled} labelled images cannot show all {len(images_of)} classes here; "
            f"{len(chosen)} can: use --labeled {len(chosen)} or more"
        )
    rest = [index for index in order if index not in chosen]
    extra = labeled - len(chosen)
    return Parts(
        labeled=sorted([*chosen, *rest[:extra]]),
        val=sorted(rest[extra : extra + val]),
        unlabeled=sorted(rest[extra + val :]),
    )
