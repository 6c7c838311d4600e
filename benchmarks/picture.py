"""The picture at the top of the README: few labels and many images in, masks and doubt out.

    accelerate launch --quiet -m protoseg.train        # makes runs/quickstart, embedded data
    python -m benchmarks.picture runs/quickstart

Reads the run's own lists, so that everything in the picture is what that training saw; the images on the
right are validation images. The same checkpoint gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.common import ASSETS, parser
from protoseg.checkpoint import Checkpoint, load_checkpoint
from protoseg.config.training import EvalConfig
from protoseg.data.images import save_whole
from protoseg.data.lists import Split
from protoseg.data.sources import Source, open_source
from protoseg.draw.colours import as_rgb, heat_picture, overlay_picture, palette_picture
from protoseg.predict.images import predict_image

Picture = NDArray[np.uint8]
_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (38, 42, 48), (110, 116, 124), (214, 217, 222)
_SCALE = 2  # twice the pixels that are shown, for sharp screens
_MARGIN, _GAP, _TITLE = 14 * _SCALE, 4 * _SCALE, 40 * _SCALE
_TILE, _BIG = (56 * _SCALE, 42 * _SCALE), (164 * _SCALE, 123 * _SCALE)
_ROWS = 5
_COLUMNS = 4
SPLITS: tuple[Split, ...] = ("labeled", "unlabeled", "val")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


def _tile(picture: Picture, size: tuple[int, int], *, labels: bool = False) -> Image.Image:
    how = Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize(size, how)


def _grid(tiles: list[Image.Image], columns: int) -> Image.Image:
    """Tiles row by row, on paper."""
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * (width + _GAP), number // columns * (height + _GAP)))
    return sheet


def labeled_block(source: Source, colors: list[tuple[int, int, int]]) -> Image.Image:
    """Labelled images, each beside its mask."""
    tiles = []
    for index in range(min(_ROWS, len(source))):
        tiles.append(_tile(as_rgb(source.image(index)), _TILE))
        tiles.append(_tile(palette_picture(source.mask(index), colors), _TILE, labels=True))
    return _grid(tiles, 2)


def unlabeled_block(source: Source) -> Image.Image:
    """Unlabelled images."""
    tiles = [_tile(as_rgb(source.image(i)), _TILE) for i in range(min(_ROWS * _COLUMNS, len(source)))]
    return _grid(tiles, _COLUMNS)


def result_block(checkpoint: Checkpoint, source: Source, chosen: list[int]) -> Image.Image:
    """Validation images: image, mask over it, doubt."""
    colors = [item.color for item in checkpoint.info.classes]
    tiles = []
    for index in chosen:
        image = source.image(index)
        found = predict_image(
            checkpoint.segmenter, image, checkpoint.info.input, head="fused", config=EvalConfig()
        )
        tiles += [
            _tile(as_rgb(image), _BIG),
            _tile(overlay_picture(image, found.labels, colors), _BIG),
            _tile(heat_picture(1 - found.label_probability), _BIG),
        ]
    return _grid(tiles, 3)


def draw(checkpoint: Checkpoint, sources: dict[str, Source], chosen: list[int]) -> Image.Image:
    """The whole picture: three blocks with their titles and arrows between."""
    colors = [item.color for item in checkpoint.info.classes]
    blocks = [
        (f"{len(sources['labeled'])} images with masks", labeled_block(sources["labeled"], colors)),
        (f"{len(sources['unlabeled'])} without", unlabeled_block(sources["unlabeled"])),
        ("new image", result_block(checkpoint, sources["val"], chosen)),
    ]
    arrow = 30 * _SCALE
    width = 2 * _MARGIN + sum(block.width for _, block in blocks) + 2 * arrow
    height = 2 * _MARGIN + _TITLE // 2 + max(block.height for _, block in blocks)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    left, top = _MARGIN, _MARGIN + _TITLE // 2
    for number, (title, block) in enumerate(blocks):
        pen.text((left, _MARGIN - 4 * _SCALE), title, _INK, _font(12))
        sheet.paste(block, (left, top + (height - top - _MARGIN - block.height) // 2))
        if number == 2:
            step = _BIG[0] + _GAP
            pen.text((left + step, _MARGIN - 4 * _SCALE), "mask", _INK, _font(12))
            pen.text((left + 2 * step, _MARGIN - 4 * _SCALE), "where it may be wrong", _INK, _font(12))
        left += block.width
        if number < 2:
            middle, sign = (left + arrow // 2, (top + height - _MARGIN) // 2), "+" if number == 0 else ">"
            _sign(pen, middle, sign)
            left += arrow
    return sheet


def _sign(pen: ImageDraw.ImageDraw, middle: tuple[int, int], sign: str) -> None:
    x, y, r = *middle, 7 * _SCALE
    line = 2 * _SCALE
    pen.line((x - r, y, x + r, y), _FAINT, line)
    if sign == "+":
        pen.line((x, y - r, x, y + r), _FAINT, line)
    else:
        pen.line((x + r // 3, y - r * 2 // 3, x + r, y, x + r // 3, y + r * 2 // 3), _FAINT, line, "curve")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command = parser(__doc__)
    command.add_argument("checkpoint", metavar="CKPT", help="run folder with prototypes")
    command.add_argument(
        "--images", type=int, nargs="+", default=[0, 1], metavar="N", help="validation images to show"
    )
    command.add_argument("-o", "--output", type=Path, default=ASSETS / "overview.png")
    arguments = command.parse_args(argv)
    checkpoint = load_checkpoint(arguments.checkpoint)
    data = checkpoint.info.data
    sources = {
        name: open_source(data, name, checkpoint.info.classes) for name in ("labeled", "unlabeled", "val")
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    picture = draw(checkpoint, sources, arguments.images)
    # noise makes true colours a megabyte; nobody sees the difference to 256 of them
    save_whole(arguments.output, picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG))
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
