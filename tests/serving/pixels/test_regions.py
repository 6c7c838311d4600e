from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from protoseg.data.regions import geojson
from protoseg.manifest import Manifest
from serving.errors import ServingError
from serving.pixels import regions
from serving.pixels.records import class_records
from serving.pixels.regions import polygons_by_class, rle_by_class


def test_rle_by_hand() -> None:
    # columns: 0 1 | 1 1 | 0 2
    labels = np.array([[0, 1, 0], [1, 1, 2]], np.uint8)
    assert rle_by_class(labels) == {0: [0, 1, 3, 1, 1], 1: [1, 3, 2], 2: [5, 1]}


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(0, 4)))
def test_rle_reads_back(labels: NDArray[np.uint8]) -> None:
    rebuilt = np.full(labels.size, 255, np.uint8)
    for index, counts in rle_by_class(labels).items():
        position = 0
        for number, count in enumerate(counts):
            if number % 2:
                rebuilt[position : position + count] = index
            position += count
        assert position <= labels.size
    np.testing.assert_array_equal(rebuilt.reshape(labels.shape, order="F"), labels)


def test_rle_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "MAX_RUNS", 3)
    with pytest.raises(ServingError) as caught:
        rle_by_class(np.array([[0, 1, 0, 1]], np.uint8))
    assert caught.value.code == "result_too_large"


def test_polygons_of_a_ring_have_a_hole() -> None:
    labels = np.zeros((12, 12), np.uint8)
    labels[1:11, 1:11] = 2
    labels[4:8, 4:8] = 0
    polygons = polygons_by_class(labels, 0)
    (rings,) = polygons[2]
    assert len(rings) == 2
    assert rings[0][0] == rings[0][-1]
    corners = {tuple(point) for point in rings[0]}
    assert corners == {(1, 1), (1, 10), (10, 10), (10, 1)}
    redrawn = np.zeros((12, 12), np.uint8)
    cv2.fillPoly(redrawn, [np.array(rings[0], np.int32)], 2)
    cv2.fillPoly(redrawn, [np.array(rings[1], np.int32)], 0)
    # the hole's ring runs along the region's own pixels
    redrawn[np.array([p[1] for p in rings[1]]), np.array([p[0] for p in rings[1]])] = 2
    assert int((redrawn[labels == 2] == 2).sum()) >= 64


def test_geojson_is_a_feature_for_each_class(manifest: Manifest) -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 2:6] = 1
    records = class_records(labels, None, None, manifest, frozenset({1}))
    value = geojson(polygons_by_class(labels, 0), records)
    (feature,) = value["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert feature["properties"]["name"] == "red"
    ring = feature["geometry"]["coordinates"][0][0]
    assert ring[0] == ring[-1]
