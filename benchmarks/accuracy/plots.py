"""Plots of a summary as SVG: dark text on white, colours of Okabe and Ito, one marker for each method.

The same summary gives the same bytes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.summary import against, cells_by_method, drawn, main_labels
from protoseg.files import write_text_whole

INK, FAINT, GRID = "#20242a", "#5b626b", "#e3e6ea"
# Okabe and Ito's palette, told apart with every common colour blindness; yellow is too light on white
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 12, "axes.titlelocation": "left",
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True, "legend.frameon": False,
    "figure.facecolor": "white", "axes.facecolor": "white", "svg.hashsalt": "protoseg",
}  # fmt: skip
WIDTH = 9.0


def draw(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what the summary has figures for.

    ``accuracy_STUDY_NAME.svg``, see ``benchmarks.accuracy.summary.drawn``.

    Returns:
        The files written.
    """
    makers = {"labels": by_labels, "steps": by_steps, "differences": to_baseline}
    with mpl.rc_context(STYLE):
        return [
            save(makers[name](summary), folder / f"accuracy_{summary['study']}_{name}.svg")
            for name in drawn(summary)
        ]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, text + "\n")
    return path


def _looks(summary: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and label of each method."""
    return {
        method["name"]: (color, marker, f"{method['label']}, {method['head']} head")
        for method, color, marker in zip(summary["methods"], COLORS, MARKERS, strict=False)
    }


def _legend(figure: Figure, axes: list[Axes]) -> None:
    entries = {
        label: handle
        for item in axes
        for handle, label in zip(*item.get_legend_handles_labels(), strict=True)
    }
    columns = 3 if len(entries) > 2 else max(len(entries), 1)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def by_labels(summary: dict[str, Any]) -> Figure:
    """MIoU over the number of labelled images, a panel for each budget with two label counts or more."""
    counts = {item["name"]: item["count"] for item in summary["labels"]}
    budgets = [
        budget
        for budget in summary["budgets"]
        if len({c["labels"] for c in summary["cells"] if c["budget"] == budget["name"]}) > 1
    ]
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = list(figure.subplots(1, max(len(budgets), 1), sharey=True, squeeze=False)[0])
    for axes, budget in zip(panels, budgets, strict=False):
        ticks = set()
        for method, (color, marker, label) in _looks(summary).items():
            points = sorted(
                (counts[c["labels"]], c["miou"][c["head"]])
                for c in summary["cells"]
                if (c["budget"], c["method"]) == (budget["name"], method)
            )
            if not points:
                continue
            xs = [x for x, _ in points]
            ticks |= set(xs)
            axes.errorbar(
                xs, [100 * v["mean"] for _, v in points], yerr=[100 * (v["sd"] or 0.0) for _, v in points],
                color=color, marker=marker, label=label, linewidth=1.8, markersize=6, capsize=3,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="labelled images", title=f"after {budget['title']}")
        axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axes.minorticks_off()
    panels[0].set_ylabel("val mIoU, %")
    _legend(figure, panels)
    return figure


def by_steps(summary: dict[str, Any]) -> Figure:
    """MIoU during training at the label count with most runs, a panel for each budget.

    The band is one standard deviation to each side.
    """
    labels = main_labels(summary)
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = list(figure.subplots(1, len(summary["budgets"]), sharey=True, squeeze=False)[0])
    for axes, budget in zip(panels, summary["budgets"], strict=True):
        costs = budget["encoder_images"] is not None
        cells = cells_by_method(summary, budget["name"], labels)
        for method, (color, marker, label) in _looks(summary).items():
            if method in cells:
                _draw_curve(axes, cells[method], costs, color, marker, label)
        axes.set(
            xlabel="encoder images (student + teacher)" if costs else "step",
            title=f"{labels} labels, {budget['title']}",
        )
        axes.set_xlim(left=0)
    panels[0].set_ylabel("val mIoU, %")
    _legend(figure, panels)
    return figure


def _draw_curve(axes: Axes, cell: dict[str, Any], costs: bool, color: str, marker: str, label: str) -> None:
    points = cell["curve"][cell["head"]]
    xs = [point["encoder_images" if costs else "step"] for point in points]
    means = [100 * point["mean"] for point in points]
    axes.plot(xs, means, color=color, marker=marker, label=label, linewidth=1.8, markersize=6)
    spreads = [100 * (point["sd"] or 0.0) for point in points]
    if any(spreads):
        low = [mean - sd for mean, sd in zip(means, spreads, strict=True)]
        high = [mean + sd for mean, sd in zip(means, spreads, strict=True)]
        axes.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)


def to_baseline(summary: dict[str, Any]) -> Figure:
    """Each variant's difference to the baseline, as dots."""
    names = {method["name"]: method["label"] for method in summary["methods"]}
    by_method: dict[str, dict[str, Any]] = {}
    for _, method, figure in against(summary):
        by_method.setdefault(method, figure)  # at the first budget and label count that have it
    rows = list(by_method.items())
    figure = Figure(figsize=(WIDTH, 1.4 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, item) in enumerate(rows):
        axes.plot([0, 100 * item["mean"]], [place, place], color=FAINT, linewidth=1.2)
        axes.errorbar(
            100 * item["mean"], place, xerr=100 * (item["sd"] or 0.0), color=COLORS[0], marker="o",
            markersize=7, capsize=3,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [names[name] for name, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"points of val mIoU against {names[summary['baseline']]}", title=summary["title"])
    return figure
