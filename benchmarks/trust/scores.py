"""The scores of a checkpoint's pixels and images, and what is wrong with them.

Shape legend: ``S`` scores, ``N`` sampled pixels, ``I`` images.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from benchmarks.trust.ranking import Floats, Ints, cross_validated
from protoseg.checkpoint import Checkpoint, CheckpointInfo
from protoseg.config.data import DataConfig
from protoseg.data.images import resize_image, resize_mask
from protoseg.data.lists import read_entries
from protoseg.data.masks import mask_reader
from protoseg.data.sources import EvalSamples, FileSource
from protoseg.errors import DataError
from protoseg.evaluate.measure import Samples
from protoseg.inference import HeadLogits, HeadName, image_batch, image_logits, inference, score, upsample
from protoseg.suggest.uncertainty import NEED_PROTOTYPES, SCORES, suspicion

FITTED = "fitted"


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
