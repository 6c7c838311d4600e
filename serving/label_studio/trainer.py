"""Starts the training command, one at a time."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from typing import Literal

logger = logging.getLogger(__name__)
_PATIENCE_S = 30.0
Started = Literal["started", "running", "off", "failed"]


class Trainer:
    """A command that is run when Label Studio asks for a training.

    Args:
        command: Program and arguments; empty for none. No shell reads them.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self, project: str) -> Started:
        """Run the command with ``LABEL_STUDIO_PROJECT`` in its environment, if none is running."""
        if not self.command:
            return "off"
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return "running"
            environ = {**os.environ, "LABEL_STUDIO_PROJECT": project}
            try:
                self._process = subprocess.Popen(self.command, env=environ, stdin=subprocess.DEVNULL)
            except OSError as error:
                logger.error("the training command cannot be started: %s", error)
                return "failed"
            threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()
        logger.info("training started (process %d): %s", self._process.pid, " ".join(self.command))
        return "started"

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        level = logging.INFO if code == 0 else logging.ERROR
        logger.log(level, "training ended with exit code %d", code)

    def stop(self) -> None:
        """Ask a running training to end (it saves its state), and wait for that."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            logger.warning("the training (process %d) goes on", process.pid)
