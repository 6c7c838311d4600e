"""Curves and label counts of a run and confusion matrices, drawn by matplotlib without a display.

The same inputs give the same bytes: no time stamp, no version string, the fonts that matplotlib brings.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor

from protoseg.data.images import save_whole
from protoseg.manifest import ClassInfo

Series = list[tuple[int, float]]

_INK, _FAINT, _GRID = "#262a30", "#787e86", "#e6e8ec"
_HEAD_COLORS = {"linear": "#2f6fb3", "prototype": "#d9822b", "fused": "#3c9a5f"}
_CYCLE = ("#2f6fb3", "#d9822b", "#3c9a5f", "#b5475f", "#7a5ea8", "#8a6d3b", "#4aa3a3", "#555b63")
_SWATCH: dict[str, Any] = {"marker": "s", "markeredgecolor": _FAINT, "markeredgewidth": 0.5}
_GROUP_COLORS = ("#2f6fb3", "#d9822b", "#8d94a0")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.edgecolor": _FAINT, "axes.labelcolor": _FAINT,
    "axes.titlecolor": _INK, "xtick.color": _FAINT, "ytick.color": _FAINT, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 8.5, "legend.labelcolor": _INK,
    "axes.grid": True, "grid.color": _GRID, "axes.axisbelow": True, "text.color": _INK,
}  # fmt: skip


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, without metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer.seek(0)
    with Image.open(buffer) as image:
        save_whole(path, image.convert("RGB"))


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)


def _series(records: Sequence[Mapping[str, Any]], key: str) -> Series:
    """Steps and values of a key, where it has a number."""
    return [
        (int(record["step"]), float(record[key]))
        for record in records
        if isinstance(record.get(key), int | float)
    ]


def _draw(axes: Axes, series: Series, label: str, color: str, *, marker: bool, dashed: bool = False) -> None:
    steps, values = zip(*series, strict=True)
    axes.plot(
        steps, values, label=label, color=color, linewidth=1.8, linestyle="--" if dashed else "-",
        marker="o" if marker else None, markersize=4,
    )  # fmt: skip


def curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw how a run went: loss parts, validation mIoU by head, rate of believed pseudo-labels.

    Args:
        records: Lines of ``metrics.jsonl``. Used keys: ``loss/*``, ``val/miou_HEAD``,
            ``pseudo_label/rate``, ``teacher_student/disagreement``.
        path: PNG file; its folder is made.

    Raises:
        DataError: If the file cannot be written.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(13.5, 4.0), layout=_layout())
        loss, val, rate = figure.subplots(1, 3)
        keys = list(dict.fromkeys(k for r in records for k in r if k.startswith("loss/")))
        keys.sort(key=lambda key: (key != "loss/total", key))
        for index, key in enumerate(keys):
            if series := _series(records, key):
                color = _INK if key == "loss/total" else _CYCLE[(index - 1) % len(_CYCLE)]
                name, total = key.removeprefix("loss/").replace("_", " "), key == "loss/total"
                _draw(loss, series, name, color, marker=False, dashed=total)
        for head, color in _HEAD_COLORS.items():
            if series := _series(records, f"val/miou_{head}"):
                _draw(val, series, f"{head}  {series[-1][1]:.1%}", color, marker=True)
        for key, label, color in (
            ("pseudo_label/rate", "believed", _CYCLE[0]),
            ("teacher_student/disagreement", "contradicted by the student", _CYCLE[3]),
        ):
            if series := _series(records, key):
                _draw(rate, series, label, color, marker=False)
        loss.set(title="Loss", ylim=(0, None))
        val.set(title="Validation mIoU")
        rate.set(title="Pseudo-labels", ylim=(0, 1))
        for axes in (val, rate):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        last = max([int(record["step"]) for record in records], default=1)
        for axes in (loss, val, rate):
            axes.set(xlabel="step", xlim=(0, 1.02 * max(last, 1)))
            if axes.lines:
                axes.legend(loc="best")
            else:
                axes.text(
                    0.5, 0.5, "nothing yet", ha="center", va="center", color=_FAINT, transform=axes.transAxes
                )
        _save(figure, path)


def class_curves(
    records: Sequence[Mapping[str, Any]], classes: Sequence[ClassInfo], head: str, path: Path
) -> None:
    """Draw the validation IoU of each class over steps, each line named at its end, the best first.

    Args:
        records: Lines of ``metrics.jsonl``. Used key: ``val/iou_HEAD``, by class id; null where no target
            has the class, which is left out then.
        classes: Names and colours by id.
        head: Head to draw.
        path: PNG file; its folder is made.

    Raises:
        DataError: If the file cannot be written.
    """
    found = [(int(r["step"]), r[f"val/iou_{head}"]) for r in records if f"val/iou_{head}" in r]
    lines: list[tuple[ClassInfo, Series]] = []
    for index, item in enumerate(classes):
        values = [(step, iou[index]) for step, iou in found if index < len(iou)]
        if series := [(step, float(v)) for step, v in values if v is not None and math.isfinite(v)]:
            lines.append((item, series))
    lines.sort(key=lambda line: -line[1][-1][1])
    height = max(4.4, 0.21 * len(lines) + 1.0)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, height), layout=_layout())
        axes = figure.subplots()
        last = max([step for step, _ in found], default=1)
        outline = [patheffects.Stroke(linewidth=2.6, foreground=_FAINT), patheffects.Normal()]
        for item, series in lines:
            _draw(axes, series, item.name, _rgb(item), marker=True)
            # pale colours are seen on white, too, and an end at the frame is seen whole
            axes.lines[-1].set(path_effects=outline, clip_on=False)
        axes.set(
            title=f"Validation IoU by class, {head} head", xlabel="step", xlim=(0, last), ylim=(-0.02, 1.02)
        )
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name_ends(axes, lines, last, height)
        _save(figure, path)


def _name_ends(axes: Axes, lines: Sequence[tuple[ClassInfo, Series]], last: int, height: float) -> None:
    """Name each line beside its end, moved up or down so that no name covers another."""
    ends = [series[-1][1] for _, series in lines]
    apart = 0.2 / (height - 1.0)  # a line of text, in axes
    place = spread(ends, apart, -0.02, 1.02)
    for (item, series), end, y in zip(lines, ends, place, strict=True):
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
        axes.plot([series[-1][0] / last, 1.045], [end, y], color=_FAINT, linewidth=0.6, zorder=1, **beside)
        axes.plot([1.045], [y], color=_rgb(item), markersize=6, zorder=5, **_SWATCH, **beside)
        axes.text(1.06, y, f"{end:.1%}  {item.name}", va="center", fontsize=9, **beside)


def spread(values: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Places at least ``apart`` from each other, in the order of ``values`` (falling) and near them.

    They lie in [``low``, ``high``] if that many fit; otherwise they are evenly spread over it.
    """
    if len(values) > 1:
        apart = min(apart, (high - low) / (len(values) - 1))
    places: list[float] = []
    for value in values:
        places.append(min(value, high if not places else places[-1] - apart))
    floor = low
    for index in reversed(range(len(places))):
        places[index] = max(places[index], floor)
        floor = places[index] + apart
    return places


def _rgb(item: ClassInfo) -> str:
    return "#{:02x}{:02x}{:02x}".format(*item.color)


def label_histogram(
    shares: Mapping[str, Sequence[float]],
    images: Mapping[str, Sequence[int]],
    classes: Sequence[ClassInfo],
    path: Path,
) -> None:
    """Draw how much is labelled of each class: its share of the pixels and its images, most pixels first.

    Args:
        shares: Shares of the pixels in [0, 1] by class id, of the labelled images first, then of others.
        images: Numbers of images that hold a class, by class id.
        classes: Names and colours by id.
        path: PNG file; its folder is made.

    Raises:
        DataError: If the file cannot be written.
    """
    first = next(iter(shares.values()))
    order = sorted(range(len(classes)), key=lambda index: -first[index])
    # a share of 0.01 % is what one looks for: shares are logarithmic
    lowest = min((share for values in shares.values() for share in values if share > 0), default=0.1)
    left = max(10.0 ** math.floor(math.log10(min(lowest, 0.1)) - 0.01), 1e-6)
    with mpl.rc_context({**_STYLE, "axes.spines.left": False}):
        figure = Figure(figsize=(11.0, max(2.6, 0.34 * len(classes) + 1.5)), layout=_layout())
        pixels, count = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for number, (name, values) in enumerate(shares.items()):
            _bars(pixels, [values[i] for i in order], number, len(shares), name, left, _share)
        pixels.set(title="Share of the pixels, logarithmic", xscale="log", xlim=(left, 2.5))
        pixels.minorticks_off()
        # as many decimals as a share needs and no more
        pixels.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        for number, (name, numbers) in enumerate(images.items()):
            _bars(count, [numbers[i] for i in order], number, len(images), name, 0, str)
        most = max([1, *(value for numbers in images.values() for value in numbers)])
        count.set(title="Images with the class", xlim=(0, 1.15 * most))
        count.xaxis.set_major_locator(MaxNLocator(integer=True))
        pixels.set(ylim=(len(classes) - 0.4, -0.6), yticks=range(len(classes)))
        pixels.set_yticklabels([classes[i].name for i in order], color=_INK)
        for axes in (pixels, count):
            axes.tick_params(axis="y", length=0, pad=16)
            axes.grid(visible=False, axis="y")
        for row, index in enumerate(order):
            pixels.plot(
                [-0.018], [row], color=_rgb(classes[index]), markersize=8, clip_on=False,
                transform=pixels.get_yaxis_transform(), **_SWATCH,
            )  # fmt: skip
        handles, names = pixels.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        _save(figure, path)


def _share(value: float) -> str:
    """A share in percent with the digits that count."""
    return f"{value:.1%}" if value >= 0.01 else f"{100 * value:.2g}%" if value >= 1e-6 else "< 0.0001%"


def _bars(
    axes: Axes, values: Sequence[float], number: int, count: int, name: str, left: float,
    form: Callable[[Any], str],
) -> None:  # fmt: skip
    """A group's bars from ``left``, with their values at the end; none for 0, whose place says so."""
    thick = 0.8 / count
    rows = [row - 0.4 + thick * (number + 0.5) for row in range(len(values))]
    long = [max(value - left, 0.0) for value in values]
    axes.barh(rows, long, thick * 0.86, left=left, color=_GROUP_COLORS[number], label=name)
    for row, value in zip(rows, values, strict=True):
        text = form(value) if value else "none"
        axes.annotate(
            text, (max(value, left), row), (3, 0), textcoords="offset points", va="center", fontsize=8,
            color=_FAINT,
        )  # fmt: skip


def confusion_picture(confusion: Mapping[str, Tensor], class_names: Sequence[str], path: Path) -> None:
    """Draw confusion matrices, each row as shares of the target class.

    Args:
        confusion: (C, C) pixel counts by head; rows are targets, columns predictions.
        class_names: Names by class id.
        path: PNG file; its folder is made.

    Raises:
        DataError: If the file cannot be written.
    """
    count = len(class_names)
    side = max(3.2, 0.42 * count + 1.6)
    shades = mpl.colormaps["Blues"].with_extremes(bad=_GRID)
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side * len(confusion) + 1.4, side + 0.9), layout=_layout())
        grid = figure.subplots(1, len(confusion), squeeze=False)[0]
        for column, (axes, (head, table)) in enumerate(zip(grid, confusion.items(), strict=True)):
            counts = table.double().numpy()
            total = counts.sum(1, keepdims=True)
            shares = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
            picture = axes.imshow(shares, cmap=shades, vmin=0, vmax=1)
            _numbers(axes, shares)
            axes.set(title=f"{head} head", xlabel="predicted", xticks=range(count), yticks=range(count))
            axes.set_xticklabels(class_names, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticklabels(class_names if column == 0 else [])
            axes.tick_params(length=0)
            if column == 0:
                axes.set_ylabel("target")
        bar = figure.colorbar(picture, ax=list(grid), shrink=0.75, pad=0.015)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        bar.outline.set_visible(False)
        bar.set_label("share of the target class's pixels")
        _save(figure, path)


def _numbers(axes: Axes, shares: np.ndarray[Any, Any]) -> None:
    """Percentages in the cells that matter, while they fit."""
    if len(shares) > 25:
        return
    for row, column in np.argwhere(shares >= 0.005):
        value = shares[row, column]
        axes.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7.5,
            color="white" if value > 0.55 else _INK,
        )  # fmt: skip
