"""Signals: drain on SIGTERM, reload on SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from serving.errors import BundleError
from serving.worker.state import ServingState

logger = logging.getLogger(__name__)
_WORKER_MODULE = "_bentoml_impl.worker.service"
_tasks: set[asyncio.Task[None]] = set()


def install_worker_signals(state: ServingState) -> None:
    """Take over SIGTERM, SIGINT (drain) and SIGHUP (reload); needs the running loop of the main thread."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        stop = signal.getsignal(number)
        if callable(stop):
            loop.add_signal_handler(number, _drain, state, number, stop)
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, _start, _reload(state))


def _start(work: Any) -> None:
    task = asyncio.get_running_loop().create_task(work() if callable(work) else work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _drain(state: ServingState, number: int, stop: Callable[[int, FrameType | None], Any]) -> None:
    if state.draining:
        stop(number, None)
        return
    state.draining = True
    logger.info("draining: not ready any more, listening for %g s", state.settings.drain)

    async def finish() -> None:
        # load balancers need a moment to see that this server is not ready
        await asyncio.sleep(state.settings.drain)
        stop(number, None)

    _start(finish)


def _reload(state: ServingState) -> Callable[[], Any]:
    async def work() -> None:
        # refusals are logged and counted by the state
        with contextlib.suppress(BundleError):
            await asyncio.to_thread(state.reload)

    return work


def _workers_of(parent: int) -> list[int]:
    # neither psutil nor circus has type information
    psutil = importlib.import_module("psutil")
    found = []
    for process in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):
            if _WORKER_MODULE in process.cmdline():
                found.append(process.pid)
    return found


def signal_siblings() -> int:
    """Ask the other workers of this server to reload; how many there are."""
    from bentoml._internal.context import server_context

    if server_context.worker_index is None:
        return 0
    others = [pid for pid in _workers_of(os.getppid()) if pid != os.getpid()]
    for pid in others:
        os.kill(pid, signal.SIGHUP)
    return len(others)


def forward_hangup() -> None:
    """Let the parent process hand SIGHUP to its workers.

    Without this BentoML's process manager would replace the workers, also when the new bundle cannot be
    served, and then try for ever.
    """

    def handle_hup(_: object) -> None:
        for pid in _workers_of(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    importlib.import_module("circus.sighandler").SysHandler.handle_hup = handle_hup


def explain_taken_port() -> None:
    """Let the command end with one line instead of a stack trace when it cannot listen on its port."""
    from bentoml.exceptions import BentoMLException

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


def in_worker() -> bool:
    """Whether this is a worker process of ``bentoml serve``."""
    from bentoml._internal.context import server_context

    return server_context.worker_index is not None
