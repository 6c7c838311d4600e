"""The doctor's contact sheet: images beside their masks, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from protoseg.data.images import IGNORE_COLOR, save_whole
from protoseg.data.sources import Source
from protoseg.data.synthetic import Split
from protoseg.errors import DataError
from protoseg.manifest import ClassInfo

TILE = 200
GAP = 6
LINE = 16
COLUMNS = 4
_WANTED: dict[Split, int] = {"labeled": 8, "val": 4, "unlabeled": 8}


def draw_contact_sheet(
    path: Path,
    sources: dict[Split, Source],
    classes: Sequence[ClassInfo],
    ignore_index: int,
    shares: dict[str, dict[str, float | None]] | None = None,
) -> int:
    """Write a PNG of images with mask overlays and a legend of the classes.

    Args:
        path: PNG file; its folder is made.
        sources: Splits to draw; unreadable images are left out.
        classes: Names and colours.
        ignore_index: Label that is drawn pale.
        shares: Pixel shares by class name and split, for the legend.

    Returns:
        Images drawn.

    Raises:
        DataError: If the file cannot be written.
    """
    table = np.tile(np.array(IGNORE_COLOR, np.uint8), (256, 1))
    table[: len(classes)] = [item.color for item in classes]
    table[ignore_index] = IGNORE_COLOR
    tiles: list[tuple[str, Image.Image]] = []
    for split, wanted in _WANTED.items():
        source = sources.get(split)
        for index in _spread(len(source) if source is not None else 0, wanted):
            assert source is not None
            try:
                tiles.append((f"{split}: {Path(source.name(index)).name}", _tile(source, index, table)))
            except DataError:
                continue
    legend = _legend(classes, shares or {})
    sheet = _arrange(tiles, legend)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error
    save_whole(path, sheet)
    return len(tiles)


def overlay(rgb: NDArray[np.uint8], labels: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours of ``table`` (256, 3) over an image (H, W, 3), half and half, for labels (H, W)."""
    mixed: NDArray[np.uint8] = ((rgb.astype(np.uint16) + table[labels]) // 2).astype(np.uint8)
    return mixed


def _spread(length: int, wanted: int) -> list[int]:
    count = min(length, wanted)
    return [i * length // count for i in range(count)]


def _tile(source: Source, index: int, table: NDArray[np.uint8]) -> Image.Image:
    image = source.image(index)
    rgb = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    found = source.mask(index)
    parts = [rgb]
    if found is not None and found[0].shape == rgb.shape[:2]:
        parts.append(overlay(rgb, found[0], table))
    scale = TILE / max(rgb.shape[:2])
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    tile = Image.new("RGB", (len(parts) * size[0], size[1]))
    for number, part in enumerate(parts):
        small = Image.fromarray(np.ascontiguousarray(part)).resize(size, Image.Resampling.BILINEAR)
        tile.paste(small, (number * size[0], 0))
    return tile


def _legend(
    classes: Sequence[ClassInfo], shares: dict[str, dict[str, float | None]]
) -> list[tuple[tuple[int, int, int], str]]:
    rows = []
    for index, item in enumerate(classes):
        share = shares.get(item.name, {}).get("labeled")
        text = f"{index} {item.name}" + ("" if share is None else f" {100 * share:.2f}%")
        rows.append((item.color, text))
    return [*rows, (IGNORE_COLOR, "ignored")]


def _arrange(
    tiles: list[tuple[str, Image.Image]], legend: list[tuple[tuple[int, int, int], str]]
) -> Image.Image:
    cell_width = max([2 * TILE, *(tile.width for _, tile in tiles)]) + GAP
    cell_height = max([0, *(tile.height for _, tile in tiles)]) + LINE + GAP
    columns = min(COLUMNS, max(1, len(tiles)))
    rows = -(-len(tiles) // columns)
    width = max(columns * cell_width, 2 * cell_width) + GAP
    per_row = max(1, width // 180)
    top = -(-len(legend) // per_row) * LINE + 2 * GAP
    sheet = Image.new("RGB", (width, top + rows * cell_height), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for number, (color, text) in enumerate(legend):
        x, y = GAP + number % per_row * 180, GAP + number // per_row * LINE
        draw.rectangle((x, y + 2, x + 10, y + 12), fill=color, outline=(255, 255, 255))
        draw.text((x + 16, y), _ascii(text)[:26], fill=(255, 255, 255))
    for number, (text, tile) in enumerate(tiles):
        x, y = GAP + number % columns * cell_width, top + number // columns * cell_height
        draw.text((x, y), _ascii(text)[:60], fill=(255, 255, 255))
        sheet.paste(tile, (x, y + LINE))
    return sheet


def _ascii(text: str) -> str:
    """The built-in bitmap font has no other letters."""
    return text.encode("ascii", "replace").decode()
