from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.nearest_color import COLORS, sample_image
from benchmarks.serving_bundle import make_bundle
from protoseg.input_rule import ResizeConfig
from serving.model.model import Model
from serving.model.open import open_model
from serving.settings import Settings

ALL = ("labels", "confidence", "agreement", "logits", "logits_stride")


def load(folder: Path, **settings: Any) -> Model:
    values = Settings(**settings)
    return open_model(folder, values)


def nearest_color(image: NDArray[np.uint8]) -> NDArray[np.intp]:
    difference = image[:, :, None].astype(int) - np.array(COLORS)
    return (difference**2).sum(-1).argmin(-1)


def blocks(height: int, width: int) -> NDArray[np.uint8]:
    """Plain colours in squares of 16 pixels, whose inner pixels have one right answer."""
    index = (np.arange(height)[:, None] // 16 + np.arange(width)[None] // 16) % 5
    return np.array(COLORS, np.uint8)[index]


def inner(labels: NDArray[Any]) -> NDArray[Any]:
    return labels[8::16, 8::16]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "uint8_nhwc"},
        {"layout": "float32_nchw"},
        {"static_shape": (1, 96, 128)},
        {"static_shape": (3, 96, 128), "layout": "uint8_nhwc"},
        {"outputs": ALL},
        {"outputs": ("labels",)},
    ],
)
def test_every_kind_of_graph_names_the_colours(options: dict[str, Any], tmp_path: Path) -> None:
    with load(make_bundle(tmp_path, **options)) as model:
        for size in ((96, 128), (70, 33), (150, 200)):
            image = blocks(*size)
            result = model.predict(image, confidence=True, label_probability=True)
            assert result.labels.shape == size
            np.testing.assert_array_equal(inner(result.labels), inner(nearest_color(image)))
            assert (result.confidence is not None) == model.has_confidence
            if result.confidence is not None:
                assert result.confidence.shape == size
                assert inner(result.confidence).min() > 0.9
            assert (result.label_probability is None) == ("agreement" not in model.outputs)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 1), (17, 19)])
def test_any_size_goes_through(bundle: Path, size: tuple[int, int]) -> None:
    with load(bundle) as model:
        result = model.predict(np.full((*size, 3), 240, np.uint8), confidence=True)
        assert result.labels.shape == size
        assert result.labels.max() < 5
        assert result.confidence is not None
        assert np.isfinite(result.confidence).all()


def test_batches_give_the_same_as_single_images(bundle: Path) -> None:
    with load(bundle) as single, load(bundle, batch_max=4) as batched:
        assert batched.batcher is not None
        for seed in range(3):
            image = sample_image(40, 56, seed)
            a, b = (e.predict(image, confidence=True) for e in (single, batched))
            np.testing.assert_array_equal(a.labels, b.labels)
        batched.close()


def test_tiles_agree_with_the_whole_image(tmp_path: Path) -> None:
    image = sample_image(300, 420, seed=5)
    for outputs in (ALL, ("labels", "confidence", "agreement")):
        folder = make_bundle(tmp_path / str(len(outputs)), outputs=outputs)
        with load(folder, tile=96) as model:
            whole = model.predict(image, confidence=True, label_probability=True)
            tiled = model.predict(image, confidence=True, label_probability=True, tile=True)
            assert (whole.tiles, tiled.tiles) == (1, 4 * 6)
            # the reach of this network is a pixel's own pooling cell; tile borders shift the cells
            assert np.mean(whole.labels == tiled.labels) > 0.97
            assert tiled.confidence is not None
            assert whole.confidence is not None
            assert abs(float(tiled.confidence.mean() - whole.confidence.mean())) < 0.02
            assert tiled.label_probability is not None


def test_large_images_are_tiled_by_themselves(bundle: Path) -> None:
    with load(bundle, max_network_pixels=20_000, tile=96) as model:
        assert model.predict(sample_image(100, 100)).tiles == 1
        assert model.predict(sample_image(200, 200)).tiles > 1


def test_tiles_stop_when_nobody_waits(bundle: Path) -> None:
    class GoneError(Exception):
        pass

    calls = []

    def alive() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise GoneError

    with load(bundle, tile=64) as model, pytest.raises(GoneError):
        model.predict(sample_image(300, 300), tile=True, alive=alive)


@pytest.mark.parametrize("outputs", [("labels", "confidence", "logits"), ALL])
def test_other_working_size_upsamples_logits(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    folder = make_bundle(tmp_path, outputs=outputs, resize=ResizeConfig(mode="fixed", height=96, width=128))
    image = cv2.resize(blocks(96, 128), (256, 192), interpolation=cv2.INTER_NEAREST)
    with load(folder) as model:
        assert model.upsampling == "logits"
        result = model.predict(image, confidence=True)
        assert result.labels.shape == (192, 256)
        np.testing.assert_array_equal(result.labels[16::32, 16::32], inner(nearest_color(blocks(96, 128))))
        small = model.predict(image, confidence=True, at_model_size=True)
        assert small.labels.shape == (96, 128)
        assert small.confidence is not None
        assert small.confidence.shape == (96, 128)


def test_without_logits_labels_are_enlarged(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, resize=ResizeConfig(mode="long_side", size=32))
    with load(folder) as model:
        assert model.upsampling == "nearest"
        result = model.predict(np.full((90, 60, 3), 240, np.uint8), confidence=True)
        assert result.labels.shape == (90, 60)
        assert result.confidence is not None
        assert result.confidence.shape == (90, 60)


def test_models_close_after_their_last_user(bundle: Path) -> None:
    model = load(bundle, batch_max=2)
    assert model.batcher is not None
    with model:
        model.close()
        model.predict(sample_image(20, 20))
    with pytest.raises(Exception, match="waiting"):
        model.predict(sample_image(20, 20))
