"""Images in JSON as TensorFlow Serving, KServe v1 and Vertex AI send them, and what SageMaker sends."""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protoseg.records import validation_problems
from serving.errors import ServingError
from serving.http.body import MAX_BATCH_FILES
from serving.http.inference_protocol import check_model
from serving.http.options import parse_options
from serving.http.respond import Answer, Incoming, to_json
from serving.http.segment import compute, decode_image, segment
from serving.worker.state import ServingState

# the only header of a caller that SageMaker passes on
CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"


class _Json(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)


class Base64(_Json):
    """Bytes in JSON."""

    b64: str
    """An image's file in base64."""


class Named(_Json):
    """The same under the name of the input."""

    image: Base64


class Instances(_Json):
    """Images to segment."""

    instances: list[Base64 | Named] = Field(min_length=1, max_length=MAX_BATCH_FILES)
    parameters: dict[str, str | int | float | bool] | None = None
    """Options, as in the query of /v1/segment."""


def is_json(content_type: str) -> bool:
    """Whether a Content-Type says JSON."""
    return content_type.split(";")[0].strip().lower() == "application/json"


def _read(body: bytes) -> Instances:
    try:
        return Instances.model_validate_json(body)
    except ValidationError as error:
        # values may be as long as the body
        problems = validation_problems(error, secret=("", *Instances.model_fields))
        raise ServingError(
            400, "bad_request", f'send {{"instances": [{{"b64": "..."}}]}}; {problems[0]}'
        ) from None


def _image_bytes(instance: Base64 | Named) -> bytes:
    text = instance.image.b64 if isinstance(instance, Named) else instance.b64
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ServingError(400, "bad_request", "b64 is not base64") from None


def _option(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def predict(state: ServingState, incoming: Incoming, name: str | None) -> Answer:
    """Answer ``POST /predict`` and ``POST /v1/models/NAME:predict``: ``{"predictions": [...]}``, in order.

    A prediction is what ``/v1/segment`` answers: JSON as it is, an image as ``b64`` with ``content_type``.
    These protocols have no errors of single items, so that one bad image fails the request.

    Args:
        state: State of the worker.
        incoming: The request.
        name: Model name of the path, or None.

    Raises:
        ServingError: 404 for another model, 400 for a malformed request, else as for one image.
    """
    request = incoming.state
    with state.model as model:
        if name is not None:
            check_model(model, name, None)
        question = _read(incoming.body)
        parameters = [(key, _option(value)) for key, value in (question.parameters or {}).items()]
        names = [item.name for item in model.manifest.classes]
        # these clients accept nothing but JSON, so that Accept chooses nothing; a mask is the least surprise
        options = parse_options([*incoming.query, *parameters], "", names)
        predictions: list[Any] = []
        for index, instance in enumerate(question.instances):
            try:
                data = _image_bytes(instance)
                image = decode_image(state, model, data, request)
                value, media_type, _ = compute(state, model, data, image, options, request)
            except ServingError as error:
                raise ServingError(
                    error.status, error.code, f"instances[{index}]: {error.message}",
                    retry_after=error.retry_after,
                ) from error  # fmt: skip
            if not options.is_json:
                value = {"b64": base64.b64encode(value).decode("ascii"), "content_type": media_type}
            predictions.append(value)
        request.facts["model"] = model.manifest.version
        return Answer(to_json({"predictions": predictions}), "application/json")


def invocations(state: ServingState, incoming: Incoming, attributes: str) -> Answer:
    """Answer ``POST /invocations``: an image as for ``/v1/segment``, or instances in JSON.

    Args:
        state: State of the worker.
        incoming: The request.
        attributes: SageMaker's custom attributes: options as in a query (``output=json&classes=1``);
            text without an equals sign (a trace id) is left alone.

    Raises:
        ServingError: As ``segment`` and ``predict``.
    """
    given = replace(incoming, query=[*incoming.query, *parse_qsl(attributes)])
    if is_json(incoming.content_type):
        return predict(state, given, None)
    return segment(state, given)
