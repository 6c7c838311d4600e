"""The start of the prototypes: k-means over features of labelled pixels, class by class."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

from protoseg.config.sections import Config
from protoseg.data.sources import CachedSource
from protoseg.data.stream import to_tensor
from protoseg.errors import DataError
from protoseg.method.points import features_at
from protoseg.models.kmeans import spherical_kmeans
from protoseg.models.segmenter import SegmentationNetwork

logger = logging.getLogger("protoseg")


@torch.no_grad()
def labeled_features(
    network: SegmentationNetwork,
    source: CachedSource,
    config: Config,
    *,
    num_classes: int,
    device: torch.device,
    rng: np.random.Generator,
) -> dict[int, Tensor]:
    """Features of labelled pixels by class.

    Up to ``prototypes.start_images`` images, whole and unaugmented, give each class up to
    ``prototypes.start_pixels`` pixels, spread evenly over the images.

    Returns:
        Class id -> (n, D) float32 on the CPU; classes without a labelled pixel are left out.

    Raises:
        DataError: If an image or mask cannot be used and ``data.on_error`` is ``raise``.
    """
    settings = config.prototypes
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
            if config.data.on_error == "raise":
                raise
            logger.warning("skipped: %s", error)
            continue
        image = to_tensor(pixels)[None].to(device)
        height, width = mask.shape
        features = network(image).features
        flat = mask.reshape(-1)
        for class_id in np.unique(flat):
            if class_id == config.data.ignore_index or class_id >= num_classes:
                continue
            places = np.flatnonzero(flat == class_id)
            # small classes give all they have; what they lack is not made up for by others
            picked = rng.choice(places, size=min(quota, len(places)), replace=False)
            index = torch.from_numpy(np.sort(picked))[None].to(device)
            z = features_at(features, index, width, network.padded_size(height, width))
            found.setdefault(int(class_id), []).append(z[0].float().cpu())
    return {class_id: torch.cat(parts)[: settings.start_pixels] for class_id, parts in found.items()}


def starting_prototypes(
    features: dict[int, Tensor], config: Config, rng: np.random.Generator
) -> dict[int, Tensor]:
    """K starting prototypes of each class: k-means centres, or random labelled pixels.

    Args:
        features: Class id -> (n, D), n at least 1.
        config: ``prototypes.start`` and ``prototypes.num_prototypes``.
        rng: Source of randomness.

    Returns:
        Class id -> (K, D).
    """
    count = config.prototypes.num_prototypes
    centres = {}
    for class_id in sorted(features):
        points = features[class_id]
        seed = int(rng.integers(2**31))
        if config.prototypes.start == "random" and len(points) >= count:
            picked = rng.choice(len(points), size=count, replace=False)
            centres[class_id] = points[torch.from_numpy(picked)]
        else:
            generator = torch.Generator().manual_seed(seed)
            centres[class_id] = spherical_kmeans(points, count, generator)
    return centres
