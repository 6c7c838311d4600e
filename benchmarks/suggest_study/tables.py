"""Tables and the plot of what suggested labels are worth; needs no torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import TRAINING, Answer, Block, Result, markdown_table

Arms = dict[str, Any]
TITLES = {
    "random": "random",
    "suggested": "linear head's doubt x distance (`--score linear`)",
    "half_random": "half as `--score linear`, half random",
    "k_center": "distance of prototype shares alone (k-center)",
    "far_features": "distance of encoder features alone (k-center)",
    "confidence": "least probability",
    "entropy": "entropy",
    "margin": "margin",
    "novelty": "novelty",
    "far": "far from every prototype",
    "rare_prototypes": "prototypes evenly",
    "class_balanced": "predicted classes evenly",
    "class_doubt": "doubt in predicted classes evenly",
    "clusters": "one of each cluster of encoder features",
    "clusters_apart": "one of each such cluster without labelled images",
    "clusters_doubt": "the most doubtful of each cluster",
    "start_random": "random",
    "start_clusters": "one of each cluster of encoder features",
}
HEAD = "linear"


def draws(arms: dict[str, Arms], prefix: str) -> list[Arms]:
    """All random choices with one seed."""
    return [arm for name, arm in arms.items() if name == prefix or name.startswith(f"{prefix}_")]


def differences(result: Result, name: str, value: Callable[[Arms], float]) -> list[float]:
    """How much an arm is above the mean of the random choices, with each seed that has both."""
    base = "start_random" if name.startswith("start_") else "random"
    return [
        value(arms[name]) - statistics.fmean(map(value, draws(arms, base)))
        for arms in result["seeds"].values()
        if name in arms and draws(arms, base)
    ]


def noise(result: Result, base: str) -> float:
    """Standard deviation of a random choice's mIoU around the mean of its seed's choices; 0 with one each."""
    squares, freedom = 0.0, 0
    for arms in result["seeds"].values():
        values = [miou(arm) for arm in draws(arms, base)]
        squares += sum((value - statistics.fmean(values)) ** 2 for value in values)
        freedom += max(len(values) - 1, 0)
    return (squares / freedom) ** 0.5 if freedom else 0.0


def miou(arm: Arms) -> float:
    """MIoU on val."""
    return float(arm["miou"][HEAD])


def percent(values: Sequence[float], sign: bool = False) -> str:
    """Mean and range, in %."""
    form = "{:+.1f}" if sign else "{:.1f}"
    mean, low, high = (
        form.format(round(100 * v, 1) + 0.0) for v in (statistics.fmean(values), min(values), max(values))
    )
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def row(result: Result, name: str) -> list[str]:
    """A row of the table: mIoU and rare classes with their differences, and what was bought."""
    base = name in ("random", "start_random")
    arms = [
        arm
        for seed in result["seeds"].values()
        for arm in (draws(seed, name) if base else [seed[name]] if name in seed else [])
    ]
    gains = [] if base else differences(result, name, miou)
    return [
        TITLES[name], percent([miou(arm) for arm in arms]),
        percent(gains, sign=True) if gains else "",
        f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if gains else "",
        percent([arm["rare_iou"] for arm in arms]),
        f"{statistics.fmean(arm['bought']['classes'] for arm in arms):.2f}",
        *(f"{100 * statistics.fmean(arm['bought'][key] for arm in arms):.1f}" for key in ("objects", "rare")),
    ]  # fmt: skip


def voc_table(result: Result) -> str:
    """Round 1 and round 0 of a study."""
    seeds = list(result["seeds"].values())
    names = [name for name in TITLES if any(name in arms for arms in seeds)]
    steps, first = seeds[0]["first"].get("steps"), [miou(arms["first"]) for arms in seeds]
    head = [f"choice of {result['count']} images", "mIoU", "difference to random", "seeds above it",
            "IoU of rare classes", "classes an image", "object pixels, %",
            "pixels of rare classes, %"]  # fmt: skip
    order = sorted(
        (name for name in names if name not in ("random", "start_random", "start_clusters")),
        key=lambda name: -statistics.fmean(differences(result, name, miou)),
    )
    how = f"of the {HEAD} head after {steps:,} steps" if steps else "of a linear classifier"
    texts = [
        f"mIoU {how} on val in %, mean and range over {len(seeds)} seeds; differences are to the "
        "mean of the random choices with the same seed, which differ by "
        f"{100 * noise(result, 'random'):.1f} (standard deviation) among each other. With the first "
        f"{result['count']} labels alone: {percent(first)}.",
        markdown_table(head, [row(result, name) for name in ["random", *order]]),
    ]
    if "start_clusters" in names:
        texts += [
            f"The first {result['count']} images, before anything is trained:",
            markdown_table(head, [row(result, name) for name in ("start_random", "start_clusters")]),
        ]
    return "\n\n".join(texts)


def camvid_table(result: Result) -> str:
    """MIoU with suggested and with random images added, by seed."""
    rows = []
    for seed, arms in result["seeds"].items():
        before, suggested, random = (100 * miou(arms[name]) for name in ("first", "suggested", "random"))
        rows.append([seed, f"{before:.1f}", f"{suggested:.1f}", f"{random:.1f}",
                     f"{suggested - random:+.1f}"])  # fmt: skip
    steps = next(iter(result["seeds"].values()))["first"]["steps"]
    text = (
        f"mIoU on val in % at the last of {steps:,} steps of supervised training, before and after "
        f"{result['count']} more images got labels; one training each.\n\n"
    )
    return text + markdown_table(["seed", "before", "suggested added", "random added", "difference"], rows)


def draw(path: Path, folder: Path) -> int:
    """Draw the differences to random, a point for each seed, below ``folder`` under the result's name."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from benchmarks.accuracy.plots import COLORS, FAINT, STYLE, save

    result = json.loads(path.read_text(encoding="utf-8"))
    names = [name for name in TITLES if name not in ("random", "start_random")]
    found = {name: values for name in names if (values := differences(result, name, miou))}
    order = sorted(found, key=lambda name: (name.startswith("start_"), -statistics.fmean(found[name])))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 0.8 + 0.36 * len(order)), layout="constrained")
        axes = figure.subplots()
        band = 100 * noise(result, "random")
        axes.axvspan(-band, band, color=FAINT, alpha=0.15, label="random choices, 1 standard deviation")
        for place, name in enumerate(order):
            mean, points = 100 * statistics.fmean(found[name]), 100 * np.array(found[name])
            labels = ("mean", "a seed") if place == 0 else (None, None)
            axes.plot([mean, mean], [place - 0.3, place + 0.3], color="black", linewidth=2, label=labels[0])
            axes.plot(points, np.full(len(points), place), "o", color=COLORS[0], alpha=0.7, label=labels[1])
        titles = [("round 0: " if name.startswith("start_") else "") + TITLES[name] for name in order]
        axes.set_yticks(range(len(order)), [title.replace("`", "") for title in titles])
        axes.invert_yaxis()
        axes.set_xlabel("mIoU above random choices with the same seed, points")
        figure.legend(loc="outside lower center", ncols=3)
        print(save(figure, folder / f"{path.stem}.svg"))
    return 0


ANSWERS = {
    "suggest_voc": Answer("ways to choose labels, VOC, 46 + 46", "python -m benchmarks.suggest_study voc"),
    "suggest_voc_default": Answer(
        "the same with the default method: prototypes, and all other images unlabelled",
        "python -m benchmarks.suggest_study voc --set method.unlabeled=true --name suggest_voc_default",
        in_parts=True,
    ),
    "suggest_probe_voc": Answer(
        "the same with a linear classifier on the frozen encoder, ten seeds",
        "python -m benchmarks.suggest_study voc --probe --seeds 0 1 2 3 4 5 6 7 8 9",
    ),
    "suggest_study": Answer(
        "suggested against random labels, CamVid, 23 + 23",
        "python -m benchmarks.suggest_study camvid --name suggest_study --seeds 0 1 --arms random suggested "
        "--start-arms",
        in_parts=True,
    ),
}
BLOCKS = {
    "suggest_voc": Block(voc_table, ("suggest_voc",), TRAINING),
    "suggest_voc_default": Block(voc_table, ("suggest_voc_default",), TRAINING),
    "suggest_probe_voc": Block(voc_table, ("suggest_probe_voc",), TRAINING),
    "suggest_study": Block(camvid_table, ("suggest_study",), TRAINING),
}
