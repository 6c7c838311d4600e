"""Every private name of BentoML, circus and uvicorn that the service relies on.

``tests/serving/worker/test_bentoml_patches.py`` fails first when a new version moves one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
from typing import Any

import uvicorn.protocols.http.auto as auto
from _bentoml_sdk.io_models import IODescriptor as IODescriptor
from _bentoml_sdk.service.factory import Service as Service
from bentoml._internal.context import server_context
from bentoml.exceptions import BentoMLException

from serving.settings import Settings

# BentoML's timer holds every request in memory until it fires (deadlines are the gateway's), and its
# spans cost as much as the rest of the framework
UNWANTED_MIDDLEWARE = ("TimeoutMiddleware", "OpenTelemetryMiddleware")
_WORKER_MODULE = "_bentoml_impl.worker.service"
_MAX_HEAD_BYTES = 64 * 1024
_ORIGINAL: Any = auto.AutoHTTPProtocol


class GuardedProtocol(_ORIGINAL):  # type: ignore[misc]
    """Has the limits that uvicorn lacks: head deadline and size, stalled readers, open connections."""

    settings: Settings
    """The limits, which ``install_protocol`` gives to a class of its own."""
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def _between_requests(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _arm(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.settings.header_timeout, self._head_late)

    def _disarm(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self._between_requests() and not self.transport.is_closing():
            self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        """Cut a connection that is one too many; of all others a head is expected soon."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections:
            transport.abort()
            return
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Hand bytes on, and cut a connection whose head is too long."""
        if self._between_requests():
            self._arm()
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._between_requests():
            self._disarm()
        elif self._head_bytes > _MAX_HEAD_BYTES:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Wait for the reader, but not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.write_timeout, self._write_late)

    def resume_writing(self) -> None:
        """The reader has gone on."""
        super().resume_writing()
        self._stop_write_timer()

    def _write_late(self) -> None:
        self._write_timer = None
        self.transport.abort()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both clocks."""
        self._disarm()
        self._stop_write_timer()
        super().connection_lost(exc)


def install_protocol(settings: Settings) -> None:
    """Let every uvicorn server of this process that starts from now on use the guarded protocol."""
    limited = type(GuardedProtocol.__name__, (GuardedProtocol,), {"settings": settings})
    setattr(auto, "AutoHTTPProtocol", limited)  # noqa: B010


def drop_middleware(app: Any, *, keep_spans: bool) -> None:
    """Take BentoML's costly middleware out of an application that has not started."""
    unwanted = UNWANTED_MIDDLEWARE[: 1 if keep_spans else 2]
    app.user_middleware = [m for m in app.user_middleware if m.cls.__name__ not in unwanted]


def in_worker() -> bool:
    """Whether this is a worker process of ``bentoml serve``."""
    return server_context.worker_index is not None


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers that a serving process started."""
    # neither psutil nor circus has type information
    psutil = importlib.import_module("psutil")
    found = []
    for process in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):
            if _WORKER_MODULE in process.cmdline():
                found.append(process.pid)
    return found


def forward_hangup() -> None:
    """Let the parent process hand SIGHUP to its workers.

    Without this BentoML's process manager would replace the workers, also when the new bundle cannot be
    served, and then try for ever.
    """

    def handle_hup(_: object) -> None:
        for pid in workers_of(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    importlib.import_module("circus.sighandler").SysHandler.handle_hup = handle_hup


def explain_taken_port() -> None:
    """Let the command end with one line instead of a stack trace when it cannot listen on its port."""
    sockets = importlib.import_module("circus.sockets").CircusSockets
    bind = sockets.bind_and_listen_all

    def bind_or_explain(self: Any) -> None:
        try:
            bind(self)
        except OSError as error:
            places = ", ".join(str(item.location) for item in self.values())
            # BentoML's command cleans up after it and prints it as one line
            raise BentoMLException(
                f"cannot listen on {places}: {error.strerror}; end what listens there, or give --port"
            ) from error

    sockets.bind_and_listen_all = bind_or_explain
