"""How many threads a training on a CPU computes with."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

_THREADS = "OMP_NUM_THREADS"
_LAUNCHER_FLAGS = (b"--num_cpu_threads_per_process", b"--num-cpu-threads-per-process")


def usable_cores(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it is bound to, and no more than its control group pays for.

    Args:
        proc: Where Linux tells about processes.
        cgroups: Where Linux mounts control groups.
    """
    # macOS binds no process to cores
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _paid_cores(proc, cgroups) or bound))


def _paid_cores(proc: Path, cgroups: Path) -> int | None:
    """Cores of the tightest quota of this process's control group and those above it; None: no quota.

    A container sees its own group at the root. Half a core more counts as a core: a thread that waits now
    and then costs less than a core that is idle half of the time.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        place = root / name.lstrip("/")
        for group in [place, *place.parents]:
            if group == root.parent:
                break
            found.append(_quota(group, unified=not controllers))
    quotas = [quota for quota in found if quota is not None]
    return max(1, math.floor(min(quotas) + 0.5)) if quotas else None


def _quota(group: Path, *, unified: bool) -> float | None:
    try:
        if unified:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


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
