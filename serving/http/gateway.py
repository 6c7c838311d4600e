"""The outermost ASGI layer: ids, allow-listed paths, keys, limits, admission, deadlines, errors, log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import sys
import time
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from serving.errors import DEFAULT_CODES, ServingError
from serving.http.exchange import CURRENT, App, ClientGoneError, Exchange, Message, Receive, Scope, Send
from serving.http.rate import RateLimiter
from serving.http.routes import READY, Route, find_route, speaks_protocol
from serving.worker.metrics import metrics
from serving.worker.state import ServingState

_EXPOSED = (
    "x-request-id",
    "x-model-name",
    "x-model-version",
    "server-timing",
    "x-tiles",
    "x-error-code",
    "retry-after",
)
_ALLOWED = ("authorization", "content-type", "x-api-key", "x-request-id")
logger = logging.getLogger(__name__)


def guard(app: App, state: ServingState) -> App:
    """The application behind the gateway and, where the settings name origins, their CORS headers.

    Args:
        app: The application.
        state: State of the worker.
    """
    gateway = Gateway(app, state)
    if not state.settings.cors:
        return gateway
    # outermost, because browsers only show a page those errors that have the headers too
    return CORSMiddleware(
        gateway,
        allow_origins=state.settings.cors,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=_ALLOWED,
        expose_headers=_EXPOSED,
    )


class Gateway:
    """Wraps the BentoML application of one worker.

    Args:
        app: The application.
        state: State of the worker.
    """

    def __init__(self, app: App, state: ServingState) -> None:
        self.app = app
        self.state = state
        settings = state.settings
        self._keys = settings.key_hashes()
        self._admin_keys = frozenset(key.encode() for key in settings.admin_keys)
        self._rate = RateLimiter(settings.rate / settings.workers, settings.rate_burst)
        self._admitted = 0
        self._body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        plain = speaks_protocol(scope["path"])
        exchange = Exchange(scope, receive, send, self.state.settings.timeout, plain_errors=plain)
        route = find_route(scope["path"])
        token = CURRENT.set(exchange.state)
        try:
            await self._handle(exchange, route)
        except ServingError as error:
            metrics().rejected.labels(error.code).inc()
            await exchange.fail(error)
        except ClientGoneError:
            exchange.status = 499
        finally:
            CURRENT.reset(token)
            self._finish(exchange, route)

    async def _handle(self, exchange: Exchange, route: Route | None) -> None:
        method = exchange.scope["method"]
        if route is None:
            raise ServingError(404, "not_found", "no such path; GET /docs lists them")
        if method not in route.methods:
            exchange.extra_headers.append((b"allow", ", ".join(route.methods).encode()))
            raise ServingError(405, "method_not_allowed", f"use {' or '.join(route.methods)} for this path")
        if route.path in READY and not self.state.ready:
            code = "draining" if self.state.draining else "not_ready"
            raise ServingError(503, code, self.state.refused or "the service is not ready", retry_after=5)
        self._authorise(exchange, route)
        if route.body is None:
            # a slow answer of a page is cut off too, by the same deadline
            await self._run(exchange, exchange.receive)
            return
        await self._infer(exchange)

    def _authorise(self, exchange: Exchange, route: Route) -> None:
        keys = self._admin_keys if route.admin else self._keys
        if route.admin and not keys:
            raise ServingError(
                401, "unauthorized", "no admin key is configured: set PROTOSEG_ADMIN_KEYS, or send SIGHUP"
            )
        caller = str((exchange.scope.get("client") or ("unknown", 0))[0]).encode()
        if keys and not route.probe and not route.public:
            given = exchange.headers.get(b"authorization", b"")
            bearer = given[:7].lower() == b"bearer "
            key = given[7:].strip() if bearer else exchange.headers.get(b"x-api-key", b"")
            digest = hashlib.sha256(key).hexdigest().encode()
            # every key is compared, so that time tells nothing about which one is close
            matches = [hmac.compare_digest(digest, known) for known in keys]
            if not any(matches):
                raise ServingError(401, "unauthorized", "a valid API key is required")
            caller = digest
        if route.body is not None:
            wait = self._rate.take(caller)
            if wait > 0:
                raise ServingError(
                    429, "rate_limited", "too many requests from this key or address",
                    retry_after=max(1, round(wait)),
                )  # fmt: skip

    async def _infer(self, exchange: Exchange) -> None:
        state, settings = self.state, self.state.settings
        if state.draining:
            raise ServingError(503, "draining", "this server is shutting down", retry_after=1)
        if not state.ready:
            raise ServingError(503, "not_ready", state.refused or "no model is loaded", retry_after=5)
        length = exchange.header(b"content-length")
        too_large = ServingError(413, "body_too_large", f"the body is larger than {settings.max_body} bytes")
        if length and (not length.isascii() or not length.isdigit() or int(length) > settings.max_body):
            raise too_large
        if exchange.header(b"content-encoding").strip().lower() not in ("", "identity"):
            raise ServingError(415, "content_encoding", "compressed request bodies are not accepted")
        self._check_room()
        body = await self._read_body(exchange, too_large)
        try:
            # others may have been admitted while this body arrived
            self._check_room()
            await self._run_admitted(exchange, body)
        finally:
            self._body_bytes -= exchange.bytes_in

    def _check_room(self) -> None:
        limit = self.state.threads + self.state.settings.queue
        if self._admitted >= limit or self._body_bytes > self.state.settings.body_memory:
            raise ServingError(503, "overloaded", "too many requests are waiting", retry_after=1)

    async def _read_body(self, exchange: Exchange, too_large: ServingError) -> bytes:
        settings = self.state.settings
        parts: list[bytes] = []
        complete = False
        try:
            async with asyncio.timeout(settings.body_timeout):
                while not complete:
                    message = await exchange.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunk = message.get("body", b"")
                    exchange.bytes_in += len(chunk)
                    self._body_bytes += len(chunk)
                    if exchange.bytes_in > settings.max_body:
                        raise too_large
                    if self._body_bytes > settings.body_memory:
                        self._check_room()
                    parts.append(chunk)
                    complete = not message.get("more_body")
        except TimeoutError:
            raise ServingError(
                408, "body_timeout", f"the body did not arrive within {settings.body_timeout:g} s"
            ) from None
        finally:
            if not complete:
                self._body_bytes -= exchange.bytes_in
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _run_admitted(self, exchange: Exchange, body: bytes) -> None:
        self._admitted += 1
        metrics().in_flight.inc()
        released = False

        def release() -> None:
            # a slow reader of the answer must not keep the place of a computation
            nonlocal released
            if not released:
                released = True
                self._admitted -= 1
                metrics().in_flight.dec()

        exchange.on_answer = release
        pending: bytes | None = body

        async def replay() -> Message:
            nonlocal pending
            if pending is None:
                return await exchange.receive()
            whole, pending = pending, None
            return {"type": "http.request", "body": whole, "more_body": False}

        try:
            await self._run(exchange, replay, watch=True)
        finally:
            release()

    async def _run(self, exchange: Exchange, receive: Receive, *, watch: bool = False) -> None:
        """Run the application until its answer is out, the deadline passes or the client goes."""
        work = asyncio.ensure_future(self.app(exchange.scope, receive, exchange.send))
        tasks: set[asyncio.Future[Any]] = {work}
        if watch:
            tasks.add(asyncio.ensure_future(exchange.receive()))
        try:
            left = exchange.state.deadline - time.monotonic()
            await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if exchange.answered and not work.done():
                # the write timeout of the connection is in charge now
                await work
            if work.done():
                self._check_outcome(exchange, work)
                return
            gone = any(task.done() for task in tasks)
            exchange.state.cancelled = True
            if gone:
                raise ClientGoneError
            raise ServingError(504, "timeout", "the request took too long")
        finally:
            for task in tasks:
                task.cancel()

    def _check_outcome(self, exchange: Exchange, work: asyncio.Future[Any]) -> None:
        error = work.exception() if not work.cancelled() else RuntimeError("the application was cancelled")
        if error is None and exchange.status == 0:
            error = RuntimeError("the application gave no answer")
        if error is None:
            return
        if exchange.bytes_out or 0 < exchange.status < 400:
            logger.error("request %s broke off", exchange.state.request_id, exc_info=error)
            return
        if isinstance(error, ServingError):
            raise error
        logger.error("request %s failed", exchange.state.request_id, exc_info=error)
        raise ServingError(500, *DEFAULT_CODES[500])

    def _finish(self, exchange: Exchange, route: Route | None) -> None:
        name = route.label if route is not None else "other"
        seconds = time.perf_counter() - exchange.started
        metrics().requests.labels(name, str(exchange.status)).inc()
        metrics().seconds.labels(name).observe(seconds)
        for stage, duration in exchange.state.stages.items():
            metrics().stages.labels(stage).observe(duration)
        if not self.state.settings.access_log or (route and route.probe and exchange.status < 500):
            return
        line = {
            "time": round(time.time(), 3),
            "request_id": exchange.state.request_id,
            "client": (exchange.scope.get("client") or ("unknown", 0))[0],
            "method": exchange.scope["method"],
            "path": exchange.scope["path"][:200],
            "status": exchange.status,
            "ms": round(1000 * seconds, 2),
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
            **{f"{stage}_ms": round(1000 * s, 2) for stage, s in exchange.state.stages.items()},
            **exchange.state.facts,
        }
        if exchange.state.error is not None:
            line["code"] = exchange.state.error.code
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()
