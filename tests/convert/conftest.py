from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from PIL import Image

from protoseg.convert.write import Conversion, Options, convert


@dataclass
class Source:
    """Writes the files of an export."""

    root: Path

    def file(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def image(self, name: str, width: int = 20, height: int = 12, tag: int = 1, **options: Any) -> None:
        exif = Image.Exif()
        exif[0x0112] = tag
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.file(name), exif=exif, **options)

    def json(self, name: str, value: Any) -> None:
        self.file(name).write_text(json.dumps(value), encoding="utf-8")

    def text(self, name: str, text: str) -> None:
        self.file(name).write_text(text, encoding="utf-8")

    def png(self, name: str, values: NDArray[Any], palette: list[int] | None = None) -> None:
        image = Image.fromarray(values.astype(np.uint8))
        if palette is not None:
            image.putpalette(palette)
        image.save(self.file(name))


@dataclass
class Converted:
    """A conversion and what it wrote."""

    out: Path
    result: Conversion

    def list(self, part: str) -> list[str]:
        """Image names of a list, without their folders' common part."""
        path = self.out / f"{part}.txt"
        return (
            [line.split("\t")[0].rpartition("/")[2] for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    def mask(self, name: str) -> NDArray[np.uint8]:
        image = Image.open(self.out / "masks" / name)
        assert image.mode == "P"
        return np.asarray(image)

    @property
    def notes(self) -> str:
        return "\n".join(self.result.notes.lines())


Convert = Callable[..., Converted]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "source").mkdir()
    return Source(tmp_path / "source")


@pytest.fixture
def converted(tmp_path: Path, source: Source) -> Convert:
    """Converts the source; options as of ``Options``."""

    def run(at: str = "", out: str = "out", **options: Any) -> Converted:
        target = tmp_path / out

        def files() -> dict[Path, int]:
            return {
                p: p.stat().st_mtime_ns
                for p in source.root.rglob("*")
                if p.is_file() and target not in p.parents
            }

        before = files()
        result = convert(source.root / at, target, Options(**options))
        assert before == files(), "the source was written to"
        return Converted(target, result)

    return run


@pytest.fixture
def inside() -> Callable[..., NDArray[np.bool_]]:
    """Pixels whose centre lies in a polygon, by another implementation (matplotlib)."""

    def test(points: Any, height: int = 12, width: int = 20) -> NDArray[np.bool_]:
        y, x = np.mgrid[:height, :width] + 0.5
        centres = np.stack([x.ravel(), y.ravel()], axis=1)
        return Outline(np.asarray(points, float)).contains_points(centres).reshape(height, width)

    return test
