"""Markdown of the accuracy studies' tables, and which study answers what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.accuracy.study import HEADS
from benchmarks.accuracy.summary import against, cells_by_method, drawn, main_labels, opposite
from benchmarks.common import TRAINING, Answer, Block, Result, markdown_table


def percent(figure: dict[str, Any] | None, sign: str = "") -> str:
    """Mean and standard deviation of shares, in %; ``sign="+"`` for a difference, in points."""
    if figure is None:
        return ""
    mean = f"{100 * figure['mean']:{sign}.1f}"
    return mean if figure["sd"] is None else f"{mean} ± {100 * figure['sd']:.1f}"


def points(figure: dict[str, Any]) -> str:
    """Mean and standard deviation of a difference of shares, in points."""
    return percent(figure, "+")


def unfinished(result: Result) -> str:
    """A sentence for a study that is not complete."""
    absent = len(result["missing"]) + len(result["other_settings"])
    return f"\n\n{absent} runs of this study are not finished; the table shows the others." if absent else ""


def first_stage(result: Result, labels: str) -> str:
    """A sentence on the training that all methods of a study start from."""
    start = result.get("start")
    if start is None:
        return ""
    figure = start["miou"].get(labels)
    reached = "" if figure is None else f", which reached {percent(figure)}"
    return (
        f" All methods start from the same supervised training of {start['steps']:,} steps{reached}; its "
        "cost is not counted."
    )


def by_method(result: Result) -> str:
    """MIoU of every head at the label count with the most runs, and at equal cost where there is one."""
    labels = main_labels(result)
    first, *others = result["budgets"]
    rows = []
    by_budget = {b["name"]: cells_by_method(result, b["name"], labels) for b in result["budgets"]}
    for method in result["methods"]:
        cell = by_budget[first["name"]].get(method["name"])
        if cell is None:
            continue
        head = method["head"]
        values = [percent(cell["miou"].get(name)) for name in HEADS]
        values[HEADS.index(head)] = f"**{percent(cell['miou'][head])}**"
        for budget in others:
            other = by_budget[budget["name"]].get(method["name"])
            values.append(f"{percent(other['miou'][head])} ({other['steps']:,} steps)" if other else "")
        rows.append([method["label"], *values, str(cell["miou"][head]["n"])])
    columns = ["method", "linear head", "prototype head", "both, fused"]
    columns += [f"at {budget['title']}" for budget in others] + ["runs"]
    said = (
        f"{result['title']}, {labels} labels, {first['title']}: mIoU on val in %, mean ± standard deviation "
        "over runs (another seed and, where there are several, another list of labels). **Bold**: the head "
        "that the study names for the method beforehand. Networks are the moving averages of the last step."
    )
    said += first_stage(result, labels)
    return f"{said}\n\n{markdown_table(columns, rows)}{unfinished(result)}"


def by_labels(result: Result) -> str:
    """The methods' figures over label counts at the first budget."""
    budget = result["budgets"][0]
    ordered = sorted(result["labels"], key=lambda item: item["count"])
    grid = [cells_by_method(result, budget["name"], item["name"]) for item in ordered]
    rows = []
    for method in result["methods"]:
        figures = [cells[method["name"]]["miou"][method["head"]] if method["name"] in cells else None
                   for cells in grid]  # fmt: skip
        if any(figures):
            shown = [f"{percent(figure)} (n = {figure['n']})" if figure else "" for figure in figures]
            rows.append([f"{method['label']}, {method['head']}", *shown])
    said = f"mIoU on val in % over labelled images, {budget['title']}; n is the number of runs."
    columns = ["method, head", *(f"{item['count']} labels" for item in ordered)]
    return f"{said}\n\n{markdown_table(columns, rows)}{unfinished(result)}"


def paired(result: Result) -> str:
    """Differences of the baseline to the other methods over common seeds."""
    names = {method["name"]: method["label"] for method in result["methods"]}
    titles = {budget["name"]: budget["title"] for budget in result["budgets"]}
    rows = [
        [titles[item["budget"]], item["labels"], names[other], points(opposite(figure)), str(item["n"])]
        for item, other, figure in against(result)
    ]
    said = (
        f"Points of mIoU by which {names[result['baseline']]} is ahead (each method by its own head), "
        "paired: the same seed and labels on both sides; mean ± standard deviation of the differences."
    )
    return f"{said}\n\n{markdown_table(['budget', 'labels', 'against', 'difference', 'pairs'], rows)}"


def gains(*results: Result) -> str:
    """What unlabelled images add to labels, and prototypes to both, in every study."""
    rows = []
    for result in results:
        labels, budget = main_labels(result), result["budgets"][0]
        found = {
            (item["of"], item["minus"]): item
            for item in result["differences"]
            if (item["budget"], item["labels"]) == (budget["name"], labels)
        }
        images, prototypes = found["fixmatch", "supervised"], found["protoseg", "fixmatch"]
        name = f"{result['title'].partition(',')[0]}, {labels} labels, {budget['title']}"
        rows.append([name, points(images), points(prototypes), str(prototypes["n"])])
    columns = [
        "", "unlabelled images: fixmatch over supervised", "prototypes: protoseg over fixmatch", "pairs",
    ]  # fmt: skip
    said = (
        "Points of mIoU on val, paired (the same seed and labels on both sides), mean ± standard deviation "
        "of the differences."
    )
    return f"{said}\n\n{markdown_table(columns, rows)}"


def by_class(result: Result) -> str:
    """IoU of each class at the label count with the most runs, by the methods' heads."""
    cells = cells_by_method(result, result["budgets"][0]["name"], main_labels(result))
    shown = [(cells[m["name"]]["iou"][m["head"]], m) for m in result["methods"] if m["name"] in cells]
    rows = [[name, *(percent(iou[name]) for iou, _ in shown)] for name in shown[0][0]]
    return markdown_table(["IoU, %", *(f"{m['label']}, {m['head']}" for _, m in shown)], rows)


SHOWN = {
    "supervised": "labels alone", "fixmatch": "fixmatch", "unimatch_v2": "unimatch_v2",
    "prototype": "prototype (the paper)", "protoseg": "protoseg",
}  # fmt: skip
"""Methods of the tables that put studies together, and what they are called there."""


def together(*results: Result) -> str:
    """Studies on the same data, a row for each budget of steps and number of labels."""
    rows = []
    common = min((result["title"] for result in results), key=len)
    for result in results:
        budget, other = result["budgets"][0], result["title"].removeprefix(common)
        for labels in sorted(result["labels"], key=lambda item: item["count"]):
            cells = cells_by_method(result, budget["name"], labels["name"])
            heads = {method["name"]: method["head"] for method in result["methods"]}
            figures = [cells[name]["miou"][heads[name]] if name in cells else None for name in SHOWN]
            if any(figures):
                start = result.get("start")
                before = f"{start['steps']:,} supervised + " if start else ""
                shown = [f"{percent(figure)} (n = {figure['n']})" if figure else "" for figure in figures]
                rows.append([f"{before}{budget['title']}{other}", str(labels["count"]), *shown])
    said = (
        f"{common}: mIoU on val in % of each method by the head that its study names beforehand, mean ± "
        "standard deviation over n runs."
    )
    return f"{said}\n\n{markdown_table(['steps', 'labels', *SHOWN.values()], rows)}"


def headline(*results: Result) -> str:
    """Labels alone, the default with unlabelled images, and the labels of all images, study by study."""
    rows = []
    for result in results:
        budget, most, heads = (
            result["budgets"][0], main_labels(result), {m["name"]: m["head"] for m in result["methods"]}
        )  # fmt: skip
        counts = {item["name"]: item["count"] for item in result["labels"]}
        every = max(counts, key=lambda name: counts[name])
        few, many = (cells_by_method(result, budget["name"], name) for name in (most, every))

        def figure(cells: dict[str, Any], name: str, heads: dict[str, str] = heads) -> dict[str, Any] | None:
            return cells[name]["miou"][heads[name]] if name in cells else None  # type: ignore[no-any-return]

        own = figure(few, "protoseg")
        ceiling = figure(many, "supervised") if counts[every] > counts[most] else None
        rows.append([
            f"{result['title'].partition(',')[0]}, {most} labels, {budget['title']}",
            percent(figure(few, "supervised")), percent(figure(few, "fixmatch")), f"**{percent(own)}**",
            f"{percent(ceiling)} ({counts[every]})" if ceiling else "not run",
            str(own["n"]) if own else "0",
        ])  # fmt: skip
    columns = ["mIoU on val, %", "labels alone", "fixmatch", "protoseg, the default", "all labels", "runs"]
    return markdown_table(columns, rows)


def ablations(result: Result) -> str:
    """Each variant's figure and its difference to the baseline."""
    budget, labels = result["budgets"][0], main_labels(result)
    cells = cells_by_method(result, budget["name"], labels)
    changes = {
        other: points(figure)
        for item, other, figure in against(result)
        if (item["budget"], item["labels"]) == (budget["name"], labels)
    }
    rows = [
        [
            method["label"],
            *(percent(cells[method["name"]]["miou"].get(head)) for head in HEADS),
            changes.get(method["name"], ""),
        ]
        for method in result["methods"]
        if method["name"] in cells
    ]
    said = (
        f"{result['title']}, {budget['title']}: mIoU on val in %, one change at a time (in brackets: the "
        "value of protoseg) and the difference of the fused head to protoseg. With one seed, differences "
        "below about 1.5 points mean nothing."
    )
    return f"{said}\n\n{markdown_table(['variant', *HEADS, 'difference, points'], rows)}{unfinished(result)}"


def plots(result: Result, names: Sequence[str] = ("labels", "steps", "differences")) -> str:
    """Those of the pictures that the report of a study has drawn, with a text for those who see none."""
    texts = {
        "labels": "val mIoU over the number of labelled images, by method",
        "steps": "val mIoU during training, by method",
        "differences": "difference of each variant to protoseg in points of val mIoU",
    }
    return "\n\n".join(
        f"![{result['title']}: {texts[name]}](docs/assets/accuracy_{result['study']}_{name}.svg)"
        for name in drawn(result)
        if name in names
    )


# study -> its question and the tables of it, as suffix of the block's name -> maker
STUDIES: dict[str, tuple[str, dict[str, Callable[..., str]]]] = {
    "voc": (
        "methods and label counts on PASCAL VOC, 10,400 unlabelled views",
        {"": by_method, "_labels": by_labels, "_paired": paired, "_classes": by_class, "_plots": plots},
    ),
    "nuclei": ("methods on nuclei with 24 labels", {"": by_method, "_paired": paired, "_plots": plots}),
    "scenes": (
        "12 labels, unlabelled images and all labels on the embedded scenes",
        {"": by_method, "_labels": by_labels, "_paired": paired, "_plots": partial(plots, names=["steps"])},
    ),
    "camvid": ("methods and label counts on CamVid, at equal steps and at equal cost", {}),
    "camvid_cpu": ("the 46-label part of it, trained on CPUs", {}),
    "camvid_steps": ("the same methods with six times the steps", {}),
    "camvid_views": ("mild and usual strong views on CamVid, 23 and 92 labels", {"": by_labels}),
    "camvid_long": ("how far labels alone go: supervised, 1,300 steps, 46 and all 367 labels", {}),
    "camvid_ablations": ("one change at a time from `protoseg`", {"": ablations}),
    "quickstart": ("methods on the flat scenes that came before the embedded ones", {}),
    "quickstart_gpu": ("six of the seeds there, trained on a GPU", {}),
}  # fmt: skip
ANSWERS = {
    f"accuracy_{name}": Answer(question, f"python -m benchmarks.accuracy benchmarks/studies/{name}.yaml")
    for name, (question, _) in STUDIES.items()
}
BLOCKS = {
    f"{name}{suffix}": Block(make, (f"accuracy_{name}",), TRAINING)
    for name, (_, makers) in STUDIES.items()
    for suffix, make in makers.items()
} | {
    name: Block(make, tuple(f"accuracy_{study}" for study in studies), TRAINING)
    for name, make, studies in (
        ("headline", headline, ("voc", "nuclei", "scenes")),
        ("gains", gains, ("voc", "nuclei", "camvid", "camvid_steps")),
        ("camvid_together", together, ("camvid_long", "camvid_cpu", "camvid", "camvid_steps")),
        ("quickstart_together", together, ("quickstart", "quickstart_gpu")),
    )
}
