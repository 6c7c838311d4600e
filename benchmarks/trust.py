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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import ROOT, write_result
from benchmarks.ranking import (
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
from benchmarks.trust_figure import draw
from benchmarks.trust_fit import cross_validated
from protoseg.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from protoseg.config.sections import DataConfig
from protoseg.data.images import resize_image, resize_mask
from protoseg.data.lists import read_entries
from protoseg.data.masks import mask_reader
from protoseg.data.sources import EvalSamples, FileSource
from protoseg.errors import CheckpointError, ConfigError, DataError
from protoseg.evaluate.measure import Samples, override_data, read_samples
from protoseg.inference import (
    HeadLogits,
    HeadName,
    available_heads,
    image_batch,
    image_logits,
    inference,
    score,
    upsample,
    usable_device,
)
from protoseg.suggest.uncertainty import NEED_PROTOTYPES, SCORES, suspicion

BASELINE = "confidence"
PRESENT = "disagreement"
FITTED = "fitted"
SHARE = 0.1
BINS = 4096
WORST = 0.75


@dataclass(frozen=True)
class Measured:
    """What one labelling head gave on all images."""

    names: list[str]
    """Scores, S of them."""
    pixel: NDArray[np.float32]
    """(S, N) scores of the sampled pixels."""
    wrong: NDArray[np.bool_]
    """(N,) whether a sampled pixel's label is wrong."""
    image: Ints
    """(N,) image of a sampled pixel."""
    mean: Floats
    """(S, I) mean score over all pixels of an image."""
    error: Floats
    """(I,) share of wrong pixels of an image among those with a class."""


def scores(logits: HeadLogits, head: HeadName, temperature: float) -> dict[str, Tensor]:
    """All scores (1, H, W) of one image: of ``protoseg.suggest.uncertainty`` and candidates beside."""
    both = logits.prototype is not None
    found = {
        name: suspicion(logits, name, head, temperature)
        for name in SCORES
        if both or name not in NEED_PROTOTYPES
    }
    if logits.prototype is None:
        return found
    linear, prototype = logits.linear.softmax(1), logits.prototype.softmax(1)
    fused = (linear + prototype) / 2
    label = score(logits, head).label[:, None]
    doubt, apart, far = 1 - fused.amax(1), found["disagreement"], found["distance"]
    entropy = [torch.special.entr(probs).sum(1) for probs in (linear, prototype, fused)]
    named = linear.argmax(1) != prototype.argmax(1)
    return {
        **found,
        "fused_confidence": doubt,
        "fused_entropy": entropy[2] / np.log(fused.shape[1]),
        "jensen_shannon": (entropy[2] - (entropy[0] + entropy[1]) / 2) / np.log(2),
        "label_disagreement": named.float(),
        # the same as a noisy or: 1 - conf * agreement = 1 - (1 - doubt) (1 - apart)
        "fused_confidence_and_agreement": 1 - (1 - doubt) * (1 - apart),
        "mean_of_doubt_and_disagreement": (doubt + apart) / 2,
        "both_heads_weakest": 1 - torch.minimum(linear.gather(1, label), prototype.gather(1, label))[:, 0],
        "linear_or_distance": 1 - (1 - found["linear"]) * (1 - far),
    }


def measure(
    checkpoint: Checkpoint, samples: Samples, heads: list[HeadName], device: torch.device, pixels: int
) -> dict[HeadName, Measured]:
    """Score all images as ``protoseg.evaluate`` sees them; memory grows by ``pixels`` for an image."""
    info, segmenter = checkpoint.info, checkpoint.segmenter.to(device)
    kept: dict[HeadName, list[tuple[Any, ...]]] = {head: [] for head in heads}
    names: list[str] = []
    rng = np.random.default_rng(0)
    with inference(segmenter):
        pause = 0.1 if sys.stderr.isatty() else 10.0
        for number in tqdm(range(len(samples)), desc=info.name, unit="image", leave=False, mininterval=pause):
            image, mask = samples[number]
            if info.eval.at_working_size:
                mask = resize_mask(mask, info.input.resize)
            batch = image_batch([resize_image(image, info.input.resize)], device)
            logits = upsample(image_logits(segmenter, batch, info.eval, info.input.crop), *mask.shape)
            valid = np.flatnonzero((mask != info.ignore_index).ravel())
            if len(valid) == 0:
                continue
            pick = rng.choice(valid, min(pixels, len(valid)), replace=False)
            for head in heads:
                wrong = (score(logits, head).label[0].cpu().numpy() != mask).ravel()
                found = scores(logits, head, segmenter.bank.temperature)
                names = list(found)
                stack = torch.cat(list(found.values())).flatten(1).cpu().numpy()
                error = wrong[valid].mean()
                kept[head].append((stack[:, pick], wrong[pick], stack.mean(1, dtype=np.float64), error))
    return {head: gathered(names, parts) for head, parts in kept.items()}


def gathered(names: list[str], parts: list[tuple[Any, ...]]) -> Measured:
    """Images put together, and the fitted combination of all scores beside them."""
    pixel, wrong, mean, error = zip(*parts, strict=True)
    image = np.repeat(np.arange(len(parts)), [len(values) for values in wrong])
    stacked, labels = np.concatenate(pixel, 1), np.concatenate(wrong)
    fitted = cross_validated(stacked, labels, image)
    means = np.stack(mean, 1)
    by_image = np.bincount(image, fitted, len(parts)) / np.bincount(image, minlength=len(parts))
    return Measured(
        [*names, FITTED],
        np.concatenate([stacked, fitted[None].astype(np.float32)]),
        labels,
        image,
        np.concatenate([means, by_image[None]]),
        np.array(error),
    )


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
            "auroc": float(auroc(*counts)),
            "aupr": float(average_precision(*counts)),
            "errors_in_top_tenth": float(caught(*counts, SHARE)),
            "image_spearman": spearman(mean, measured.error),
            "image_auroc_worst_quarter": float(auroc(*counts_by_place(places(mean), worst))),
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


def resampled(by_image: Floats, weights: Floats) -> dict[str, Floats]:
    """Pixel figures of each resample: (I, 2, G) counts, (R, I) times an image was drawn -> (R,) each."""
    flat = by_image.reshape(len(by_image), -1)
    found: dict[str, list[Floats]] = {"auroc": [], "aupr": [], "errors_in_top_tenth": []}
    for first in range(0, len(weights), 100):
        counts = (weights[first : first + 100] @ flat).reshape(-1, 2, by_image.shape[2])
        wrong, right = counts[:, 0], counts[:, 1]
        found["auroc"].append(auroc(wrong, right))
        found["aupr"].append(average_precision(wrong, right))
        found["errors_in_top_tenth"].append(caught(wrong, right, SHARE))
    return {key: np.concatenate(values) for key, values in found.items()}


def worst_quarter(mean: Floats, error: Floats, index: Ints) -> Floats:
    """AUROC for the worst quarter of each resample; NaN where all its images are equally wrong."""
    values = []
    for row in index:
        worst = error[row] >= np.quantile(error[row], WORST)
        split = 0 < worst.sum() < len(row)
        values.append(float(auroc(*counts_by_place(places(mean[row]), worst))) if split else np.nan)
    return np.array(values)


def pool_samples(data: DataConfig, info: CheckpointInfo, listed: str) -> EvalSamples:
    """Pairs of ``listed`` whose images are not in the checkpoint's labelled list.

    Raises:
        DataError: If a list cannot be read or nothing is left.
    """
    if data.kind != "files":
        raise DataError("--pool needs a checkpoint that was trained on files")
    known = {entry.image.resolve() for entry in read_entries(data, "labeled").entries}
    found = read_entries(data.model_copy(update={"val": listed}), "val")
    left = tuple(entry for entry in found.entries if entry.image.resolve() not in known)
    if not left:
        raise DataError(f"--pool {listed} has only images that are in data.labeled; give a larger list")
    return EvalSamples(FileSource(left, data.in_channels, mask_reader(data, info.classes), found.sha256))


def measure_checkpoint(path: str, arguments: argparse.Namespace, curves: dict[str, Any]) -> dict[str, Any]:
    """All figures of one checkpoint; its risk-coverage curves go to ``curves``."""
    checkpoint = load_checkpoint(path)
    info = checkpoint.info
    data = override_data(info.data, arguments.data)
    samples: Samples = (
        pool_samples(data, info, arguments.pool) if arguments.pool else read_samples(data, "val", info)[0]
    )
    heads = list(available_heads(checkpoint.segmenter, arguments.head))
    if not heads:
        raise ValueError(f"{path} has no prototypes; add --head linear")
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
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
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result file")
    add("--figures", type=Path, default=ROOT / "docs" / "assets", help="folder of the figure")
    arguments = parser.parse_args(argv)
    curves: dict[str, Any] = {}
    try:
        runs = [measure_checkpoint(path, arguments, curves) for path in arguments.checkpoints]
    except (CheckpointError, ConfigError, DataError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    settings = {"pixels": arguments.pixels, "resamples": arguments.resamples, "block": arguments.block}
    path = write_result(arguments.name, {"settings": settings, "runs": runs}, arguments.results)
    picture = draw(arguments.figures / f"{arguments.name}.png", curves)
    print(f"\n{path}\n{picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
