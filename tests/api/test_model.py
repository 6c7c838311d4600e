"""A checkpoint in Python: the answers of ``protoseg.predict``, and streams of images."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import photo, tiny_info, tiny_segmenter

import protoseg
from protoseg import Segmenter, UserError
from protoseg.api.load import local_path
from protoseg.checkpoint import save_checkpoint
from protoseg.predict.__main__ import main as predict
from protoseg.predict.images import predict_image


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    network = tiny_segmenter()
    save_checkpoint(folder / "checkpoint", network, tiny_info(), tiny_segmenter(seed=5).network)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Segmenter:
    return Segmenter(run)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, name in enumerate(("a.png", "b.jpg", "sub/a.png", "sub/c.png")):
        Image.fromarray(photo(number)).save(folder / name, exif=exif)
    return folder


@pytest.mark.parametrize("options", [[], ["--head", "fused", "--sliding", "--student"]], ids=str)
def test_answers_are_those_of_predict(run: Path, images: Path, tmp_path: Path, options: list[str]) -> None:
    assert predict([str(run), str(images), "-o", str(tmp_path / "cli"), "--device", "cpu", *options]) == 0
    head = "fused" if "fused" in options else None
    model = protoseg.load(run, head=head, device="cpu", student="--student" in options)
    for result in model.stream(images, windows="--sliding" in options):
        result.save(tmp_path / "api", overlay=True, confidence=True, disagreement=True)
    files = [p.relative_to(tmp_path / "cli") for p in sorted((tmp_path / "cli").rglob("*.*"))]
    assert len(files) == 4 * 4 + 1
    for file in files:
        assert (tmp_path / "api" / file).read_bytes() == (tmp_path / "cli" / file).read_bytes(), file


def test_labels_and_scores_are_predict_images(model: Segmenter, run: Path) -> None:
    image = photo(3, 50, 60)
    found = model(image)
    expected = predict_image(tiny_segmenter(), image, tiny_info().input)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    np.testing.assert_array_equal(found.agreement, expected.label_probability)
    assert found.image is image or np.array_equal(found.image, image)
    bare = model(image, scores=False)
    assert (bare.confidence, bare.agreement) == (None, None)
    half = protoseg.load(run, precision="bf16")(image)
    assert np.mean(half.labels == found.labels) > 0.9
    assert not np.array_equal(half.confidence, found.confidence)


def test_a_list_gives_a_list(model: Segmenter, images: Path) -> None:
    results = model([images / "a.png", photo(7)])
    np.testing.assert_array_equal(results[0].labels, model(images / "a.png").labels)
    np.testing.assert_array_equal(results[1].labels, model(photo(7)).labels)
    assert model([]) == []


def test_a_stream_keeps_the_order_and_little_in_memory(model: Segmenter, monkeypatch: Any) -> None:
    asked: list[int] = []
    read, gate = model._read, threading.Event()

    def slow_first(image: Any) -> Any:
        if image[0, 0, 0] == 0:
            gate.wait(10)
        return read(image)

    def sources() -> Iterator[Any]:
        for number in range(20):
            asked.append(number)
            yield np.full((8, 8 + number, 3), number, np.uint8)

    monkeypatch.setattr(model, "_read", slow_first)
    stream = model.stream(sources(), ahead=3)
    assert asked == []
    threading.Timer(0.05, gate.set).start()
    widths = []
    for done, result in enumerate(stream, 1):
        widths.append(result.labels.shape[1])
        assert len(asked) <= done + 2
    assert widths == list(range(8, 28))


def test_a_stream_that_is_left_reads_no_more(model: Segmenter) -> None:
    asked = []
    stream = model.stream((asked.append(1) or photo(1) for _ in range(50)), ahead=2)
    next(stream)
    stream.close()
    assert len(asked) <= 3


def test_an_image_that_cannot_be_read_is_named_or_skipped(
    model: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "c.png"):
        Image.fromarray(photo(1)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    stream = model.stream(tmp_path)
    assert next(stream).origin.name == "a"
    with pytest.raises(UserError, match=r"b\.png cannot be decoded"):
        next(stream)
    with caplog.at_level(logging.WARNING, "protoseg"):
        assert [item.origin.name for item in model.stream(tmp_path, on_error="skip")] == ["a", "c"]
    assert "b.png" in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"images": "absent"}, "absent is neither a file nor a folder"),
        ({"images": photo(1)}, "a folder or several images, got one ndarray"),
        ({"images": [], "on_error": "stop"}, "on_error must be one of raise, skip, got 'stop'"),
        ({"images": [], "ahead": 0}, "ahead must be at least 1"),
    ],
)
def test_wrong_streams_are_told_at_once(model: Segmenter, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        model.stream(**options)


def test_what_a_reference_opens(run: Path, tmp_path: Path) -> None:
    for reference in (run, run / "checkpoint", run / "checkpoint" / "model.safetensors", str(run)):
        model = protoseg.load(reference)
        assert isinstance(model, Segmenter)
        assert (model.kind, model.path, model.info.version) == ("checkpoint", run / "checkpoint", "1")
    assert model.names == ["class0", "class1", "class2"]
    assert repr(model).startswith("<Segmenter tiny (1), linear head on ")
    for options, says in (
        ({"reference": tmp_path / "absent"}, "absent does not exist"),
        ({"reference": tmp_path}, "no checkpoint at"),
        ({"reference": "s3://bucket/name"}, "cannot load s3://bucket/name"),
        ({"reference": run, "prefer": "bundle"}, "has no bundle; make one with: python -m export.onnx"),
        ({"reference": run, "prefer": "onnx"}, "prefer must be one of checkpoint, bundle, got 'onnx'"),
        ({"reference": run, "head": "both"}, "head must be one of linear, prototype, fused"),
        ({"reference": run, "precision": "int8"}, "int8 needs a bundle"),
        ({"reference": run, "device": "tpu9"}, "device 'tpu9' cannot be used"),
        ({"reference": run, "threads": 2}, "torch.set_num_threads"),
    ):
        with pytest.raises(UserError, match=says):
            protoseg.load(**options)
    assert local_path("~") == Path.home()


def test_a_run_with_both_opens_its_checkpoint(run: Path, monkeypatch: Any) -> None:
    opened = []
    monkeypatch.setattr("serving.local.Bundle", lambda path, **options: opened.append(path))
    (run / "bundle").mkdir()
    (run / "bundle" / "manifest.json").write_text("{}")
    assert isinstance(protoseg.load(run), Segmenter)
    protoseg.load(run, prefer="bundle")
    protoseg.load(run / "bundle")
    assert opened == [run / "bundle"] * 2


@pytest.mark.gpu
def test_a_gpu_is_found_and_says_the_same(run: Path) -> None:
    image = photo(3, 160, 200)
    expected = protoseg.load(run, device="cpu")(image)
    with protoseg.load(run) as model:
        assert model.device.startswith("cuda")
        found = model(torch.from_numpy(image).permute(2, 0, 1).cuda())
    assert np.mean(found.labels == expected.labels) > 0.999
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=5e-3)
    with protoseg.load(run, precision="fp16") as half:
        assert np.mean(half(image).labels == expected.labels) > 0.97
    held = torch.cuda.memory_allocated()
    with protoseg.load(run) as model:
        assert torch.cuda.memory_allocated() > held
    assert torch.cuda.memory_allocated() <= held
