"""One small set as folders, as WebDataset shards and as parquet, for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COUNTS = {"labeled": 5, "val": 3, "unlabeled": 9}
SHARD = 4
CLASSES = ["a", "b", "c"]
Sample = tuple[str, bytes, bytes | None]


def encoded(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def pictures(split: str) -> list[Sample]:
    """Key, JPEG and PNG mask of each image of a split; the same for every kind of set."""
    rng = np.random.default_rng(list(COUNTS).index(split))
    found = []
    for number in range(COUNTS[split]):
        image = encoded(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8), "JPEG")
        mask = encoded(rng.integers(0, 3, (40, 48), dtype=np.uint8), "PNG")
        found.append((f"{split}{number:04d}", image, None if split == "unlabeled" else mask))
    return found


def parts(samples: list[Sample]) -> list[list[Sample]]:
    return [samples[first : first + SHARD] for first in range(0, len(samples), SHARD)]


def write_folders(root: Path) -> dict[str, Any]:
    for split in COUNTS:
        (root / split / "masks").mkdir(parents=True)
        (root / split / "images").mkdir()
        for key, image, mask in pictures(split):
            (root / split / "images" / f"{key}.jpg").write_bytes(image)
            if mask is not None:
                (root / split / "masks" / f"{key}.png").write_bytes(mask)
    pair = {s: {"images": f"{s}/images", "masks": f"{s}/masks"} for s in ("labeled", "val")}
    return {**pair, "unlabeled": "unlabeled/images"}


def write_shard(path: Path, samples: list[Sample], mask: str = "mask.png") -> None:
    """A tar by the writer that people use."""
    import webdataset

    with webdataset.TarWriter(str(path)) as writer:
        for number, (key, image, labels) in enumerate(samples):
            extra = {} if labels is None else {mask: labels}
            writer.write({"__key__": key, "jpg": image, "json": {"n": number}, **extra})


def write_shards(root: Path) -> dict[str, Any]:
    root.mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        for number, samples in enumerate(parts(pictures(split))):
            write_shard(root / f"{split}-{number:03d}.tar", samples)
    return {"labeled": "labeled-{000..001}.tar", "val": "val-*.tar", "unlabeled": "unlabeled-*.tar"}


def write_parquet(root: Path) -> dict[str, Any]:
    """As ``datasets`` writes pictures, in row groups of two."""
    import pyarrow as pa
    from pyarrow import parquet

    root.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in COUNTS:
        for number, samples in enumerate(parts(pictures(split))):
            columns = {
                "image": pa.array(
                    [{"bytes": image, "path": f"{key}.jpg"} for key, image, _ in samples], kind
                ),
                "label": pa.array([m and {"bytes": m, "path": None} for _, _, m in samples], kind),
            }
            table = pa.table(columns)
            parquet.write_table(table, root / f"{split}-{number:05d}-of-00003.parquet", row_group_size=2)
    return {split: f"{split}-*.parquet" for split in COUNTS}


WRITERS = {"folders": write_folders, "tar": write_shards, "parquet": write_parquet}
