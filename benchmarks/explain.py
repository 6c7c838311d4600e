"""Does the prototype that an explanation names decide? The deletion test, on validation images.

    python -m benchmarks.explain RUN... [--images 200] [--name explain]

The prototype head decides each pixel of a validation image, and the explanation names one prototype of the
decided class. That prototype is taken away and its pixels are decided again; then, instead of it, each other
prototype of the same class, and the one of these that is nearest to the pixel. Told is the share of pixels
whose class changes. With ``prototypes.pooling=max`` a prototype that is not the nearest one of its class has
no part in a cell's decision, so that the last two shares come of the enlargement alone (a pixel lies between
cells that name different prototypes); the first one could be anything between 0 and 1.

The second question: are pixels explained by a prototype that the atlas calls doubtful wrong more often? The
atlas is made from the labelled training images, the errors are counted on the validation images.

The result file keeps the runs that it has; one of the same folder name is measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import RESULTS, TRAINING, Answer, Block, Result, markdown_table, parser, write_result

if TYPE_CHECKING:  # the table needs no torch
    from numpy.typing import NDArray
    from torch import Tensor

    from protoseg.checkpoint import Checkpoint

REMOVED = ("named", "other", "second")
"""What is taken away: the named prototype; another of its class (mean over these); the nearest of these."""
KINDS = ("clear", "doubtful")
"""What the atlas says of the prototype that is named."""
KEYS = ("pixels", *REMOVED, *(f"{what} {kind}" for what in ("known", "wrong") for kind in KINDS))
"""What is counted: pixels, those that change, and labelled and wrong ones by what the atlas says."""
RESAMPLES = 2000
ENOUGH = 1000
"""Pixels of each kind that a class needs to be in the mean over classes."""


@dataclass
class Counts:
    """Pixels, image by image."""

    pixels: list[float] = field(default_factory=list)
    """Pixels decided, those without a label too."""
    changed: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in REMOVED})
    """Those of them whose class changes, by what was taken away."""
    by_class: dict[int, dict[str, float]] = field(default_factory=dict)
    """All of these by the class decided, over all images."""
    known: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in KINDS})
    """Labelled pixels."""
    wrong: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in KINDS})
    """Those of them that are wrong."""


def without(cosine: Tensor, class_id: int, number: int) -> Tensor:
    """(C, K, Y, X) cosines as if there were one prototype less."""
    left = cosine.clone()
    left[class_id, number] = -np.inf
    return left


def class_counts(
    own: Tensor,
    order: Tensor,
    lost: Sequence[Tensor],
    doubtful: Sequence[bool],
    labelled: Tensor,
    wrong: Tensor,
) -> dict[str, float]:
    """The pixels of one class of an image by ``KEYS``.

    Args:
        own: (H, W) bool, pixels that are decided so.
        order: (K, H, W) numbers of its prototypes at each pixel, the nearest first.
        lost: For each prototype, (H, W) bool: the class has no longer the highest score without it.
        doubtful: Which prototypes are.
        labelled: (H, W) bool.
        wrong: (H, W) bool, those of these that have another class.
    """
    counts = dict.fromkeys(KEYS, 0.0) | {"pixels": float(own.sum())}
    for k, is_doubtful in enumerate(doubtful):
        named = own & (order[0] == k)
        rest = [j for j in range(len(lost)) if j != k]
        counts["named"] += float((lost[k] & named).sum())
        counts["other"] += sum(float((lost[j] & named).sum()) for j in rest) / max(1, len(rest))
        counts["second"] += sum(float((lost[j] & named & (order[1] == j)).sum()) for j in rest)
        kind = "doubtful" if is_doubtful else "clear"
        counts[f"known {kind}"] += float((named & labelled).sum())
        counts[f"wrong {kind}"] += float((named & wrong).sum())
    return counts


def image_counts(
    checkpoint: Checkpoint,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    doubtful: set[int],
    into: Counts,
) -> None:
    """Decide an image as it is and without each prototype that is named for some of its pixels.

    Args:
        checkpoint: The network.
        image: (H, W, C_in) at the working size.
        mask: (H, W) likewise.
        doubtful: Indices of doubtful prototypes.
        into: Counts to add to.
    """
    import torch

    from protoseg.explain.search import nearest_of

    bank, network = checkpoint.segmenter.bank, checkpoint.segmenter.network
    numbers, (height, width) = range(bank.num_prototypes), mask.shape
    nearest, cosine = nearest_of(checkpoint.segmenter, image)

    def logits(cosines: Tensor) -> Tensor:
        """(C, K, Y, X) -> (C, H, W), as the prototype head computes them."""
        low = bank.pool(cosines.movedim(1, -1).movedim(0, -2)).movedim(-1, 0)
        return network.upsample(low[None], height, width)[0]

    full = logits(cosine)
    decided = full.argmax(0)
    rows, columns = (torch.from_numpy(item) for item in nearest.cells(mask.shape))
    target = torch.from_numpy(mask.astype(np.int64))
    labelled = (target != checkpoint.info.ignore_index) & (target < bank.num_classes)
    totals = dict.fromkeys(KEYS, 0.0)
    for class_id in decided.unique().tolist():
        others = full.clone()
        others[class_id] = -np.inf
        rival = others.amax(0)
        found = class_counts(
            decided == class_id,
            cosine[class_id].argsort(0, descending=True)[:, rows][:, :, columns],
            [logits(without(cosine, class_id, k))[class_id] < rival for k in numbers],
            [class_id * bank.num_prototypes + k in doubtful for k in numbers],
            labelled,
            labelled & (target != class_id),
        )
        for sums in (totals, into.by_class.setdefault(class_id, dict.fromkeys(KEYS, 0.0))):
            for key, value in found.items():
                sums[key] += value
    into.pixels.append(totals["pixels"])
    for key in REMOVED:
        into.changed[key].append(totals[key])
    for kind in KINDS:
        into.known[kind].append(totals[f"known {kind}"])
        into.wrong[kind].append(totals[f"wrong {kind}"])


def ratio(part: Sequence[float], whole: Sequence[float]) -> dict[str, float] | None:
    """A share of pixels with a 95 % interval from a bootstrap over images; None where there are none."""
    above, below = np.asarray(part), np.asarray(whole)
    if below.sum() == 0:
        return None
    picks = np.random.default_rng(0).integers(0, len(above), (RESAMPLES, len(above)))
    sums = below[picks].sum(1)
    shares = above[picks].sum(1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(shares, (0.025, 0.975))
    return {"share": float(above.sum() / below.sum()), "low": float(low), "high": float(high)}


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return float(np.mean(values)) if values else None


def measure(run: str, num_images: int) -> dict[str, Any]:
    """Both questions for one run, on its validation images."""
    import torch
    from tqdm import tqdm

    from protoseg.checkpoint import load_checkpoint
    from protoseg.data.images import resize_image, resize_mask
    from protoseg.data.sources import open_source
    from protoseg.explain.make import NUM_IMAGES
    from protoseg.explain.search import find_patches

    checkpoint = load_checkpoint(run)
    info, bank = checkpoint.info, checkpoint.segmenter.bank
    labeled, source = (open_source(info.data, split, info.classes) for split in ("labeled", "val"))
    atlas = find_patches(checkpoint.segmenter, info, labeled, num_images=NUM_IMAGES).atlas
    doubtful, counts = {item.index for item in atlas.prototypes if item.doubts}, Counts()
    chosen = np.unique(np.linspace(0, len(source) - 1, min(num_images, len(source))).round().astype(int))
    with torch.no_grad():
        for index in tqdm(chosen.tolist(), desc=info.name, disable=not sys.stderr.isatty()):
            image = resize_image(source.image(index), info.input.resize)
            mask = resize_mask(source.mask(index), info.input.resize)
            image_counts(checkpoint, image, mask, doubtful, counts)
    known = np.add(*(counts.known[kind] for kind in KINDS)).tolist()
    classes = counts.by_class.values()
    # a class that is easy (the background) has the clear prototypes and most pixels: the same within classes
    both = [item for item in classes if min(item[f"known {kind}"] for kind in KINDS) >= ENOUGH]
    return {
        "run": Path(run).name,
        "step": info.step,
        "weights_sha256": info.weights_sha256,
        "val_miou": (info.metrics.get("val") or {}).get("miou"),
        "classes": bank.num_classes,
        "num_prototypes": bank.num_prototypes,
        "pooling": bank.pooling,
        "prototypes": len(atlas.prototypes),
        "doubtful": len(doubtful),
        "training_images": atlas.num_images,
        "images": len(chosen),
        "pixels": sum(counts.pixels),
        "changed": {key: ratio(value, counts.pixels) for key, value in counts.changed.items()},
        "changed_mean_over_classes": {
            key: mean([item[key] / item["pixels"] for item in classes]) for key in REMOVED
        },
        "doubtful_pixels": ratio(counts.known["doubtful"], known),
        "wrong": {kind: ratio(counts.wrong[kind], counts.known[kind]) for kind in KINDS},
        "wrong_mean_over_classes": {
            "classes": len(both),
            **{
                kind: mean([item[f"wrong {kind}"] / item[f"known {kind}"] for item in both]) for kind in KINDS
            },
        },
    }


def said(figure: dict[str, float] | None) -> str:
    """A share in per cent with its interval."""
    if figure is None:
        return "no pixel"
    return f"{100 * figure['share']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def within(figures: dict[str, Any]) -> str:
    """Means over classes in per cent."""
    if not figures["classes"]:
        return "no class has both"
    values = " and ".join(f"{100 * figures[kind]:.1f}" for kind in KINDS)
    return f"{values} ({figures['classes']} classes)"


def deletion_table(result: Result) -> str:
    """What is decided anew, a row for each run."""
    rows = [
        [
            item["run"], f"{item['images']}",
            *(said(item["changed"][key]) for key in REMOVED),
            *(f"{100 * item['changed_mean_over_classes'][key]:.1f}" for key in REMOVED),
        ]
        for item in result["runs"]
    ]  # fmt: skip
    head = ["run", "images", "the named one", "another of its class", "the second nearest of it",
            "named, mean over classes", "another", "second"]  # fmt: skip
    text = (
        "Per cent of the pixels of validation images whose class (prototype head) changes when a "
        "prototype is taken away; 95 % intervals from a bootstrap over images."
    )
    return f"{text}\n\n{markdown_table(head, rows)}"


def doubt_table(result: Result) -> str:
    """Where doubtful prototypes are named, a row for each run."""
    rows = [
        [
            item["run"], f"{item['doubtful']} of {item['prototypes']}",
            said(item["doubtful_pixels"]), *(said(item["wrong"][kind]) for kind in KINDS),
            within(item["wrong_mean_over_classes"]),
        ]
        for item in result["runs"]
    ]  # fmt: skip
    head = ["run", "doubtful prototypes", "pixels that they explain, %",
            "wrong of the others' pixels, %", "wrong of theirs, %",
            "the same, mean over classes that have both"]  # fmt: skip
    text = (
        "Doubt is told from the labelled training images, errors (prototype head) are those on validation "
        "images; 95 % intervals from a bootstrap over images."
    )
    return f"{text}\n\n{markdown_table(head, rows)}"


ANSWERS = {
    "explain": Answer(
        "does the prototype that an explanation names decide, and are doubtful ones wrong more often",
        "python -m benchmarks.explain RUN...",
        in_parts=True,
    )
}
BLOCKS = {
    "explain_deletion": Block(deletion_table, ("explain",), TRAINING),
    "explain_doubt": Block(doubt_table, ("explain",), TRAINING),
}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("runs", nargs="+", metavar="RUN", help="run or checkpoint folders")
    command.add_argument("--images", type=int, default=200, help="validation images, spread evenly")
    command.add_argument("--name", default="explain", help="result file")
    arguments = command.parse_args(argv)
    kept = RESULTS / f"{arguments.name}.json"
    earlier = json.loads(kept.read_text())["runs"] if kept.is_file() else []
    found = {item["run"]: item for item in earlier}
    found |= {item["run"]: item for item in (measure(run, arguments.images) for run in arguments.runs)}
    result = {"runs": list(found.values())}
    path = write_result(arguments.name, result)
    print(f"{deletion_table(result)}\n\n{doubt_table(result)}\n\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
