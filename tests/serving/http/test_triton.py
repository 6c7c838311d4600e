from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.nearest_color import sample_image

NAME = "nearest-color"
MODEL = f"/v2/models/{NAME}"


def infer(client: Any, batch: int = 1) -> Any:
    images = np.stack([sample_image(8, 12)] * batch)
    tensor = {
        "name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist(),
    }  # fmt: skip
    return client.post(f"{MODEL}/infer", json={"inputs": [tensor]})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/models/other", 404, "not_found"),
        ("GET", "/v2/nope", 404, "not_found"),
        ("GET", f"{MODEL}/infer", 405, "method_not_allowed"),
        ("POST", f"{MODEL}/infer", 400, "bad_request"),
        ("GET", "/v2/models/other/stats", 404, "not_found"),
    ],
)
def test_errors_are_strings_as_the_protocol_says(
    client: Any, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    value = response.json()
    assert response.status_code == status
    assert set(value) == {"error"}
    assert isinstance(value["error"], str)
    assert value["error"]
    assert response.headers["x-error-code"] == code


def test_the_configuration_has_the_metadata_in_tritons_words(client: Any) -> None:
    config = client.get(f"{MODEL}/config").json()
    metadata = client.get(MODEL).json()
    assert config["name"] == NAME
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, -1, 3]}]
    assert [item["name"] for item in config["output"]] == [item["name"] for item in metadata["outputs"]]
    assert client.get(f"{MODEL}/versions/1/config").json() == config
    index = client.post("/v2/repository/index", json={"ready": True}).json()
    assert index == [{"name": NAME, "version": "1", "state": "READY", "reason": ""}]
    assert client.get("/v2").json()["extensions"] == [
        "binary_tensor_data", "model_configuration", "model_repository", "statistics",
    ]  # fmt: skip


def test_statistics_count_images_stages_and_failures(client: Any, png: bytes) -> None:
    def stats() -> Any:
        (value,) = client.get(f"{MODEL}/stats").json()["model_stats"]
        return value

    before = stats()
    assert infer(client, 3).status_code == 200
    assert client.post("/v1/segment", content=png, headers={"content-type": "image/png"}).status_code == 200
    assert client.post(f"{MODEL}/infer", content=b"{}").status_code == 400
    after = stats()
    assert client.get("/v2/models/stats").json() == {"model_stats": [after]}

    def grown(*keys: str) -> int:
        old, new = before, after
        for key in keys:
            old, new = old[key], new[key]
        return int(new - old)

    assert grown("inference_count") == 4
    assert grown("execution_count") == 2
    assert grown("inference_stats", "success", "count") == 2
    assert grown("inference_stats", "fail", "count") == 1
    assert grown("inference_stats", "compute_infer", "count") == 2
    # the malformed request was read too
    assert grown("inference_stats", "compute_input", "count") == 3
    for stage in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert grown("inference_stats", stage, "ns") > 0
    assert after["last_inference"] >= before["last_inference"] > 0
