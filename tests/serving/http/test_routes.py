from __future__ import annotations

import json
import re
from typing import Any

import pytest

from serving.http.openapi import openapi
from serving.http.options import Options
from serving.http.pages import Pages
from serving.http.routes import ROUTES, find_route


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1/segment", "/v1/segment"),
        ("/demo/app.js", "/demo/{file}"),
        ("/demo/index.html", None),
        ("/v1/samples/12", "/v1/samples/{index}"),
        ("/v1/samples/x", None),
        ("/v1/samples/12345", None),
        ("/v2/models/a.b-c", "/v2/models/{name}"),
        ("/v2/models/a/versions/1", "/v2/models/{name}"),
        ("/v2/models/a/versions/1/infer", "/v2/models/{name}/infer"),
        ("/v2/models/a/b/infer", None),
        ("/v2/models/" + "a" * 129, None),
        ("/v1/segment/", None),
        ("//v1/segment", None),
    ],
)
def test_only_paths_of_the_table_are_found(path: str, label: str | None) -> None:
    route = find_route(path)
    assert (route.label if route else None) == label


def test_every_page_has_its_method() -> None:
    pages = {route.page for route in ROUTES if route.page}
    assert pages == {name for name in vars(Pages) if not name.startswith("_")}


def test_the_description_has_every_option_and_path() -> None:
    value: Any = openapi()
    assert set(value["paths"]) == {route.path for route in ROUTES if route.summary}
    assert len(value["paths"]) == 32
    post = value["paths"]["/v1/segment"]["post"]
    parameters = {item["name"]: item for item in post["parameters"]}
    assert set(parameters) == set(Options.model_fields)
    assert parameters["alpha"]["schema"] == {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5}
    assert parameters["classes"]["schema"] == {"type": "string"}
    assert parameters["tile"]["schema"] == {
        "type": "string", "enum": ["0", "1", "false", "true"], "default": "0",
    }  # fmt: skip
    assert "agreement" in parameters["output"]["schema"]["enum"]
    assert all(item["description"] for item in parameters.values())
    assert set(post["responses"]) == {
        str(c) for c in (200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)
    }
    assert set(post["requestBody"]["content"]) >= {"multipart/form-data", "image/png"}
    batch = value["paths"]["/v1/segment/batch"]["post"]["requestBody"]["content"]
    assert batch["multipart/form-data"]["schema"]["properties"]["image"]["maxItems"] == 16
    infer = value["paths"]["/v2/models/{name}/versions/{version}/infer"]["post"]
    assert [item["name"] for item in infer["parameters"]] == ["name", "version"]
    schemas = value["components"]["schemas"]
    assert infer["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] in schemas
    assert schemas["Tensor"]["properties"]["name"]["const"] == "image"
    assert value["paths"]["/v1/reload"]["post"]["responses"]["422"]
    error = infer["responses"]["400"]["content"]["application/json"]["schema"]["$ref"]
    assert schemas[error.rpartition("/")[2]]["properties"]["error"] == {"type": "string"}
    either = value["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert set(either) >= {"image/png", "multipart/form-data", "application/json"}
    only = value["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert list(only) == ["application/json"]
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(value)))
    assert references <= set(schemas)


def test_the_page_for_people_shows_every_path_and_runs_no_script(client: Any) -> None:
    response = client.get("/docs", headers={"host": 'seg.example:8443"<b>'})
    assert response.status_code in (200, 400)
    response = client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    text = response.text
    for path in openapi()["paths"]:
        assert path in text
    assert "http://testserver/v1/segment -o mask.png" in text
    assert "<script" not in text
    assert client.get("/openapi.json").json() == client.get("/docs.json").json() == openapi()


def test_the_page_can_be_turned_off(serve: Any) -> None:
    assert serve(ui=False).get("/docs").status_code == 404
