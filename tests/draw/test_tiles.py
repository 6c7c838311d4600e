import numpy as np
import pytest
from PIL import Image
from tiny import tiny_info

from protoseg.draw.colours import heat_picture
from protoseg.draw.tiles import CELL, TALLEST, Tile, class_legend, draw_sheet, small, with_legend
from protoseg.manifest import ClassInfo

CLASSES = tiny_info(3).classes


def grey(height, width, value):
    return small(np.full((height, width, 3), value, np.uint8))


def sheet_of(*tiles, **settings):
    return np.array(draw_sheet(tiles, CLASSES, **{"columns": 2} | settings))


def test_every_tile_is_in_place():
    tiles = [
        Tile([grey(h, w, 9), grey(h, w, 99), small(heat_picture(np.full((h, w), value, np.float32)))],
             "a" * 300, "note")
        for h, w, value in ((50, 80, 0.0), (300, 20, 1.0), (10, 10, 0.5))
    ]  # fmt: skip
    sheet, one = sheet_of(*tiles, headline="b" * 300, key="what it is:"), sheet_of(tiles[0])
    assert one.shape[1] < sheet.shape[1]
    for value in (9, 99):
        assert (sheet == value).all(2).any()
    assert (sheet == (13, 8, 40)).all(2).any(), "0 is dark"
    assert (sheet == (252, 236, 150)).all(2).any(), "1 is bright"
    assert tiles[1].pictures[0].height == TALLEST, "a tall image does not make a tall sheet"
    assert tiles[0].pictures[0].width == CELL


def test_pictures_do_not_overlap_and_none_is_cut():
    shades = range(10, 130, 10)
    tiles = [
        Tile([grey(30, 40, 2 * s), grey(30, 40, 2 * s + 1)], str(s), captions=("x", "y")) for s in shades
    ]
    sheet = sheet_of(*tiles, columns=3, titles=("one", "two"))
    whole = CELL * round(CELL * 30 / 40)
    for value in (v for s in shades for v in (2 * s, 2 * s + 1)):
        rows, columns = np.nonzero((sheet == value).all(2))
        inside = (rows >= rows.min()) & (columns >= columns.min())
        assert inside.sum() >= whole, value


def test_the_legend_names_every_class_however_many():
    few = sheet_of(Tile([grey(20, 20, 9)]))
    many = [CLASSES[1].model_copy(update={"name": f"a rather long name {i}"}) for i in range(40)]
    long = np.array(draw_sheet([Tile([grey(20, 20, 9)])], many, columns=2))
    assert long.shape[1] == few.shape[1]
    assert long.shape[0] > few.shape[0] + 200
    assert (long == CLASSES[1].color).all(2).sum() >= 40 * 13 * 13


@pytest.mark.parametrize("size", [(40, 30), (500, 300), (4000, 3000)])
def test_an_overlay_keeps_its_pixels_and_names_what_it_shows_below(size):
    classes = [
        ClassInfo(name="background", color=(0, 0, 0)), ClassInfo(name="sky", color=(1, 2, 250)),
        ClassInfo(name="absent", color=(250, 3, 4)),
    ]  # fmt: skip
    labels = np.zeros(size[::-1], np.uint8)
    labels[: size[1] // 4] = 1
    overlay = Image.new("RGB", size, (90, 91, 92))
    sheet = np.array(with_legend(overlay, labels, classes))
    assert (sheet[: size[1], : size[0]] == (90, 91, 92)).all()
    below = sheet[size[1] :]
    side = max(14, 14 * size[0] // 900)
    assert (below == classes[1].color).all(-1).sum() == pytest.approx(side * side, rel=0.2)
    assert not (below == classes[2].color).all(-1).any(), "what is not there is not named"
    assert not (below == 0).all(-1).any(), "a black class is not painted: its box is empty"
    assert (below[:, -1] == 255).all(), "no text reaches the edge"


def test_a_long_name_is_cut_short_and_not_at_the_edge():
    legend = np.array(class_legend([ClassInfo(name="w" * 300, color=(9, 9, 250))], 200))
    assert legend.shape[1] == 200
    assert (legend[:, -1] == 255).all()
