"""What is between a command and a call of it: settings as texts, and a program's own logging and signals."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

PathLike = str | os.PathLike[str]
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def setting_texts(settings: Mapping[str, Any] | None) -> list[str]:
    """Settings as a command is given them, ``key=value`` each."""
    return [f"{key}={_text(value)}" for key, value in (settings or {}).items()]


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, list | tuple | dict) or value is None else str(value)


@contextmanager
def messages(*names: str) -> Iterator[None]:
    """Messages of our loggers on the standard output, where the program has no logging of its own."""
    loggers = [logging.getLogger(name) for name in names]
    if any(logger.hasHandlers() for logger in loggers):
        yield
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    levels = [logger.level for logger in loggers]
    # of several processes the first one speaks, but for errors
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


@contextmanager
def signals_restored() -> Iterator[None]:
    """Give the program its signal handlers back, also after an error."""
    if threading.current_thread() is not threading.main_thread():
        yield  # nothing can have been changed
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it is no handler of Python's, and cannot be given back
                signal.signal(number, handler)
