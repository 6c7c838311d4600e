"""Memory that a network on a CPU frees and needs again a moment later."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_CHOSEN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environment: Mapping[str, str] = os.environ, *, threads: bool = False) -> bool:
    """Let glibc keep what is freed, for the next step or image.

    It maps blocks of more than 32 MiB anew each time, whose pages the system then clears one by one; feature
    maps of a batch are as large, and a step takes a sixth longer (benchmarks/README.md). What a process held
    at its peak it then holds until it ends.

    Args:
        environment: Whoever sets glibc's own variables decides.
        threads: Networks compute in several threads, which then share one heap: glibc gives each its own, in
            pieces of 64 MiB that go back to the system whatever it was told. Works before threads have begun.

    Returns:
        Whether there is such a C library, and it took it.
    """
    if any(name in environment for name in _CHOSEN):
        return False
    one_heap = threads and "MALLOC_ARENA_MAX" not in environment
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    wanted = [(_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), *([(_ARENA_MAX, 1)] if one_heap else [])]
    return all(bool(mallopt(*setting)) for setting in wanted)
