r"""Draws lists of labelled images on which settings are chosen, so that the lists of the figures stay unseen.

    python -m benchmarks.voc_lists                 # seeds 3 and 4, 92 labels, into studies/lists/voc
    python -m benchmarks.voc_lists --count 46 183 --seeds 3

Every class is in at least 4 of 92 images (2 of 46, 8 of 183: as in the lists of ``splits/``), the rarest
classes first, and the rest are random. The same seed gives the same bytes; an existing list is compared, not
replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import ROOT, parser
from protoseg.data.lists import expand_path
from protoseg.errors import DataError, guarded
from protoseg.files import write_text_whole

OUT = ROOT / "benchmarks" / "studies" / "lists" / "voc"
IGNORED = 255
IMAGES_OF_A_CLASS = {46: 2, 92: 4, 183: 8}


def choose(present: Sequence[frozenset[int]], count: int, least: int, seed: int) -> list[int]:
    """Positions of ``count`` images, ascending, of which ``least`` show each class (all that do, if fewer).

    Args:
        present: Class ids that each image shows.
        count: Images to choose.
        least: Images of each class.
        seed: Same seed, same choice.

    Raises:
        DataError: If there are too few images, or the classes need more.
    """
    if count > len(present):
        raise DataError(f"{count} labelled images were asked for, there are {len(present)}")
    order = np.random.default_rng([seed, count]).permutation(len(present)).tolist()
    images_of: dict[int, list[int]] = {}
    for index in order:
        for label in present[index]:
            images_of.setdefault(label, []).append(index)
    chosen: dict[int, None] = {}
    for label in sorted(images_of, key=lambda c: (len(images_of[c]), c)):
        have = sum(label in present[index] for index in chosen)
        new = [index for index in images_of[label] if index not in chosen]
        chosen |= dict.fromkeys(new[: max(0, least - have)])
    if len(chosen) > count:
        raise DataError(f"{least} images of each class take {len(chosen)} images, more than {count}")
    rest = [index for index in order if index not in chosen]
    return sorted([*chosen, *rest[: count - len(chosen)]])


def classes_of(mask: Path) -> frozenset[int]:
    """Class ids that a mask shows."""
    with Image.open(mask) as opened:
        return frozenset(np.unique(np.asarray(opened)).tolist()) - {IGNORED}


def draw(root: Path, out: Path, count: int, seed: int, present: Sequence[frozenset[int]]) -> str:
    """Write ``OUT/COUNT/seedSEED/{labeled,unlabeled}.txt``; gives a line that says so.

    Raises:
        DataError: If lists of other images are there.
    """
    pairs = (root / "splits" / "train.txt").read_text(encoding="utf-8").splitlines()
    known = root / "splits" / "92" / "seed0"
    everything = [line.split()[0] for name in ("labeled", "unlabeled")
                  for line in (known / f"{name}.txt").read_text(encoding="utf-8").splitlines()]  # fmt: skip
    least = IMAGES_OF_A_CLASS.get(count, max(1, round(count / 23)))
    labeled = [pairs[index] for index in choose(present, count, least, seed)]
    taken = {line.split()[0] for line in labeled}
    unlabeled = sorted(name for name in everything if name not in taken)
    folder, state = out / str(count) / f"seed{seed}", "written"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("labeled", labeled), ("unlabeled", unlabeled)):
        path, text = folder / f"{name}.txt", "".join(f"{line}\n" for line in lines)
        if path.is_file():
            state = "unchanged"
            if path.read_text(encoding="utf-8") != text:
                raise DataError(f"{path} holds other images; delete it to draw anew (figures of it then end)")
        else:
            write_text_whole(path, text)
    return f"{folder}: {len(labeled)} labelled, {len(unlabeled)} unlabelled images, {state}"


def main(argv: list[str] | None = None) -> int:
    """Draw the lists; returns the exit code."""
    command = parser(__doc__, prog="python -m benchmarks.voc_lists")
    add = command.add_argument
    add("--root", default="$PROTOSEG_DATA/voc", help="folder with splits/, images/ and masks/ (%(default)s)")
    add("--count", type=int, nargs="+", default=[92], help="labelled images of a list (92)")
    add("--seeds", type=int, nargs="+", default=[3, 4], help="seeds; 0 to 2 are those of splits/ (3 4)")
    add("-o", "--out", type=Path, default=OUT, help="folder of the lists")
    args = command.parse_args(argv)

    def body() -> int:
        if min(args.seeds) < 3:
            raise DataError(
                f"--seeds {min(args.seeds)}: seeds 0 to 2 are the lists of splits/, for figures only"
            )
        root = expand_path(args.root).absolute()
        lines = (root / "splits" / "train.txt").read_text(encoding="utf-8").splitlines()
        present = [classes_of(root / line.split()[1]) for line in lines]
        for count in args.count:
            for seed in args.seeds:
                print(draw(root, args.out, count, seed, present))
        return 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
