"""Novelty on its way from a graph to an answer, a mean and a metric."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.nearest_color import sample_image
from benchmarks.serving_bundle import make_bundle
from serving.model.open import open_model
from serving.settings import Settings
from serving.worker.metrics import metrics

OUTPUTS = ("labels", "confidence", "agreement", "novelty")


@pytest.fixture(scope="module")
def novel_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("novel") / "bundle", outputs=OUTPUTS)


def test_whole_images_and_tiles_tell_it_when_asked(novel_bundle: Path) -> None:
    image = sample_image(150, 210, seed=5)
    with open_model(novel_bundle, Settings(tile=96)) as model:
        whole = model.predict(image, novelty=True)
        tiled = model.predict(image, novelty=True, label_probability=True, tile=True)
        assert model.predict(image).novelty is None
        small = model.predict(image, novelty=True).resized((75, 105))
    assert whole.novelty is not None
    assert tiled.novelty is not None
    assert tiled.tiles > 1
    assert tiled.label_probability is not None
    assert whole.novelty.shape == tiled.novelty.shape == (150, 210)
    assert abs(float(whole.novelty.mean() - tiled.novelty.mean())) < 0.02
    assert whole.novel_share == pytest.approx((whole.novelty >= 0.5).mean())
    assert small.novelty is not None
    assert small.novelty.shape == (75, 105)


def test_fixed_sizes_are_cropped_back(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "static", outputs=OUTPUTS, static_shape=(1, 96, 128))
    with open_model(folder, Settings()) as model:
        found = model.predict(sample_image(70, 90, seed=1), novelty=True).novelty
    assert found is not None
    assert found.shape == (70, 90)


def test_the_service_answers_and_counts(
    serve: Any, novel_bundle: Path, png: bytes, image: np.ndarray[Any, Any]
) -> None:
    client = serve(model=str(novel_bundle))

    def counted() -> float:
        return sum(metrics().novel_pixels.labels(kind)._value.get() for kind in ("yes", "no"))

    before = counted()
    reply = client.post("/v1/segment?output=novelty", content=png)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    grey = np.asarray(Image.open(io.BytesIO(reply.content)))
    assert grey.shape == image.shape[:2]
    assert counted() - before == grey.size
    value = client.post("/v1/segment?output=json", content=png).json()
    assert value["novel_share"] == pytest.approx((grey >= 128).mean(), abs=0.01)
    assert "protoseg_novel_pixels_total" in client.get("/metrics").text


def test_a_graph_without_it_says_so(client: Any, png: bytes) -> None:
    reply = client.post("/v1/segment?output=novelty", content=png)
    assert reply.status_code == 422
    assert "novelty" in reply.json()["error"]["message"]
    assert "novel_share" not in client.post("/v1/segment?output=json", content=png).json()
