"""Checks that every runner makes."""

from __future__ import annotations

import numpy as np
import pytest

from export.runners.contract import RunnerError, check_input
from protoseg.manifest import TensorInfo


def test_static_axes_are_checked() -> None:
    info = TensorInfo(name="image", dtype="uint8", shape=[1, 3, 64, 96])
    check_input(info, (1, 3, 64, 96), np.dtype(np.uint8))
    with pytest.raises(RunnerError, match="expected"):
        check_input(info, (2, 3, 64, 96), np.dtype(np.uint8))
