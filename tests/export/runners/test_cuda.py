"""The CUDA driver, where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from export.runners.contract import RunnerError
from export.runners.cuda import Cuda


def test_no_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr("export.runners.cuda.ctypes.CDLL", missing)
    with pytest.raises(RunnerError, match="no NVIDIA driver"):
        Cuda()
