"""Tracing says what PyTorch and its exporter have to say."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch

from export import onnx as command
from export.graph import trace as tracing
from export.graph.trace import ExportSettings, trace
from protoseg.errors import ExportError


def test_warnings_of_the_exporter_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubtful(*arguments: Any, **options: Any) -> None:
        warnings.warn("a value became a constant", torch.jit.TracerWarning, stacklevel=1)
        raise RuntimeError("no graph")

    monkeypatch.setattr(tracing.torch.onnx, "export", doubtful)
    module: Any = torch.nn.Identity()
    module.output_names = ("labels",)
    with (
        pytest.warns(torch.jit.TracerWarning, match="became a constant"),
        pytest.raises(ExportError, match=r"cannot be traced to ONNX: no graph; .*--static"),
    ):
        trace(module, ExportSettings(), 3, 32)


def test_the_command_leaves_the_logs_of_others_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load_checkpoint", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.main(["run"])
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        assert logging.getLogger(name).isEnabledFor(logging.WARNING), name
    assert logging.getLogger("export.writer").isEnabledFor(logging.INFO)
