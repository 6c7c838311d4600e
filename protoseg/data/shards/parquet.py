"""Images and masks in the columns of parquet files, as Hugging Face data sets have them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from protoseg.data.shards.table import Rows, Table
from protoseg.data.storage import is_url, open_blob
from protoseg.errors import DataError

IMAGE_COLUMNS = ("image", "img", "pixel_values", "picture", "photo")
MASK_COLUMNS = (
    "mask", "label", "labels", "annotation", "segmentation", "segmentation_mask", "semantic_segmentation",
    "semantic_mask", "seg", "gt", "annotated",
)  # fmt: skip


def choose_columns(
    pictures: Sequence[str], file: str, image: str | None = None, mask: str | None = None
) -> tuple[str, str | None]:
    """The columns of images and masks among those that hold pictures.

    Args:
        pictures: Columns that hold pictures.
        file: What to call the file in a message.
        image: ``data.image_column``; None: a usual name.
        mask: ``data.mask_column``; None: a usual name.

    Raises:
        DataError: If one is missing, or it cannot be told which it is.
    """
    for column, setting in ((image, "image_column"), (mask, "mask_column")):
        if column is not None and column not in pictures:
            raise DataError(
                f"{file} has no picture column {column}; set data.{setting} to one of {list(pictures)}"
            )
    chosen = image or next((name for name in IMAGE_COLUMNS if name in pictures), None)
    mask = mask or next((name for name in MASK_COLUMNS if name in pictures and name != chosen), None)
    if chosen is None or (mask is None and len(pictures) > 1):
        raise DataError(
            f"{file} has the picture columns {list(pictures)}; expected one of {', '.join(IMAGE_COLUMNS)} "
            f"and one of {', '.join(MASK_COLUMNS)}: rename them (datasets: rename_column)"
        )
    return chosen, mask


def row_name(file: str, index: int) -> str:
    """What a row is called: the file's stem and its number."""
    return f"{PurePosixPath(file).stem}/{index:06d}"


def picture_columns(schema: Any) -> dict[str, str]:
    """Columns that may hold the bytes of pictures, with the path of the bytes in them."""
    found = {}
    for field in schema:
        kind = str(field.type)
        if kind.startswith("struct") and "bytes" in kind:
            found[field.name] = f"{field.name}.bytes"
        elif kind in ("binary", "large_binary"):
            found[field.name] = field.name
    return found


def scan_parquet(place: str, image_column: str | None, mask_column: str | None) -> Table:
    """Table of a parquet file's images; only rows whose image or mask may be missing are read.

    Raises:
        DataError: If it cannot be read, or columns are missing.
    """
    # what is looked through has changed, or was never opened
    _open.cache_clear()
    _column.cache_clear()
    file = _open(place, os.getpid())
    columns = picture_columns(file.schema_arrow)
    try:
        image, mask = choose_columns(list(columns), place, image_column, mask_column)
    except DataError as error:
        if image_column or mask_column:
            raise
        text = str(error).partition(": rename")[0]
        raise DataError(f"{text}: name them in data.image_column and data.mask_column") from error
    rows, number = Rows(), 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        there = _filled(place, file, group, columns[image], count)
        masked = _filled(place, file, group, columns[mask], count) if mask else np.zeros(count, bool)
        for row in range(count):
            name = row_name(place, number)
            number += 1
            if there[row]:
                rows.add(name, (group, row), "", (group, row) if masked[row] else None)
            else:
                rows.leave_out("row(s) whose image is not within the file", name)
    table = rows.table()
    # rows are read by these columns again
    table.endings = [columns[image], columns[mask] if mask else ""]
    table.rows["ending"], table.rows["mask_ending"] = 0, 1
    return table


def _filled(place: str, file: Any, group: int, column: str, count: int) -> Any:
    """``(count,)`` whether each row of a group has bytes."""
    meta = file.metadata.row_group(group)
    part = next(meta.column(i) for i in range(meta.num_columns) if meta.column(i).path_in_schema == column)
    told = part.statistics.null_count if part.is_stats_set and part.statistics.has_null_count else None
    if told in (0, count):
        return np.full(count, told == 0)
    from pyarrow import compute

    found = _column(place, column, group, os.getpid())
    return compute.is_valid(compute.struct_field(found, "bytes") if "." in column else found).to_numpy()


def read_cell(place: str, column: str, group: int, row: int) -> bytes:
    """Bytes of one picture; its row group is kept for the next ones.

    Raises:
        DataError: If it cannot be read.
    """
    value = _column(place, column, group, os.getpid())[row].as_py()
    return bytes(value["bytes"] if isinstance(value, dict) else value)


# one image's and one mask's group: what else is kept would grow with the number of files
@lru_cache(maxsize=2)
def _column(place: str, column: str, group: int, process: int) -> Any:
    from pyarrow import ArrowException

    try:
        return _open(place, process).read_row_group(group, columns=[column], use_threads=False).column(0)
    except (OSError, ArrowException) as error:
        raise DataError(
            f"{place} cannot be read at row group {group} ({error}); copy or write it anew"
        ) from error


@lru_cache(maxsize=16)
def _open(place: str, process: int) -> Any:
    """An opened file; ``process``: connections do not survive a fork."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{place}: parquet needs pyarrow: pip install 'protoseg[large]'") from None
    try:
        return parquet.ParquetFile(open_blob(place) if is_url(place) else place, pre_buffer=is_url(place))
    except (OSError, ArrowException) as error:
        raise DataError(f"{place} is no readable parquet file ({error}); copy or write it anew") from error
