"""What is said about pixels and regions, by hand-worked maps."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from protoseg.explain.reasons import Nearest, Reasons, nearest_cells

CLASSES = ("road", "tree", "sky")


def nearest(height: int = 12, width: int = 16) -> Nearest:
    """3x4 cells of 4 pixels of a padded image of 16x24: left half prototype 1, right half 2, K = 2."""
    prototype = np.full((4, 6), 1, np.uint8)
    prototype[:, 2:] = 2
    similarity = np.full((3, 4, 6), 0.25, np.float32)
    similarity[0, :, :2], similarity[1, :, 2:] = 0.9, 0.75
    similarity[2] = -1.0
    return nearest_cells(prototype, similarity, (height, width), (16, 24))


def labels() -> np.ndarray:
    map_ = np.zeros((12, 16), np.uint8)
    map_[:, 8:] = 1
    return map_


def test_cells_that_lie_on_the_image() -> None:
    found = nearest()
    assert found.prototype.shape == (3, 4)
    assert found.similarity.shape == (3, 3, 4)
    assert found.covered == (3.0, 4.0)
    rows, columns = found.pixels((12, 16))
    assert rows.tolist() == [2, 6, 10]
    assert columns.tolist() == [2, 6, 10, 14]
    rows, columns = found.cells((12, 16))
    assert rows.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # a map of twice the size has the same cells
    assert found.cells((24, 32))[0].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    # an image that ends within a cell: its last pixels are that cell's, or its neighbour's if hardly covered
    assert nearest(13, 16).prototype.shape == (3, 4)
    assert nearest(15, 16).prototype.shape == (4, 4)
    assert nearest(13, 16).cells((13, 16))[0].tolist()[-1] == 2


def test_a_pixel() -> None:
    said = Reasons(nearest(), labels(), CLASSES, 2).at(3, 2)
    assert said == {
        "x": 3, "y": 2, "class_id": 0, "class": "road", "prototype": 1, "prototype_class": "road",
        "similarity": 0.9, "runner_up": "tree", "runner_up_similarity": 0.25,
    }  # fmt: skip
    # the label and what a pixel resembles need not agree, and a class without prototypes is no runner-up
    wrong = Reasons(nearest(), 1 - labels(), CLASSES, 2).at(15, 11)
    assert (wrong["class"], wrong["prototype_class"], wrong["runner_up"]) == ("road", "tree", "road")


def test_without_another_class_there_is_no_runner_up() -> None:
    one = nearest_cells(np.zeros((1, 1), np.uint8), np.full((1, 1, 1), 0.5, np.float32), (4, 4), (4, 4))
    said = Reasons(one, np.zeros((4, 4), np.uint8), ("thing",), 1).at(0, 0)
    assert said["runner_up"] is None
    assert said["runner_up_similarity"] is None


def test_regions_are_connected_areas_with_most_of_their_cells() -> None:
    found = nearest()
    found.prototype[0, 0] = 4  # one cell of the left region resembles the sky
    regions, left_out = Reasons(found, labels(), CLASSES, 2).regions()
    assert left_out == 0
    left, right = sorted(regions, key=lambda item: item["class_id"])
    assert (left["class"], left["prototype"], left["share"]) == ("road", 1, 0.5)
    assert left["prototype_share"] == pytest.approx(5 / 6, abs=1e-4)
    assert left["box"] == [0, 0, 12, 8]
    assert (right["class"], right["prototype"], right["box"]) == ("tree", 2, [0, 8, 12, 16])
    # two areas of one class are two regions, the largest first
    split = np.ones((12, 16), np.uint8)
    split[:, 0:4], split[:, 12:16], split[8:, 12:16] = 0, 0, 1
    regions, left_out = Reasons(nearest(), split, CLASSES, 2).regions(most=2)
    assert [item["class"] for item in regions] == ["tree", "road"]
    assert left_out == 1
    only = Reasons(nearest(), split, CLASSES, 2).regions(classes={0})[0]
    assert [item["class"] for item in only] == ["road", "road"]


def test_the_grid_says_what_single_pixels_say() -> None:
    reasons = Reasons(nearest(), labels(), CLASSES, 2)
    grid = reasons.grid()
    assert (grid["rows"], grid["columns"], grid["covered"]) == (3, 4, [3.0, 4.0])

    def read(name: str, kind: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(grid[name]), kind).reshape(3, 4)

    assert read("prototype", "<u2").tolist() == [[1, 1, 2, 2]] * 3
    assert read("similarity", "u1")[0].tolist() == [230, 230, 191, 191]
    assert read("runner_up", "u1")[0].tolist() == [1, 1, 0, 0]
    assert read("runner_up_similarity", "u1").tolist() == [[64] * 4] * 3
