"""Requests as handlers get them, and from what they give to Starlette responses.

Errors become statuses that the gateway puts into words.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.errors import DEFAULT_CODES, RequestState, ServingError
from serving.http.exchange import CURRENT
from serving.model.model import Model
from serving.worker.state import ServingState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Incoming:
    """A request whose body is complete."""

    body: bytes
    """Body."""
    content_type: str
    """Content-Type header, may be empty."""
    accept: str
    """Accept header, may be empty."""
    query: list[tuple[str, str]]
    """Query parameters."""
    state: RequestState
    """Shared with the gateway."""


@dataclass
class Answer:
    """A successful response."""

    body: bytes
    """Body."""
    media_type: str
    """Content-Type."""
    headers: dict[str, str] = field(default_factory=dict)
    """More headers."""


def to_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def model_record(model: Model) -> dict[str, str]:
    """Name, version and hash of the served model."""
    manifest = model.manifest
    return {"name": manifest.name, "version": manifest.version, "sha256": model.bundle.artifact.sha256}


@contextmanager
def stage(request: RequestState, name: str) -> Iterator[None]:
    """Add the seconds of what is inside to a stage of the request."""
    start = time.perf_counter()
    try:
        yield
    finally:
        request.stages[name] = request.stages.get(name, 0.0) + time.perf_counter() - start


def current_request() -> RequestState:
    """State of the request being handled; a fresh one outside of the gateway."""
    return CURRENT.get() or RequestState("none", time.monotonic() + 60)


async def incoming_of(request: Request) -> Incoming:
    """The complete request."""
    return Incoming(
        body=await request.body(),
        content_type=request.headers.get("content-type", ""),
        accept=request.headers.get("accept", ""),
        query=request.query_params.multi_items(),
        state=current_request(),
    )


def failed(request: RequestState, error: Exception) -> Response:
    """The empty answer with the status of an error, which the gateway finds in the request's state."""
    if not isinstance(error, ServingError):
        if isinstance(error, MemoryError):
            error = ServingError(503, "overloaded", "not enough memory for this request", retry_after=5)
        else:
            logger.error("request %s failed", request.request_id, exc_info=error)
            error = ServingError(500, *DEFAULT_CODES[500])
    request.error = error
    return Response(status_code=error.status)


async def as_response(state: ServingState, incoming: Incoming, work: Callable[[], Answer]) -> Response:
    """Compute an answer in the worker's threads."""
    try:
        result = await state.compute(incoming.state, work)
    except Exception as error:
        return failed(incoming.state, error)
    return Response(result.body, media_type=result.media_type, headers=result.headers)
