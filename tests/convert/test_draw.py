from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from protoseg.convert.draw import Drawer, Shape, as_points, bitmap, box, draw_labels, ellipse, outline
from protoseg.errors import DataError

HEIGHT, WIDTH = 12, 16
POLYGONS = st.lists(
    st.tuples(st.floats(-4, 20, width=32), st.floats(-4, 16, width=32)), min_size=3, max_size=8
).map(as_points)


def pixels(draw: Drawer, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    region = draw(height, width)
    if region is not None:
        rows, columns = region.mask.shape
        mask[region.top : region.top + rows, region.left : region.left + columns] = region.mask
    return mask


def distance_to_outline(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each pixel's centre to a closed outline."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centres = np.stack([x, y], axis=-1)[..., None, :]
    a, b = points, np.roll(points, -1, axis=0)
    along = b - a
    share = ((centres - a) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-30)
    nearest = a + np.clip(share, 0, 1)[..., None] * along
    return np.linalg.norm(centres - nearest, axis=-1).min(-1)


@given(POLYGONS)
def test_a_pixel_is_inside_when_its_centre_is(points: NDArray[np.float64]) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    # ray casting, pixel by pixel: crossings of the outline to the right
    crossings = np.zeros((HEIGHT, WIDTH), int)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            between = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
            crossings += between & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    near = distance_to_outline(points) < 1e-6
    assert ((pixels(outline([points])) == (crossings % 2 == 1)) | near).all()


@given(POLYGONS)
def test_pycocotools_differs_at_most_along_the_outline(points: NDArray[np.float64]) -> None:
    reference = pytest.importorskip("pycocotools.mask")
    flat = points.ravel().tolist()
    if len(flat) < 6:
        return
    theirs = reference.decode(reference.frPyObjects([flat], HEIGHT, WIDTH))[..., 0].astype(bool)
    differing = theirs != pixels(outline([points]))
    assert (distance_to_outline(points)[differing] < 1).all()


def test_whole_rectangles_agree_with_pycocotools_exactly() -> None:
    reference = pytest.importorskip("pycocotools.mask")
    for x0, y0, x1, y1 in [(2, 3, 9, 8), (0, 0, 16, 12), (5, 5, 6, 6)]:
        flat = [x0, y0, x1, y0, x1, y1, x0, y1]
        theirs = reference.decode(reference.frPyObjects([flat], HEIGHT, WIDTH))[..., 0].astype(bool)
        wanted = np.zeros((HEIGHT, WIDTH), np.bool_)
        wanted[y0:y1, x0:x1] = True
        assert (pixels(outline([as_points(flat)])) == wanted).all()
        assert (theirs == wanted).all()


@given(st.floats(0.5, 15.5), st.floats(0.5, 15.5))
def test_neighbours_neither_overlap_nor_leave_a_gap(top: float, bottom: float) -> None:
    left = pixels(outline([as_points([0, 0, top, 0, bottom, 12, 0, 12])]))
    right = pixels(outline([as_points([top, 0, 16, 0, 16, 12, bottom, 12])]))
    assert (left ^ right).all()


def test_parts_unite_and_holes_are_cut_out() -> None:
    parts = [as_points([0, 0, 6, 0, 6, 6, 0, 6]), as_points([4, 4, 10, 4, 10, 10, 4, 10])]
    both = pixels(outline(parts))
    assert both.sum() == 36 + 36 - 4
    holed = pixels(outline(parts, [as_points([1, 1, 3, 1, 3, 3, 1, 3]), as_points([20, 20, 30, 20, 30, 30])]))
    assert holed.sum() == both.sum() - 4
    assert not holed[1:3, 1:3].any()


def test_a_crossing_outline_is_even_odd() -> None:
    # a small square run through twice within a large one
    points = as_points([0, 0, 8, 0, 8, 8, 0, 8, 0, 0, 2, 2, 6, 2, 6, 6, 2, 6, 2, 2])
    assert pixels(outline([points])).sum() == 64 - 16


def test_outlines_beyond_the_image_are_cut_off() -> None:
    assert pixels(outline([as_points([-100, -100, 1e6, -100, 1e6, 1e6, -100, 1e6])])).all()
    assert outline([as_points([20, 20, 30, 20, 30, 30])])(HEIGHT, WIDTH) is None
    assert bitmap(np.ones((5, 5), np.bool_), -10, 3)(HEIGHT, WIDTH) is None
    assert bitmap(np.ones((5, 5), np.bool_), 40, 40)(HEIGHT, WIDTH) is None
    assert pixels(bitmap(np.ones((5, 5), np.bool_), -2, 14)).nonzero() == pytest.approx(
        np.ones((3, 2), np.bool_).nonzero() + np.array([[0], [14]])
    )


def test_whole_pixel_outlines_include_their_pixels() -> None:
    # as the Supervisely SDK draws: vertices (2, 1) and (5, 4) are pixels of the shape
    mask = pixels(outline([as_points([2, 1, 5, 1, 5, 4, 2, 4])], edge=True))
    wanted = np.zeros((HEIGHT, WIDTH), np.bool_)
    wanted[1:5, 2:6] = True
    assert (mask == wanted).all()
    hole = pixels(
        outline([as_points([0, 0, 9, 0, 9, 9, 0, 9])], [as_points([3, 3, 5, 3, 5, 5, 3, 5])], edge=True)
    )
    assert hole.sum() == 100 - 9


def test_shares_are_of_the_image() -> None:
    mask = pixels(outline([as_points([0.25, 0.5, 0.75, 0.5, 0.75, 1, 0.25, 1])], share=True))
    wanted = np.zeros((HEIGHT, WIDTH), np.bool_)
    wanted[6:, 4:12] = True
    assert (mask == wanted).all()


def test_turned_boxes_and_ellipses() -> None:
    turned = pixels(outline([box(2, 4, 12, 8, 90)]))
    assert (turned == pixels(outline([box(5, 1, 9, 11)]))).all()
    # Label Studio turns a box clockwise about its top left corner: right becomes down
    corner = pixels(outline([box(8, 0, 12, 2, 90, (8, 0))]))
    assert (corner == pixels(outline([box(6, 0, 8, 4)]))).all()
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    round_one = ((x - 7) / 5) ** 2 + ((y - 6) / 3) ** 2 < 1
    assert (pixels(outline([ellipse(7, 6, 5, 3)])) == round_one).all()
    assert (pixels(outline([ellipse(7, 6, 3, 5, 90)])) == round_one).all()


def square(label: str | None, x0: int, x1: int, z: int = 0) -> Shape:
    return Shape(label, outline([box(x0, 0, x1, 4)]), f"{label} {x0}", z)


def draw(shapes: list[Shape], order: str) -> list[int]:
    skipped: list[str] = []
    labels = draw_labels(
        shapes,
        {"a": 1, "b": 2, "void": 255},
        4,
        8,
        background=0,
        order=order,
        skipped=lambda r, w: skipped.append(r),
    )
    assert not skipped
    return labels[0].tolist()


def test_order_of_overlapping_objects() -> None:
    shapes = [square("b", 2, 4), square("a", 0, 8)]
    assert draw(shapes, "area") == [1, 1, 2, 2, 1, 1, 1, 1]
    assert draw(shapes, "file") == [1] * 8
    # a layer counts more than the place in the file
    assert draw([square("b", 2, 4, z=1), square("a", 0, 8)], "file") == [1, 1, 2, 2, 1, 1, 1, 1]
    # ignored names are drawn like others, ignored regions below everything
    assert draw([square("a", 0, 8), square("void", 1, 3)], "file") == [1, 255, 255, 1, 1, 1, 1, 1]
    assert draw([square("a", 0, 4), square(None, 2, 6)], "file") == [1, 1, 1, 1, 255, 255, 0, 0]


def test_objects_without_area_are_counted_and_damaged_ones_are_errors() -> None:
    skipped: list[tuple[str, str]] = []
    line = Shape("a", outline([as_points([1, 1, 5, 5])]), "shape 1")
    far = Shape("a", outline([box(50, 50, 60, 60)]), "shape 2")
    labels = draw_labels(
        [line, far], {"a": 1}, 4, 8, background=0, order="area", skipped=lambda r, w: skipped.append((r, w))
    )
    assert not labels.any()
    assert skipped == [
        ("outlines with fewer than 3 points", "shape 1"),
        ("objects that cover no pixel centre of their image", "shape 2"),
    ]  # fmt: skip

    def damaged(height: int, width: int) -> None:
        raise DataError("broken")

    with pytest.raises(DataError, match=r"shape 3: broken"):
        draw_labels(
            [Shape("a", damaged, "shape 3")], {"a": 1}, 4, 8, background=0, order="area", skipped=print
        )
    for bad in ([1, 2, 3], [[1, 2, 3]] * 4 + [[1]], "text", [1, float("nan")]):
        with pytest.raises(DataError, match=r"coordinates"):
            as_points(bad)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40))
def test_matplotlib_agrees_on_a_star(height: int, width: int) -> None:
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 0.53, 0.21)
    points = np.stack([0.5 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)], axis=1) * (width, height)
    y, x = np.mgrid[:height, :width] + 0.5
    theirs = Outline(points).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(height, width)
    # matplotlib decides otherwise on centres exactly on the outline
    assert np.count_nonzero(theirs != pixels(outline([points]), height, width)) <= 2
