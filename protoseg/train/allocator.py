"""Memory that a training on a CPU frees and needs again a moment later."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_CHOSEN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let glibc keep what is freed, for the next step.

    It maps blocks of more than 32 MiB anew each time, whose pages the system then clears one by one; feature
    maps of a batch are as large, and a step takes a sixth longer (benchmarks/README.md). What a process held
    at its peak it then holds until it ends.

    Args:
        environment: Whoever sets glibc's own variables decides.

    Returns:
        Whether there is such a C library, and it took it.
    """
    if any(name in environment for name in _CHOSEN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
