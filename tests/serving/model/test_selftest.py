from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.nearest_color import sample_image
from benchmarks.serving_bundle import make_bundle
from protoseg.files import sha256_file
from serving.errors import BundleError
from serving.model.open import open_model
from serving.settings import Settings

ALL = ("labels", "confidence", "agreement", "logits", "logits_stride")


def test_fused_labels_are_the_graphs(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, outputs=ALL)
    with open_model(folder, Settings()) as fused, open_model(folder, Settings(fused=False)) as plain:
        assert (fused.fused, plain.fused) == (True, False)
        for size in ((96, 128), (61, 85)):
            image = sample_image(*size, seed=11)
            np.testing.assert_array_equal(fused.predict(image).labels, plain.predict(image).labels)


def test_a_bundle_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    labels = folder / "samples" / "0_labels.png"
    cv2.imwrite(str(labels), np.full((96, 128), 3, np.uint8))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["samples"][0]["sha256"]["samples/0_labels.png"] = sha256_file(labels)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="agrees with its samples"):
        open_model(folder, Settings())
