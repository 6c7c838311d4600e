"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

import torch

from protoseg.processes import Processes


class Interrupt:
    """SIGINT and SIGTERM ask for a stop after the current step; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.seen = False
        self.before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        with contextlib.suppress(ValueError):  # not in the main thread: leave signals alone
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        _follow_launcher()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = True
        sys.stderr.write("\nstopping after this step; the state will be saved (Ctrl-C again: stop at once)\n")

    def close(self) -> None:
        """Give signals back to whoever had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def requested(self, processes: Processes, together: bool) -> bool:
        """Whether to stop now; several processes agree on it at the steps at which they come ``together``."""
        if processes.world == 1:
            return self.seen
        if not together:
            return False
        return bool(processes.reduce(torch.tensor([int(self.seen)], device=processes.device)).item())


def _follow_launcher() -> None:
    """Get a SIGTERM when ``accelerate launch`` dies, which passes none on to its single child."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ
    if launched and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
