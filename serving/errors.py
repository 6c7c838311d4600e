"""Errors that a client sees, and what is known about a request while it is handled."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from protoseg.errors import UserError

# what a client is told when no more precise error is known
DEFAULT_CODES = {
    400: ("bad_request", "the request cannot be understood"),
    401: ("unauthorized", "a valid API key is required"),
    404: ("not_found", "no such path"),
    405: ("method_not_allowed", "this path does not take that method"),
    408: ("body_timeout", "the body did not arrive in time"),
    413: ("body_too_large", "the body is too large"),
    415: ("unsupported_media_type", "this content type is not supported"),
    429: ("rate_limited", "too many requests"),
    500: ("internal", "an unexpected error occurred; the server log has it under this request id"),
    503: ("not_ready", "the service is not ready"),
    504: ("timeout", "the request took too long"),
}


# what a bundle may lack, and how it is made
LACKING = {
    "novelty": "no novelty; fit it with: python -m protoseg.novelty CKPT; then export it with: python -m "
    "export.onnx CKPT --outputs agreement,novelty",
    "explain": "nothing to explain by; export it with: python -m export.onnx CKPT --explain",
}


class ServingError(Exception):
    """An error with its HTTP status, a stable code, and a message for the client.

    Args:
        status: HTTP status.
        code: Stable name, as ``too_many_pixels``.
        message: One sentence for a person.
        retry_after: Seconds after which trying again makes sense.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after


class BundleError(UserError):
    """A bundle that cannot be served; the text is one line and says what to do."""


def error_body(code: str, message: str, request_id: str, *, plain: bool = False) -> bytes:
    """The JSON body of an error; ``plain`` is the text alone, as the Open Inference Protocol wants it."""
    error = message if plain else {"code": code, "message": message, "request_id": request_id}
    body = {"error": error}
    return json.dumps(body, separators=(",", ":")).encode()


@dataclass
class RequestState:
    """What the gateway and the handler of one request tell each other."""

    request_id: str
    """Given by the client or made here."""
    deadline: float
    """``time.monotonic()`` after which the answer is 504."""
    cancelled: bool = False
    """Nobody waits for the answer any more."""
    error: ServingError | None = None
    """Why the request failed."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Extra keys of the access log line."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
