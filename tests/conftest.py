from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny import PROJECT_ROOT, quiet_environment

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_module() -> Run:
    """Run ``python -m MODULE ARGS`` from the project root and return the finished process."""

    def run(
        module: str,
        *arguments: object,
        cwd: Path = PROJECT_ROOT,
        timeout: float = 300,
        launcher: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        command = [*(launcher or (sys.executable, "-m")), module, *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=quiet_environment(), text=True, capture_output=True, timeout=timeout
        )

    return run


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu need a CUDA device; REQUIRE_GPU=1 makes its absence a failure."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if torch.cuda.is_available():
        return
    reason = "no CUDA device: torch.cuda.is_available() is false"
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"REQUIRE_GPU=1, but {reason}")
    pytest.skip(reason)
