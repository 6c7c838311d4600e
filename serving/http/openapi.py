"""The OpenAPI description at ``/openapi.json``: from the table of routes and the models of what is sent."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from serving.http.body import MAX_BATCH_FILES
from serving.http.inference_protocol import Question
from serving.http.instances import Instances
from serving.http.options import Options
from serving.http.routes import BINARY, JSON, ROUTES, Route, speaks_protocol

_ERRORS = {
    400: "The body is empty, malformed or has no image.",
    401: "API keys are configured and none matches.",
    404: "No such path, sample or model.",
    405: "The path does not take that method.",
    408: "The body did not arrive in time.",
    413: "The body, the image or the JSON of the result is too large.",
    415: "The content type, the image format or a compressed body is not accepted.",
    422: "The image is damaged, or a parameter is unknown or out of range.",
    429: "Too many requests from this key or address; see Retry-After.",
    500: "A bug; the server log has it under the request id.",
    503: "Overloaded, not ready or shutting down; see Retry-After.",
    504: "The deadline passed.",
}
_ALWAYS = {401, 404, 405, 500, 503}
_OF_BODIES = {400, 408, 413, 415, 429, 504}
_FILE = {"type": "string", "format": "binary"}
_IMAGES = ("image/jpeg", "image/png", "image/webp", "image/bmp", BINARY)
_REF = "#/components/schemas/"


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": name, "in": "path", "required": True,
            "schema": {"type": "integer", "minimum": 0, "maximum": 9999} if name == "index"
            else {"type": "string"},
        }
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]  # fmt: skip
    if route.takes_images or route.body == "instances":
        for name, schema in Options.model_json_schema()["properties"].items():
            kept = {key: value for key, value in schema.items() if key not in ("title", "description")}
            if kept.get("default", "") is None:
                del kept["default"]
            found.append(
                {
                    "name": name,
                    "in": "query",
                    "description": " ".join(schema["description"].split()),
                    "schema": kept,
                }
            )
    return found


def _body(route: Route) -> dict[str, Any]:
    if route.body == "tensor":
        return {JSON: {"schema": {"$ref": f"{_REF}Question"}}, BINARY: {"schema": _FILE}}
    instances = {JSON: {"schema": {"$ref": f"{_REF}Instances"}}}
    if route.body == "instances":
        return instances
    image: dict[str, Any] = _FILE
    if route.body == "images":
        image = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": MAX_BATCH_FILES}
    form = {"schema": {"type": "object", "required": ["image"], "properties": {"image": image}}}
    found: dict[str, Any] = {"multipart/form-data": form}
    if route.body in ("image", "any"):
        found |= {kind: {"schema": _FILE} for kind in _IMAGES}
    return found | instances if route.body == "any" else found


def _operation(route: Route) -> dict[str, Any]:
    binary = (BINARY, "image/png", "image/jpeg") if route.body else ()
    content = {kind: {"schema": _FILE if kind in binary else {}} for kind in route.answers}
    codes = _ALWAYS | (_OF_BODIES if route.body else set())
    if route.admin or route.body not in (None, "tensor"):
        codes |= {422}
    kind = "PlainError" if speaks_protocol(route.path) else "Error"
    error = {JSON: {"schema": {"$ref": f"{_REF}{kind}"}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": {
            "200": {"description": "The result." if route.body else route.summary, "content": content},
            **{str(code): {"description": _ERRORS[code], "content": error} for code in sorted(codes)},
        },
    }
    if route.body:
        operation["requestBody"] = {"required": True, "content": _body(route)}
    if route.takes_images:
        operation["description"] = "By default a palette PNG of class ids at the upright image's own size."
    return operation


@cache
def openapi() -> dict[str, Any]:
    """The description (OpenAPI 3.1)."""
    question, instances = (
        model.model_json_schema(ref_template=f"{_REF}{{model}}") for model in (Question, Instances)
    )
    text = {"type": "string"}
    error = {
        "type": "object",
        "required": ["code", "message", "request_id"],
        "properties": {"code": text, "message": text, "request_id": text},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "protoseg", "version": "1", "description": "Semantic segmentation over HTTP."},
        "paths": {
            route.path: {route.methods[0].lower(): _operation(route)} for route in ROUTES if route.summary
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": {
                "Error": {"type": "object", "required": ["error"], "properties": {"error": error}},
                "PlainError": {"type": "object", "required": ["error"], "properties": {"error": text}},
                **question.pop("$defs"),
                **instances.pop("$defs"),
                "Question": question,
                "Instances": instances,
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }
