from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.nearest_color import COLORS, NAMES, sample_image
from benchmarks.serving_bundle import make_bundle
from serving.http.routes import ROUTES

Pixels = NDArray[np.uint8]
PICKLE = {"content-type": "application/vnd.bentoml+pickle"}


def read(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)))


def post(client: Any, data: bytes, path: str = "/v1/segment", **headers: str) -> Any:
    return client.post(path, content=data, headers={"content-type": "application/octet-stream"} | headers)


def error_of(response: Any) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "request_id"}
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    assert body["error"]["message"]
    return response.status_code, body["error"]["code"]


@pytest.fixture(scope="module")
def mask(client: Any, png: bytes) -> Pixels:
    return read(post(client, png).content)


def test_mask_is_a_palette_png_of_the_right_classes(client: Any, png: bytes, image: Pixels) -> None:
    response = post(client, png)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-model-name"] == "nearest-color"
    assert "infer;dur=" in response.headers["server-timing"]
    shown = Image.open(io.BytesIO(response.content))
    assert (shown.mode, shown.size) == ("P", (90, 60))
    assert (shown.getpalette() or [])[3:6] == list(COLORS[1])
    labels = np.asarray(shown)
    nearest = ((image[:, :, None].astype(int) - np.array(COLORS)) ** 2).sum(-1).argmin(-1)
    assert np.mean(labels == nearest) > 0.9


@pytest.mark.parametrize("path", ["/v1/segment", "/segment"])
@pytest.mark.parametrize("field", ["image", "file"])
def test_multipart_and_raw_give_the_same(
    client: Any, png: bytes, mask: Pixels, path: str, field: str
) -> None:
    response = client.post(path, files={field: ("a.png", png, "image/png")}, data={"output": "mask"})
    np.testing.assert_array_equal(read(response.content), mask)


@pytest.mark.parametrize("kind", ["image/png", "image/jpg", "application/octet-stream", "image/webp"])
def test_content_decides_not_the_label(client: Any, png: bytes, mask: Pixels, kind: str) -> None:
    response = client.post("/v1/segment", content=png, headers={"content-type": kind})
    np.testing.assert_array_equal(read(response.content), mask)


def test_json_adds_up(client: Any, png: bytes, mask: Pixels) -> None:
    value = post(client, png, "/v1/segment?output=json").json()
    assert (value["width"], value["height"]) == (90, 60)
    assert sum(item["pixels"] for item in value["classes"]) == 60 * 90
    counts = np.bincount(mask.ravel(), minlength=5)
    for item in value["classes"]:
        assert item["pixels"] == counts[item["id"]]
        assert item["name"] == NAMES[item["id"]]
        assert 0.2 < item["mean_confidence"] <= 1
        assert 0 <= item["mean_agreement"] <= 1
    assert len(value["model"]["sha256"]) == 64
    assert set(value["timing_ms"]) >= {"queue", "decode", "infer"}


def test_rle_and_polygons(client: Any, png: bytes, mask: Pixels) -> None:
    value = post(client, png, "/v1/segment?output=rle&classes=red").json()
    (item,) = value["classes"]
    flat = np.zeros(mask.size, bool)
    edges = np.cumsum(item["rle"]["counts"])
    for start, end in zip(edges[::2], edges[1::2], strict=False):
        flat[start:end] = True
    np.testing.assert_array_equal(flat.reshape(mask.shape, order="F"), mask == 1)
    value = post(client, png, "/v1/segment?output=polygons&simplify=1").json()
    assert {item["name"] for item in value["classes"]} == {NAMES[i] for i in np.unique(mask)}
    response = post(client, png, accept="application/geo+json")
    assert response.headers["content-type"] == "application/geo+json"
    assert response.json()["type"] == "FeatureCollection"


def test_score_maps_overlay_and_hf(client: Any, png: bytes, mask: Pixels) -> None:
    for output in ("confidence", "agreement"):
        scores = read(post(client, png, f"/v1/segment?output={output}").content)
        assert scores.shape == mask.shape
        assert scores.mean() > 100
    overlay = post(client, png, "/v1/segment?output=overlay&alpha=1")
    assert overlay.headers["content-type"] == "image/jpeg"
    shown = read(overlay.content).astype(int)
    assert np.abs(shown - np.array(COLORS)[mask]).mean() < 12
    segments = post(client, png, "/v1/segment?output=hf").json()
    by_name = {item["label"]: item for item in segments}
    red = read(base64.b64decode(by_name["red"]["mask"]))
    np.testing.assert_array_equal(red == 255, mask == 1)
    assert 0 < by_name["red"]["score"] <= 1


def test_accept_and_class_filter(client: Any, png: bytes, mask: Pixels) -> None:
    assert post(client, png, accept="application/json").json()["classes"]
    filtered = read(post(client, png, "/v1/segment?classes=1,green").content)
    np.testing.assert_array_equal(filtered, np.where(np.isin(mask, [1, 2]), mask, 255))


def test_orientation_gives_an_upright_mask(client: Any, helpers: Any, image: Pixels, mask: Pixels) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = helpers.encode(np.ascontiguousarray(np.rot90(image)), exif=exif)
    np.testing.assert_array_equal(read(post(client, turned).content), mask)


def test_tiles(client: Any, helpers: Any) -> None:
    response = post(client, helpers.encode(sample_image(700, 900)), "/v1/segment?tile=1")
    assert response.headers["x-tiles"] == "6"
    assert read(response.content).shape == (700, 900)


def test_batch_has_an_error_for_each_bad_item(client: Any, png: bytes, mask: Pixels) -> None:
    files = [
        ("image", (name, data)) for name, data in (("a", png), ("b", b"text"), ("c", png[:99]), ("d", png))
    ]
    response = client.post("/v1/segment/batch", files=files)
    assert response.status_code == 200
    items = response.json()["items"]
    assert [item["status"] for item in items] == [200, 415, 422, 200]
    assert [item["name"] for item in items] == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(read(base64.b64decode(items[3]["data"])), mask)
    assert items[1]["error"]["code"] == "unsupported_image"
    response = client.post("/v1/segment/batch?output=json", files=files[:1])
    assert response.json()["items"][0]["result"]["width"] == 90
    too_many = client.post("/v1/segment/batch", files=[("image", ("a", png))] * 17)
    assert error_of(too_many) == (400, "too_many_files")
    assert error_of(post(client, png, "/v1/segment/batch")) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "options", "expected"),
    [
        ("POST", "/v1/segment", {"content": b""}, (400, "empty_body")),
        ("POST", "/v1/segment", {"files": {"other": b"x"}}, (400, "missing_image")),
        ("POST", "/v1/segment", {"data": {"image": "http://127.0.0.1/"}}, (415, "unsupported_media_type")),
        ("POST", "/v1/segment", {"json": {"image": "x"}}, (415, "unsupported_media_type")),
        ("POST", "/v1/segment", {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
         (400, "bad_multipart")),
        ("POST", "/v1/segment", {"content": b"x", "headers": PICKLE},
         (415, "unsupported_media_type")),
        ("POST", "/v1/segment", {"content": b"x", "headers": {"content-encoding": "gzip"}},
         (415, "content_encoding")),
        ("POST", "/v1/segment", {"content": b"not an image"}, (415, "unsupported_image")),
        ("POST", "/v1/segment", {"content": b"\x89PNG\r\n\x1a\n123"}, (422, "corrupt_image")),
        ("POST", "/v1/segment?output=nope", {"content": b"x"}, (422, "bad_output")),
        ("POST", "/v1/segment?alpha=7", {"content": b"x"}, (422, "bad_parameter")),
        ("POST", "/v1/segment?unknown=7", {"content": b"x"}, (422, "bad_parameter")),
        ("GET", "/v1/segment", {}, (405, "method_not_allowed")),
        ("DELETE", "/v1/model", {}, (405, "method_not_allowed")),
        ("GET", "/nope", {}, (404, "not_found")),
        ("GET", "/v1/segment/../../etc/passwd", {}, (404, "not_found")),
        ("GET", "/demo/../settings.py", {}, (404, "not_found")),
        ("GET", "/v1/samples/7", {}, (404, "not_found")),
        ("POST", "/v1/reload", {}, (401, "unauthorized")),
    ],
)  # fmt: skip
def test_error_table(
    client: Any, method: str, path: str, options: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert error_of(client.request(method, path, **options)) == expected


def test_head_and_allow(client: Any) -> None:
    assert client.head("/").status_code == 200
    assert client.get("/v1/segment").headers["allow"] == "POST"


def test_request_ids_are_kept_or_made(client: Any) -> None:
    assert client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("a b", "x" * 65, "<script>"):
        assert client.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"] != bad


@pytest.fixture(scope="module")
def small(serve: Any) -> Any:
    return serve(max_body=1000, max_pixels=5000, body_memory=2000)


def test_body_limit_is_exact(small: Any) -> None:
    assert error_of(post(small, b"x" * 1000)) == (415, "unsupported_image")
    assert error_of(post(small, b"x" * 1001)) == (413, "body_too_large")

    def chunks() -> Any:
        yield b"x" * 600
        yield b"x" * 600

    assert error_of(small.post("/v1/segment", content=chunks())) == (413, "body_too_large")


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "0x10", "²"])
def test_lying_content_length(small: Any, length: str) -> None:
    headers = {"content-length": length.encode()}
    assert error_of(small.post("/v1/segment", content=b"x", headers=headers)) == (413, "body_too_large")


def test_pixel_limit(small: Any, helpers: Any) -> None:
    data = helpers.encode(np.zeros((51, 100, 3), np.uint8))
    assert len(data) < 1000
    assert error_of(post(small, data)) == (413, "too_many_pixels")


def test_keys(serve: Any, png: bytes, helpers: Any) -> None:
    keyed = serve(api_keys=helpers.sha256("open sesame"), admin_keys=helpers.sha256("boss"))
    assert error_of(post(keyed, png)) == (401, "unauthorized")
    assert post(keyed, png).headers["www-authenticate"] == "Bearer"
    for headers in ({"authorization": "Bearer open sesame"}, {"x-api-key": "open sesame"}):
        assert post(keyed, png, **headers).status_code == 200
    assert error_of(post(keyed, png, authorization="Bearer open sesam")) == (401, "unauthorized")
    for path in [*(route.path for route in ROUTES if route.probe), "/", "/docs", "/demo/app.js"]:
        assert keyed.get(path).status_code == 200, path
    for path in ("/metrics", "/v1/model", "/docs.json", "/openapi.json", "/v1/samples/0", "/schema.json"):
        assert error_of(keyed.get(path)) == (401, "unauthorized")
    assert keyed.get("/v2/models/stats").headers["x-error-code"] == "unauthorized"
    wrong = keyed.post("/v1/reload", headers={"x-api-key": "open sesame"})
    assert error_of(wrong) == (401, "unauthorized")
    reply = keyed.post("/v1/reload", headers={"x-api-key": "boss"})
    assert reply.status_code == 200
    assert reply.json()["model"]["name"] == "nearest-color"


def test_rate_limit(serve: Any, png: bytes) -> None:
    limited = serve(rate=0.01, rate_burst=2)
    assert [post(limited, png).status_code for _ in range(2)] == [200, 200]
    refused = post(limited, png)
    assert error_of(refused) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    assert limited.get("/v1/model").status_code == 200


def test_cors_only_for_named_origins(serve: Any, png: bytes) -> None:
    shared = serve(cors="https://app.example")
    good, bad = {"origin": "https://app.example"}, {"origin": "https://evil.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    preflight = shared.options("/v1/segment", headers=good | asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    refused = shared.options("/v1/segment", headers=bad | asks)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers
    assert post(shared, png, **good).headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-origin" not in post(shared, png, **bad).headers
    assert shared.options("/v1/segment", headers=bad).status_code == 405
    assert post(shared, b"x", **good).headers["access-control-allow-origin"] == "https://app.example"


def test_cors_for_every_origin(serve: Any, png: bytes) -> None:
    shared = serve(cors="*")
    response = post(shared, png, origin="https://app.example")
    assert response.headers["access-control-allow-origin"] == "*"
    assert "x-tiles" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in post(shared, png).headers


def test_model_description_and_samples(client: Any) -> None:
    value = client.get("/v1/model").json()
    assert [item["name"] for item in value["classes"]] == list(NAMES)
    assert value["upsampling"] == "nearest"
    assert value["limits"]["formats"] == ["jpeg", "png", "webp", "bmp"]
    assert (value["limits"]["max_body"], value["limits"]["max_pixels"]) == (20 * 2**20, 25_000_000)
    sample = client.get(value["samples"][0])
    assert sample.headers["content-type"] == "image/png"
    assert read(sample.content).shape == (96, 128, 3)


def test_page_is_offline_and_locked_down(client: Any) -> None:
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/", "/demo/app.js", "/demo/app.css"):
        text = client.get(path).text
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text
    assert "<script>" not in page.text
    assert " style=" not in page.text


def test_page_can_be_switched_off(serve: Any) -> None:
    assert error_of(serve(ui=False).get("/")) == (404, "not_found")


def test_probes_and_docs(client: Any) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        assert client.get(path).status_code == 200
    docs = client.get("/docs.json").json()
    assert docs["openapi"].startswith("3.")
    assert "/v1/segment" in docs["paths"]
    assert client.get("/schema.json").json()["name"] == "protoseg"


def test_every_documented_path_exists(client: Any) -> None:
    for path, item in client.get("/docs.json").json()["paths"].items():
        real = path.replace("{index}", "0").replace("{name}", "nearest-color").replace("{version}", "1")
        method = "POST" if "post" in item else "GET"
        assert client.request(method, real).status_code not in (404, 405, 500), path


def test_metrics_have_bounded_labels(client: Any, png: bytes) -> None:
    for number in range(20):
        assert client.get(f"/random/{number}").status_code == 404
    post(client, png, "/v1/segment?output=json")
    text = client.get("/metrics").text
    assert "/random/" not in text
    assert 'protoseg_requests_total{route="other",status="404"}' in text
    for name in ("protoseg_stage_seconds", "protoseg_class_pixels_total", "protoseg_confidence_pixels_total",
                 "protoseg_baseline_class_fraction", "protoseg_rejected_total", "protoseg_model_info",
                 "protoseg_queue_depth", "protoseg_in_flight", "protoseg_agreement_bucket"):  # fmt: skip
        assert name in text, name


def test_access_log_is_a_json_line(client: Any, png: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    post(client, png, "/v1/segment?output=json", **{"x-request-id": "log-me"})
    post(client, b"nope")
    client.get("/livez")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["path"] for line in lines] == ["/v1/segment", "/v1/segment"]
    first, second = lines
    assert first["request_id"] == "log-me"
    assert (first["status"], first["width"], first["height"], first["model"]) == (200, 90, 60, "1")
    assert first["bytes_in"] == len(png)
    assert first["infer_ms"] > 0
    assert (second["status"], second["code"]) == (415, "unsupported_image")


def test_hard_images_are_kept_within_bounds(serve: Any, png: bytes, tmp_path: Path) -> None:
    keeping = serve(keep_hard=str(tmp_path / "hard"), keep_hard_below=1.0, keep_hard_bytes=len(png) + 4000)
    for _ in range(2):
        assert post(keeping, png).status_code == 200
    names = sorted(path.name for path in (tmp_path / "hard").iterdir())
    assert [name.split(".", 1)[1] for name in names] == ["json", "mask.png", "png"]
    assert (tmp_path / "hard" / names[2]).read_bytes() == png
    record = json.loads((tmp_path / "hard" / names[0]).read_text())
    assert 0 < record["agreement"] < 1
    other = io.BytesIO()
    Image.fromarray(sample_image(60, 90, seed=8)).save(other, "PNG")
    assert post(keeping, other.getvalue()).status_code == 200
    assert len(list((tmp_path / "hard").iterdir())) == 3


def test_outputs_a_graph_lacks_are_named(serve: Any, png: bytes, tmp_path: Path) -> None:
    plain = serve(model=str(make_bundle(tmp_path / "plain", outputs=("labels",))))
    assert post(plain, png).status_code == 200
    assert error_of(post(plain, png, "/v1/segment?output=agreement")) == (422, "bad_output")
    assert error_of(post(plain, png, "/v1/segment?output=confidence")) == (422, "bad_output")
    assert "mean_confidence" not in post(plain, png, "/v1/segment?output=json").json()["classes"][0]


def test_a_bug_is_a_500_without_details(serve: Any, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = serve()

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr("serving.http.segment.encode_png", fail)
    response = post(broken, png)
    assert error_of(response) == (500, "internal")
    assert "secret" not in response.text


def test_memory_errors_are_503(serve: Any, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr("serving.http.segment.encode_png", fail)
    assert error_of(post(serve(), png)) == (503, "overloaded")
