"""Hugging Face datasets: parquet with an image and a mask column, or an image folder with metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from protoseg.convert.formats.maps import load_values, map_loader
from protoseg.convert.images import Images
from protoseg.convert.source import Choices, Export, Notes, Sample, Tree, part_of
from protoseg.convert.texts import expected, read_json, read_rows, read_text
from protoseg.data.pictures import DECODE_ERRORS
from protoseg.data.shards.parquet import MASK_COLUMNS, choose_columns, row_name
from protoseg.errors import DataError

TITLE = "Hugging Face dataset (parquet, or image folder with metadata)"


def fits(tree: Tree) -> str | None:
    """Why the source is of this format, or None."""
    if tree.ending(".parquet"):
        return f"{tree.ending('.parquet')[0]} is there"
    meta = _metadata(tree)
    return f"{meta[0]} is there" if meta else None


def _metadata(tree: Tree) -> list[str]:
    return [n for n in tree.files if n.rpartition("/")[2] in ("metadata.csv", "metadata.jsonl")]


def read(tree: Tree, choices: Choices, notes: Notes) -> Export:
    """Read parquet files if there are any, else the image folder.

    Raises:
        DataError: If columns are missing or names of classes are unknown.
    """
    files = tree.ending(".parquet")
    return _read_parquet(tree, files, choices, notes) if files else _read_folder(tree, choices, notes)


def _class_names(tree: Tree) -> list[str] | None:
    """Names by id from an ``id2label.json``."""
    for file in tree.files:
        if file.rpartition("/")[2] == "id2label.json":
            with expected(str(tree.root / file)):
                table = {int(key): str(value) for key, value in read_json(tree.root / file).items()}
                if sorted(table) != list(range(len(table))):
                    raise DataError("ids do not go from 0 on")
            return [table[i] for i in range(len(table))]
    return None


def _read_parquet(tree: Tree, files: list[str], choices: Choices, notes: Notes) -> Export:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError("parquet needs pyarrow: pip install 'protoseg[convert]'") from None
    total = 0
    names = _class_names(tree)
    columns: dict[str, tuple[str, str | None]] = {}
    for file in files:
        try:
            opened = parquet.ParquetFile(tree.root / file)
        except (OSError, ArrowException) as error:
            raise DataError(f"{tree.root / file} is no readable parquet file ({error})") from error
        total += opened.metadata.num_rows
        pictures = [
            f.name for f in opened.schema_arrow if str(f.type).startswith("struct") and "bytes" in str(f.type)
        ]
        columns[file] = choose_columns(pictures, file)

    def samples() -> Iterator[Sample]:
        for file, (image_column, mask_column) in columns.items():
            wanted = [name for name in (image_column, mask_column) if name is not None]
            index = 0
            for batch in parquet.ParquetFile(tree.root / file).iter_batches(16, columns=wanted):
                for row in batch.to_pylist():
                    where = f"{file}, row {index}"
                    data = (row[image_column] or {}).get("bytes")
                    mask = (row[mask_column] or {}).get("bytes") if mask_column is not None else None
                    if data:
                        name = f"{row_name(file, index)}{_suffix(data, where)}"
                        labels = None if mask is None else _mask_loader(mask, where)
                        yield Sample(data, name, labels=labels, part=part_of(file, file=True))
                    else:
                        notes.leave_out("rows whose image is not within the file", where)
                    index += 1

    return Export(samples(), total, names, instances=False)


def _suffix(data: bytes, where: str) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return {
                "JPEG": ".jpg",
                "MPO": ".jpg",
                "PNG": ".png",
                "TIFF": ".tif",
                "WEBP": ".webp",
                "BMP": ".bmp",
            }[image.format or ""]
    except DECODE_ERRORS as error:
        raise DataError(f"{where}: the image cannot be decoded ({error})") from error


def _mask_loader(data: bytes, where: str) -> Callable[[], NDArray[Any]]:
    def load() -> NDArray[Any]:
        values = load_values(data, f"{where}: the mask")
        if values.ndim == 3:
            raise DataError(f"{where}: the mask holds colours, expected class ids")
        return values

    return load


def _read_folder(tree: Tree, choices: Choices, notes: Notes) -> Export:
    images = Images(tree, choices.images, notes)
    samples = []
    for file in _metadata(tree):
        folder = file.rpartition("/")[0]
        for number, row in enumerate(_rows(tree.root / file), start=1):
            where = f"{file}, row {number}"
            with expected(where):
                text = row.get("file_name") or row.get("image_file_name") or row["image"]
                mask = next((row[k] for c in MASK_COLUMNS for k in (f"{c}_file_name", c) if row.get(k)), None)
                name = images.find(str(text), folder, where)
            if name is None:
                continue
            load = None
            if mask is not None:
                path = tree.root / folder / str(mask)
                images.used[path.relative_to(tree.root).as_posix()] = "a mask"
                if not path.is_file():
                    notes.leave_out("images whose mask is not there", f"{where}: {mask}")
                    continue
                load = map_loader(path)
            samples.append(Sample(images.path(name), name, labels=load, part=part_of(name)))
    if samples and all(sample.labels is None for sample in samples):
        raise DataError(f"{_metadata(tree)[0]} names no masks; expected a column like mask_file_name or mask")
    samples += images.unannotated()
    return Export(samples, len(samples), _class_names(tree), instances=False)


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        return list(read_rows(path))
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: damaged JSON ({error.msg})") from error
    return rows
