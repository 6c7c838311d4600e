"""Large images in overlapping tiles that are blended linearly, in memory bounded by one row of overlaps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.model.batching import Result
from serving.model.network import LABEL_PROBABILITY, NOVELTY
from serving.model.prediction import Prediction
from serving.model.upsample import softmax
from serving.pixels.decode import Pixels
from serving.pixels.maps import Scores


@dataclass(frozen=True)
class Span:
    """A tile along one axis."""

    start: int
    """First pixel the network sees."""
    stop: int
    """One past the last pixel the network sees."""
    low: int
    """First pixel with a weight."""
    high: int
    """One past the last pixel with a weight."""
    ramp_low: int
    """Pixels over which the weight rises from the previous tile (0: there is none)."""
    ramp_high: int
    """Pixels over which the weight falls to the next tile (0: there is none)."""

    def weights(self) -> Scores:
        """Weight of each pixel in ``low .. high``; neighbouring tiles add up to 1."""
        weights = np.ones(self.high - self.low, np.float32)
        if self.ramp_low:
            weights[: self.ramp_low] = (np.arange(self.ramp_low) + 0.5) / self.ramp_low
        if self.ramp_high:
            ramp = (np.arange(self.ramp_high) + 0.5) / self.ramp_high
            weights[-self.ramp_high :] = 1 - ramp
        return weights


def spans(length: int, tile: int) -> list[Span]:
    """Evenly spaced tiles over ``length`` pixels that overlap by at least a quarter."""
    if length <= tile:
        return [Span(0, length, 0, length, 0, 0)]
    ramp = tile // 4
    number = math.ceil((length - ramp) / (tile - ramp))
    starts = [round(index * (length - tile) / (number - 1)) for index in range(number)]
    # the ramp lies in the middle of the overlap of two neighbours
    seams = [(a + tile + b - ramp) // 2 for a, b in itertools.pairwise(starts)]
    found = []
    for index, start in enumerate(starts):
        first, last = index == 0, index == number - 1
        low = 0 if first else seams[index - 1]
        high = length if last else seams[index] + ramp
        found.append(Span(start, start + tile, low, high, 0 if first else ramp, 0 if last else ramp))
    return found


def blend(
    rows: list[Span],
    columns: list[Span],
    scores: Callable[[Span, Span], Scores],
    finish: Callable[[int, int, Scores], Any],
) -> None:
    """Run over all tiles and hand out finished blocks.

    Args:
        rows: Tiles along the height.
        columns: Tiles along the width.
        scores: Gives ``(C, row.stop - row.start, column.stop - column.start)`` of a tile.
        finish: Called with top, left and the ``(C, h, w)`` blended scores; blocks do not overlap and
            cover everything.
    """
    width = columns[-1].high
    above: Scores | None = None
    for row in rows:
        below: Scores | None = None
        left: Scores | None = None
        for column in columns:
            block = scores(row, column)[
                :,
                row.low - row.start : row.high - row.start,
                column.low - column.start : column.high - column.start,
            ]
            block = block * (row.weights()[:, None] * column.weights())
            if left is not None:
                block[:, :, : column.ramp_low] += left
            right = column.high - column.ramp_high - column.low
            left = block[:, :, right:].copy()
            done = block[:, :, :right]
            place = slice(column.low, column.low + right)
            if above is not None:
                done[:, : row.ramp_low] += above[:, :, place]
            bottom = row.high - row.ramp_high - row.low
            if row.ramp_high:
                if below is None:
                    below = np.zeros((done.shape[0], row.ramp_high, width), np.float32)
                below[:, :, place] = done[:, bottom:]
            finish(row.low, column.low, done[:, :bottom])
        above = below


def predict_tiles(
    image: Pixels,
    window: tuple[int, int],
    classes: int,
    forward: Callable[[Pixels], Result],
    *,
    confidence: bool,
    label_probability: bool,
    novelty: bool = False,
) -> Prediction:
    """Segment an image tile by tile.

    Args:
        image: ``(H, W, C)`` uint8.
        window: (height, width) of a tile.
        classes: Classes of the network.
        forward: The network's outputs for a tile: ``logits``, or else ``labels`` (and ``confidence``) as
            votes; with ``label_probability`` or ``novelty`` those too.
        confidence: Give the largest blended probability.
        label_probability: Give the blended probability of the label.
        novelty: Give the blended novelty.
    """
    height, width = image.shape[:2]
    rows, columns = spans(height, window[0]), spans(width, window[1])
    labels = np.empty((height, width), np.uint8)
    best = np.empty((height, width), np.float32) if confidence else None
    # maps that are blended as they are, behind the classes
    names = [name for name, wanted in ((LABEL_PROBABILITY, label_probability), (NOVELTY, novelty)) if wanted]
    maps = {name: np.empty((height, width), np.float32) for name in names}

    def scores(row: Span, column: Span) -> Scores:
        tile = np.ascontiguousarray(image[row.start : row.stop, column.start : column.stop])
        out = forward(tile)
        if "logits" in out:
            probs = softmax(out["logits"].astype(np.float32, copy=False))
        else:
            probs = np.zeros((classes, *tile.shape[:2]), np.float32)
            votes = np.broadcast_to(out.get("confidence", np.float32(1)), tile.shape[:2])[None]
            np.put_along_axis(probs, out["labels"][None].astype(np.intp), votes, axis=0)
        return np.concatenate([probs, *(out[name][None] for name in names)]) if names else probs

    def finish(top: int, left: int, block: Scores) -> None:
        place = (slice(top, top + block.shape[1]), slice(left, left + block.shape[2]))
        labels[place] = block[:classes].argmax(axis=0)
        if best is not None:
            best[place] = block[:classes].max(axis=0)
        for plane, name in enumerate(names, start=classes):
            maps[name][place] = block[plane]

    blend(rows, columns, scores, finish)
    tiles = len(rows) * len(columns)
    return Prediction(labels, best, maps.get(LABEL_PROBABILITY), tiles, novelty=maps.get(NOVELTY))
