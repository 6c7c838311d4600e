"""Curves of a run and confusion matrices, drawn by matplotlib without a display.

The same inputs give the same bytes: no time stamp, no version string, the fonts that matplotlib brings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

from protoseg.data.images import save_whole

Series = list[tuple[int, float]]

_INK, _FAINT, _GRID = "#262a30", "#787e86", "#e6e8ec"
_HEAD_COLORS = {"linear": "#2f6fb3", "prototype": "#d9822b", "fused": "#3c9a5f"}
_CYCLE = ("#2f6fb3", "#d9822b", "#3c9a5f", "#b5475f", "#7a5ea8", "#8a6d3b", "#4aa3a3", "#555b63")
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
