r"""Are suggested images worth more than random ones, and which way to choose is?

    python -m benchmarks.suggest_study voc
    python -m benchmarks.suggest_study camvid --arms random suggested --start-arms
    python -m benchmarks.suggest_study voc --probe --seeds 0 1 2 3 4 5 6 7 8 9
    python -m benchmarks.suggest_study voc --probe --plot            # from the result file

For each seed: train with the seed's first labelled images; let each way choose as many again among all other
training images, whose masks are known; train again, with the same seed and as many steps, on both together
(VOC: from the first weights, CamVid: from the start). ``suggested`` is ``protoseg suggest --score linear``,
``random_2`` to ``random_4`` are further draws. ``start_...`` are choices of the first images themselves,
before anything is trained: at random, or one of each cluster of the pretrained encoder's features.

With ``--probe`` not the network is trained but a linear classifier on the frozen pretrained encoder is
fitted, which takes seconds and has no noise of its own. Seeds without a list in the data draw the first
images at random.

Each training is a run of its own below ``--dir``: finished ones are not run again, stopped ones go on, and
choices are kept as long as they are of the checkpoint that is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ASSETS, RESULTS, parser, write_result
from benchmarks.suggest_study.figures import figures, rare_classes
from benchmarks.suggest_study.runs import collect, labelled_entries, run, write_lists
from benchmarks.suggest_study.tables import draw
from protoseg.config.load import load_config
from protoseg.config.sections import Config
from protoseg.data.classes import read_classes
from protoseg.data.sources import open_source
from protoseg.errors import UserError, guarded
from protoseg.evaluate.metrics import iou_per_class, miou
from protoseg.files import write_text_whole

ARMS = (
    "random", "suggested", "class_balanced", "clusters", "clusters_apart", "entropy", "k_center", "novelty",
    "random_2", "rare_prototypes", "far", "far_features", "class_doubt", "clusters_doubt", "margin",
    "confidence", "half_random", "random_3", "random_4",
)  # fmt: skip
LISTS = 3
"""Seeds that the data sets have lists for."""
START_ARMS = ("start_random", "start_clusters", "start_random_2", "start_random_3", "start_random_4")


@dataclass(frozen=True)
class Setting:
    """What is trained on."""

    config: str
    """Configuration of all trainings."""
    labeled: str
    """First labelled list of a seed."""
    train: str
    """All training images with their masks."""
    overrides: tuple[str, ...]
    """Settings over the configuration."""
    goes_on: bool = False
    """Whether trainings on more labels start from the weights of the first one."""


SETTINGS = {
    "voc": Setting(
        "configs/voc_92_efficientnet_lite0.yaml", "splits/46/seed{seed}/labeled.txt", "splits/train.txt",
        # both heads by labels alone, small enough that sixty trainings take less than an hour of a core
        ("method.preset=protoseg", "method.unlabeled=false", "model.freeze_encoder=true",
         "model.decoder_channels=64", "data.resize.mode=long_side", "data.resize.size=128",
         "views.crop=[128,128]", "train.batch_size=8", "train.warmup_steps=0", "train.max_steps=220",
         "train.eval_every=220", "loss.class_weights=inverse_sqrt", "optim.lr=1.0e-3",
         "train.mixed_precision=bf16", "train.channels_last=true", "train.atlas_images=0",
         "train.keep_states=0", "eval.batch_size=8"),
        goes_on=True,
    ),
    "camvid": Setting(
        "configs/camvid_23_efficientnet_lite0.yaml", "splits/23/seed{seed}/labeled.txt", "splits/train.txt",
        ("method.preset=supervised", "train.max_steps=400"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A study with one seed."""

    setting: Setting
    config: Config
    overrides: list[str]
    folder: Path
    seed: int

    def everything(self) -> dict[str, Any]:
        """All entries by path."""
        return labelled_entries(self.config, self.setting.train)

    def train(self, name: str, labeled: list[str], start: Path | None = None) -> Path:
        """Train with labels of some images, from the pretrained encoder or from an earlier run."""
        lists = write_lists(self.folder / f"seed{self.seed}_{name}_lists", self.everything(), labeled)
        if start is not None:
            lists.append(f"train.start_from={start}")
        return run(self.setting.config, self.folder, f"seed{self.seed}_{name}", [*self.overrides, *lists])


def kept(path: Path, key: str) -> dict[str, list[str]]:
    """Choices written before with the same key."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return dict(found["chosen"]) if found["key"] == key else {}


def choose(study: Study, first: Path, labeled: list[str], arms: list[str]) -> dict[str, list[str]]:
    """What each arm adds to the labels of the first run."""
    from benchmarks.suggest_study.choose import STRATEGIES
    from benchmarks.suggest_study.look import Looker, looks
    from protoseg.checkpoint import load_checkpoint, read_info
    from protoseg.novelty.__main__ import main as fit_novelty

    path = study.folder / f"seed{study.seed}_chosen.json"
    digest = read_info(first / "checkpoint").weights_sha256
    chosen = kept(path, digest)
    missing = [arm for arm in arms if arm not in chosen]
    if missing:
        if "novelty" in missing and fit_novelty([str(first)]):
            raise UserError(f"novelty could not be fitted to {first}")
        looker = Looker(load_checkpoint(first))
        others = [path for path in study.everything() if path not in set(labeled)]
        pool = looks(looker, map(Path, others), "candidates")
        known = looks(looker, map(Path, labeled), "labelled")
        for arm in missing:
            picked = STRATEGIES[arm](pool, known, len(labeled), study.seed)
            chosen[arm] = [others[index] for index in picked]
        write_text_whole(path, json.dumps({"key": digest, "chosen": chosen}, indent=1) + "\n")
    return chosen


def choose_start(study: Study, count: int, arms: list[str]) -> dict[str, list[str]]:
    """The first images that each arm labels."""
    import torch

    from benchmarks.suggest_study.choose import best_of_clusters
    from protoseg.data.find import find_images
    from protoseg.suggest.first import PretrainedEncoder, look

    path = study.folder / f"seed{study.seed}_start.json"
    chosen = kept(path, str(count))
    everything = list(study.everything())
    for arm in arms:
        if arm in chosen:
            continue
        if arm == "start_clusters":
            model = study.config.model
            encoder = PretrainedEncoder(model.encoder, model.pretrained, torch.device("cpu"))
            images = find_images([Path(path) for path in everything], study.folder).images
            features = look(encoder, images)[1]
            picked = best_of_clusters(features, None, count, study.seed)
        else:
            rng = np.random.default_rng([study.seed, 10, START_ARMS.index(arm)])
            picked = rng.choice(len(everything), count, replace=False).tolist()
        chosen[arm] = [everything[index] for index in picked]
    write_text_whole(path, json.dumps({"key": str(count), "chosen": chosen}, indent=1) + "\n")
    return chosen


@dataclass(frozen=True)
class Record:
    """The result file, written anew after each training."""

    name: str
    folder: Path
    setting: dict[str, Any]
    """What all trainings have in common."""
    seeds: dict[int, dict[str, Any]]
    """Figures of each training by seed and arm."""

    def add(
        self, study: Study, arm: str, labeled: list[str], added: list[str], start: Path | None = None
    ) -> Path:
        """Train, and write what came out."""
        target = study.train(arm, labeled, start)
        arms = self.seeds.setdefault(study.seed, {})
        rare = arms["first"]["rare_classes"] if arms else None
        found = collect(target, len(added) or len(labeled), rare)
        arms[arm] = {**found, "added": [Path(path).name for path in added]}
        miou = "  ".join(f"{head} {100 * value:.2f}" for head, value in found["miou"].items())
        print(f"seed {study.seed}  {arm:<16}{miou}", flush=True)
        write_result(self.name, {**self.setting, "seeds": self.seeds}, self.folder)
        return target


def run_probe(arguments: argparse.Namespace, setting: Setting) -> int:
    """Fit the classifier with all seeds and choices."""
    from benchmarks.suggest_study.choose import STRATEGIES, best_of_clusters
    from benchmarks.suggest_study.probe import Encoder, fit, space_of

    config = load_config(setting.config, [f"data.labeled={setting.train}", *arguments.set])
    classes = read_classes(config.data)
    place = {path: i for i, path in enumerate(labelled_entries(config, setting.train))}
    encoder = Encoder(config, len(classes))
    images, val = (encoder(open_source(config.data, split, classes), split) for split in ("labeled", "val"))
    space = space_of(images, encoder.last)
    seeds: dict[int, dict[str, Any]] = {}
    for seed in arguments.seeds:
        start_list = setting.labeled.format(seed=seed if seed < LISTS else 0)
        labeled = [place[path] for path in labelled_entries(config, start_list)]
        count, rng = len(labeled), np.random.default_rng([seed, 10])
        if seed >= LISTS:
            labeled = rng.choice(len(images), count, replace=False).tolist()
        first = fit([images[i] for i in labeled], space, seed)
        looks = first.looks(images)
        others = [i for i in range(len(images)) if i not in set(labeled)]
        pool, known = looks.take(others), looks.take(labeled)
        chosen: dict[str, list[int]] = {"first": []}
        for arm in arguments.arms:
            chosen[arm] = [others[i] for i in STRATEGIES[arm](pool, known, count, seed)]
        starts = {
            arm: best_of_clusters(looks.encoder, None, count, seed)
            if arm == "start_clusters"
            else rng.choice(len(images), count, replace=False).tolist()
            for arm in arguments.start_arms
        }
        rare = rare_classes(np.sum([images[i].pixels for i in labeled], axis=0))
        arms = seeds[seed] = {}
        for arm, added in {**chosen, **starts}.items():
            used = added if arm in starts else [*labeled, *added]
            found = fit([images[i] for i in used], space, seed).confusion(val)
            pixels = np.stack([images[i].pixels for i in added or labeled])
            iou = np.nan_to_num(iou_per_class(found)).tolist()
            arms[arm] = {"miou": {"linear": miou(found)}, **figures(iou, pixels, rare)}
            print(f"seed {seed}  {arm:<16}{100 * miou(found):.2f}", flush=True)
        data = {"setting": arguments.setting, "config": setting.config, "count": count, "seeds": seeds}
        write_result(arguments.name, data, arguments.results)
    return 0


def run_study(arguments: argparse.Namespace, setting: Setting) -> int:
    """Run all seeds."""
    shared = [*setting.overrides, *arguments.set]
    common = {"setting": arguments.setting, "config": setting.config, "overrides": shared}
    record = Record(arguments.name, arguments.results, common, {})
    for seed in arguments.seeds:
        overrides = [*shared, f"train.seed={seed}"]
        config = load_config(setting.config, overrides)
        study = Study(setting, config, overrides, arguments.dir.absolute(), seed)
        study.folder.mkdir(parents=True, exist_ok=True)
        labeled = list(labelled_entries(config, setting.labeled.format(seed=seed)))
        common["count"] = len(labeled)
        first = record.add(study, "first", labeled, [])
        chosen = choose(study, first, labeled, arguments.arms)
        for arm in arguments.arms:
            start = first if setting.goes_on else None
            record.add(study, arm, [*labeled, *chosen[arm]], chosen[arm], start)
        started = choose_start(study, len(labeled), arguments.start_arms)
        for arm in arguments.start_arms:
            record.add(study, arm, started[arm], started[arm])
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run a study or draw its result; returns the exit code."""
    command = parser(__doc__, prog="python -m benchmarks.suggest_study")
    add = command.add_argument
    add("setting", choices=SETTINGS)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of lists, training and choice (0 1 2)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="ways to choose (default: all)")
    add("--start-arms", nargs="*", choices=START_ARMS, default=list(START_ARMS),
        help="ways to choose the first images (default: all)")  # fmt: skip
    add("--set", nargs="+", default=[], metavar="key=value", help="overrides of all trainings")
    add("--dir", type=Path, help="where the runs go (default: runs/suggest_SETTING)")
    add("--name", help="name of the result file (default: suggest_SETTING)")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    add("--probe", action="store_true", help="fit a linear classifier on the encoder, and train nothing")
    add("--plot", action="store_true", help="draw the result file, and train nothing")
    arguments = command.parse_args(argv)
    kind = "suggest_probe" if arguments.probe else "suggest"
    arguments.name = arguments.name or f"{kind}_{arguments.setting}"
    arguments.dir = arguments.dir or Path("runs") / f"suggest_{arguments.setting}"
    if arguments.plot:
        return guarded(lambda: draw(arguments.results / f"{arguments.name}.json", ASSETS))
    body = run_probe if arguments.probe else run_study
    return guarded(lambda: body(arguments, SETTINGS[arguments.setting]))


if __name__ == "__main__":
    sys.exit(main())
