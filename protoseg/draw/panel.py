"""Label maps as pictures, and the panel that an evaluation leaves behind.

The same inputs give the same bytes: no time stamp, no random number, no system font.

Shape legend: ``C`` classes, ``K`` prototypes for each class, ``H W`` image, ``Y X`` feature map.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from protoseg.config.sections import EvalConfig
from protoseg.data.images import resize_image, save_whole
from protoseg.inference import image_batch, image_logits, inference, score
from protoseg.manifest import ClassInfo, ResizeConfig
from protoseg.method.pseudo_labels import head_agreement
from protoseg.models.segmenter import Segmenter

Picture = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER, _INK, _FAINT = (255, 255, 255), (38, 42, 48), (120, 126, 134)
_IGNORED = ((224, 226, 230), (200, 203, 208))
# dark where the heads agree, bright where they do not
_HEAT = ((13, 8, 40), (86, 20, 110), (180, 48, 92), (244, 120, 40), (252, 236, 150))
_CELL, _GAP, _MARGIN, _CAPTION, _LINE = 236, 8, 16, 20, 22


@dataclass(frozen=True)
class PanelRow:
    """What a picture shows of one image, all at the working size ``H W``."""

    image: Picture
    """(H, W, 3)."""
    target: Picture
    """(H, W) class ids and ignore_index."""
    linear: Picture
    """(H, W) class ids of the linear head."""
    prototype: Picture | None
    """(H, W) class ids of the prototype head; None while there are no prototypes."""
    disagreement: NDArray[np.float32] | None
    """(H, W) in [0, 1], one minus the agreement of the heads."""
    winner: NDArray[np.int64] | None
    """(H, W) flat index ``c * K + k`` of the prototype that won within the predicted class."""


def as_rgb(image: Picture) -> Picture:
    """(H, W, C_in) -> (H, W, 3) for the eye: grey is repeated, further channels are dropped."""
    return np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]


def panel_row(
    segmenter: Segmenter,
    image: Picture,
    mask: Picture,
    *,
    resize: ResizeConfig,
    config: EvalConfig,
    crop: tuple[int, int],
) -> PanelRow:
    """Run the network, on the device it is on, on one image for a picture.

    Args:
        segmenter: Network and prototypes; its mode is restored.
        image: (H, W, C_in) uint8 at its own size.
        mask: (H, W) uint8 class ids at its own size.
        resize: Working size rule.
        config: Whole image or windows.
        crop: Training crop, the default window.
    """
    small = resize_image(image, resize)
    height, width = small.shape[:2]
    shown, target = as_rgb(small), _nearest(mask, height, width)
    batch = image_batch([small], segmenter.bank.prototypes.device)
    with inference(segmenter):
        logits = image_logits(segmenter, batch, config, crop)
        labels = _ids(score(logits, "linear").label)
        if logits.prototype is None:
            return PanelRow(shown, target, labels, None, None, None)
        chosen = score(logits, "prototype").label
        disagreement = 1 - head_agreement(logits.linear, logits.prototype)[0]
        winner = winning_prototypes(segmenter, batch, chosen)[0]
    return PanelRow(shown, target, labels, _ids(chosen), disagreement.cpu().numpy(), winner.cpu().numpy())


def winning_prototypes(segmenter: Segmenter, images: Tensor, label_BHW: Tensor) -> Tensor:
    """The prototype of the predicted class that is most similar to each pixel's feature.

    Args:
        segmenter: Network and prototypes.
        images: (B, C_in, H, W) uint8.
        label_BHW: Predicted class ids.

    Returns:
        (B, H, W) int64 flat indices ``c * K + k``.
    """
    height, width = images.shape[-2:]
    network, bank = segmenter.network, segmenter.bank
    best = bank.similarity_map(network(images).features).argmax(2).float()
    best = F.interpolate(best, size=network.padded_size(height, width), mode="nearest")
    own = best[..., :height, :width].long().gather(1, label_BHW[:, None])[:, 0]
    return label_BHW * bank.num_prototypes + own


def _ids(label: Tensor) -> Picture:
    return label[0].cpu().numpy().astype(np.uint8)


def _nearest(labels: Picture, height: int, width: int) -> Picture:
    if labels.shape == (height, width):
        return labels
    return np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def prototype_colors(color: tuple[int, int, int], count: int) -> list[tuple[int, int, int]]:
    """Shades of a class colour, dark to light, one for each of its prototypes."""
    hue, _, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    low, high = 0.24, 0.80
    shades = []
    for k in range(count):
        light = low + (high - low) * k / (count - 1) if count > 1 else (low + high) / 2
        rgb = colorsys.hls_to_rgb(hue, light, saturation)
        shades.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return shades


def palette_picture(labels: NDArray[Any], colors: Sequence[tuple[int, int, int]]) -> Picture:
    """(H, W) ids -> (H, W, 3) colours; ids without a colour are hatched in light grey."""
    table = np.array([*colors, (0, 0, 0)], np.uint8)
    known = labels < len(colors)
    rgb = table[np.where(known, labels, len(colors))]
    rows, columns = np.indices(labels.shape)
    hatch = np.array(_IGNORED, np.uint8)[((rows + columns) // 4) % 2]
    return np.where(known[..., None], rgb, hatch)


def heat_picture(values: NDArray[np.float32]) -> Picture:
    """(H, W) in [0, 1] -> (H, W, 3), dark to bright."""
    anchors = np.array(_HEAT, np.float64)
    place = np.linspace(0, 1, len(anchors))
    table = np.stack([np.interp(np.linspace(0, 1, 256), place, anchors[:, c]) for c in range(3)], 1)
    index = np.round(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.int64)
    return np.round(table[index]).astype(np.uint8)


def panel(
    path: Path,
    segmenter: Segmenter,
    samples: Sequence[tuple[Picture, Picture]],
    classes: Sequence[ClassInfo],
    *,
    ignore_index: int,
    resize: ResizeConfig,
    config: EvalConfig,
    crop: tuple[int, int],
) -> None:
    """Write the evaluation picture, whole or not at all.

    A row for each image, with the columns image, target, linear, prototype, disagreement of the heads,
    and the prototype that won (the hue of its class, a shade for each); below, the legend. Without
    prototypes there are three columns.

    Args:
        path: PNG file; its folder is made.
        segmenter: Network and prototypes.
        samples: (H, W, C_in) images and (H, W) masks at their own size.
        classes: Names and colours.
        ignore_index: Mask value without a class.
        resize: Working size rule.
        config: Whole image or windows.
        crop: Training crop, the default window.

    Raises:
        DataError: If the file cannot be written.
    """
    rows = [
        panel_row(segmenter, image, mask, resize=resize, config=config, crop=crop) for image, mask in samples
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, draw_panel(rows, classes, ignore_index, segmenter.bank.num_prototypes))


def draw_panel(
    rows: Sequence[PanelRow], classes: Sequence[ClassInfo], ignore_index: int, num_prototypes: int
) -> Image.Image:
    """Lay out the panel; see ``panel``."""
    colors = [item.color for item in classes]
    shades = [shade for color in colors for shade in prototype_colors(color, num_prototypes)]
    titles = ["image", "target", "linear head"]
    with_prototypes = any(row.prototype is not None for row in rows)
    if with_prototypes:
        titles += ["prototype head", "disagreement", "winning prototype"]
    cells = [_row_cells(row, colors, shades, ignore_index) for row in rows]
    heights = [max(cell.height for cell, _ in row) for row in cells]
    width = 2 * _MARGIN + len(titles) * _CELL + (len(titles) - 1) * _GAP
    legend = class_legend(classes, num_prototypes if with_prototypes else 0, width - 2 * _MARGIN)
    height = _MARGIN + _LINE + sum(h + _CAPTION + _GAP for h in heights) + legend.height + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((_MARGIN + column * (_CELL + _GAP), _MARGIN - 4), title, _INK, _font(14))
    if with_prototypes:
        _heat_scale(sheet, _MARGIN + 4 * (_CELL + _GAP) + _CELL, _MARGIN)
    top = _MARGIN + _LINE
    for row, row_height in zip(cells, heights, strict=True):
        for column, (cell, caption) in enumerate(row):
            left = _MARGIN + column * (_CELL + _GAP)
            sheet.paste(cell, (left, top))
            draw.text((left, top + row_height + 1), caption, _FAINT, _font(12))
        top += row_height + _CAPTION + _GAP
    sheet.paste(legend, (_MARGIN, top))
    return sheet


def _font(size: int) -> Font:
    # the font inside Pillow, so that no machine's own fonts change the bytes
    return ImageFont.load_default(size)


def _heat_scale(sheet: Image.Image, right: int, top: int) -> None:
    """The colours of the disagreement column with their ends, flush right."""
    ramp = np.tile(np.linspace(0, 1, 72, dtype=np.float32), (10, 1))
    draw = ImageDraw.Draw(sheet)
    draw.text((right - 7, top - 2), "1", _FAINT, _font(12))
    sheet.paste(Image.fromarray(heat_picture(ramp)), (right - 84, top + 1))
    draw.text((right - 95, top - 2), "0", _FAINT, _font(12))


def _cell(picture: Picture, resample: Image.Resampling) -> Image.Image:
    height = max(1, round(_CELL * picture.shape[0] / picture.shape[1]))
    return Image.fromarray(picture).resize((_CELL, height), resample)


def _row_cells(
    row: PanelRow,
    colors: Sequence[tuple[int, int, int]],
    shades: Sequence[tuple[int, int, int]],
    ignore_index: int,
) -> list[tuple[Image.Image, str]]:
    """Cells of a row with their captions."""
    known = (row.target != ignore_index) & (row.target < len(colors))

    def right(labels: Picture) -> str:
        return f"{(labels == row.target)[known].mean():.1%} of pixels right" if known.any() else "no target"

    nearest = Image.Resampling.NEAREST
    height, width = row.target.shape
    cells = [
        (_cell(row.image, Image.Resampling.BILINEAR), f"{width} x {height}"),
        (_cell(palette_picture(row.target, colors), nearest), f"{1 - known.mean():.1%} ignored"),
        (_cell(palette_picture(row.linear, colors), nearest), right(row.linear)),
    ]
    if row.prototype is not None and row.disagreement is not None and row.winner is not None:
        cells += [
            (_cell(palette_picture(row.prototype, colors), nearest), right(row.prototype)),
            (
                _cell(heat_picture(row.disagreement), nearest),
                f"mean {row.disagreement.mean():.3f} of 1",
            ),
            (
                _cell(palette_picture(row.winner, shades), nearest),
                f"{len(np.unique(row.winner))} of {len(shades)} prototypes",
            ),
        ]
    return cells


def class_legend(classes: Sequence[ClassInfo], num_prototypes: int, width: int) -> Image.Image:
    """Class colours with names, each followed by its prototypes' shades; ``width`` pixels wide."""
    font, swatch, shade = _font(13), 14, 9
    strip = swatch + 4 + (num_prototypes * shade + 6 if num_prototypes else 0)
    entries = [(strip + math.ceil(font.getlength(item.name)) + 20, item) for item in classes]
    entries.append(
        (swatch + 8 + math.ceil(font.getlength("ignored")), ClassInfo(name="ignored", color=_IGNORED[0]))
    )
    lines: list[list[tuple[int, ClassInfo]]] = [[]]
    for entry in entries:
        if lines[-1] and sum(size for size, _ in lines[-1]) + entry[0] > width:
            lines.append([])
        lines[-1].append(entry)
    legend = Image.new("RGB", (width, len(lines) * _LINE), _PAPER)
    draw = ImageDraw.Draw(legend)
    for number, line in enumerate(lines):
        left, top = 0, number * _LINE + 3
        for size, item in line:
            place = left
            draw.rectangle((place, top, place + swatch, top + swatch), item.color, _FAINT)
            place += swatch + 4
            if num_prototypes and item.name != "ignored":
                for color in prototype_colors(item.color, num_prototypes):
                    draw.rectangle((place, top, place + shade - 1, top + swatch), color)
                    place += shade
                place += 4
            draw.text((place, top - 2), item.name, _INK, font)
            left += size
    return legend
