from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.nearest_color import sample_image

PATH = "/v2/models/nearest-color/infer"


def question(**changes: Any) -> dict[str, Any]:
    image = sample_image(8, 12)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 12, 3], "data": image.ravel().tolist()}
    return {"id": "q1", "inputs": [tensor | changes]}


def test_health_and_metadata(client: Any) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    value = client.get("/v2/models/nearest-color").json()
    assert value["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert value["outputs"][0] == {"name": "labels", "datatype": "UINT8", "shape": [-1, -1, -1]}
    assert client.get("/v2/models/nearest-color/ready").json()["ready"] is True


def test_json_and_binary_agree(client: Any) -> None:
    value = question()
    value["outputs"] = [{"name": "labels"}, {"name": "confidence"}]
    reply = client.post(PATH, json=value).json()
    assert (reply["model_name"], reply["id"]) == ("nearest-color", "q1")
    labels, confidence = reply["outputs"]
    assert (labels["shape"], labels["datatype"]) == ([1, 8, 12], "UINT8")
    assert (confidence["datatype"], len(confidence["data"])) == ("FP32", 96)

    tensor = value["inputs"][0]
    raw = np.array(tensor.pop("data"), np.uint8).tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    value["parameters"] = {"binary_data_output": True}
    value["outputs"][1]["parameters"] = {"binary_data": False}
    head = json.dumps(value).encode()
    response = client.post(
        PATH, content=head + raw, headers={"inference-header-content-length": str(len(head))}
    )
    length = int(response.headers["inference-header-content-length"])
    reply = json.loads(response.content[:length])
    assert reply["outputs"][0]["parameters"] == {"binary_data_size": 96}
    assert list(response.content[length:]) == labels["data"]
    assert reply["outputs"][1]["data"] == confidence["data"]


def test_every_output_for_those_who_name_none(client: Any) -> None:
    outputs = client.post(PATH, json=question()).json()["outputs"]
    assert [item["name"] for item in outputs] == ["labels", "confidence", "agreement"]


def test_versions_are_paths_too(client: Any) -> None:
    base = "/v2/models/nearest-color/versions"
    version = client.get("/v2/models/nearest-color").json()["versions"][0]
    assert client.get(f"{base}/{version}").json()["name"] == "nearest-color"
    assert client.get(f"{base}/{version}/ready").json()["ready"] is True
    assert client.post(f"{base}/{version}/infer", json=question()).status_code == 200
    for response in (client.get(f"{base}/other/ready"), client.post(f"{base}/other/infer", json=question())):
        assert response.status_code == 404
        assert response.headers["x-error-code"] == "not_found"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ([], 400),
        ({}, 400),
        ({"inputs": []}, 400),
        (question(shape=[1, 8, 12]), 400),
        (question(shape=[1, 8, 12, 4]), 400),
        (question(shape=[1, -8, 12, 3]), 400),
        (question(shape=[1, 8, True, 3]), 400),
        (question(shape=[9, 1000, 1000, 3]), 413),
        (question(datatype="FP32"), 400),
        (question(name="picture"), 400),
        (question(data=[1, 2, 3]), 400),
        (question(data=[300] * 288), 400),
        (question(data=[0.5] * 288), 400),
        (question(data=[[1], [2, 3]]), 400),
        (question(data="abc"), 400),
        (question(parameters={"binary_data_size": 288}), 400),
        (question() | {"outputs": [{"name": "nope"}]}, 400),
        (question() | {"outputs": "labels"}, 400),
        (question() | {"id": 7}, 400),
    ],
)
def test_malformed_questions(client: Any, value: Any, status: int) -> None:
    response = client.post(PATH, json=value)
    assert response.status_code == status
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize("length", ["99999", "-1", "x"])
def test_header_length_must_fit(client: Any, length: str) -> None:
    response = client.post(PATH, json=question(), headers={"inference-header-content-length": length})
    assert response.status_code == 400


def test_bodies_that_are_not_json(client: Any) -> None:
    for body in (b"", b"\xff", b"[" * 100_000):
        assert client.post(PATH, content=body).status_code == 400
