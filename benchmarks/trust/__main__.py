r"""Which score finds wrong pixels, and which ranks images by their error?

    python -m benchmarks.trust runs/a runs/b --name trust_camvid
    python -m benchmarks.trust runs/a --pool splits/train.txt --name trust_camvid_pool

For each checkpoint and each head that may label: AUROC and AUPR of each score at finding wrong pixels (the
share of wrong pixels is the AUPR of a score that knows nothing), the part of all errors among the 10 % most
suspicious pixels; and for images, ranked by the mean of the score: Spearman's correlation with their error,
and AUROC for the worst quarter. Pixels are a fixed sample of each image; image means take all of them.
Intervals and paired differences: 95 %, circular block bootstrap over the images in list order, because
neighbours in a list are often frames of one video.

The validation split is measured, or with --pool the images of a fully labelled list that the checkpoint did
not have labels of: the images among which one would choose what to label next.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import ASSETS, RESULTS, Answer, parser, write_result
from benchmarks.trust.ranking import (
    Floats,
    Ints,
    auroc,
    average_precision,
    block_resamples,
    caught,
    coarse_places,
    counts_by_image,
    counts_by_place,
    interval,
    places,
    risk_coverage,
    spearman,
)
from protoseg.errors import UserError, guarded

if TYPE_CHECKING:  # the index needs no torch
    from benchmarks.trust.scores import Measured

BASELINE = "confidence"
PRESENT = "disagreement"
SHARE = 0.1
BINS = 4096
WORST = 0.75


def figures(measured: Measured, block: int, resamples: int) -> dict[str, Any]:
    """Every figure of every score with its interval, and differences to the two reference scores."""
    images = len(measured.error)
    index = block_resamples(images, block, resamples, seed=0)
    weights = np.stack([np.bincount(row, minlength=images) for row in index]).astype(np.float64)
    worst = measured.error >= np.quantile(measured.error, WORST)
    point: dict[str, dict[str, float]] = {}
    drawn: dict[str, dict[str, Floats]] = {}
    for number, name in enumerate(measured.names):
        place = places(measured.pixel[number])
        counts = counts_by_place(place, measured.wrong)
        by_image = counts_by_image(coarse_places(place, BINS), measured.wrong, measured.image, images)
        mean = measured.mean[number]
        point[name] = {
            **pixel_figures(*counts),
            "image_spearman": spearman(mean, measured.error),
            "image_auroc_worst_quarter": auroc(*counts_by_place(places(mean), worst)),
        }
        drawn[name] = resampled(by_image, weights)
        drawn[name]["image_spearman"] = np.array([spearman(mean[row], measured.error[row]) for row in index])
        drawn[name]["image_auroc_worst_quarter"] = worst_quarter(mean, measured.error, index)
    return {
        name: {
            **{key: round(value, 4) for key, value in values.items()},
            "interval": {key: interval(drawn[name][key]) for key in values},
            "minus": {
                other: {
                    key: [
                        round(values[key] - point[other][key], 4),
                        *interval(drawn[name][key] - drawn[other][key]),
                    ]
                    for key in values
                }
                for other in (BASELINE, PRESENT)
                if other in point and other != name
            },
        }
        for name, values in point.items()
    }


def pixel_figures(wrong: Floats, right: Floats) -> dict[str, float]:
    """Figures of a score on pixels from its counts, (G,) each."""
    return {
        "auroc": auroc(wrong, right),
        "aupr": average_precision(wrong, right),
        "errors_in_top_tenth": caught(wrong, right, SHARE),
    }


def resampled(by_image: Floats, weights: Floats) -> dict[str, Floats]:
    """Pixel figures of each resample: (I, 2, G) counts, (R, I) times an image was drawn -> (R,) each."""
    found = [pixel_figures(*np.tensordot(weight, by_image, 1)) for weight in weights]
    return {key: np.array([item[key] for item in found]) for key in found[0]}


def worst_quarter(mean: Floats, error: Floats, index: Ints) -> Floats:
    """AUROC for the worst quarter of each resample; NaN where all its images are equally wrong."""
    values = []
    for row in index:
        worst = error[row] >= np.quantile(error[row], WORST)
        split = 0 < worst.sum() < len(row)
        values.append(auroc(*counts_by_place(places(mean[row]), worst)) if split else np.nan)
    return np.array(values)


def measure_checkpoint(path: str, arguments: argparse.Namespace, curves: dict[str, Any]) -> dict[str, Any]:
    """All figures of one checkpoint; its risk-coverage curves go to ``curves``."""
    from benchmarks.trust.scores import measure, pool_samples
    from protoseg.checkpoint import load_checkpoint
    from protoseg.evaluate.measure import Samples, override_data, read_samples
    from protoseg.inference import available_heads, usable_device

    checkpoint = load_checkpoint(path)
    info = checkpoint.info
    data = override_data(info.data, arguments.data)
    samples: Samples = (
        pool_samples(data, info, arguments.pool) if arguments.pool else read_samples(data, "val", info)[0]
    )
    heads = list(available_heads(checkpoint.segmenter, arguments.head))
    if not heads:
        raise UserError(f"{path} has no prototypes; add --head linear")
    found = measure(checkpoint, samples, heads, usable_device(arguments.device), arguments.pixels)
    result: dict[str, Any] = {
        "name": info.name, "step": info.step, "method": info.method, "weights_sha256": info.weights_sha256,
        "images": len(samples), "split": f"pool of {arguments.pool}" if arguments.pool else "val",
        "heads": {},
    }  # fmt: skip
    for head, measured in found.items():
        table = figures(measured, min(arguments.block, len(samples)), arguments.resamples)
        result["heads"][head] = {
            "pixels": len(measured.wrong),
            "base_rate": round(float(measured.wrong.mean()), 4),
            "image_error": [round(float(value), 4) for value in np.quantile(measured.error, [0, 0.5, 1])],
            "scores": table,
        }
        curves[f"{info.name} at step {info.step}, {head} head"] = {
            name: risk_coverage(*counts_by_place(places(measured.pixel[number]), measured.wrong))
            for number, name in enumerate(measured.names)
        }
        print_table(f"{info.name}, {head} head", measured, table)
    return result


def print_table(title: str, measured: Measured, table: dict[str, Any]) -> None:
    rate = measured.wrong.mean()
    print(f"\n{title}: {rate:.1%} of {len(measured.wrong)} pixels wrong, {len(measured.error)} images")
    print(f"{'score':<32}{'AUROC':>8}{'AUPR':>8}{'top 10%':>9}{'Spearman':>10}{'worst 1/4':>11}")
    for name, row in sorted(table.items(), key=lambda item: -item[1]["auroc"]):
        print(f"{name:<32}{row['auroc']:>8.4f}{row['aupr']:>8.4f}{row['errors_in_top_tenth']:>9.3f}"
              f"{row['image_spearman']:>10.3f}{row['image_auroc_worst_quarter']:>11.3f}")  # fmt: skip


COMMAND = "python -m benchmarks.trust RUN --name NAME"
ANSWERS = {
    "trust_camvid": Answer("which score finds wrong pixels, and ranks images by their error", COMMAND),
    "trust_camvid_weights": Answer("the same for a checkpoint trained with class weights", COMMAND),
    "trust_camvid_stages": Answer("the same for the study's `protoseg`, 1,300 and 200 steps", COMMAND),
}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    add = command.add_argument
    add("checkpoints", nargs="+", metavar="CKPT", help="run or checkpoint folders")
    add("--name", required=True, help="name of the result file and of the figure")
    add("--head", nargs="+", choices=("linear", "prototype", "fused"), default=["fused", "linear"],
        help="heads that label (default: fused linear)")  # fmt: skip
    add("--pool", metavar="LIST", help="labelled list whose images, less data.labeled, are measured instead")
    add("--data", nargs="+", default=[], metavar="key.sub=value", help="data settings over the stored ones")
    add("--pixels", type=int, default=4000, help="pixels sampled of an image (default: 4000)")
    add("--resamples", type=int, default=1000, help="bootstrap resamples (default: 1000)")
    add("--block", type=int, default=10, help="images drawn together (default: 10)")
    add("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    add("--figures", type=Path, default=ASSETS, help="folder of the figure")
    arguments = command.parse_args(argv)
    return guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Measure all checkpoints, write result and figure."""
    from benchmarks.trust.figure import draw

    curves: dict[str, Any] = {}
    runs = [measure_checkpoint(path, arguments, curves) for path in arguments.checkpoints]
    settings = {"pixels": arguments.pixels, "resamples": arguments.resamples, "block": arguments.block}
    path = write_result(arguments.name, {"settings": settings, "runs": runs}, arguments.results)
    picture = draw(arguments.figures / f"{arguments.name}.png", curves)
    print(f"\n{path}\n{picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
