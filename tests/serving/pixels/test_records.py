from __future__ import annotations

import base64
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from protoseg.manifest import Manifest, read_manifest
from serving.errors import ServingError
from serving.pixels import records as outputs


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def masks(top: int = 5) -> st.SearchStrategy[NDArray[np.uint8]]:
    shapes = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31))
    return shapes.map(lambda s: np.random.default_rng(s[2]).integers(0, top, s[:2], dtype=np.uint8))


@settings(max_examples=60, deadline=None)
@given(masks(256))
def test_png_reads_back(labels: NDArray[np.uint8]) -> None:
    grey = Image.open(io.BytesIO(outputs.encode_png(labels)))
    assert grey.mode == "L"
    np.testing.assert_array_equal(np.asarray(grey), labels)
    palette = bytes(range(256)) * 3
    indexed = Image.open(io.BytesIO(outputs.encode_png(labels, palette)))
    assert indexed.mode == "P"
    np.testing.assert_array_equal(np.asarray(indexed), labels)
    assert bytes(indexed.getpalette() or ()) == palette


def test_palette_holds_class_colours(manifest: Manifest) -> None:
    palette = outputs.make_palette(manifest)
    assert len(palette) == 768
    assert palette[3:6] == bytes(manifest.classes[1].color)
    assert palette[765:] == bytes((224, 224, 192))


def test_rle_by_hand() -> None:
    # columns: 0 1 | 1 1 | 0 2
    labels = np.array([[0, 1, 0], [1, 1, 2]], np.uint8)
    assert outputs.rle_by_class(labels) == {0: [0, 1, 3, 1, 1], 1: [1, 3, 2], 2: [5, 1]}


@settings(max_examples=60, deadline=None)
@given(masks())
def test_rle_reads_back(labels: NDArray[np.uint8]) -> None:
    rebuilt = np.full(labels.size, 255, np.uint8)
    for index, counts in outputs.rle_by_class(labels).items():
        position = 0
        for number, count in enumerate(counts):
            if number % 2:
                rebuilt[position : position + count] = index
            position += count
        assert position <= labels.size
    np.testing.assert_array_equal(rebuilt.reshape(labels.shape, order="F"), labels)


def test_rle_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MAX_RUNS", 3)
    with pytest.raises(ServingError) as caught:
        outputs.rle_by_class(np.array([[0, 1, 0, 1]], np.uint8))
    assert caught.value.code == "result_too_large"


def test_records_by_hand(manifest: Manifest) -> None:
    labels = np.array([[1, 1], [1, 3]], np.uint8)
    confidence = np.array([[0.5, 1.0], [0.6, 0.25]], np.float32)
    agreement = np.array([[1.0, 1.0], [0.4, 0.0]], np.float32)
    records = outputs.class_records(labels, confidence, agreement, manifest, None)
    assert records == [
        {"id": 1, "name": "red", "color": [220, 40, 40], "pixels": 3, "fraction": 0.75,
         "mean_confidence": 0.7, "mean_agreement": 0.8},
        {"id": 3, "name": "blue", "color": [50, 80, 230], "pixels": 1, "fraction": 0.25,
         "mean_confidence": 0.25, "mean_agreement": 0.0},
    ]  # fmt: skip
    only = outputs.class_records(labels, None, None, manifest, frozenset({3, 4}))
    assert [record["name"] for record in only] == ["blue"]
    assert "mean_confidence" not in only[0]


@settings(max_examples=30, deadline=None)
@given(masks())
def test_pixels_match_numpy(labels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(outputs.class_pixels(labels, 5), np.bincount(labels.ravel(), minlength=5))


def test_kept_classes_and_ignore_value() -> None:
    labels = np.array([[0, 1, 2]], np.uint8)
    assert outputs.keep_classes(labels, frozenset({1}), 255).tolist() == [[255, 1, 255]]
    assert outputs.keep_classes(labels, None, 255) is labels


def test_polygons_of_a_ring_have_a_hole() -> None:
    labels = np.zeros((12, 12), np.uint8)
    labels[1:11, 1:11] = 2
    labels[4:8, 4:8] = 0
    polygons = outputs.polygons_by_class(labels, 0)
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
    records = outputs.class_records(labels, None, None, manifest, frozenset({1}))
    value = outputs.geojson(outputs.polygons_by_class(labels, 0), records)
    (feature,) = value["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert feature["properties"]["name"] == "red"
    ring = feature["geometry"]["coordinates"][0][0]
    assert ring[0] == ring[-1]


def test_overlay_blends(manifest: Manifest) -> None:
    image = np.full((16, 16, 3), 100, np.uint8)
    labels = np.zeros((16, 16), np.uint8)
    labels[:, 8:] = 1
    palette = outputs.make_palette(manifest)
    jpeg = outputs.encode_overlay(image, labels, palette, 0.5, frozenset({1}))
    shown = np.asarray(Image.open(io.BytesIO(jpeg)), np.int16)
    assert np.abs(shown[8, 2] - 100).max() <= 4
    assert np.abs(shown[8, 14] - np.array([160, 70, 70])).max() <= 6
    grey = outputs.encode_overlay(image[..., :1], labels, palette, 0.0, None)
    assert np.abs(np.asarray(Image.open(io.BytesIO(grey)), np.int16) - 100).max() <= 3


def test_hf_masks_are_black_and_white(manifest: Manifest) -> None:
    labels = np.array([[1, 1], [0, 1]], np.uint8)
    confidence = np.ones((2, 2), np.float32)
    records = outputs.class_records(labels, confidence, None, manifest, None)
    segments = outputs.hf_segments(labels, records)
    assert [(s["label"], s["score"]) for s in segments] == [("background", 1.0), ("red", 1.0)]
    mask = Image.open(io.BytesIO(base64.b64decode(segments[1]["mask"])))
    assert np.asarray(mask).tolist() == [[255, 255], [0, 255]]


def test_scores_are_rounded_to_bytes() -> None:
    scores = np.array([[0.0, 0.5, 1.0, 1.2, -0.1, 1 / 255]], np.float32)
    assert outputs.scores_to_bytes(scores).tolist() == [[0, 128, 255, 255, 0, 1]]
