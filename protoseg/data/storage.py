"""Files on the disk and behind URLs: found by pattern, read by ranges of bytes.

What is not on the disk is read by fsspec, with the package of its protocol (``s3://``: s3fs, ``gs://``:
gcsfs, ``hf://``: huggingface_hub). Its settings are fsspec's: ``FSSPEC_S3_ENDPOINT_URL`` and the like.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from platformdirs import user_cache_path

from protoseg.errors import DataError
from protoseg.files import PROJECT_ROOT

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs",
    "abfs": "adlfs", "abfss": "adlfs", "http": "aiohttp", "https": "aiohttp",
    "sftp": "paramiko", "ssh": "paramiko",
}  # fmt: skip
_BLOCK = 2**20
_MOST_NAMES = 1_000_000


@dataclass(frozen=True)
class Blob:
    """A file by its path or URL, and what tells whether it has changed."""

    place: str
    size: int
    mark: str
    """ETag, checksum or time of the last change."""


def is_url(text: str) -> bool:
    """Whether a place is not on the disk by its path."""
    return _URL.match(text) is not None


def expand_text(text: str) -> str:
    """Expand ``~`` and environment variables; PROTOSEG_DATA has a default beside a checkout.

    ``file://`` is taken off: what is on the disk is read directly.

    Raises:
        DataError: If a variable is not set.
    """
    default = PROJECT_ROOT.parent / "shared" / "data"
    if "PROTOSEG_DATA" not in os.environ and default.is_dir():
        text = re.sub(r"\$(PROTOSEG_DATA\b|\{PROTOSEG_DATA\})", lambda _: str(default), text)
    expanded = os.path.expandvars(text)
    left = re.search(r"\$\{?([A-Za-z_]\w*)\}?", expanded)
    if left is not None and left.group(1) not in os.environ:
        raise DataError(f"{text!r} uses the environment variable {left.group(1)}, which is not set")
    if expanded.startswith("file://"):
        expanded = expanded.removeprefix("file://")
    return expanded if is_url(expanded) else os.path.expanduser(expanded)  # noqa: PTH111 (keeps a pattern)


def cache_folder() -> Path:
    """``$PROTOSEG_CACHE``, else the user's cache folder; indexes and small fetched files go below it."""
    chosen = os.environ.get("PROTOSEG_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("protoseg", appauthor=False)


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` as three names, ``{a,b}.tar`` as two; the first is as wide as the others.

    Raises:
        DataError: If braces hold neither, or these are too many names.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    span = _RANGE.fullmatch(match[1])
    if span is not None:
        first, last = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") else 0
        count = abs(last - first) + 1
        step = 1 if last >= first else -1
        parts = (
            [f"{number:0{width}d}" for number in range(first, last + step, step)]
            if count <= _MOST_NAMES
            else []
        )
    else:
        parts = match[1].split(",")
    if (not span and len(parts) < 2) or not parts:
        raise DataError(
            f"{pattern!r}: braces hold a range of at most {_MOST_NAMES} numbers ({{000..099}}) or names "
            f"split by commas ({{a,b}}), got {match[0]}"
        )
    return [
        text
        for part in parts
        for text in expand_braces(pattern[: match.start()] + part + pattern[match.end() :])
    ]


def find_blobs(pattern: str) -> list[Blob]:
    """Files by a path or URL with braces and wildcards, in the order of the braces, else by name.

    Raises:
        DataError: If one is missing, nothing fits, or the place cannot be reached.
    """
    found: dict[str, Blob] = {}
    listings: dict[str, dict[str, Blob]] = {}
    missing = []
    for name in expand_braces(pattern):
        if _WILD.search(name):
            some = _glob(name)
        else:
            folder = name.rpartition("/")[0]
            if folder not in listings:
                listings[folder] = _listing(name, folder)
            last = name.rpartition("/")[2]
            some = [listings[folder][last]] if last in listings[folder] else []
        if not some:
            missing.append(name)
        for blob in some:
            found.setdefault(blob.place, blob)
    if missing and not found:
        raise DataError(f"{pattern} not found; no file fits")
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise DataError(
            f"{missing[0]}{more} not found, of {len(missing) + len(found)} that {pattern} names; copy what "
            "is missing, or name only what is there"
        )
    return list(found.values())


def _listing(name: str, folder: str) -> dict[str, Blob]:
    """Files of a folder by name; one request for all of them."""
    if not is_url(name):
        if not Path(folder or ".").is_dir():
            return {}
        with _told(folder):
            return {
                item.name: Blob(place, stat.st_size, str(stat.st_mtime_ns))
                for item in os.scandir(folder or ".")
                if item.is_file()
                for place, stat in [(f"{folder}/{item.name}" if folder else item.name, item.stat())]
            }
    with _told(folder):
        system, path = _system(folder)
        try:
            rows = system.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        return {
            blob.place.rpartition("/")[2]: blob
            for row in rows
            if (blob := _remote_blob(system, row)) is not None
        }


def _glob(pattern: str) -> list[Blob]:
    if not is_url(pattern):
        places = sorted(place for place in glob.glob(pattern) if os.path.isfile(place))  # noqa: PTH207, PTH113
        return [Blob(p, stat.st_size, str(stat.st_mtime_ns)) for p in places for stat in [Path(p).stat()]]
    with _told(pattern):
        system, path = _system(pattern)
        rows = system.glob(path, detail=True)
        return [blob for name in sorted(rows) if (blob := _remote_blob(system, rows[name])) is not None]


def _remote_blob(system: Any, row: dict[str, Any]) -> Blob | None:
    if row.get("type") == "directory":
        return None
    marks = (
        row.get(key)
        for key in ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "updated", "mtime", "last_commit")
    )
    mark = next((str(value) for value in marks if value), "")
    return Blob(system.unstrip_protocol(row["name"]), int(row.get("size") or 0), mark)


def _system(url: str) -> tuple[Any, str]:
    """Fsspec's file system of a URL, and the path there. A new process after a fork gets one of its own."""
    try:
        import fsspec
    except ImportError:
        raise DataError(f"{url} needs another package: pip install 'protoseg[large]'") from None
    return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    """What went wrong at a place, as one text with its cure."""
    try:
        yield
    except DataError:
        raise
    # every protocol's package has errors of its own
    except Exception as error:
        raise DataError(_reason(place, error)) from error


def _reason(place: str, error: Exception) -> str:
    protocol = place.partition("://")[0] if is_url(place) else ""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    package = _PACKAGES.get(protocol)
    if isinstance(error, ImportError):
        return f"{place} needs another package ({text}): pip install {package or 'what it names'}"
    if isinstance(error, ValueError) and "rotocol" in text:
        return f"{place}: {text}; read are paths, s3://, gs://, hf://, az://, https:// and what fsspec knows"
    denied = isinstance(error, PermissionError) or "credential" in text.lower() or "denied" in text.lower()
    if denied and protocol:
        public = f"; of a public place: FSSPEC_{protocol.upper()}_ANON=true" if package == "s3fs" else ""
        return (
            f"access to {place} was denied ({text}); give this process credentials as {package or protocol} "
            f"reads them{public}"
        )
    if isinstance(error, FileNotFoundError):
        return f"{place} not found"
    return f"{place} cannot be read ({type(error).__name__}: {text})"


def open_blob(place: str) -> BinaryIO:
    """A file for reading from front to back, with jumps.

    Raises:
        DataError: If it cannot be opened.
    """
    with _told(place):
        if not is_url(place):
            return Path(place).open("rb")
        system, path = _system(place)
        # what lies between two headers is skipped where it is longer than a block
        return cast("BinaryIO", system.open(path, "rb", block_size=_BLOCK, cache_type="readahead"))


@contextlib.contextmanager
def opened(place: str) -> Iterator[BinaryIO]:
    """As ``open_blob``; errors while it is read are told, too.

    Raises:
        DataError: If it cannot be read.
    """
    with open_blob(place) as file, _told(place):
        yield file


# an image's bytes are asked for more than once: its tag, its kind of values, its pixels
@lru_cache(maxsize=4)
def read_range(place: str, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset`` on.

    Raises:
        DataError: If they cannot be read or are not there.
    """
    with _told(place):
        if is_url(place):
            system, path = _system(place)
            data: bytes = system.cat_file(path, start=offset, end=offset + size)
        else:
            with Path(place).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
    if len(data) != size:
        raise DataError(
            f"{place} has changed since it was opened: it ends before byte {offset + size}; start anew"
        )
    return data


def read_blob(place: str) -> bytes:
    """All bytes of a small file.

    Raises:
        DataError: If it cannot be read.
    """
    with _told(place):
        system, path = _system(place)
        return cast("bytes", system.cat_file(path))
