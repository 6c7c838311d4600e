"""One request on its way through the gateway: its id, headers, answer and errors."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from serving.errors import DEFAULT_CODES, RequestState, ServingError, error_body

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CURRENT: ContextVar[RequestState | None] = ContextVar("protoseg_request", default=None)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DROPPED_HEADERS = frozenset({b"server", b"x-bentoml-request-id"})
# a peer that is refused for its body must not go on sending it
_CLOSING = frozenset({408, 413, 503})


class ClientGoneError(Exception):
    """The client closed the connection before it had its answer."""


class Exchange:
    """One request on its way through the gateway.

    Args:
        scope: ASGI scope.
        receive: Gives its messages.
        send: Takes those of the answer.
        timeout: Seconds until the answer must be out.
        plain_errors: Whether an error is told as text alone.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, timeout: float, *, plain_errors: bool = False
    ) -> None:
        self.scope = scope
        self._plain_errors = plain_errors
        self.receive = receive
        self.started = time.perf_counter()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.state = RequestState(request_id, time.monotonic() + timeout)
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.extra_headers: list[tuple[bytes, bytes]] = []
        self.on_answer: Callable[[], None] = lambda: None
        self._send = send
        self._held: Message | None = None

    def header(self, name: bytes) -> str:
        """A request header as text, empty when absent."""
        return self.headers.get(name, b"").decode("latin-1")

    def _decorate(self, message: Message) -> Message:
        headers = [(k, v) for k, v in message["headers"] if k.lower() not in _DROPPED_HEADERS]
        headers.append((b"x-request-id", self.state.request_id.encode()))
        headers.append((b"x-content-type-options", b"nosniff"))
        return {**message, "headers": [*headers, *self.extra_headers]}

    async def send(self, message: Message) -> None:
        """Pass a message of the application on; bodies of errors are written anew."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.on_answer()
            if self.status >= 400:
                self._held = message
                return
            await self._send(self._decorate(message))
            return
        if self._held is not None:
            if not message.get("more_body"):
                self._held = None
                await self.fail(self._error())
            return
        self.bytes_out += len(message.get("body", b""))
        await self._send(message)

    def _error(self) -> ServingError:
        error = self.state.error
        if error is not None and error.status == self.status:
            return error
        code, text = DEFAULT_CODES.get(self.status, ("error", "the request failed"))
        return ServingError(self.status, code, text)

    async def fail(self, error: ServingError) -> None:
        """Answer with an error, when nothing has been sent yet."""
        self.status = error.status
        self.state.error = error
        self.on_answer()
        body = error_body(error.code, error.message, self.state.request_id, plain=self._plain_errors)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-error-code", error.code.encode()),
            (b"cache-control", b"no-store"),
        ]
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if error.status in _CLOSING:
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": error.status, "headers": headers}
        await self._send(self._decorate(start))
        self.bytes_out = len(body)
        if self.scope["method"] == "HEAD":
            body = b""
        await self._send({"type": "http.response.body", "body": body})

    @property
    def answered(self) -> bool:
        """Whether the head of a response has been decided."""
        return self.status != 0
