"""Tables of shards: made once for each, and kept until the shard changes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from protoseg.data.shards.parquet import scan_parquet
from protoseg.data.shards.table import Table, join_tables, load_table
from protoseg.data.shards.tar import scan_tar
from protoseg.data.storage import Blob, cache_folder, is_url
from protoseg.errors import DataError
from protoseg.files import write_whole

logger = logging.getLogger(__name__)

_VERSION = 1
"""Raised when tables of an earlier form, or made by other rules, must be made anew."""
_READERS = 8


@dataclass(frozen=True)
class Rules:
    """What decides which file of a sample is image and mask; see ``DataConfig``."""

    image_suffix: str | None = None
    mask_suffix: str | None = None
    image_column: str | None = None
    mask_column: str | None = None


@dataclass(frozen=True, eq=False)
class ShardSet:
    """Images of several shards, in order."""

    shards: tuple[str, ...]
    """Paths and URLs."""
    table: Table
    firsts: NDArray[np.int64]
    """``(S + 1,)`` where the rows of each shard begin."""

    def shard_of(self, row: int) -> str:
        """Where a row's shard is."""
        return self.shards[int(np.searchsorted(self.firsts, row, side="right")) - 1]


@lru_cache(maxsize=8)
def open_shards(blobs: tuple[Blob, ...], rules: Rules) -> ShardSet:
    """The images of shards; those that were not seen before are looked through.

    Raises:
        DataError: If one cannot be read.
    """
    paths = [_table_path(blob, rules) for blob in blobs]
    tables = [_load(path) for path in paths]
    if any(table is None for table in tables):
        with _alone(paths):
            tables = [_load(path) for path in paths]
            todo = [i for i, table in enumerate(tables) if table is None]
            for i, made in zip(
                todo, _scan([blobs[i] for i in todo], [paths[i] for i in todo], rules), strict=True
            ):
                tables[i] = made
    table, firsts = join_tables([table for table in tables if table is not None])
    return ShardSet(tuple(blob.place for blob in blobs), table, firsts)


def _table_path(blob: Blob, rules: Rules) -> Path:
    place = blob.place if is_url(blob.place) else str(Path(blob.place).resolve())
    facts = [_VERSION, place, blob.size, blob.mark, *vars(rules).values()]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return cache_folder() / "shards" / f"{name}.npz"


def _load(path: Path) -> Table | None:
    try:
        return load_table(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


@contextmanager
def _alone(paths: Sequence[Path]) -> Iterator[None]:
    """Let one of several processes make tables, and the others wait for them."""
    name = hashlib.sha256("\n".join(path.name for path in paths).encode()).hexdigest()[:32]
    folder = paths[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire()
    except OSError:
        # tables are made all the same, by each process; said where one cannot be written
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _scan(blobs: Sequence[Blob], paths: Sequence[Path], rules: Rules) -> Iterator[Table]:
    total = sum(blob.size for blob in blobs)
    logger.info("looking through %d shard(s), %.1f GB, once", len(blobs), total / 1e9)
    shown = sys.stderr.isatty() and int(os.environ.get("RANK", "0")) == 0
    remote = any(is_url(blob.place) for blob in blobs)
    pool = ThreadPoolExecutor(_READERS if remote else 1)
    told = False
    try:
        tables = pool.map(lambda blob: _scan_one(blob, rules), blobs)
        bar = tqdm(
            tables,
            total=len(blobs),
            desc="looking through shards",
            unit="shard",
            leave=False,
            disable=not shown,
        )
        for table, path in zip(bar, paths, strict=True):
            try:
                write_whole(path, table.save)
            except OSError as error:
                if not told:
                    logger.warning(
                        "%s cannot be written (%s): the next start looks through the shards again; set "
                        "PROTOSEG_CACHE to a folder that can", path.parent, error,
                    )  # fmt: skip
                told = True
            yield table
    finally:
        pool.shutdown(cancel_futures=True)


def _scan_one(blob: Blob, rules: Rules) -> Table:
    if blob.place.endswith(".parquet"):
        return scan_parquet(blob.place, rules.image_column, rules.mask_column)
    if not blob.size:
        raise DataError(f"{blob.place} is empty; copy or write it anew")
    return scan_tar(blob.place, blob.size, rules.image_suffix, rules.mask_suffix)
