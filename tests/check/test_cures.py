"""Every setting that a message proposes is set, and then the data are right."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protoseg.check.cures import Seen, propose
from protoseg.check.findings import Report
from protoseg.check.inspect import inspect
from protoseg.config.data import DataConfig
from protoseg.config.load import apply_override, parse_config
from protoseg.config.sections import Config
from protoseg.data.classes import read_classes
from protoseg.data.sources import open_source

HEIGHT, WIDTH = 20, 24
OVERRIDE = re.compile(r"""data\.\w+=(?:'(?:[^']|'\\'')*'|\[[^\]]*\]|[\w.]+)""")
SETTLED = {"random-weights"}


def shapes(first: int, second: int, *more: int) -> np.ndarray:
    """``first`` around a rectangle of ``second``, and a row of each other value."""
    mask = np.full((HEIGHT, WIDTH), first, np.int64)
    mask[5:12, 4:20] = second
    for row, value in enumerate(more):
        mask[14 + row] = value
    return mask


def grey(values: np.ndarray, dtype: type = np.uint8) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values.astype(dtype)).save(path)


def tiff(values: np.ndarray, dtype: type, **tags: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tifffile = pytest.importorskip("tifffile")
        path.unlink(missing_ok=True)
        tifffile.imwrite(path, values.astype(dtype), **tags)

    return write


def colors(values: np.ndarray, table: dict[int, tuple[int, ...]]) -> Callable[[Path], None]:
    out = np.zeros((*values.shape, len(next(iter(table.values())))), np.uint8)
    for value, color in table.items():
        out[values == value] = color
    return lambda path: Image.fromarray(out).save(path)


def photo(path: Path) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    seed = sum(path.stem.encode())
    Image.fromarray(np.stack([x * 9, y * 9, (x + y + seed) * 4], 2).astype(np.uint8)).save(path)


def exif_photo(orientation: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        photo(path)
        image = Image.open(path)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.load()
        image.save(path, exif=exif)

    return write


@dataclass
class Case:
    """Data with a fault, and the labels that the proposal must give."""

    mask: Callable[[Path], None]
    labels: np.ndarray
    classes: list[str] = field(default_factory=lambda: ["background", "crack"])
    image: Callable[[Path], None] = photo
    settings: dict[str, Any] = field(default_factory=dict)
    suffix: str = ".png"
    image_suffix: str = ".png"
    choice: int = 0
    """Which of several proposals is taken."""
    pixels: np.ndarray | None = None


TWO = shapes(0, 1)
CYAN = {0: (0, 0, 0), 1: (0, 200, 255)}
RANGE = (shapes(0, 1) * 3000 + 90).astype(np.uint16)
BANDS = np.stack([shapes(10, 200), shapes(20, 100), shapes(30, 90), shapes(9, 8), shapes(1, 2)], 2)
CASES = {
    "one class, masks 0 and 1": Case(grey(TWO), TWO, ["crack"]),
    "one class, masks 0 and 255": Case(grey(255 * TWO), TWO, ["crack"]),
    "one class, masks 0 and 128": Case(grey(128 * TWO), TWO, ["crack"]),
    "two values": Case(grey(255 * TWO), TWO),
    "two values, background last": Case(grey(255 * TWO), 1 - TWO, ["crack", "background"]),
    "two values that 255 is not ignored in": Case(grey(255 * TWO), TWO, settings={"ignore_index": 254}),
    "0 and 100": Case(grey(100 * TWO), TWO),
    "0 and 65535": Case(grey(65535 * TWO, np.uint16), TWO),
    "ids from 1": Case(grey(TWO + 1), TWO),
    "ids from 1, 0 unlabelled": Case(
        grey(shapes(1, 2, 0)), shapes(0, 1, 255), ["road", "car"]
    ),
    "ids from 1, 0 background": Case(grey(shapes(1, 2, 0)), shapes(1, 2, 0), ["road", "car"], choice=1),
    "a forgotten value": Case(grey(shapes(0, 1, 7)), shapes(0, 1, 255)),
    "nodata of int16": Case(tiff(shapes(0, 1, -9999), np.int16), shapes(0, 1, 255), suffix=".tif"),
    "nodata of uint32": Case(tiff(shapes(0, 1, 2**32 - 1), np.uint32), shapes(0, 1, 255), suffix=".tif"),
    "nodata with a map": Case(
        grey(shapes(0, 255, 9)), shapes(0, 1, 255), settings={"label_map": {"0": "background", "255":
        "crack"}}
    ),
    "a map that lacks a class": Case(grey(255 * TWO), TWO, settings={"label_map": {"0": "background"}}),
    "two colours": Case(colors(TWO, CYAN), TWO),
    "colours of the palette": Case(
        colors(shapes(0, 1, 2), {0: (9, 8, 7), 1: (1, 2, 3), 2: (50, 60, 70)}), shapes(0, 1, 2), ["a", "b",
        "c"],
        settings={"palette": [[9, 8, 7], [1, 2, 3], [50, 60, 70]]},
    ),
    "colours of VOC": Case(
        colors(shapes(0, 1, 2, 3), {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (224, 224, 192)}),
        shapes(0, 1, 2, 255), ["background", "plane", "bike"],
    ),
    "a forgotten colour": Case(
        colors(shapes(0, 1, 2), {**CYAN, 2: (5, 5, 9)}), shapes(0, 1, 255),
        settings={"label_map": {"0,0,0": "background", "0,200,255": "crack"}},
    ),
    "transparent background": Case(
        colors(TWO, {0: (255, 0, 0, 0), 1: (255, 0, 0, 255)}), TWO,
        settings={"label_map": {"0,0,0": "background", "255,0,0": "crack"}},
    ),
    "transparent border": Case(
        colors(shapes(0, 1, 2), {0: (0, 0, 0, 255), 1: (255, 0, 0, 255), 2: (255, 0, 0, 0)}), shapes(0, 1,
        255),
        settings={"label_map": {"0,0,0": "background", "255,0,0": "crack"}},
    ),
    "quotes in names": Case(grey(255 * TWO), TWO, ["background", "bird's nest"]),
    "pages": Case(
        tiff(np.stack([TWO, 1 - TWO]), np.uint8, photometric="minisblack"), TWO, suffix=".tif",
        image=tiff(np.stack([TWO * 9, TWO * 0]), np.uint8, photometric="minisblack"), image_suffix=".tif",
    ),
    "five bands": Case(
        grey(TWO), TWO, image=tiff(BANDS, np.uint8, photometric="minisblack", planarconfig="contig"),
        image_suffix=".tif", pixels=BANDS,
    ),
    "three of five bands": Case(
        grey(TWO), TWO, image=tiff(BANDS, np.uint8, photometric="minisblack", planarconfig="contig"),
        image_suffix=".tif", choice=1, pixels=BANDS[..., :3],
    ),
    "12 bits": Case(grey(TWO), TWO, image=grey(RANGE, np.uint16), pixels=np.round(RANGE[..., None] / 4095 *
    255).repeat(3, 2)),
    "values cut off": Case(grey(TWO), TWO, image=grey(RANGE, np.uint16), settings={"value_range": [0, 1000]}),
    "dark": Case(grey(TWO), TWO, image=grey(RANGE, np.uint16), settings={"value_range": [0, 65535]}),
    "large": Case(grey(TWO), TWO, settings={"max_pixels": 100}),
    "masks on stored pixels": Case(grey(TWO), TWO, image=exif_photo(3), image_suffix=".jpg"),
    "train ids": Case(grey(TWO), TWO, settings={"label_map": "cityscapes"}, suffix="_labelTrainIds.png"),
}  # fmt: skip


def make(root: Path, case: Case) -> dict[str, Any]:
    lines: dict[str, list[str]] = {"labeled": [], "val": [], "unlabeled": []}
    for number, split in enumerate(["labeled", "labeled", "val", "unlabeled"]):
        image = root / f"{split}{number}{case.image_suffix}"
        case.image(image)
        if case.image_suffix == ".tif" or case.image is not photo:
            # files of equal bytes would be found to be in two splits
            image.write_bytes(image.read_bytes() + bytes([number]))
        mask = root / f"mask{number}{case.suffix}"
        case.mask(mask)
        lines[split].append(image.name if split == "unlabeled" else f"{image.name} {mask.name}")
    for split, entries in lines.items():
        (root / f"{split}.txt").write_text("\n".join(entries))
    data = {split: f"{split}.txt" for split in lines}
    classes = {} if case.settings.get("label_map") == "cityscapes" else {"classes": case.classes}
    return {
        "run": {"dir": str(root / "runs"), "name": "t"},
        "model": {
            "architecture": "deeplabv3plus",
            "encoder": "test_resnet",
            "decoder_channels": 32,
            "pretrained": "none",
        },
        "views": {"crop": [16, 16]},
        "train": {"max_steps": 100, "batch_size": 2},
        "data": {"kind": "files", "root": str(root), **data, **classes, **case.settings},
    }


def proposals(report: Report) -> list[list[str]]:
    """Groups of settings, one group a proposal; those of one sentence belong together."""
    texts = [p.cure or p.examples[0] for p in [*report.errors, *report.warnings] if p.kind not in SETTLED]
    groups = []
    for text in dict.fromkeys(texts):
        for part in re.split(r"; if | if |, or ", text):
            found = OVERRIDE.findall(part)
            if found:
                groups.append(found)
    return groups


def applied(raw: dict[str, Any], settings: list[str]) -> Config:
    changed = {**raw, "data": dict(raw["data"])}
    for item in settings:
        (word,) = shlex.split(item)
        apply_override(changed, word)
    return parse_config(changed)


@pytest.mark.parametrize("name", list(CASES))
def test_what_a_message_proposes_cures(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    raw = make(tmp_path, case)
    report = inspect(parse_config(raw), quick=False)
    found = [p.kind for p in report.problems.values() if p.kind not in SETTLED]
    assert found, "the fault was not seen"
    groups = proposals(report)
    assert groups, report.problem_lines()
    if name == "train ids":
        raw["data"]["classes"] = case.classes
    cured = applied(raw, groups[case.choice])
    again = inspect(cured, quick=False)
    assert [p.kind for p in again.problems.values() if p.kind not in SETTLED] == [], again.problem_lines()
    assert inspect(cured, quick=True).ok
    source = open_source(cured.data, "labeled", read_classes(cured.data))
    np.testing.assert_array_equal(source.mask(0), case.labels)
    if case.pixels is not None:
        np.testing.assert_array_equal(source.image(0), case.pixels)


SILENT = {
    "a value of an unknown class": (["background", "crack", "spall"], {0: 9, 7: 9}, {0}),
    "nodata that could be a class": (["background", "crack"], {"-9999": 5}, {0}),
    "more values than can be told": (["a", "b", "c"], {str(v): 9 for v in (50, 100, 150)}, set()),
    "two colours without a background": (["road", "car"], {"0,0,0": 9, "1,2,3": 9}, set()),
    "transparent where another class than the background lacks pixels": (
        ["background", "crack", "spall"], {"transparent": 9}, {0, 1},
    ),
    "two values for three classes": (["a", "b", "c"], {"255": 9}, {0}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SILENT))
def test_nothing_is_proposed_where_values_do_not_tell(name: str) -> None:
    names, unknown, known = SILENT[name]
    data = DataConfig(kind="files", labeled="l", val="v", classes=names)
    seen = Seen(frozenset(known), {str(value): count for value, count in unknown.items()}, None)
    assert OVERRIDE.findall(propose(data, names, seen)) == []
