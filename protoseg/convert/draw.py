"""Draws annotated objects: the one place that decides which pixel belongs to a shape.

A pixel belongs to an outline when its centre lies inside: with coordinates in which pixel (column 0, row 0)
covers [0, 1) x [0, 1), the centre is (0.5, 0.5). Centres exactly on a left or top edge are inside, on a
right or bottom edge outside, so that neighbours neither overlap nor leave a gap. An outline that crosses
itself is filled by the even-odd rule. Where a tool's coordinates are whole pixels instead (Supervisely,
Cityscapes), an outline's own pixels belong to it (``edge``). What lies outside of the image is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from protoseg.convert.rle import Mask
from protoseg.errors import DataError

IGNORED = 255
Points = NDArray[np.float64]


class NoAreaError(ValueError):
    """A shape that cannot have an area; the text is the reason in the plural."""


@dataclass(frozen=True)
class Region:
    """Pixels of a shape: a ``(h, w)`` mask whose first pixel is (top, left) of the image."""

    top: int
    left: int
    mask: Mask


Drawer = Callable[[int, int], Region | None]
"""Gives a shape's pixels for (height, width) of the image that it was drawn on; None: none within."""


@dataclass(frozen=True)
class Shape:
    """An annotated object."""

    label: str | None
    """Class name; None is a region that is ignored."""
    draw: Drawer
    where: str
    """Place in the annotation, for messages."""
    z: int = 0
    """Layer: higher ones lie on top."""


def as_points(values: Any) -> Points:
    """Points ``(N, 2)`` as (x, y) from pairs or from a flat list.

    Raises:
        DataError: If they are no numbers.
    """
    try:
        points = np.asarray(values, np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise DataError(f"coordinates are not pairs of numbers ({error})") from error
    if not (np.abs(points) < 1e7).all():
        raise DataError("coordinates are not finite numbers, or lie far beyond any image")
    return points


def outline(parts: Iterable[Points], holes: Iterable[Points] = (), *, share: bool = False, edge: bool = False,
            ) -> Drawer:  # fmt: skip
    """A shape of closed outlines.

    Args:
        parts: Points ``(N, 2)`` of each part, (x, y); the shape is their union.
        holes: Outlines that are cut out.
        share: Whether coordinates are shares of width and height instead of pixels.
        edge: Whether coordinates are whole pixels that belong to the outline.
    """
    parts, holes = list(parts), list(holes)

    def draw(height: int, width: int) -> Region | None:
        factor = (width, height) if share else (1, 1)
        fill = _fill_whole_pixels if edge else fill_centres
        kept = [part for part in parts if len(part) >= 3]
        if not kept:
            raise NoAreaError("outlines with fewer than 3 points")
        region = unite([fill(part * factor, height, width) for part in kept])
        for hole in holes:
            cut = fill(hole * factor, height, width) if len(hole) >= 3 else None
            if region is not None and cut is not None:
                _overlap(region, cut, lambda inside, hole_mask: inside & ~hole_mask)
        return region

    return draw


def bitmap(mask: Mask, top: int = 0, left: int = 0) -> Drawer:
    """A shape given as pixels, whose first is (top, left)."""

    def draw(height: int, width: int) -> Region | None:
        y0, x0 = max(top, 0), max(left, 0)
        inside = mask[y0 - top : max(height - top, 0), x0 - left : max(width - left, 0)]
        return Region(y0, x0, inside) if inside.any() else None

    return draw


def box(x0: float, y0: float, x1: float, y1: float, degrees: float = 0, pivot: Sequence[float] | None = None,
        ) -> Points:  # fmt: skip
    """Corners ``(4, 2)`` of a box turned clockwise about a pivot (None: its centre)."""
    corners = as_points([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return turn(corners, degrees, pivot or ((x0 + x1) / 2, (y0 + y1) / 2))


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> Points:
    """Outline ``(360, 2)`` of an ellipse turned clockwise about its centre (x, y)."""
    angle = np.arange(360) * (np.pi / 180)
    return turn(
        as_points(np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)), degrees, (x, y)
    )


def turn(points: Points, degrees: float, pivot: Sequence[float]) -> Points:
    """Points turned about a pivot, clockwise on the screen (y points down)."""
    if degrees % 360 == 0:
        return points
    sin, cos = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    turned: Points = (points - pivot) @ np.array([[cos, sin], [-sin, cos]]) + pivot
    return turned


def fill_centres(points: Points, height: int, width: int) -> Region | None:
    """Pixels whose centre lies inside a closed outline ``(N, 2)``, even-odd."""
    first = np.ceil(points - 0.5)
    left, top = np.maximum(first.min(axis=0), 0).astype(np.int64)
    right, bottom = np.minimum(first.max(axis=0), (width, height)).astype(np.int64)
    if left >= right or top >= bottom:
        return None
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    rows = np.clip(np.ceil(np.stack([y0, y1]) - 0.5), top, bottom).astype(np.int64)
    start, count = rows.min(axis=0), np.abs(rows[1] - rows[0])
    # one item for every row that an edge crosses
    edge = np.repeat(np.arange(len(points)), count)
    row = start[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left
    stride = int(right - left) + 1
    crossings = np.bincount((row - top) * stride + column, minlength=int(bottom - top) * stride)
    mask = np.cumsum(crossings.reshape(-1, stride)[:, :-1], axis=1) % 2 == 1
    return Region(int(top), int(left), mask) if mask.any() else None


def _fill_whole_pixels(points: Points, height: int, width: int) -> Region | None:
    whole = np.floor(points).astype(np.int64)
    left, top = np.maximum(whole.min(axis=0), 0)
    right, bottom = np.minimum(whole.max(axis=0) + 1, (width, height))
    if left >= right or top >= bottom:
        return None
    canvas = np.zeros((int(bottom - top), int(right - left)), np.uint8)
    cv2.fillPoly(canvas, [(whole - (left, top)).astype(np.int32)], 1)
    return Region(int(top), int(left), canvas > 0) if canvas.any() else None


def unite(regions: Iterable[Region | None]) -> Region | None:
    """The union of regions."""
    present = [region for region in regions if region is not None]
    if len(present) < 2:
        return present[0] if present else None
    top, left = min(r.top for r in present), min(r.left for r in present)
    bottom = max(r.top + r.mask.shape[0] for r in present)
    right = max(r.left + r.mask.shape[1] for r in present)
    whole = Region(top, left, np.zeros((bottom - top, right - left), np.bool_))
    for region in present:
        _overlap(whole, region, np.logical_or)
    return whole


def _overlap(target: Region, other: Region, combine: Callable[[Mask, Mask], Mask]) -> None:
    """Replace the target's pixels below the other region by their combination."""
    y0, x0 = max(target.top, other.top), max(target.left, other.left)
    y1 = min(target.top + target.mask.shape[0], other.top + other.mask.shape[0])
    x1 = min(target.left + target.mask.shape[1], other.left + other.mask.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    view = target.mask[y0 - target.top : y1 - target.top, x0 - target.left : x1 - target.left]
    view[:] = combine(view, other.mask[y0 - other.top : y1 - other.top, x0 - other.left : x1 - other.left])


def draw_labels(
    shapes: Sequence[Shape], ids: Mapping[str, int], height: int, width: int, *, background: int, order: str,
    skipped: Callable[[str, str], None],
) -> NDArray[np.uint8]:  # fmt: skip
    """Draw objects onto one another.

    Args:
        shapes: Objects.
        ids: Class id by name.
        height: Rows of the image that was annotated.
        width: Its columns.
        background: Value where no object is.
        order: ``area``: large ones first, so that small ones stay visible; ``file``: by layer, then as in the
            file. Ignored regions always come first, so that no object is lost below one.
        skipped: Called with the reason and the place of an object that covers no pixel.

    Returns:
        ``(height, width)`` uint8 of class ids, ``background`` and 255.

    Raises:
        DataError: If an object is damaged.
    """
    drawn: list[tuple[Shape, Region]] = []
    for shape in shapes:
        try:
            region = shape.draw(height, width)
        except NoAreaError as error:
            skipped(str(error), shape.where)
            continue
        except (DataError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
            raise DataError(f"{shape.where}: {error}") from error
        if region is None:
            skipped("objects that cover no pixel centre of their image", shape.where)
        else:
            drawn.append((shape, region))
    if order == "area":
        drawn.sort(key=lambda item: -int(np.count_nonzero(item[1].mask)))
    else:
        drawn.sort(key=lambda item: item[0].z)
    drawn.sort(key=lambda item: item[0].label is not None)
    labels = np.full((height, width), background, np.uint8)
    for shape, region in drawn:
        rows, columns = region.mask.shape
        view = labels[region.top : region.top + rows, region.left : region.left + columns]
        view[region.mask] = IGNORED if shape.label is None else ids[shape.label]
    return labels
