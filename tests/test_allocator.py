"""Freed memory stays with the process, unless its user has chosen otherwise."""

import subprocess
import sys

import pytest
from tiny import quiet_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
CODE = """
import sys
import numpy as np
from protoseg.allocator import keep_freed_memory

def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

kept = keep_freed_memory()
before = held()
block = np.ones(2**23)
del block
print(kept, held() - before > 60)
"""
IN_A_THREAD = """
import resource
from concurrent.futures import ThreadPoolExecutor
from protoseg.allocator import keep_freed_memory

def new_pages(_):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * 2**23 for _ in range(20)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory(threads=True)
with ThreadPoolExecutor(1) as pool:
    first, *_, last = pool.map(new_pages, range(3))
print(first > 10000, last > 10000)
"""


def printed(code, chosen):
    done = subprocess.run(
        [sys.executable, "-c", code], env=quiet_environment() | chosen, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("chosen", "expected"), [({}, "True True"), ({"MALLOC_MMAP_MAX_": "65536"}, "False False")]
)
def test_a_large_block_is_kept(chosen, expected):
    assert printed(CODE, chosen) == expected


@pytest.mark.parametrize(
    ("chosen", "expected"), [({}, "True False"), ({"MALLOC_ARENA_MAX": "8"}, "True True")]
)
def test_threads_share_what_is_kept(chosen, expected):
    """A heap of a thread's own gives it back: 160 MiB are 40,960 pages."""
    assert printed(IN_A_THREAD, chosen) == expected
