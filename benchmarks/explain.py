"""Does the prototype that an explanation names decide? The deletion test, on validation images.

    python -m benchmarks.explain RUN... [--images 200] [--name explain]

The prototype head decides each pixel of a validation image, and the explanation names one prototype of the
decided class. That prototype is taken away and its pixels are decided again; then, instead of it, each other
prototype of the same class, and the one of these that is nearest to the pixel. Told is the share of pixels
whose class changes. With ``prototypes.pooling=max`` a prototype that is not the nearest one of its class does not
enter a cell's decision at all, so that the second share comes of the enlargement alone (a pixel lies between
cells that name different prototypes); the first one could be anything between 0 and 1.

The second question: are pixels explained by a prototype that the atlas calls doubtful wrong more often? The
atlas is made from the labelled training images, the errors are counted on the validation images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import TRAINING, Answer, Block, Result, markdown_table, parser, write_result

if TYPE_CHECKING:  # the table needs no torch
    from numpy.typing import NDArray

    from protoseg.checkpoint import Checkpoint

REMOVED = ("named", "other", "second")
"""What is taken away: the named prototype; another of its class (the mean over these); the one of these that is
nearest to the pixel's cell."""
RESAMPLES = 2000


@dataclass
class Counts:
    """Pixels, image by image."""

    pixels: list[float] = field(default_factory=list)
    """Pixels decided, ignored ones too."""
    changed: dict[str, list[float]] = field(default_factory=lambda: {key: [] for key in REMOVED})
    """Pixels whose class changes, by what was taken away; a mean over prototypes for ``other``."""
    known: dict[str, list[float]] = field(default_factory=lambda: {"clear": [], "doubtful": []})
    """Labelled pixels by what the atlas says of the prototype that is named."""
    wrong: dict[str, list[float]] = field(default_factory=lambda: {"clear": [], "doubtful": []})
    """Those of them that are wrong."""


def delete(cosine: Any, index: int) -> Any:
    """(C, K, Y, X) cosines without one prototype."""
    left = cosine.clone()
    left[index // cosine.shape[1], index % cosine.shape[1]] = -np.inf
    return left


def image_counts(
    checkpoint: Checkpoint,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    doubtful: set[int],
    into: Counts,
) -> None:
    """Decide an image as it is and without each prototype that is named for some of its pixels."""
    import torch

    from protoseg.explain.search import nearest_of

    segmenter = checkpoint.segmenter
    bank, network = segmenter.bank, segmenter.network
    height, width = image.shape[:2]
    nearest, cosine = nearest_of(segmenter, image)
    bias = bank.class_bias().cpu()

    def enlarged(low: Any) -> Any:
        return network.upsample(low[None, None], height, width)[0, 0]

    def class_map(cosines: Any, class_id: int) -> Any:
        return enlarged(bank.pool(torch.movedim(cosines, 1, -1).movedim(0, -2))[..., class_id])

    low = bank.pool(torch.movedim(cosine, 1, -1).movedim(0, -2)).movedim(-1, 0)
    full = network.upsample(low[None], height, width)[0]
    decided = full.argmax(0)
    rows, columns = (torch.from_numpy(item) for item in nearest.cells((height, width)))
    target = torch.from_numpy(mask.astype(np.int64))
    known = (target != checkpoint.info.ignore_index) & (target < bank.num_classes)
    totals = dict.fromkeys(REMOVED, 0.0)
    counted = {key: [0.0, 0.0] for key in into.known}
    for class_id in decided.unique().tolist():
        own = decided == class_id
        others = full.clone()
        others[class_id] = -np.inf
        rival = others.amax(0)
        # of its own class, the nearest first
        order = cosine[class_id].argsort(0, descending=True)[:, rows][:, :, columns]
        lost = {
            k: class_map(delete(cosine, class_id * bank.num_prototypes + k), class_id) < rival
            for k in range(bank.num_prototypes)
        }
        for k in range(bank.num_prototypes):
            named = own & (order[0] == k)
            if not named.any():
                continue
            totals["named"] += float((lost[k] & named).sum())
            rest = [j for j in lost if j != k]
            totals["other"] += sum(float((lost[j] & named).sum()) for j in rest) / max(1, len(rest))
            totals["second"] += sum(float((lost[j] & named & (order[1] == j)).sum()) for j in rest)
            kind = "doubtful" if class_id * bank.num_prototypes + k in doubtful else "clear"
            counted[kind][0] += float((named & known).sum())
            counted[kind][1] += float((named & known & (target != class_id)).sum())
    assert torch.isfinite(bias).all()
    into.pixels.append(float(height * width))
    for key, value in totals.items():
        into.changed[key].append(value)
    for key, (number, errors) in counted.items():
        into.known[key].append(number)
        into.wrong[key].append(errors)


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
    atlas = find_patches(
        checkpoint.segmenter, info, open_source(info.data, "labeled", info.classes), num_images=NUM_IMAGES
    ).atlas
    doubtful = {item.index for item in atlas.prototypes if item.doubts}
    source, counts = open_source(info.data, "val", info.classes), Counts()
    chosen = np.unique(np.linspace(0, len(source) - 1, min(num_images, len(source))).round().astype(int))
    with torch.no_grad():
        for index in tqdm(chosen.tolist(), desc=info.name, disable=not sys.stderr.isatty()):
            image = resize_image(source.image(index), info.input.resize)
            mask = resize_mask(source.mask(index), info.input.resize)
            image_counts(checkpoint, image, mask, doubtful, counts)
    known = np.add(counts.known["clear"], counts.known["doubtful"])
    return {
        "run": info.name,
        "data": "embedded scenes" if info.data.kind == "synthetic" else Path(info.data.root).name,
        "step": info.step,
        "weights_sha256": info.weights_sha256,
        "val_miou": (info.metrics.get("val") or {}).get("miou"),
        "classes": bank.num_classes,
        "prototypes": bank.num_prototypes,
        "pooling": bank.pooling,
        "prototypes_with_patches": len(atlas.prototypes),
        "doubtful": len(doubtful),
        "training_images": atlas.num_images,
        "images": len(chosen),
        "pixels": sum(counts.pixels),
        "changed": {key: ratio(value, counts.pixels) for key, value in counts.changed.items()},
        "doubtful_pixels": ratio(counts.known["doubtful"], known.tolist()),
        "wrong": {key: ratio(counts.wrong[key], counts.known[key]) for key in counts.known},
    }


def said(figure: dict[str, float] | None) -> str:
    """A share in per cent with its interval."""
    if figure is None:
        return "no pixel"
    return f"{100 * figure['share']:.1f} % ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def table(result: Result) -> str:
    """Deletion and doubt, a row for each run."""
    rows = [
        [
            f"{item['data']}, {item['run']}", f"{item['images']}",
            *(said(item["changed"][key]) for key in REMOVED),
            f"{item['doubtful']} of {item['prototypes_with_patches']}", said(item["doubtful_pixels"]),
            *(said(item["wrong"][key]) for key in ("clear", "doubtful")),
        ]
        for item in result["runs"]
    ]  # fmt: skip
    text = (
        "Pixels of validation images whose class (prototype head) changes when a prototype is taken away, and wrong "
        "pixels by whether the named prototype is doubtful; 95 % intervals from a bootstrap over images."
    )
    head = [
        "run", "images", "named prototype taken away", "another of its class", "the second nearest of its class",
        "doubtful prototypes", "pixels that they explain", "wrong, prototype not doubtful", "wrong, doubtful",
    ]  # fmt: skip
    return f"{text}\n\n{markdown_table(head, rows)}"


ANSWERS = {
    "explain": Answer(
        "does the prototype that an explanation names decide, and are doubtful ones wrong more often",
        "python -m benchmarks.explain RUN...",
    )
}
BLOCKS = {"explain": Block(table, ("explain",), TRAINING)}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("runs", nargs="+", metavar="RUN", help="run or checkpoint folders")
    command.add_argument("--images", type=int, default=200, help="validation images, spread evenly")
    command.add_argument("--name", default="explain", help="result file")
    arguments = command.parse_args(argv)
    found = []
    for run in arguments.runs:
        found.append(measure(run, arguments.images))
        print(f"{found[-1]['run']}: " + ", ".join(f"{k} {said(v)}" for k, v in found[-1]["changed"].items()))
    result = {"runs": found}
    print(write_result(arguments.name, result))
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
