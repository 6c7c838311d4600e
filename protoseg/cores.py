"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


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
