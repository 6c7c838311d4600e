"""How many threads a training on a CPU computes with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from protoseg.cores import usable_cores

_THREADS = "OMP_NUM_THREADS"
_LAUNCHER_FLAGS = (b"--num_cpu_threads_per_process", b"--num-cpu-threads-per-process")


def given_threads(environment: Mapping[str, str], parent: Path) -> int | None:
    """Threads that the user asked for by ``OMP_NUM_THREADS`` or a flag of the launcher; None: nobody did.

    ``accelerate launch`` and ``torchrun`` set the variable to 1 for processes on CPUs where nobody has
    set it. What the user set is in the environment that the launcher itself was started with.

    Args:
        environment: This process's environment.
        parent: ``/proc/PID`` of the process that started this one. Where it cannot be read, a 1 under a
            launcher counts as the launcher's.
    """
    text = environment.get(_THREADS, "").split(",")[0]  # a list has the threads of nested loops behind it
    threads = int(text) if text.isdecimal() else 0
    if threads != 1 or not ({"ACCELERATE_MIXED_PRECISION", "LOCAL_RANK"} & set(environment)):
        return threads or None
    try:
        variables = (parent / "environ").read_bytes().split(b"\0")
        words = (parent / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    chosen = any(item.startswith(f"{_THREADS}=".encode()) for item in variables)
    chosen |= any(word.split(b"=")[0] in _LAUNCHER_FLAGS for word in words)
    return 1 if chosen else None


def cpu_threads(wanted: int | None, processes: int) -> int:
    """Threads of this process.

    Args:
        wanted: ``train.cpu_threads``.
        processes: Processes of this training on this machine.
    """
    given = given_threads(os.environ, Path("/proc") / str(os.getppid()))
    return wanted or given or max(1, usable_cores() // processes)
