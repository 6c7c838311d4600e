"""From handlers to Starlette responses: errors become statuses that the gateway puts into words."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from serving.errors import DEFAULT_CODES, RequestState, ServingError
from serving.http.exchange import CURRENT
from serving.http.segment import Answer, Incoming
from serving.worker.state import ServingState

logger = logging.getLogger(__name__)


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


def _failed(request: RequestState, error: Exception) -> Response:
    if not isinstance(error, ServingError):
        if isinstance(error, MemoryError):
            error = ServingError(503, "overloaded", "not enough memory for this request", retry_after=5)
        else:
            logger.error("request %s failed", request.request_id, exc_info=error)
            error = ServingError(500, *DEFAULT_CODES[500])
    request.error = error
    return Response(status_code=error.status)


async def answer(make: Callable[[], Response], *, in_thread: bool = False) -> Response:
    """Call ``make``, on the event loop or in a thread of its own, and turn errors into statuses."""
    try:
        return await asyncio.to_thread(make) if in_thread else make()
    except Exception as error:
        return _failed(current_request(), error)


async def as_response(state: ServingState, incoming: Incoming, work: Callable[[], Answer]) -> Response:
    """Compute an answer in the worker's threads."""
    try:
        result = await state.compute(incoming.state, work)
    except Exception as error:
        return _failed(incoming.state, error)
    return Response(result.body, media_type=result.media_type, headers=result.headers)
