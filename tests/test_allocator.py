"""Freed memory stays with the process, unless its user has chosen otherwise."""

import subprocess
import sys

import pytest
from tiny import quiet_environment

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


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize(
    ("chosen", "expected"), [({}, "True True"), ({"MALLOC_MMAP_MAX_": "65536"}, "False False")]
)
def test_a_large_block_is_kept(chosen, expected):
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=quiet_environment() | chosen, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ("False False" if chosen else "True True")
