"""Caches of engines and kernel timings: locked against other builds, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from protoseg.errors import ExportError
from protoseg.files import write_bytes_whole, write_text_whole

CACHE_VARIABLE = "PROTOSEG_CACHE"
LOCK_SECONDS = 3600.0


def default_cache() -> Path:
    """``$PROTOSEG_CACHE``, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else user_cache_path("protoseg", appauthor=False)


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
    try:
        with FileLock(f"{path}.lock", timeout=timeout):
            yield
    except Timeout as error:
        raise ExportError(
            f"another build has held {error.lock_file} for {timeout:.0f} s; wait, or use --no-cache"
        ) from None


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
        write_bytes_whole(path, data)
        text = json.dumps(note, indent=2, default=str)
        write_text_whole(path.with_name(path.name + ".json"), text)
