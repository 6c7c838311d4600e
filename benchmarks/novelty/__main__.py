r"""Which score finds pixels of what a network was never shown?

    python -m benchmarks.novelty train voc --dir runs/novelty            # seeds 0, 1, 2
    python -m benchmarks.novelty measure voc runs/novelty/voc_without_*
    python -m benchmarks.novelty measure voc runs/held_out/seed? --name novelty_voc_background
    python -m benchmarks.novelty train camvid --dir runs/novelty
    python -m benchmarks.novelty measure camvid runs/novelty/camvid_*

``voc``: 15 classes of PASCAL VOC are labelled; bus, cat, motorbike, sheep and sofa are not, and their pixels
on val are novel. ``train`` leaves out every training image that shows one of them; networks that saw them
as background can be measured too. ``camvid``: street scenes, and every pixel of a nuclei image is novel.

Distances are fitted to the labelled images of each run. Half of the val images without anything novel
scales scores and sets thresholds; all other images are measured. Seeds are of whole trainings, given as the
runs; the sample of pixels is the same for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import (
    RESULTS,
    ROOT,
    TRAINING,
    Answer,
    Block,
    Result,
    markdown_table,
    parser,
    write_result,
)
from benchmarks.trust.ranking import Floats, auroc, average_precision, counts_by_place, places
from protoseg.config.data import DataConfig
from protoseg.data.classes import read_classes
from protoseg.data.lists import read_entries
from protoseg.data.sources import CachedSource, open_source
from protoseg.errors import UserError, guarded
from protoseg.files import write_text_whole

if TYPE_CHECKING:  # the index needs no torch
    from benchmarks.novelty.measure import Looker, Measured, Pixels

HELD_OUT = ("bus", "cat", "motorbike", "sheep", "sofa")
BASELINE = "max probability"
SHIPPED = "cosine, stage 4 + max probability"
FALSE_ALARMS = 0.05
RECALL = 0.95
FIGURES = ("auroc", "aupr", "fpr95", "found")
VOC = DataConfig(kind="files", root="$PROTOSEG_DATA/voc", labeled="splits/train.txt", val="splits/val.txt",
                 classes="classes.txt")  # fmt: skip
NUCLEI = DataConfig(kind="files", root="$PROTOSEG_DATA/nuclei", labeled="splits/labeled.txt",
                    val="splits/val.txt", classes=["background", "nucleus"],
                    label_map={"0": 0, "255": 1})  # fmt: skip
TRAININGS = {
    "voc": ("voc_without", "configs/voc_92_efficientnet_lite0.yaml",
            ["views.crop=[160,160]", "train.max_steps=600", "train.warmup_steps=200",
             "train.eval_every=600"]),
    "camvid": ("camvid", "configs/camvid_46_efficientnet_lite0.yaml",
               ["data.labeled=splits/train.txt", "views.crop=[128,128]", "train.max_steps=250",
                "train.warmup_steps=80", "train.eval_every=250"]),
}  # fmt: skip
ALIKE = ["method.preset=protoseg", "method.unlabeled=false", "data.unlabeled=null", "train.batch_size=4",
         "train.mixed_precision=bf16", "train.channels_last=true", "train.trackers=[]"]  # fmt: skip


def without_held_out(folder: Path) -> list[str]:
    """Overrides for a training on the 15 classes; writes its list.

    Args:
        folder: Where the list goes.
    """
    names = [item.name for item in read_classes(VOC)]
    source, entries = open_source(VOC, "labeled", read_classes(VOC)), read_entries(VOC, "labeled").entries
    held = [names.index(name) for name in HELD_OUT]
    left = [entry for number, entry in enumerate(entries) if not np.isin(source.mask(number), held).any()]
    path = folder / "voc_without.txt"
    write_text_whole(path, "".join(f"{entry.image}\t{entry.mask}\n" for entry in left))
    label_map = {str(label): "ignore" if name in HELD_OUT else name for label, name in enumerate(names)}
    classes = [name for name in names if name not in HELD_OUT]
    return [f"data.labeled={path.absolute()}", f"data.classes={json.dumps(classes)}",
            f"data.label_map={json.dumps(label_map)}"]  # fmt: skip


def train(arguments: argparse.Namespace) -> int:
    """Train the networks of a setting, one after the other; finished steps are kept.

    Raises:
        UserError: If the trainer fails.
    """
    name, config, settings = TRAININGS[arguments.setting]
    folder: Path = arguments.dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lists = without_held_out(folder) if arguments.setting == "voc" else []
    for seed in arguments.seeds:
        command = [sys.executable, "-m", "protoseg.train", "--resume", "--config", config, *ALIKE, *settings,
                   *lists, f"train.seed={seed}", f"run.dir={folder}", f"run.name={name}_{seed}"]  # fmt: skip
        if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise UserError(f"exit code {code} of {' '.join(command)}; run this again to go on")
    return 0


def shown_voc(looker: Looker, every: int) -> Iterator[tuple[Pixels, Pixels]]:
    """Val images of VOC, and which of their pixels are of classes that the network does not have."""
    from benchmarks.novelty.measure import DROPPED, KNOWN, NOVEL, progress

    known = {item.name for item in looker.info.classes}
    kinds = np.full(256, DROPPED, np.uint8)
    for label, item in enumerate(read_classes(VOC)):
        kinds[label] = KNOWN if item.name in known else NOVEL
    data = VOC.model_copy(update={"resize": looker.info.input.resize})
    source = CachedSource(open_source(data, "val", read_classes(VOC)), data)
    for image, mask in progress(Every(source, every), looker.info.name):
        yield image, kinds[mask]


def shown_camvid(looker: Looker, every: int) -> Iterator[tuple[Pixels, Pixels]]:
    """Val images of the run, known, and nuclei images, novel."""
    from benchmarks.novelty.measure import DROPPED, KNOWN, NOVEL, progress

    info = looker.info
    own = CachedSource(open_source(info.data, "val", info.classes), info.data)
    for image, mask in progress(Every(own, every), info.name):
        yield image, np.where(mask == info.ignore_index, DROPPED, KNOWN).astype(np.uint8)
    data = NUCLEI.model_copy(update={"resize": info.input.resize})
    foreign = CachedSource(open_source(data, "val", read_classes(data)), data)
    for image, mask in progress(Every(foreign, every), "nuclei"):
        yield image, np.full_like(mask, NOVEL)


class Every:
    """Each n-th pair of a source at the working size."""

    def __init__(self, source: CachedSource, step: int) -> None:
        self.source, self.step = source, step

    def __len__(self) -> int:
        return -(-len(self.source) // self.step)

    def __getitem__(self, index: int, /) -> tuple[Pixels, Pixels]:
        return self.source.image(index * self.step), self.source.mask(index * self.step)


SHOWN = {"voc": shown_voc, "camvid": shown_camvid}


def figures(measured: Measured) -> dict[str, dict[str, float]]:
    """Every figure of every score on the pixels that calibrated nothing.

    ``auroc``, ``aupr`` with novel as the positive, ``fpr95``: known pixels above the threshold that finds
    95 % of the novel ones; ``found``: novel pixels found, and ``false_alarms``: known ones reported, at the
    threshold that 5 % of the calibration pixels exceed.
    """
    tested = ~measured.calibration
    novel = measured.kind[tested] == 1
    found = {}
    for name, values in measured.scores.items():
        score = values[tested]
        threshold = np.quantile(values[measured.calibration], 1 - FALSE_ALARMS)
        counts = counts_by_place(places(score), novel)
        found[name] = {
            "auroc": auroc(*counts), "aupr": average_precision(*counts), "fpr95": fpr_at(RECALL, *counts),
            "found": float((score[novel] > threshold).mean()),
            "false_alarms": float((score[~novel] > threshold).mean()),
        }  # fmt: skip
    return {name: {key: round(value, 4) for key, value in row.items()} for name, row in found.items()}


def fpr_at(recall: float, novel: Floats, known: Floats) -> float:
    """Share of known items at or above the highest score that finds ``recall`` of the novel; (G,) counts."""
    place = int(np.searchsorted(np.cumsum(novel), recall * novel.sum() - 1e-9))
    return float(np.cumsum(known)[place] / known.sum())


def measure_run(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    from benchmarks.novelty.measure import Looker, fit_places, measure, with_combinations
    from protoseg.checkpoint import load_checkpoint

    looker = Looker(load_checkpoint(path))
    info, rng = looker.info, np.random.default_rng(0)
    labelled = Every(CachedSource(open_source(info.data, "labeled", info.classes), info.data), 1)
    fitted = fit_places(looker, labelled, rng)
    shown = SHOWN[arguments.setting](looker, arguments.every)
    measured = with_combinations(measure(looker, fitted, shown, rng))
    tested = ~measured.calibration
    table = figures(measured)
    print_table(info.name, table)
    return {
        "name": info.name, "step": info.step, "weights_sha256": info.weights_sha256, "every": arguments.every,
        "labelled_images": len(labelled), "miou": (info.metrics.get("val") or {}).get("miou"),
        "pixels": int(tested.sum()), "novel": round(float(measured.kind[tested].mean()), 4),
        "scores": table,
    }  # fmt: skip


def print_table(title: str, table: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'score':<48}" + "".join(f"{name:>14}" for name in (*FIGURES, "false_alarms")))
    for name, row in sorted(table.items(), key=lambda item: -item[1]["auroc"]):
        print(f"{name:<48}" + "".join(f"{value:>14.4f}" for value in row.values()))


def gains(runs: list[dict[str, Any]], name: str, figure: str = "auroc") -> list[float]:
    """How much better than maximum probability a score is, in each run."""
    return [run["scores"][name][figure] - run["scores"][BASELINE][figure] for run in runs]


def beats(runs: list[dict[str, Any]], name: str) -> bool:
    """Whether a score's gain over maximum probability is above the spread of the gains, in AUROC and AUPR."""
    found = [gains(runs, name, figure) for figure in ("auroc", "aupr")]
    return len(runs) > 1 and all(
        min(values) > 0 and statistics.mean(values) > max(values) - min(values) for values in found
    )


def table(result: Result) -> str:
    """Scores by AUROC over the runs: mean, lowest and highest."""
    runs = result["runs"]
    mean = {name: statistics.mean(run["scores"][name]["auroc"] for run in runs) for name in runs[0]["scores"]}
    names = sorted(mean, key=lambda name: -mean[name])
    combined = [name for name in names if " + " in name]
    alone = [name for name in names if " + " not in name]
    rows = []
    for name in sorted({*combined[:5], *alone, SHIPPED}, key=names.index):
        cells = []
        for figure in FIGURES:
            values = [100 * run["scores"][name][figure] for run in runs]
            span = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{span}")
        rows.append([f"**{name}**" if name in (BASELINE, SHIPPED) else name, *cells])
    share = statistics.mean(run["novel"] for run in runs)
    trainings = f"{len(runs)} training{'s' * (len(runs) > 1)}"
    text = (
        f"{trainings}, {runs[0]['pixels']:,} pixels each, {100 * share:.1f} % of them novel. In %: "
        f"mean and range over the trainings; of {len(combined)} sums the five best. `found`: novel pixels "
        "above the threshold that 5 % of the calibration pixels exceed.\n\n"
    )
    return text + markdown_table(["score", "AUROC", "AUPR", "FPR95", "found"], rows)


COMMAND = "python -m benchmarks.novelty measure"
ANSWERS = {
    "novelty_voc": Answer(
        "which score finds classes that no training image showed", f"{COMMAND} voc RUN ...", in_parts=True
    ),
    "novelty_voc_background": Answer(
        "the same, where training images showed them as background",
        f"{COMMAND} voc RUN ... --name novelty_voc_background",
        in_parts=True,
    ),
    "novelty_camvid": Answer(
        "which score finds foreign images: nuclei for a network of streets",
        f"{COMMAND} camvid RUN ...",
        in_parts=True,
    ),
}
BLOCKS = {name: Block(table, (name,), TRAINING) for name in ANSWERS}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    commands = command.add_subparsers(dest="command", required=True)
    trained = commands.add_parser("train", help="train the networks of a setting")
    trained.add_argument("setting", choices=tuple(TRAININGS))
    trained.add_argument("--dir", type=Path, default=Path("runs/novelty"), help="where the runs go")
    trained.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    measured = commands.add_parser("measure", help="measure trained networks")
    measured.add_argument("setting", choices=tuple(SHOWN))
    measured.add_argument(
        "runs", nargs="+", metavar="RUN", help="run or checkpoint folders, one for each seed"
    )
    measured.add_argument("--name", help="name of the result file (default: novelty_SETTING)")
    measured.add_argument("--every", type=int, default=1, help="take each n-th image only (default: 1)")
    measured.add_argument("--add", action="store_true", help="keep the runs that the result file has already")
    measured.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = command.parse_args(argv)
    return guarded(lambda: train(arguments) if arguments.command == "train" else run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Measure all runs, write the result, say what beats maximum probability."""
    name = arguments.name or f"novelty_{arguments.setting}"
    runs = [measure_run(path, arguments) for path in arguments.runs]
    if arguments.add:
        measured = {run["weights_sha256"] for run in runs}
        before = json.loads((arguments.results / f"{name}.json").read_text(encoding="utf-8"))["runs"]
        runs = [run for run in before if run["weights_sha256"] not in measured] + runs
    path = write_result(name, {"false_alarms": FALSE_ALARMS, "runs": runs}, arguments.results)
    better = [name for name in runs[0]["scores"] if name != BASELINE and beats(runs, name)]
    print(f"\nbetter than {BASELINE} by more than the spread: {', '.join(better) or 'none'}\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
