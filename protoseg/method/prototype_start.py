"""The start of the prototypes: k-means over features of labelled pixels, class by class."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor

from protoseg.config.method import PrototypeConfig
from protoseg.data.sources import CachedSource
from protoseg.data.stream import to_tensor
from protoseg.errors import DataError
from protoseg.method.points import features_at
from protoseg.models.kmeans import spherical_kmeans
from protoseg.models.prototypes import PrototypeBank
from protoseg.models.segmenter import SegmentationNetwork
from protoseg.processes import Processes
from protoseg.seeds import generator

logger = logging.getLogger("protoseg")

START_DRAW = 7  # number of the start's draw among those of a step


@torch.no_grad()
def labeled_features(
    network: SegmentationNetwork,
    source: CachedSource,
    settings: PrototypeConfig,
    *,
    num_classes: int,
    ignore_index: int,
    on_error: str,
    device: torch.device,
    rng: np.random.Generator,
) -> dict[int, Tensor]:
    """Features of labelled pixels by class.

    Up to ``prototypes.start_images`` images, whole and unaugmented, give each class up to
    ``prototypes.start_pixels`` pixels, spread evenly over the images.

    Returns:
        Class id -> (n, D) float32 on the CPU; classes without a labelled pixel are left out.

    Raises:
        DataError: If an image or mask cannot be used and ``on_error`` is ``raise``.
    """
    chosen = rng.permutation(len(source))[: settings.start_images]
    quota = max(1, math.ceil(settings.start_pixels / len(chosen)))
    network.eval()
    found: dict[int, list[Tensor]] = {}
    for number in sorted(int(i) for i in chosen):
        try:
            pixels, mask = source.image(number), source.mask(number)
            if pixels.shape[:2] != mask.shape:
                raise DataError(
                    f"{source.source.name(number)}: the image is {pixels.shape[0]}x{pixels.shape[1]}, its "
                    f"mask {mask.shape[0]}x{mask.shape[1]} (height x width); they must be equal"
                )
        except DataError as error:
            if on_error == "raise":
                raise
            logger.warning("skipped: %s", error)
            continue
        image = to_tensor(pixels)[None].to(device)
        height, width = mask.shape
        features = network(image).features
        flat = mask.reshape(-1)
        for class_id in np.unique(flat):
            if class_id == ignore_index or class_id >= num_classes:
                continue
            places = np.flatnonzero(flat == class_id)
            # small classes give all they have; what they lack is not made up for by others
            picked = rng.choice(places, size=min(quota, len(places)), replace=False)
            index = torch.from_numpy(np.sort(picked))[None].to(device)
            z = features_at(features, index, width, network.padded_size(height, width))
            found.setdefault(int(class_id), []).append(z[0].float().cpu())
    return {class_id: torch.cat(parts)[: settings.start_pixels] for class_id, parts in found.items()}


def starting_prototypes(
    features: dict[int, Tensor], count: int, start: str, rng: np.random.Generator
) -> dict[int, Tensor]:
    """K starting prototypes of each class: k-means centres, or random labelled pixels.

    Args:
        features: Class id -> (n, D), n at least 1.
        count: K.
        start: ``kmeans`` or ``random``.
        rng: Source of randomness.

    Returns:
        Class id -> (K, D).
    """
    centres = {}
    for class_id in sorted(features):
        points = features[class_id]
        seed = int(rng.integers(2**31))
        if start == "random" and len(points) >= count:
            picked = rng.choice(len(points), size=count, replace=False)
            centres[class_id] = points[torch.from_numpy(picked)]
        else:
            source = torch.Generator().manual_seed(seed)
            centres[class_id] = spherical_kmeans(points, count, source)
    return centres


def start_prototypes(
    bank: PrototypeBank,
    teacher: SegmentationNetwork,
    labeled: CachedSource,
    settings: PrototypeConfig,
    *,
    ignore_index: int,
    processes: Processes,
    seed: int,
    step: int,
) -> None:
    """Install starting prototypes from labelled features of the teacher, the same on every process."""
    rng = generator(seed, "global", step, START_DRAW)
    features = labeled_features(
        teacher, labeled, settings, num_classes=bank.num_classes, ignore_index=ignore_index,
        on_error=labeled.config.on_error, device=processes.device, rng=rng,
    )  # fmt: skip
    bank.start(starting_prototypes(features, settings.num_prototypes, settings.start, rng))
    if processes.world > 1:
        for buffer in bank.buffers():
            buffer.copy_(broadcast(buffer.clone()))
    logger.info("step %d: prototypes start (%s)", step, settings.start)
