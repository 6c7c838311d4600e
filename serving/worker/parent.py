"""The tie between a worker and the process that started it. Imports nothing heavy, so that it is early."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# process id of the parent, which sets it for its workers
PARENT = "_PROTOSEG_PARENT"
_PR_SET_PDEATHSIG = 1


def tie_to_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that no worker keeps serving alone."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # it may have died while this process was starting
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGTERM)


def tie_worker() -> None:
    """``tie_to_parent`` in a process that a serving parent started; nothing elsewhere."""
    if PARENT in os.environ and os.environ[PARENT] != str(os.getpid()):
        tie_to_parent()
