"""Markdown of each results table, from result files; ``benchmarks.tables`` puts it into the documents.

A function gets its result files in the order in which ``TABLES`` names them. Links are relative to the
project's root; the caller adapts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy.summary import drawn

Result = dict[str, Any]

TRAINING = ("torch", "timm", "segmentation-models-pytorch", "accelerate")
EXPORT = ("torch", "onnx", "onnxruntime-gpu", "onnxruntime")
SERVING = ("bentoml", "onnxruntime-gpu", "onnxruntime")


@dataclass(frozen=True)
class Table:
    """A results table."""

    make: Callable[..., str]
    """Result files -> Markdown."""
    results: tuple[str, ...]
    """Result files it needs, without suffix."""
    command: str
    """Makes the result files."""
    packages: tuple[str, ...]
    """Packages whose versions shape the figures."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def percent(figure: dict[str, Any] | None) -> str:
    """Mean and standard deviation of shares, in %."""
    if figure is None:
        return ""
    mean = f"{100 * figure['mean']:.1f}"
    return mean if figure["sd"] is None else f"{mean} ± {100 * figure['sd']:.1f}"


def points(figure: dict[str, Any]) -> str:
    """Mean and standard deviation of a difference of shares, in points."""
    mean = f"{100 * figure['mean']:+.1f}"
    return mean if figure["sd"] is None else f"{mean} ± {100 * figure['sd']:.1f}"


def signed(value: float) -> str:
    """A change with its sign, without a negative zero."""
    return f"{round(value, 2) + 0.0:+.2f}"


def runs(figure: dict[str, Any]) -> str:
    """How many runs are behind a figure."""
    return str(figure["n"])


def middle(figure: dict[str, float], digits: int = 0) -> str:
    """Median with its range."""
    low, high = figure["min"], figure["max"]
    return f"{figure['median']:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def cells_of(result: Result, budget: str, labels: str) -> dict[str, Any]:
    """Cells of a study by method."""
    return {
        cell["method"]: cell
        for cell in result["cells"]
        if cell["budget"] == budget and cell["labels"] == labels
    }


def main_labels(result: Result) -> str:
    """The label count with the most runs."""
    count: dict[str, int] = {}
    for cell in result["cells"]:
        count[cell["labels"]] = count.get(cell["labels"], 0) + len(cell["seeds"])
    return max(count, key=lambda name: count[name])


def opposite(figure: dict[str, Any]) -> dict[str, Any]:
    """A difference seen from the other side."""
    return {**figure, "mean": -figure["mean"]}


def against(result: Result) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Each difference that the baseline is part of, the other method, and that method minus the baseline."""
    baseline = result["baseline"]
    found = []
    for item in result["differences"]:
        if item["minus"] == baseline:
            found.append((item, item["of"], item))
        elif item["of"] == baseline:
            found.append((item, item["minus"], opposite(item)))
    return found


def partial(result: Result) -> str:
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


def study_main(result: Result) -> str:
    """MIoU of every head at the label count with the most runs, and at equal cost where there is one."""
    labels = main_labels(result)
    first, *others = result["budgets"]
    heads = ("linear", "prototype", "fused")
    rows = []
    by_budget = {budget["name"]: cells_of(result, budget["name"], labels) for budget in result["budgets"]}
    for method in result["methods"]:
        cell = by_budget[first["name"]].get(method["name"])
        if cell is None:
            continue
        values = [percent(cell["miou"].get(head)) for head in heads]
        own = heads.index(method["head"])
        values[own] = f"**{values[own]}**"
        for budget in others:
            other = by_budget[budget["name"]].get(method["name"])
            text = "" if other is None else percent(other["miou"][method["head"]])
            values.append(f"{text} ({other['steps']:,} steps)" if other is not None else "")
        rows.append([method["label"], *values, runs(cell["miou"][method["head"]])])
    head = ["method", "linear head", "prototype head", "both, fused"]
    head += [f"at {budget['title']}" for budget in others] + ["runs"]
    said = (
        f"{result['title']}, {labels} labels, {first['title']}: mIoU on val in %, mean ± standard deviation "
        "over runs (another seed and, where there are several, another list of labels). **Bold**: the head "
        "that the study names for the method beforehand. Networks are the moving averages of the last step."
    )
    said += first_stage(result, labels)
    return f"{said}\n\n{table(head, rows)}{partial(result)}"


def study_labels(result: Result) -> str:
    """The methods' figures over label counts at the first budget."""
    budget = result["budgets"][0]
    ordered = sorted(result["labels"], key=lambda item: item["count"])
    grid = {item["name"]: cells_of(result, budget["name"], item["name"]) for item in ordered}
    rows = []
    for method in result["methods"]:
        row = [f"{method['label']}, {method['head']}"]
        for item in ordered:
            cell = grid[item["name"]].get(method["name"])
            if cell is None:
                row.append("")
                continue
            figure = cell["miou"][method["head"]]
            row.append(f"{percent(figure)} (n = {figure['n']})")
        if any(row[1:]):
            rows.append(row)
    said = f"mIoU on val in % over labelled images, {budget['title']}; n is the number of runs."
    head = ["method, head", *(f"{item['count']} labels" for item in ordered)]
    return f"{said}\n\n{table(head, rows)}{partial(result)}"


def study_paired(result: Result) -> str:
    """Differences of the baseline to the other methods over common seeds."""
    names = {method["name"]: method["label"] for method in result["methods"]}
    titles = {budget["name"]: budget["title"] for budget in result["budgets"]}
    rows = [
        [titles[item["budget"]], item["labels"], names[other], points(opposite(figure)), runs(item)]
        for item, other, figure in against(result)
    ]
    said = (
        f"Points of mIoU by which {names[result['baseline']]} is ahead (each method by its own head), "
        "paired: the same seed and labels on both sides; mean ± standard deviation of the differences."
    )
    return f"{said}\n\n{table(['budget', 'labels', 'against', 'difference', 'pairs'], rows)}"


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
        rows.append([name, points(images), points(prototypes), runs(prototypes)])
    head = ["", "unlabelled images: fixmatch over supervised", "prototypes: protoseg over fixmatch", "pairs"]
    said = (
        "Points of mIoU on val, paired (the same seed and labels on both sides), mean ± standard deviation "
        "of the differences."
    )
    return f"{said}\n\n{table(head, rows)}"


def study_classes(result: Result) -> str:
    """IoU of each class at the label count with the most runs, by the methods' heads."""
    cells = cells_of(result, result["budgets"][0]["name"], main_labels(result))
    shown = [method for method in result["methods"] if method["name"] in cells]
    first = cells[shown[0]["name"]]
    names = list(first["iou"][shown[0]["head"]])
    rows = [
        [name, *(percent(cells[m["name"]]["iou"][m["head"]][name]) for m in shown)]
        for name in names
    ]  # fmt: skip
    head = ["IoU, %", *(f"{method['label']}, {method['head']}" for method in shown)]
    return table(head, rows)


def study_ablations(result: Result) -> str:
    """Each variant's figure and its difference to the baseline."""
    budget = result["budgets"][0]
    labels = main_labels(result)
    cells = cells_of(result, budget["name"], labels)
    changes = {
        other: points(figure)
        for item, other, figure in against(result)
        if (item["budget"], item["labels"]) == (budget["name"], labels)
    }
    rows = [
        [
            method["label"],
            *(percent(cells[method["name"]]["miou"].get(h)) for h in ("linear", "prototype", "fused")),
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
    head = ["variant", "linear", "prototype", "fused", "difference, points"]
    return f"{said}\n\n{table(head, rows)}{partial(result)}"


def export_latency(result: Result) -> str:
    """Milliseconds of the exported files against torch."""
    shown = {
        "torch eager": "torch, eager",
        "torch.compile": "torch.compile",
        "onnxruntime fp32": "ONNX Runtime, fp32",
        "onnxruntime int8-cpu": "ONNX Runtime, int8-cpu",
    }
    rows = []
    for size, measured in result["sizes"].items():
        eager = measured["times"]["torch eager"]["wall_ms"]["median"]
        for key, name in shown.items():
            wall = measured["times"][key]["wall_ms"]
            equal = measured["labels_equal_to_eager"][key]
            ratio = f"{eager / wall['median']:.2f}x"
            rows.append([size, name, middle(wall), ratio, f"{100 * equal:.1f}"])
    said = (
        f"One image, head {result['network']['head']}, {result['threads']} threads, interleaved rounds: "
        "milliseconds (median and range), speed against eager torch, labels equal to eager torch in %."
    )
    return f"{said}\n\n{table(['input', 'runtime', 'ms', 'speed', 'equal labels'], rows)}"


def gpu_latency(result: Result) -> str:
    """Milliseconds of a bundle and of torch on a GPU, and labels that differ from torch in fp32."""
    sizes = result["sizes"]
    contestants = list(next(iter(sizes.values()))["times"])
    rows = [
        [
            name.replace("onnx", "ONNX Runtime, CUDA,"),
            *(middle(size["times"][name]["wall_ms"], 1) for size in sizes.values()),
            f"{100 * min(size['labels_equal_to_torch_fp32'][name] for size in sizes.values()):.2f} %",
        ]
        for name in contestants
    ]
    head = ["", *(shape.replace("x3x", "x") for shape in sizes), "labels equal to torch fp32"]
    said = (
        "Milliseconds of a call on a GPU from pixels in the host's memory to labels, confidence and "
        "agreement there (batch x height x width), median and range of 50 turns; smallest share of equal "
        "labels over the shapes."
    )
    return f"{said}\n\n{table(head, rows)}"


def export_accuracy(result: Result) -> str:
    """MIoU of the exported files."""
    rows = []
    for run in result["runs"]:
        for name, file in run["files"].items():
            miou = "" if file.get("miou") is None else f"{100 * file['miou']:.2f}"
            drop = file.get("miou_drop_points")
            change = "" if drop is None else signed(-drop)
            rows.append([run["run"], name, f"{file['megabytes']:.1f}", miou, change, file["parity"]])
    images = " and ".join(f"{run['images']} ({run['run']})" for run in result["runs"])
    said = (
        f"The exported files on the validation images of their run, {images}: size in MB, mIoU of the labels "
        "they answer with in %, change against torch in points, and the verdict of the parity gate."
    )
    return f"{said}\n\n{table(['run', 'file', 'MB', 'mIoU', 'change', 'parity'], rows)}"


def serving_speed(result: Result) -> str:
    """Processor time of a request, against the bare runtime."""
    shown = {
        "bare": "bare `session.run`, all outputs",
        "bare_labels_only": "bare `session.run`, labels only",
        "served_1": "this service, PNG mask",
        "served_1_multipart": "this service, multipart",
        "served_1_json": "this service, JSON with statistics",
        "served_2": "this service, two workers",
        "stock": "BentoML without our code",
        "fastapi_torch": "FastAPI with torch",
    }
    ratios = result["bare_over_contestant"]
    rows = [
        [name, middle(result["cpu_ms"][key]), f"{ratios[key]['median']:.2f}x"]
        for key, name in shown.items()
        if key in result["cpu_ms"]
    ]
    settings = result["settings"]
    said = (
        f"{settings['size']}x{settings['size']} {settings['format']}, head {result['head']}, "
        f"{settings['clients']} clients, {settings['rounds']} interleaved rounds of {settings['requests']} "
        "requests: processor milliseconds a request (median and range), and requests for each processor "
        "second against the bare runtime that computes all outputs (median of the rounds' ratios)."
    )
    return f"{said}\n\n{table(['contestant', 'CPU ms', 'throughput'], rows)}"


def serving_attacks(result: Result) -> str:
    """The same hostile requests against stock BentoML and the service."""
    rows = []
    for attack, by_server in result["table"].items():
        row = [attack]
        for server in ("stock", "protoseg"):
            seen = by_server[server]
            row += [str(seen["outcome"]), f"{seen['peak_mib']:,}"]
        rows.append(row)
    head = ["request", "stock BentoML", "peak MiB", "protoseg", "peak MiB"]
    return (
        f"The same requests against BentoML without our code and against the service.\n\n{table(head, rows)}"
    )


def serving_soak(result: Result) -> str:
    """Overload, endurance and mutated requests."""
    over, endure, fuzz = result["overload"], result["endurance"], result["fuzz"]

    def statuses(part: dict[str, Any]) -> str:
        return ", ".join(f"{count:,} x {code}" for code, count in sorted(part["statuses"].items()))

    times = over["latency_ms_of_200"]
    rows = [
        [
            f"{over['clients']} clients for {over['seconds']:.0f} s",
            statuses(over),
            f"{over['memory_mib']['before']:.0f} to {over['memory_mib']['max']:.0f}",
            f"accepted ones: p50 {times['p50']:.0f} ms, p99 {times['p99']:.0f} ms",
        ],
        [
            f"{endure['requests']:,} requests in a row",
            statuses(endure),
            f"{endure['memory_mib'][0]:.0f} to {endure['memory_mib'][-1]:.0f}",
            f"growth in the second half {endure['growth_mib_second_half']:.1f} MiB",
        ],
        [
            f"{fuzz['requests']:,} mutated requests",
            statuses(fuzz),
            f"{fuzz['memory_mib']['before']:.0f} to {fuzz['memory_mib']['max']:.0f}",
            f"{len(fuzz['failures'])} wrong answers; "
            + ("no worker died" if fuzz["same_workers"] else "a worker was replaced"),
        ],
    ]
    return table(["load", "answers", "worker MiB", "what else"], rows)


def prototype_cost(*results: Result) -> str:
    """Time and memory of the prototype branch beside the arithmetic of the released port."""
    rows = []
    for result in results:
        case = result["case"]
        ours, literal, rest = (result["cpu_seconds"][key] for key in ("ours", "literal", "rest"))
        extra = result["extra_mib"]
        height, width = case["size"]
        rows.append(
            [
                f"{case['images']} images of {height}x{width}, {case['classes']} classes, K = {case['k']}",
                f"{ours['median']:.2f}",
                f"{literal['median']:.2f}",
                f"{rest['median']:.2f}",
                f"{extra['ours']['median']:,.0f}",
                f"{extra['literal']['median']:,.0f}",
            ]
        )
    said = (
        "Processor seconds and extra memory of the prototype branch in one step: ours, the arithmetic of the "
        "paper's released evaluation port, and the rest of the step (medians)."
    )
    head = ["case", "ours, s", "port, s", "rest of the step, s", "ours, MiB", "port, MiB"]
    return f"{said}\n\n{table(head, rows)}"


def suggest_study(result: Result) -> str:
    """MIoU with suggested and with random images added, by seed."""
    rows = []
    for seed, arms in result["seeds"].items():
        heads = list(arms["first"]["miou"])
        for head in heads:
            before, suggested, random = (
                100 * arms[a]["miou"][head] for a in ("first", "suggested", "random")
            )
            difference = signed(suggested - random)
            rows.append([seed, head, f"{before:.1f}", f"{suggested:.1f}", f"{random:.1f}", difference])
    steps = next(iter(result["seeds"].values()))["first"]["steps"]
    text = (
        f"mIoU on val in % at the last of {steps:,} steps of supervised training, before and after "
        f"{result['count']} more images got labels; one training each.\n\n"
    )
    head = ["seed", "head", "before", "suggested added", "random added", "difference"]
    return text + table(head, rows)


def plots(*names: str) -> Callable[[Result], str]:
    """Pictures that the report of a study has drawn, with a text for those who see none."""
    texts = {
        "labels": "val mIoU over the number of labelled images, by method",
        "steps": "val mIoU during training, by method",
        "differences": "difference of each variant to protoseg in points of val mIoU",
    }

    def make(result: Result) -> str:
        return "\n\n".join(
            f"![{result['title']}: {texts[name]}](docs/assets/accuracy_{result['study']}_{name}.svg)"
            for name in names
            if name in drawn(result)
        )

    return make


def _study(name: str, make: Callable[..., str]) -> Table:
    file = f"benchmarks/studies/{name}.yaml"
    command = f"python -m benchmarks.accuracy {file}`, then the same with `--report"
    return Table(make, (f"accuracy_{name}",), command, TRAINING)


GAINS = ("accuracy_camvid", "accuracy_camvid_steps", "accuracy_nuclei", "accuracy_quickstart")
TABLES: dict[str, Table] = {
    "gains": Table(gains, GAINS, "python -m benchmarks.accuracy STUDY --report", TRAINING),
    "camvid": _study("camvid", study_main),
    "camvid_labels": _study("camvid", study_labels),
    "camvid_paired": _study("camvid", study_paired),
    "camvid_classes": _study("camvid", study_classes),
    "camvid_plots": _study("camvid", plots("labels", "steps")),
    "camvid_long": _study("camvid_long", study_labels),
    "quickstart": _study("quickstart", study_main),
    "quickstart_paired": _study("quickstart", study_paired),
    "quickstart_plots": _study("quickstart", plots("steps")),
    "camvid_cpu": _study("camvid_cpu", study_main),
    "camvid_cpu_paired": _study("camvid_cpu", study_paired),
    "camvid_steps": _study("camvid_steps", study_main),
    "camvid_steps_labels": _study("camvid_steps", study_labels),
    "camvid_steps_paired": _study("camvid_steps", study_paired),
    "camvid_steps_plots": _study("camvid_steps", plots("steps")),
    "camvid_views": _study("camvid_views", study_labels),
    "quickstart_gpu": _study("quickstart_gpu", study_main),
    "quickstart_gpu_paired": _study("quickstart_gpu", study_paired),
    "nuclei": _study("nuclei", study_main),
    "nuclei_paired": _study("nuclei", study_paired),
    "nuclei_plots": _study("nuclei", plots("steps")),
    "ablations": _study("camvid_ablations", study_ablations),
    "ablations_plots": _study("camvid_ablations", plots("differences")),
    "export_latency": Table(
        export_latency, ("export_latency",), "python -m benchmarks.export_latency CHECKPOINT", EXPORT
    ),
    "export_latency_avx2": Table(
        export_latency, ("export_latency_avx2",), "python -m benchmarks.export_latency CHECKPOINT", EXPORT
    ),
    "gpu_latency": Table(
        gpu_latency, ("gpu_latency",), "python -m benchmarks.gpu_latency CHECKPOINT BUNDLE", EXPORT
    ),
    "export_accuracy": Table(
        export_accuracy, ("export_accuracy",), "python -m benchmarks.export_accuracy RUN", EXPORT
    ),
    "serving_speed": Table(
        serving_speed,
        ("serving_speed",),
        "python -m benchmarks.serving_speed --checkpoint CHECKPOINT",
        SERVING,
    ),
    "serving_attacks": Table(
        serving_attacks, ("serving_attacks",), "python -m benchmarks.serving_attacks", SERVING
    ),
    "serving_soak": Table(serving_soak, ("serving_soak",), "python -m benchmarks.serving_soak", SERVING),
    "suggest_study": Table(
        suggest_study,
        ("suggest_study",),
        "python -m benchmarks.suggest_study --set method.preset=supervised --steps 400",
        TRAINING,
    ),
    "prototype_cost": Table(
        prototype_cost,
        ("prototype_branch_camvid", "prototype_branch_pcr513"),
        "python -m benchmarks.prototype_branch --case camvid` and `--case pcr513",
        ("torch",),
    ),
}  # fmt: skip
