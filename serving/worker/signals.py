"""Signals: drain on SIGTERM, reload on SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

from protoseg.errors import UserError
from serving.worker.bentoml_patches import in_worker, workers_of
from serving.worker.state import ServingState

logger = logging.getLogger(__name__)
_tasks: set[asyncio.Task[None]] = set()


def install_worker_signals(state: ServingState) -> None:
    """Take over SIGTERM, SIGINT (drain) and SIGHUP (reload); needs the running loop of the main thread."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        stop = signal.getsignal(number)
        if callable(stop):
            loop.add_signal_handler(number, _drain, state, number, stop)
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, lambda: _start(_reload(state)))


def _start(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
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

    _start(finish())


async def _reload(state: ServingState) -> None:
    # refusals are logged and counted by the state
    with contextlib.suppress(UserError):
        await asyncio.to_thread(state.reload)


def signal_siblings() -> int:
    """Ask the other workers of this server to reload; how many there are."""
    if not in_worker():
        return 0
    others = [pid for pid in workers_of(os.getppid()) if pid != os.getpid()]
    for pid in others:
        os.kill(pid, signal.SIGHUP)
    return len(others)
