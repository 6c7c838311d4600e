"""Files and folders that appear whole or not at all, and their hashes. Needs the standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PARTIAL_SUFFIX = ".partial"
PREVIOUS_SUFFIX = ".previous"


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file as hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(path: str | Path, write: Callable[[Path], object], *, flush: bool = False) -> None:
    """Let ``write`` fill a file beside ``path``, then move it there; on an error ``path`` stays as it was.

    Args:
        path: Target; its folder must exist.
        write: Called with the file beside, which has the same suffix.
        flush: Wait until the bytes are on the disk (for what must survive a power cut).

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{PARTIAL_SUFFIX}{path.suffix}")
    try:
        write(beside)
        if flush:
            flush_to_disk(beside)
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text_whole(path: str | Path, text: str, *, flush: bool = False) -> None:
    """Write a UTF-8 text with Unix line ends, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", newline="\n"), flush=flush)


def write_bytes_whole(path: str | Path, data: bytes, *, flush: bool = False) -> None:
    """Write bytes, whole or not at all.

    Raises:
        OSError: If they cannot be written.
    """
    write_whole(path, lambda beside: beside.write_bytes(data), flush=flush)


@contextmanager
def folder_whole(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its place when the block ends without an error.

    What was there before stays as ``target`` until then. A crash between the two renames leaves it as
    ``NAME.previous``. A block that moves the folder elsewhere itself leaves ``target`` as it was.

    Raises:
        OSError: If it cannot be written.
    """
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    previous = target.with_name(target.name + PREVIOUS_SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if not partial.exists():
            return
        for file in partial.rglob("*"):
            if file.is_file():
                flush_to_disk(file)
        flush_to_disk(partial)
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
            target.replace(previous)
        partial.replace(target)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
