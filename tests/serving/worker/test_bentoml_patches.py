"""BentoML's private parts that the service relies on; a new version that moves them fails here first."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def test_pinned_version() -> None:
    major, minor, patch = (int(part) for part in importlib.metadata.version("bentoml").split(".")[:3])
    assert (major, minor) == (1, 4)
    assert patch >= 39


def test_io_descriptor_and_service_class() -> None:
    from _bentoml_sdk.io_models import IODescriptor
    from _bentoml_sdk.service.factory import Service

    assert list(inspect.signature(IODescriptor.from_http_request).parameters) == ["request", "serde"]
    assert list(inspect.signature(Service.to_asgi).parameters) == ["self", "is_main"]


def test_hangup_handler_and_worker_module() -> None:
    from _bentoml_impl.server.serving import _SERVICE_WORKER_SCRIPT
    from circus.sighandler import SysHandler
    from circus.sockets import CircusSockets

    from serving.worker.bentoml_patches import _WORKER_MODULE

    assert callable(SysHandler.handle_hup)
    assert callable(CircusSockets.bind_and_listen_all)
    assert _SERVICE_WORKER_SCRIPT == _WORKER_MODULE


def test_uvicorn_takes_the_guarded_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn
    from uvicorn.protocols.http import auto

    from serving.settings import Settings
    from serving.worker.bentoml_patches import GuardedProtocol, install_protocol

    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    install_protocol(Settings(connections=3))
    config = uvicorn.Config(app=lambda: None)
    config.load()
    protocol: Any = config.http_protocol_class
    assert issubclass(protocol, GuardedProtocol)
    assert protocol.settings.connections == 3
    for name in ("cycle", "connections", "loop", "transport"):
        assert re.search(rf"self\.{name}\b", inspect.getsource(GuardedProtocol.__mro__[1])), name


def test_service_pins_match_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    known = {re.split(r"[<>=;]", item)[0].strip(): item.split(";")[0].replace(" ", "") for item in project}
    for name in ("requirements.txt", "requirements-gpu.txt"):
        lines = (ROOT / "serving" / name).read_text().splitlines()
        wanted = [line for line in lines if line and not line.startswith("#")]
        for line in wanted:
            package = re.split(r"[<>=;]", line)[0].strip()
            assert known[package] == line.split(";")[0].replace(" ", ""), line
        assert not {"torch", "accelerate", "timm"} & {re.split(r"[<>=;]", line)[0] for line in wanted}


def test_every_import_is_required() -> None:
    """What the package imports is in the standard library, ours, or in the requirements."""
    names = {"pillow": "PIL", "pyyaml": "yaml", "opencv-python-headless": "cv2", "onnxruntime": "onnxruntime"}
    lines = (ROOT / "serving" / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[<>=;]", line)[0].strip() for line in lines if line and line[0] != "#"}
    allowed = {names.get(name, name) for name in required} | set(sys.stdlib_module_names)
    # these come with bentoml itself
    allowed |= {
        "_bentoml_sdk",
        "python_multipart",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "serving",
        "protoseg",
        "export",
    }
    for file in (ROOT / "serving").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [item.name for item in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                assert module.split(".")[0] in allowed, f"{file.name}: {module}"


def test_the_service_imports_without_torch_or_a_model() -> None:
    code = (
        "import sys, serving; serving.svc; print(sorted({'torch', 'accelerate', 'onnx'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("otel", [False, True])
def test_costly_middleware_is_taken_out(otel: bool) -> None:
    from _bentoml_sdk.service.factory import Service

    from serving.service import build_service
    from serving.settings import Settings
    from serving.worker.bentoml_patches import UNWANTED_MIDDLEWARE

    service = build_service(Settings(otel=otel))
    before = {m.cls.__name__ for m in Service.to_asgi(service).user_middleware}
    assert before >= set(UNWANTED_MIDDLEWARE)
    after = {m.cls.__name__ for m in service.to_asgi().app.user_middleware}
    assert after == before - set(UNWANTED_MIDDLEWARE[: 1 if otel else 2])
    assert "ContextMiddleware" in after


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's signal is Linux only")
def test_a_worker_whose_parent_died_ends_before_it_imports_anything_heavy() -> None:
    code = "import sys, serving; serving.svc; print('still here')"
    environ = {**os.environ, "_PROTOSEG_PARENT": "1" if os.getpid() != 1 else "2"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], cwd=ROOT, env=environ, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGTERM
    assert "still here" not in done.stdout
    assert "onnxruntime" not in done.stderr
    assert "bentoml" not in done.stderr
