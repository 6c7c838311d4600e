"""Starts a server on a free port of 127.0.0.1 and ends it with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
WORKER = "_bentoml_impl.worker.service"


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A served process group; a context manager.

    Args:
        environ: Variables over the current ones (``PROTOSEG_*`` of the caller are dropped).
        target: What ``program`` is given to serve.
        program: Module that serves, with its first arguments.
        cwd: Working directory.
        port: Port; None takes a free one.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        target: str = "serving:svc",
        program: Sequence[str] = ("bentoml", "serve"),
        cwd: Path = ROOT,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # servers that share a home delete each other's metrics
        self._home = tempfile.TemporaryDirectory(prefix="bentoml-")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PROTOSEG_")}
        search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environ = inherited | {
            "BENTOML_HOME": self._home.name, "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": search_path,
        } | dict(environ)  # fmt: skip
        self.log = Path(self._home.name, "server.log")
        command = [sys.executable, "-m", *program, target, "--host", "127.0.0.1"]
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)], env=self.environ, cwd=cwd,
                stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait_ready(self, timeout: float = 90.0) -> float:
        """Seconds until ``/readyz`` answers 200.

        Raises:
            RuntimeError: If the process ends or does not get ready; the text is its log.
        """
        start = time.monotonic()
        while time.monotonic() < start + timeout:
            if self.process.poll() is not None:
                raise RuntimeError(f"server ended with {self.process.returncode}:\n{self.text()}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return time.monotonic() - start
            time.sleep(0.05)
        raise RuntimeError(f"server is not ready after {timeout} s:\n{self.text()}")

    def wait_end(self, timeout: float = 60.0) -> int:
        """Exit code of the command."""
        return self.process.wait(timeout)

    def text(self) -> str:
        """Standard output and error so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def workers(self) -> list[psutil.Process]:
        """Worker processes that are alive."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if WORKER in child.cmdline():
                    found.append(child)
        return found

    def family(self) -> list[psutil.Process]:
        """The command and all that it started."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def memory_mib(self) -> float:
        """Resident MiB of all workers."""
        total = 0.0
        for worker in self.workers():
            with contextlib.suppress(psutil.Error):
                total += worker.memory_info().rss / 2**20
        return round(total, 1)

    def signal(self, number: int) -> None:
        """Send a signal to the command itself."""
        self.process.send_signal(number)

    def close(self) -> None:
        """End the command and all its workers, which BentoML puts into sessions of their own."""
        family = []
        with contextlib.suppress(psutil.Error):
            family = self.family()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        self._home.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
