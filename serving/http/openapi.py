"""The OpenAPI description at ``/docs.json``."""

from __future__ import annotations

from functools import cache
from typing import Any

from serving.http.options import MAX_BATCH_FILES, OUTPUTS

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
_IMAGE_BODY = {"schema": {"type": "string", "format": "binary"}}


def _parameters() -> list[dict[str, Any]]:
    def query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "in": "query", "description": description, "schema": schema}

    return [
        query("output", "What to answer with.", {"type": "string", "enum": list(OUTPUTS)}),
        query("size", "Maps at the image's own or the network's size.",
              {"type": "string", "enum": ["original", "model"], "default": "original"}),
        query("classes", "Class names or ids, separated by commas; others become ignore_index or are "
              "left out.", {"type": "string"}),
        query("tile", "1: compute at the image's own size in overlapping, blended tiles.",
              {"type": "string", "enum": ["0", "1", "false", "true"], "default": "0"}),
        query("alpha", "Share of the class colour in an overlay.",
              {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5}),
        query("format", "Form of polygons.", {"type": "string", "enum": ["json", "geojson"]}),
        query("simplify", "Pixels that a polygon may deviate.",
              {"type": "number", "minimum": 0, "maximum": 100, "default": 0}),
    ]  # fmt: skip


def _responses(ok: dict[str, Any], codes: tuple[int, ...]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    replies: dict[str, Any] = {"200": ok}
    for code in sorted({*codes, 401, 404, 405, 500, 503}):
        replies[str(code)] = {"description": _ERRORS[code], "content": error}
    return replies


def _segment(batch: bool) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    image: dict[str, Any] = file
    if batch:
        image = {"type": "array", "items": file, "minItems": 1, "maxItems": MAX_BATCH_FILES}
    form = {"schema": {"type": "object", "required": ["image"], "properties": {"image": image}}}
    content: dict[str, Any] = {"multipart/form-data": form}
    if not batch:
        raw = ("image/jpeg", "image/png", "image/webp", "image/bmp", "application/octet-stream")
        content |= dict.fromkeys(raw, _IMAGE_BODY)
    answers: dict[str, Any] = {"application/json": {"schema": {}}}
    if not batch:
        answers |= {"image/png": _IMAGE_BODY, "image/jpeg": _IMAGE_BODY,
                    "application/geo+json": {"schema": {}}}  # fmt: skip
    return {
        "post": {
            "summary": "Segment up to 16 images" if batch else "Segment an image",
            "description": "By default a palette PNG of class ids at the upright image's own size.",
            "parameters": _parameters(),
            "requestBody": {"required": True, "content": content},
            "responses": _responses(
                {"description": "The result.", "content": answers}, (400, 408, 413, 415, 422, 429, 504)
            ),
        }
    }


def _get(summary: str, kind: str = "application/json", codes: tuple[int, ...] = ()) -> dict[str, Any]:
    ok = {"description": summary, "content": {kind: {"schema": {}}}}
    return {"get": {"summary": summary, "responses": _responses(ok, codes)}}


def _in_path(name: str, schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": schema}]


def _inference_schema() -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": "image"},
            "datatype": {"const": "UINT8"},
            "shape": {
                "type": "array", "minItems": 4, "maxItems": 4,
                "items": {"type": "integer", "minimum": 1, "maximum": 65535},
                "description": "batch, height, width, channels",
            },
            "data": {"type": "array", "description": "Values from 0 to 255, flat or nested."},
            "parameters": {"type": "object", "description": "binary_data_size of the binary extension"},
        },
    }  # fmt: skip
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": output},
            "parameters": {"type": "object"},
        },
    }


@cache
def openapi() -> dict[str, Any]:
    """The description (OpenAPI 3.1)."""
    text = {"type": "string"}
    model = _in_path("name", text)
    versioned = [*model, *_in_path("version", text)]
    infer = {
        "post": {
            "summary": "Infer on a tensor",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _inference_schema()},
                    "application/octet-stream": _IMAGE_BODY,
                },
            },
            "responses": _responses(
                {"description": "Tensors.", "content": {"application/json": {"schema": {}},
                                                       "application/octet-stream": _IMAGE_BODY}},
                (400, 408, 413, 415, 429, 504),
            ),
        }
    }  # fmt: skip
    sample = _in_path("index", {"type": "integer", "minimum": 0, "maximum": 9999})
    keys: dict[str, Any] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "protoseg", "version": "1", "description": "Semantic segmentation over HTTP."},
        "paths": {
            "/v1/segment": _segment(batch=False),
            "/segment": _segment(batch=False),
            "/v1/segment/batch": _segment(batch=True),
            "/v1/model": _get("The served model, its classes and settings"),
            "/v1/samples/{index}": {"parameters": sample, **_get("A sample image", "image/png")},
            "/v1/reload": {
                "post": {
                    "summary": "Check the bundle again and swap it in (admin key)",
                    "responses": _responses(
                        {"description": "The model now served.", "content": {"application/json": {}}}, (422,)
                    ),
                }
            },
            "/livez": _get("The process answers", "text/plain"),
            "/readyz": _get("Requests are answered", "text/plain"),
            "/healthz": _get("The process answers", "text/plain"),
            "/metrics": _get("Prometheus metrics", "text/plain"),
            "/v2": _get("Server metadata (Open Inference Protocol)"),
            "/v2/health/live": _get("Live"),
            "/v2/health/ready": _get("Ready"),
            "/v2/models/{name}": {"parameters": model, **_get("Model metadata")},
            "/v2/models/{name}/ready": {"parameters": model, **_get("Model readiness")},
            "/v2/models/{name}/infer": {"parameters": model, **infer},
            "/v2/models/{name}/versions/{version}": {"parameters": versioned, **_get("Model metadata")},
            "/v2/models/{name}/versions/{version}/ready": {
                "parameters": versioned,
                **_get("Model readiness"),
            },
            "/v2/models/{name}/versions/{version}/infer": {"parameters": versioned, **infer},
        },
        "components": {
            "securitySchemes": keys,
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["code", "message", "request_id"],
                            "properties": {"code": text, "message": text, "request_id": text},
                        }
                    },
                }
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }
