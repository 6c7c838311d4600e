from __future__ import annotations

import base64
from typing import Any

import pytest

OUTPUTS = ("mask", "json", "rle", "overlay")


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def segment(client: Any, png: bytes, query: str = "") -> Any:
    response = client.post(f"/v1/segment{query}", content=png, headers={"content-type": "image/png"})
    assert response.status_code == 200
    return response


@pytest.mark.parametrize("path", ["/predict", "/v1/models/nearest-color:predict", "/invocations"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_prediction_is_what_segment_answers(client: Any, png: bytes, path: str, output: str) -> None:
    body = {"instances": [b64(png), {"image": b64(png)}], "parameters": {"output": output}}
    reply = client.post(path, json=body)
    assert reply.status_code == 200
    first, second = reply.json()["predictions"]
    expected = segment(client, png, f"?output={output}")
    if output in ("json", "rle"):
        assert first["classes"] == second["classes"] == expected.json()["classes"]
    else:
        assert first == second
        assert base64.b64decode(first["b64"]) == expected.content
        assert first["content_type"] == expected.headers["content-type"]


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ({"instances": []}, (400, "bad_request"), "instances"),
        ({"inputs": []}, (400, "bad_request"), '{"instances": [{"b64"'),
        ({"instances": [{"b64": "%%"}]}, (400, "bad_request"), "instances[0]: b64 is not base64"),
        ({"instances": [b64(b"text")]}, (415, "unsupported_image"), "instances[0]"),
        ({"instances": [b64(b"\x89PNG\r\n\x1a\n123")]}, (422, "corrupt_image"), "instances[0]"),
        ({"instances": [b64(b"x")] * 17}, (400, "bad_request"), "16"),
        ({"instances": [b64(b"x")], "parameters": {"output": "nope"}}, (422, "bad_output"), "mask"),
        ({"instances": [b64(b"x")], "parameters": {"alpha": 7}}, (422, "bad_parameter"), "alpha"),
    ],
)
def test_wrong_instances(client: Any, body: Any, code: tuple[int, str], told: str) -> None:
    response = client.post("/predict", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == code
    assert told in error["message"]


def test_an_image_is_never_told_in_an_error(client: Any) -> None:
    response = client.post("/predict", json={"instances": ["c2VjcmV0"]})
    assert response.status_code == 400
    assert "c2VjcmV0" not in response.text


def test_the_name_in_the_path_counts(client: Any, png: bytes) -> None:
    assert client.get("/v1/models/nearest-color").json() == {"name": "nearest-color", "ready": True}
    assert client.get("/v1/models/other").status_code == 404
    reply = client.post("/v1/models/other:predict", json={"instances": [b64(png)]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_invocations_take_an_image_with_accept_or_attributes(client: Any, png: bytes) -> None:
    headers = {"content-type": "image/png"}
    assert client.post("/invocations", content=png, headers=headers).content == segment(client, png).content
    asked = headers | {"accept": "application/json"}
    assert client.post("/invocations", content=png, headers=asked).json()["classes"]
    attributes = headers | {"x-amzn-sagemaker-custom-attributes": "output=rle&classes=red"}
    (item,) = client.post("/invocations", content=png, headers=attributes).json()["classes"]
    assert item["name"] == "red"
    assert item["rle"]
    wrong = client.post(
        "/invocations", content=png, headers=headers | {"x-amzn-sagemaker-custom-attributes": "trace-17"}
    )
    assert wrong.status_code == 200


def test_ping_is_the_readiness(client: Any, serve: Any, tmp_path: Any) -> None:
    assert client.get("/ping").status_code == 200
    unready = serve(model=str(tmp_path))
    assert unready.get("/ping").status_code == 503
