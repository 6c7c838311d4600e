"""A bundle in Python and the client against the service: one answer, whoever gives it."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny import quiet_environment

import protoseg
from benchmarks.nearest_color import sample_image
from benchmarks.serving_bundle import make_bundle
from benchmarks.serving_server import Server
from protoseg import Bundle, Result, UserError
from protoseg.input_rule import ResizeConfig
from serving import Client
from serving.pixels.png import scores_to_bytes

Pixels = NDArray[np.uint8]
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Bundle]:
    with Bundle(bundle) as opened:
        yield opened


def client_of(service: Any, **options: Any) -> Client:
    """Our client of a service in this process."""

    def handle(request: httpx.Request) -> httpx.Response:
        answer = service.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    return Client("http://testserver", transport=httpx.MockTransport(handle), **options)


@pytest.fixture(scope="module")
def remote(client: Any) -> Client:
    return client_of(client)


def served(client: Any, data: bytes, **parameters: str) -> Pixels:
    headers = {"content-type": "application/octet-stream"}
    answer = client.post("/v1/segment", content=data, params=parameters, headers=headers)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def same(one: Result, other: Result) -> None:
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.confidence is not None
    assert other.confidence is not None
    np.testing.assert_allclose(one.confidence, other.confidence, atol=0.51 / 255)
    np.testing.assert_allclose(one.agreement, other.agreement, atol=0.51 / 255)
    assert [item.name for item in one.classes] == [item.name for item in other.classes]


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "WEBP", "turned", "tiled", pytest.param("large", marks=pytest.mark.slow)]
)
def test_answers_are_the_services(
    model: Bundle, client: Any, remote: Client, helpers: Any, image: Pixels, kind: str
) -> None:
    options, tile = {}, kind == "tiled"
    if kind == "turned":
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        options["exif"] = exif
    if kind in ("tiled", "large"):
        image = sample_image(200, 300) if tile else sample_image(1200, 1800)
    data = helpers.encode(image, kind if kind.isupper() else "PNG", **options)
    found = model(data, windows=tile)
    expected = served(client, data, **({"tile": "1"} if tile else {}))
    np.testing.assert_array_equal(found.labels, expected)
    assert (found.labels.shape == image.shape[:2]) == (kind != "turned")
    confidence = served(client, data, output="confidence", **({"tile": "1"} if tile else {}))
    assert found.confidence is not None
    np.testing.assert_array_equal(scores_to_bytes(found.confidence), confidence)
    same(remote(data, windows=tile), found)
    np.testing.assert_array_equal(model(data, scores=False, windows=tile).labels, expected)


def test_other_sizes_and_the_argmax_outside_of_the_graph(
    tmp_path: Path, serve: Any, helpers: Any, image: Pixels
) -> None:
    outputs = ("labels", "confidence", "agreement", "logits_stride")
    resize = ResizeConfig(mode="fixed", height=48, width=80)
    folder = make_bundle(tmp_path / "bundle", outputs=outputs, resize=resize)
    data = helpers.encode(image)
    client = serve(model=str(folder))
    for threads in (1, 2):
        with protoseg.load(folder, threads=threads) as model:
            np.testing.assert_array_equal(model(data).labels, served(client, data))


def test_outside_of_the_graph_the_linear_heads_agreement_is_its_confidence(
    tmp_path: Path, helpers: Any, image: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph of all outputs need not be run."""
    outputs = ("labels", "confidence", "agreement", "logits_stride")
    with Bundle(make_bundle(tmp_path / "bundle", outputs=outputs)) as model:
        whole = model._model.predict(image, confidence=True)
        asked, run = [], model._model._run
        monkeypatch.setattr(
            model._model, "_run", lambda images, names: asked.append(names) or run(images, names)
        )
        found = model(helpers.encode(image))
    assert asked == [{"logits_stride"}]
    np.testing.assert_array_equal(found.labels, whole.labels)
    np.testing.assert_array_equal(found.agreement, whole.confidence)
    np.testing.assert_array_equal(found.confidence, whole.confidence)


def test_the_client_takes_what_a_model_takes(
    model: Bundle, remote: Client, tmp_path: Path, image: Pixels, png: bytes
) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "a.png").write_bytes(png)
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), png, Image.open(tmp_path / "a.png"), image,
             torch.from_numpy(image).permute(2, 0, 1)]  # fmt: skip
    expected = model(image)
    results = remote(kinds)
    for found in [*results, *model(kinds)]:
        same(found, expected)
    assert [item.origin.name for item in results] == ["a", "a", "image", "a", "image", "image"]
    assert results[0].info == model.info
    np.testing.assert_array_equal(np.asarray(results[0].overlay()), np.asarray(expected.overlay()))


def test_the_client_names_files_that_are_not_there(remote: Client, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.png cannot be read"):
        remote(tmp_path / "absent.png")
    with pytest.raises(UserError, match="is a folder"):
        remote(tmp_path)


def test_a_swapped_model_is_asked_for_again(tmp_path: Path, serve: Any, helpers: Any, image: Pixels) -> None:
    folder = make_bundle(tmp_path / "bundle", version="1")
    client = serve(model=str(folder), admin_keys=helpers.sha256("key"))
    remote = client_of(client, api_key="key")
    assert remote(image).info.version == "1"
    make_bundle(folder, version="2")
    remote.reload()
    assert remote(image).info.version == "2"


def test_files_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    with protoseg.load(bundle / "model.onnx") as model:
        assert isinstance(model, Bundle)
        assert (model.file, model.kind, model.head) == ("model.onnx", "bundle", "linear")
        assert model.names == ["background", "red", "green", "blue", "white"]
    with pytest.raises(UserError, match=r"is a part of model\.onnx"):
        protoseg.load(bundle / "model.labels.onnx")
    (bundle / "other.onnx").touch()
    with pytest.raises(UserError, match=r"has no file other\.onnx"):
        protoseg.load(bundle / "other.onnx")
    with pytest.raises(UserError, match="has the linear head, not fused"):
        protoseg.load(bundle, head="fused")
    with pytest.raises(UserError, match="no fp16 ONNX file"):
        protoseg.load(bundle, precision="fp16")
    with pytest.raises(UserError, match="device"):
        protoseg.load(bundle, device="tpu")
    with pytest.raises(UserError, match="holds the teacher only"):
        protoseg.load(bundle, student=True)
    with pytest.raises(UserError, match="threads"):
        protoseg.load(bundle, threads=0)


def test_a_damaged_image_is_named(model: Bundle, tmp_path: Path, png: bytes) -> None:
    (tmp_path / "cut.png").write_bytes(png[:100])
    with pytest.raises(UserError, match=r"cut\.png: the image data cannot be decoded"):
        model(tmp_path / "cut.png")


def test_a_run_with_a_bundle_alone_needs_no_torch(bundle: Path, tmp_path: Path, image: Pixels) -> None:
    """Loads, segments, saves, streams, draws: torch is blocked."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "bundle").symlink_to(bundle)
    images = tmp_path / "images"
    images.mkdir()
    np.save(images / "a.npy", image)
    Image.fromarray(image).save(images / "b.jpg")
    program = f"""
import sys
for name in ("torch", "torchvision", "accelerate", "timm"):
    sys.modules[name] = None
import protoseg
model = protoseg.load({str(run)!r})
results = list(model.stream({str(images)!r}))
for result in results:
    result.save({str(tmp_path / "out")!r}, overlay=True, confidence=True, disagreement=True)
result.overlay(), result.to_coco(), result.to_geojson(), result._repr_html_()
import serving.client
print(len(results))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=quiet_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
    assert (tmp_path / "out" / "overlays" / "b.jpg").is_file()


@pytest.mark.slow
def test_a_real_server_says_the_same(bundle: Path, model: Bundle, tmp_path: Path, png: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png)
    with Server({"PROTOSEG_MODEL": str(bundle)}) as server:
        server.wait_ready()
        with Client(server.url) as client:
            for found in client([tmp_path / "a.png", png]):
                same(found, model(png))


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tells novelty, and explains."""
    outputs = ("labels", "confidence", "agreement", "novelty")
    return make_bundle(tmp_path_factory.mktemp("telling") / "bundle", outputs=outputs, explains=True)


def test_novelty_and_reasons_are_one_answer_too(
    telling: Path, serve: Any, helpers: Any, image: Pixels, tmp_path: Path
) -> None:
    client = serve(model=str(telling))
    remote = client_of(client)
    image = image.copy()
    image[:12, :16] = (165, 150, 145)  # as far from one colour of the network as from four
    png = helpers.encode(image)
    with protoseg.load(telling) as model:
        found = model(png, novelty=True, explain=True)
    far, _ = remote([png, png], novelty=True, explain=True)
    same(far, found)
    assert found.novelty is not None
    assert far.novelty is not None
    assert found.novelty.max() > 0.1
    assert far.novel_share == found.novel_share
    np.testing.assert_allclose(far.novelty, found.novelty, atol=0.51 / 255)
    np.testing.assert_array_equal(far.novel, found.novel)
    asked = {"x": "3,88,40", "y": "2,57,31", "output": "explain"}
    headers = {"content-type": "application/octet-stream"}
    told = client.post("/v1/segment", content=png, params=asked, headers=headers).json()
    for point in told["points"]:
        x, y = point["x"], point["y"]
        near, there = found.explain(x, y), far.explain(x, y)
        for key in ("prototype_class", "similarity", "runner_up", "runner_up_similarity"):
            assert getattr(near, key) == point[key], key
        assert (near.prototype.index, near.name, near.id) == (
            point["prototype"],
            point["class"],
            point["class_id"],
        )
        assert there.prototype.model_copy(update={"strip": near.prototype.strip}) == near.prototype
        assert (there.name, there.prototype_class) == (near.name, near.prototype_class)
        assert there.similarity == pytest.approx(near.similarity, abs=0.51 / 255 + 1e-4)
        if near.runner_up_similarity and near.runner_up_similarity > 1 / 255:
            assert there.runner_up == near.runner_up
        assert [np.asarray(item).tolist() for item in there.thumbnails()] == [
            np.asarray(item).tolist() for item in near.thumbnails()
        ]
        assert there.to_pil().size == near.to_pil().size
    whole = client.post("/v1/segment", content=png, params={"output": "explain"}, headers=headers).json()
    assert found.reasons()["regions"] == far.reasons()["regions"] == whole["regions"]
    files = [
        path.relative_to(tmp_path / name).as_posix()
        for name, result in (("near", found), ("far", far))
        for path in result.save(tmp_path / name, novelty=True, explain=True)
    ]
    assert files == 2 * ["masks/image.png", "novelty/image.png", "explain/image.json", "explain/image.png",
                         "explain/image.jpg"]  # fmt: skip
    record = (tmp_path / "near" / "explain" / "image.json").read_text()
    assert '"step": 1' in record


def test_patches_are_fetched_once_for_a_model(telling: Path, serve: Any, png: bytes) -> None:
    service, asked = serve(model=str(telling)), []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        headers = dict(request.headers)
        answer = service.request(request.method, str(request.url), content=request.read(), headers=headers)
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    with Client("http://testserver", transport=httpx.MockTransport(handle)) as remote:
        first = remote(png, explain=True)
        number = sum(path.startswith("/v1/prototypes/") for path in asked)
        assert 0 < number <= 5
        remote(png, explain=True)
        assert sum(path.startswith("/v1/prototypes/") for path in asked) == number
    assert first.explain(4, 4).thumbnails(), "also when the client is closed"


def test_what_a_bundle_lacks_is_told_with_its_cure(
    model: Bundle, remote: Client, telling: Path, serve: Any, png: bytes
) -> None:
    cures = {"novelty": r"python -m protoseg\.novelty CKPT.*--outputs agreement,novelty",
             "explain": r"python -m export\.onnx CKPT --explain"}  # fmt: skip
    for asked, cure in cures.items():
        for call in (model, remote):
            with pytest.raises(UserError, match=cure):
                call(png, **{asked: True})
    large = sample_image(60, 600)
    client = client_of(serve(model=str(telling)))
    with protoseg.load(telling) as opened:
        for call in (opened, client):
            with pytest.raises(UserError, match="not explained in tiles"):
                call(large, windows=True, explain=True)
