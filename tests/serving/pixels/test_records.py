from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from protoseg.manifest import Manifest
from serving.pixels.records import class_records, hf_segments


def test_records_by_hand(manifest: Manifest) -> None:
    labels = np.array([[1, 1], [1, 3]], np.uint8)
    confidence = np.array([[0.5, 1.0], [0.6, 0.25]], np.float32)
    agreement = np.array([[1.0, 1.0], [0.4, 0.0]], np.float32)
    records = class_records(labels, confidence, agreement, manifest, None)
    assert records == [
        {"id": 1, "name": "red", "color": [220, 40, 40], "pixels": 3, "fraction": 0.75,
         "mean_confidence": 0.7, "mean_agreement": 0.8},
        {"id": 3, "name": "blue", "color": [50, 80, 230], "pixels": 1, "fraction": 0.25,
         "mean_confidence": 0.25, "mean_agreement": 0.0},
    ]  # fmt: skip
    only = class_records(labels, None, None, manifest, frozenset({3, 4}))
    assert [record["name"] for record in only] == ["blue"]
    assert "mean_confidence" not in only[0]


def test_hf_masks_are_black_and_white(manifest: Manifest) -> None:
    labels = np.array([[1, 1], [0, 1]], np.uint8)
    confidence = np.ones((2, 2), np.float32)
    records = class_records(labels, confidence, None, manifest, None)
    segments = hf_segments(labels, records)
    assert [(s["label"], s["score"]) for s in segments] == [("background", 1.0), ("red", 1.0)]
    mask = Image.open(io.BytesIO(base64.b64decode(segments[1]["mask"])))
    assert np.asarray(mask).tolist() == [[255, 255], [0, 255]]
