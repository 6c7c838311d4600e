"""Connection limits that uvicorn lacks: request head deadline and size, stalled readers, open connections."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn.protocols.http.auto as auto

from serving.settings import Settings

_MAX_HEAD_BYTES = 64 * 1024
_ORIGINAL: Any = auto.AutoHTTPProtocol


def _make_protocol(settings: Settings, base: Any) -> type:
    class GuardedProtocol(base):  # type: ignore[misc]
        """Closes connections whose peer is slow on purpose."""

        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def _between_requests(self) -> bool:
            return self.cycle is None or bool(self.cycle.response_complete)

        def _arm(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(settings.header_timeout, self._head_late)

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
            super().connection_made(transport)
            if len(self.connections) > settings.connections:
                transport.abort()
                return
            self._arm()

        def data_received(self, data: bytes) -> None:
            if self._between_requests():
                self._arm()
                self._head_bytes += len(data)
            super().data_received(data)
            if not self._between_requests():
                self._disarm()
            elif self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(settings.write_timeout, self._write_late)

        def resume_writing(self) -> None:
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
            self._disarm()
            self._stop_write_timer()
            super().connection_lost(exc)

    return GuardedProtocol


def install_protocol(settings: Settings) -> None:
    """Let every uvicorn server of this process use the guarded protocol."""
    setattr(auto, "AutoHTTPProtocol", _make_protocol(settings, _ORIGINAL))  # noqa: B010
