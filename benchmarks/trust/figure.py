"""The risk-coverage figure of ``benchmarks.trust``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.trust.ranking import Floats
from protoseg.files import write_whole

# name, label, colour, line
SHOWN = (
    ("fitted", "fitted to all (reference)", "#8a8f96", ":"),
    ("linear", "linear head's doubt about the label", "#2f6fb3", "-"),
    ("confidence", "1 - confidence of the head that labels", "#3c9a5f", "--"),
    ("distance", "distance to the prototype", "#7a5ea8", "-"),
    ("fused_confidence_and_agreement", "1 - fused confidence x agreement", "#d9822b", "--"),
    ("disagreement", "disagreement of the heads", "#b5475f", "-"),
)
POINTS = 400
COLUMNS = 2


def draw(path: Path, curves: dict[str, dict[str, tuple[Floats, Floats]]]) -> Path:
    """Share of wrong pixels among those kept, most trusted first; a panel for each checkpoint and head.

    Args:
        path: PNG file; its folder is made.
        curves: By title and score: coverage and risk, (G,) each.

    Returns:
        The file.
    """
    columns = min(COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    style = {"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
             "grid.color": "#e6e8ec", "axes.axisbelow": True, "axes.titlesize": 10.5,
             "axes.titlelocation": "left"}  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.2 * columns, 3.6 * rows + 0.7), layout="constrained")
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axis, (title, by_score) in zip(axes, curves.items(), strict=False):
            for name, label, color, line in SHOWN:
                if name in by_score:
                    coverage, risk = by_score[name]
                    grid = np.linspace(max(coverage[0], 0.02), 1, POINTS)
                    axis.plot(grid, np.interp(grid, coverage, risk), line, color=color, label=label, lw=1.8)
            axis.set(title=title, xlim=(0, 1), ylim=(0, None), xlabel="pixels kept, most trusted first")
            axis.xaxis.set_major_formatter(PercentFormatter(1))
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axis in axes[len(curves) :]:
            axis.set_axis_off()
        for axis in axes[::columns]:
            axis.set_ylabel("wrong among them")
        handles, labels = max(
            (axis.get_legend_handles_labels() for axis in axes), key=lambda pair: len(pair[0])
        )
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda beside: figure.savefig(beside, dpi=110, metadata={"Software": None}))
    return path
