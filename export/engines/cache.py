"""Caches of engines and kernel timings: locked against other builds, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.bundle import write_bytes
from export.errors import ExportError

CACHE_VARIABLE = "PROTOSEG_CACHE"
LOCK_SECONDS = 3600.0
POLL_SECONDS = 0.2


def default_cache() -> Path:
    """``$PROTOSEG_CACHE``, else ``protoseg`` in the user's cache folder."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "protoseg"


def cache_key(facts: Mapping[str, Any]) -> str:
    """A file name that changes with any of the facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@contextmanager
def locked(path: Path, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold ``path`` + ``.lock`` alone; the lock ends with the process, however it ends.

    Raises:
        ExportError: If another process holds it for longer than ``timeout`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a+b") as stream:
        deadline = time.monotonic() + timeout
        while not _try_lock(stream.fileno()):
            if time.monotonic() > deadline:
                raise ExportError(
                    f"another build has held {stream.name} for {timeout:.0f} s; wait, or use --no-cache"
                )
            time.sleep(POLL_SECONDS)
        yield


def _try_lock(descriptor: int) -> bool:
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Cache:
    """Files by key in one folder, each with its facts and its hash beside it.

    Args:
        folder: Where; made when first written.
        suffix: File suffix with dot.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix

    def path(self, facts: Mapping[str, Any]) -> Path:
        """The file of these facts, which may not exist."""
        return self.folder / (cache_key(facts) + self.suffix)

    def read(self, facts: Mapping[str, Any]) -> bytes | None:
        """The stored bytes, or None when there are none or they are damaged."""
        path = self.path(facts)
        try:
            data = path.read_bytes()
            note = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if note.get("sha256") == hashlib.sha256(data).hexdigest() else None

    def write(self, facts: Mapping[str, Any], data: bytes) -> None:
        """Store bytes and facts."""
        path = self.path(facts)
        self.folder.mkdir(parents=True, exist_ok=True)
        note = {"sha256": hashlib.sha256(data).hexdigest(), "facts": dict(facts)}
        write_bytes(path, data)
        write_bytes(path.with_name(path.name + ".json"), json.dumps(note, indent=2, default=str).encode())
