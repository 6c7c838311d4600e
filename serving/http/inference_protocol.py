"""Open Inference Protocol v2: metadata and ``infer`` with tensors in JSON or binary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protoseg.records import validation_problems
from serving.errors import ServingError
from serving.http.respond import Answer, Incoming, model_record, stage, to_json
from serving.model.model import Model
from serving.pixels.maps import class_pixels
from serving.worker.metrics import metrics
from serving.worker.state import ServingState, check_alive

# JSON numbers take an object each; larger tensors come in the binary form
MAX_JSON_ELEMENTS = 1_000_000
HEADER_LENGTH = "inference-header-content-length"
_TYPES = {"uint8": "UINT8", "float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32"}


def server_metadata() -> dict[str, Any]:
    """Reply of ``GET /v2``."""
    extensions = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
    return {"name": "protoseg", "version": "1", "extensions": extensions}


def model_metadata(model: Model) -> dict[str, Any]:
    """Reply of ``GET /v2/models/NAME``: the tensor is NHWC whatever the graph's own layout."""
    manifest = model.manifest
    static = manifest.graph.static_shape or (-1, -1, -1)
    outputs = [
        {"name": item.name, "datatype": _TYPES.get(item.dtype, item.dtype.upper()),
         "shape": [axis if isinstance(axis, int) else -1 for axis in item.shape]}
        for item in model.bundle.artifact.outputs
    ]  # fmt: skip
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": f"protoseg_{model.bundle.artifact.kind}",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [*static, manifest.input.channels]}],
        "outputs": outputs,
    }


class _Json(BaseModel):
    """What is sent has no conversions; keys that are not known are left alone, as the protocol says."""

    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)


class Tensor(_Json):
    """The input."""

    name: Literal["image"]
    datatype: Literal["UINT8"]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=65535)]], Field(min_length=4, max_length=4)]
    """batch, height, width, channels"""
    data: list[Any] = []
    """Values from 0 to 255, flat or nested."""
    parameters: dict[str, Any] | None = None
    """binary_data_size of the binary extension"""


class Wanted(_Json):
    """An output."""

    name: str
    parameters: dict[str, Any] | None = None


class Question(_Json):
    """An inference request."""

    id: str | None = None
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: list[Wanted] | None = None
    parameters: dict[str, Any] | None = None

    def wanted(self, outputs: tuple[str, ...]) -> dict[str, bool]:
        """Names of the outputs to give, and whether in binary; the protocol gives all to those who name none.

        Raises:
            ServingError: 400 for an output that is not among ``outputs``.
        """
        default = bool((self.parameters or {}).get("binary_data_output"))
        if self.outputs is None:
            return dict.fromkeys(outputs, default)
        for item in self.outputs:
            if item.name not in outputs:
                raise _bad(f"there is no output {item.name[:40]!r}; known: {', '.join(outputs)}")
        return {item.name: bool((item.parameters or {}).get("binary_data", default)) for item in self.outputs}


def _bad(message: str) -> ServingError:
    return ServingError(400, "bad_request", message)


def _read(body: bytes, length: str) -> tuple[Question, memoryview]:
    """The question, and the bytes that follow it."""
    size = len(body)
    if length:
        if not length.isascii() or not length.isdigit() or int(length) > len(body):
            raise _bad("Inference-Header-Content-Length must be at most the body's length")
        size = int(length)
    try:
        question = Question.model_validate_json(body[:size])
    except ValidationError as error:
        # values may be as long as the body
        problems = validation_problems(error, secret=("", *Question.model_fields))
        raise _bad(f"the inference request is not as it should be: {problems[0]}") from None
    return question, memoryview(body)[size:]


def _check_shape(shape: list[int], model: Model, max_pixels: int) -> None:
    channels = model.manifest.input.channels
    if shape[3] != channels:
        raise _bad(f"input image must have shape [batch, height, width, {channels}]")
    if shape[0] * shape[1] * shape[2] > max_pixels:
        raise ServingError(
            413, "too_many_pixels", f"a tensor holds at most {max_pixels} pixels; send images to /v1/segment"
        )
    static = model.manifest.graph.static_shape
    if static and (tuple(shape[1:3]) != static[1:] or shape[0] > static[0]):
        raise _bad(f"input image must have shape [1..{static[0]}, {static[1]}, {static[2]}, {channels}]")


def _batch(tensor: Tensor, binary: memoryview) -> NDArray[np.uint8]:
    count = int(np.prod(tensor.shape))
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is not None:
        if size != count or len(binary) != count:
            raise _bad(f"the tensor needs {count} bytes of binary data, got {len(binary)}")
        return np.frombuffer(binary, np.uint8).reshape(tensor.shape)
    if count > MAX_JSON_ELEMENTS:
        raise _bad(f"data must be a list of at most {MAX_JSON_ELEMENTS} numbers; use binary data beyond")
    try:
        array = np.asarray(tensor.data)
        if array.dtype.kind not in "iu" or array.size != count or array.min() < 0 or array.max() > 255:
            raise ValueError
    except (ValueError, OverflowError):
        raise _bad(f"data must be {count} integers from 0 to 255") from None
    return array.astype(np.uint8).reshape(tensor.shape)


def check_model(model: Model, name: str, version: str | None) -> None:
    """Refuse the name or version of another model.

    Raises:
        ServingError: 404.
    """
    manifest = model.manifest
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
    with state.model as model:
        check_model(model, name, version)
        with stage(incoming.state, "decode"):
            question, binary = _read(incoming.body, length)
            _check_shape(question.inputs[0].shape, model, state.settings.max_network_pixels)
            batch = _batch(question.inputs[0], binary)
            wanted = question.wanted(model.outputs)
        check_alive(incoming.state)
        with stage(incoming.state, "infer"):
            out = model.infer(batch, frozenset(wanted) | {"labels"})
        used = len(batch)
        pixels = class_pixels(out["labels"][:used], len(model.manifest.classes))
        metrics().observe_prediction(model.manifest, pixels, None, None, used)
        with stage(incoming.state, "encode"):
            return _answer(model, question, out, wanted, used, incoming)


def _answer(
    model: Model,
    question: Question,
    out: Mapping[str, NDArray[Any]],
    wanted: Mapping[str, bool],
    used: int,
    incoming: Incoming,
) -> Answer:
    """The reply to a question, with the first ``used`` images of the outputs."""
    outputs, blobs = [], []
    for output, in_binary in wanted.items():
        array = np.ascontiguousarray(out[output][:used])
        record: dict[str, Any] = {
            "name": output, "shape": list(array.shape),
            "datatype": _TYPES.get(array.dtype.name, array.dtype.name.upper()),
        }  # fmt: skip
        if in_binary:
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
        "model_name": model.manifest.name, "model_version": model.manifest.version,
        "outputs": outputs,
    }  # fmt: skip
    if question.id is not None:
        reply["id"] = question.id
    head = to_json(reply)
    incoming.state.facts["model"] = model_record(model)["version"]
    if not blobs:
        return Answer(head, "application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Answer(b"".join([head, *blobs]), "application/octet-stream", headers)
