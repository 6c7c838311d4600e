r"""VOC with five classes held out, and networks that never saw them, for `adapt` and `novelty`.

    python -m benchmarks.held_out prepare --dir runs/held_out
    python -m benchmarks.held_out train --dir runs/held_out

In ``masks/`` pixels of bus, cat, motorbike, sheep and sofa are background, and the other 15 classes have the
ids 1 to 15; in ``masks_all/`` the five have the ids 16 to 20 behind them. Lists: ``train.txt``, ``val.txt``,
``val_fast.txt`` and, with the masks of all classes, ``train_all.txt``, ``val_all.txt``, ``val_fast_all.txt``.
Training images that show a held-out class stay: as in use, what is not named is background.

``train`` makes the runs ``seed0``, ``all_seed0`` (all classes from the start), ``seed1`` and ``seed2``:
labels alone, both heads, no unlabelled image. Finished runs are not run again, stopped ones go on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import ROOT, parser
from benchmarks.suggest_study.runs import run
from protoseg.data.lists import expand_path
from protoseg.errors import guarded
from protoseg.files import write_text_whole

HELD_OUT = ("bus", "cat", "motorbike", "sheep", "sofa")
IGNORED = 255
CONFIG = "configs/voc_92_efficientnet_lite0.yaml"
RUNS = ("seed0", "all_seed0", "seed1", "seed2")
# the configuration's product default without unlabelled images
METHOD = (
    "method.preset=protoseg", "method.unlabeled=false", "data.unlabeled=null", "train.batch_size=8",
    "train.warmup_steps=300", "train.mixed_precision=bf16", "train.channels_last=true",
    "train.save_every=250", "eval.batch_size=8", "eval.best=fused",
)  # fmt: skip


def new_ids(names: list[str]) -> tuple[list[str], NDArray[np.uint8]]:
    """Names in the order of the new ids, held-out ones last, and the new id of each old one, (256,)."""
    order = [n for n in names if n not in HELD_OUT] + [n for n in HELD_OUT if n in names]
    table = np.full(256, IGNORED, np.uint8)
    table[: len(names)] = [order.index(name) for name in names]
    return order, table


def prepare(source: Path, target: Path) -> None:
    """Write masks, lists and class files below ``target``; images are a link to those of ``source``."""
    names = (source / "classes.txt").read_text(encoding="utf-8").split()
    order, table = new_ids(names)
    kept = len(order) - len(HELD_OUT)
    fewer = np.where((table >= kept) & (table != IGNORED), 0, table).astype(np.uint8)
    for folder, values in (("masks", fewer), ("masks_all", table)):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            for line in (source / "splits" / f"{split}.txt").read_text(encoding="utf-8").splitlines():
                name = Path(line.split()[1]).name
                if not (target / folder / name).is_file():
                    with Image.open(source / "masks" / name) as opened:
                        Image.fromarray(values[np.asarray(opened)]).save(target / folder / name)
    for split in ("train", "val", "val_fast"):
        text = (source / "splits" / f"{split}.txt").read_text(encoding="utf-8")
        write_text_whole(target / f"{split}.txt", text)
        write_text_whole(target / f"{split}_all.txt", text.replace(" masks/", " masks_all/"))
    write_text_whole(target / "classes.txt", "".join(f"{name}\n" for name in order[:kept]))
    write_text_whole(target / "classes_all.txt", "".join(f"{name}\n" for name in order))
    if not (target / "images").exists():
        (target / "images").symlink_to((source / "images").resolve(), target_is_directory=True)


def train(folder: Path, names: list[str], steps: int) -> None:
    """Train the runs ``names`` into ``folder/runs``, one after the other."""
    data = folder / "data"
    for name in names:
        suffix = "_all" if name.startswith("all_") else ""
        lists = [f"data.root={data}", f"data.labeled=train{suffix}.txt", f"data.val=val_fast{suffix}.txt",
                 f"data.classes=classes{suffix}.txt"]  # fmt: skip
        length = [f"train.max_steps={steps}", f"train.eval_every={steps}"]
        run(CONFIG, folder / "runs", name, [*METHOD, *lists, f"train.seed={name[-1]}", *length])


def main(argv: list[str] | None = None) -> int:
    """Prepare the data or train; returns the exit code."""
    command = parser(__doc__, prog="python -m benchmarks.held_out")
    add = command.add_argument
    add("what", choices=("prepare", "train"))
    add("--root", default="$PROTOSEG_DATA/voc", help="folder with splits/, images/ and masks/ (%(default)s)")
    add("--dir", type=Path, default=ROOT / "runs" / "held_out", help="folder that gets data/ and runs/")
    add("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="runs to train, in this order")
    add("--steps", type=int, default=1500, help="steps of each training (%(default)s)")
    args = command.parse_args(argv)

    def body() -> int:
        folder = args.dir.absolute()
        if args.what == "prepare":
            prepare(expand_path(args.root).absolute(), folder / "data")
            print(folder / "data")
        else:
            train(folder, args.runs, args.steps)
        return 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
