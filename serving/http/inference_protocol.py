"""Open Inference Protocol v2: metadata and ``infer`` with tensors in JSON or binary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import ServingError
from serving.http.segment import Answer, Incoming, model_record, to_json
from serving.model.model import Engine
from serving.pixels.records import class_pixels
from serving.worker.metrics import metrics
from serving.worker.state import ServingState, check_alive

# JSON numbers take an object each; larger tensors come in the binary form
MAX_JSON_ELEMENTS = 1_000_000
HEADER_LENGTH = "inference-header-content-length"
_TYPES = {"uint8": "UINT8", "float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32"}


def server_metadata() -> dict[str, Any]:
    """Reply of ``GET /v2``."""
    return {"name": "protoseg", "version": "1", "extensions": ["binary_tensor_data"]}


def model_metadata(engine: Engine) -> dict[str, Any]:
    """Reply of ``GET /v2/models/NAME``: the tensor is NHWC whatever the graph's own layout."""
    manifest = engine.manifest
    static = manifest.graph.static_shape or (-1, -1, -1)
    outputs = [
        {"name": item.name, "datatype": _TYPES.get(item.dtype, item.dtype.upper()),
         "shape": [axis if isinstance(axis, int) else -1 for axis in item.shape]}
        for item in engine.bundle.artifact.outputs
    ]  # fmt: skip
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": f"protoseg_{engine.bundle.artifact.kind}",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [*static, manifest.input.channels]}],
        "outputs": outputs,
    }


@dataclass(frozen=True)
class _Question:
    batch: NDArray[np.uint8]
    names: list[str]
    binary: dict[str, bool]
    identifier: str | None


def _bad(message: str) -> ServingError:
    return ServingError(400, "bad_request", message)


def _header(body: bytes, length: str) -> tuple[dict[str, Any], memoryview]:
    size = len(body)
    if length:
        if not length.isascii() or not length.isdigit() or int(length) > len(body):
            raise _bad("Inference-Header-Content-Length must be at most the body's length")
        size = int(length)
    try:
        value = json.loads(body[:size])
    except (ValueError, RecursionError):
        raise _bad("the inference request is not JSON") from None
    if not isinstance(value, dict):
        raise _bad("the inference request must be a JSON object")
    return value, memoryview(body)[size:]


def _shape(tensor: dict[str, Any], engine: Engine, max_pixels: int) -> tuple[int, ...]:
    shape = tensor.get("shape")
    channels = engine.manifest.input.channels
    if (
        not isinstance(shape, list)
        or len(shape) != 4
        or not all(isinstance(axis, int) and 0 < axis <= 65535 for axis in shape)
        or shape[3] != channels
    ):
        raise _bad(f"input image must have shape [batch, height, width, {channels}]")
    if shape[0] * shape[1] * shape[2] > max_pixels:
        raise ServingError(
            413, "too_many_pixels", f"a tensor holds at most {max_pixels} pixels; send images to /v1/segment"
        )
    static = engine.manifest.graph.static_shape
    if static and (tuple(shape[1:3]) != static[1:] or shape[0] > static[0]):
        raise _bad(f"input image must have shape [1..{static[0]}, {static[1]}, {static[2]}, {channels}]")
    return tuple(shape)


def _tensor(value: dict[str, Any], binary: memoryview, engine: Engine, max_pixels: int) -> NDArray[np.uint8]:
    inputs = value.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad("inputs must be a list with the one tensor image")
    tensor = inputs[0]
    if tensor.get("name") != "image" or tensor.get("datatype") != "UINT8":
        raise _bad("the input is called image and has datatype UINT8")
    shape = _shape(tensor, engine, max_pixels)
    count = int(np.prod(shape))
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if size != count or len(binary) != count:
            raise _bad(f"the tensor needs {count} bytes of binary data, got {len(binary)}")
        return np.frombuffer(binary, np.uint8).reshape(shape)
    data = tensor.get("data")
    if not isinstance(data, list) or count > MAX_JSON_ELEMENTS:
        raise _bad(f"data must be a list of at most {MAX_JSON_ELEMENTS} numbers; use binary data beyond")
    try:
        array = np.asarray(data)
        if array.dtype.kind not in "iu" or array.size != count:
            raise ValueError
        if array.min() < 0 or array.max() > 255:
            raise ValueError
    except (ValueError, OverflowError):
        raise _bad(f"data must be {count} integers from 0 to 255") from None
    return array.astype(np.uint8).reshape(shape)


def _question(incoming: Incoming, length: str, engine: Engine, max_pixels: int) -> _Question:
    value, binary = _header(incoming.body, length)
    batch = _tensor(value, binary, engine, max_pixels)
    # the protocol gives every output to those who name none
    asked = value.get("outputs", [{"name": name} for name in engine.outputs])
    if not isinstance(asked, list) or not all(isinstance(item, dict) for item in asked):
        raise _bad("outputs must be a list of objects with a name")
    parameters = value.get("parameters")
    default = bool(parameters.get("binary_data_output")) if isinstance(parameters, dict) else False
    chosen: dict[str, bool] = {}
    for item in asked:
        name, own = item.get("name"), item.get("parameters")
        if name not in engine.outputs:
            raise _bad(f"there is no output {str(name)[:40]!r}; known: {', '.join(engine.outputs)}")
        chosen[str(name)] = bool(own.get("binary_data", default)) if isinstance(own, dict) else default
    identifier = value.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise _bad("id must be a string")
    return _Question(batch, list(chosen), chosen, identifier)


def check_model(engine: Engine, name: str, version: str | None) -> None:
    """Refuse the name or version of another model.

    Raises:
        ServingError: 404.
    """
    manifest = engine.manifest
    if name != manifest.name or version not in (None, manifest.version):
        raise ServingError(
            404, "not_found", f"there is no such model; this is {manifest.name} {manifest.version}"
        )


def infer(state: ServingState, incoming: Incoming, name: str, version: str | None, length: str) -> Answer:
    """Answer ``POST /v2/models/NAME[/versions/VERSION]/infer``.

    Args:
        state: State of the worker.
        incoming: The request.
        name: Model name of the path.
        version: Version of the path, or None.
        length: ``Inference-Header-Content-Length``, empty for pure JSON.

    Raises:
        ServingError: 404 for another model, 400 for a malformed request, 413 for a large tensor.
    """
    with state.engine as engine:
        check_model(engine, name, version)
        question = _question(incoming, length, engine, state.settings.max_network_pixels)
        check_alive(incoming.state)
        names = frozenset(question.names)
        out = engine.infer(question.batch, names | {"labels"})
        used = len(question.batch)
        pixels = class_pixels(out["labels"][:used], len(engine.manifest.classes))
        metrics().observe_prediction(engine.manifest, pixels, None, None)
        outputs, blobs = [], []
        for output in question.names:
            array = np.ascontiguousarray(out[output][:used])
            record: dict[str, Any] = {
                "name": output, "shape": list(array.shape),
                "datatype": _TYPES.get(array.dtype.name, array.dtype.name.upper()),
            }  # fmt: skip
            if question.binary[output]:
                record["parameters"] = {"binary_data_size": array.nbytes}
                blobs.append(array.tobytes())
            elif array.size > MAX_JSON_ELEMENTS:
                raise ServingError(
                    413, "result_too_large", f"{output} has {array.size} numbers; ask for binary data"
                )
            else:
                record["data"] = array.ravel().tolist()
            outputs.append(record)
        reply: dict[str, Any] = {
            "model_name": engine.manifest.name, "model_version": engine.manifest.version,
            "outputs": outputs,
        }  # fmt: skip
        if question.identifier is not None:
            reply["id"] = question.identifier
        head = to_json(reply)
        incoming.state.facts["model"] = model_record(engine)["version"]
        if not blobs:
            return Answer(head, "application/json")
        headers = {HEADER_LENGTH: str(len(head))}
        return Answer(b"".join([head, *blobs]), "application/octet-stream", headers)
