"""Which pixels the prototype branch looks at, and their features.

Shape legend: ``B`` batch, ``N`` points of an image, ``D`` feature channels, ``H W`` image,
``Y X`` feature map.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from protoseg.config.method import PrototypeConfig
from protoseg.processes import ALONE, Processes, sent


def choose_points(
    settings: PrototypeConfig,
    rng: np.random.Generator,
    targets: Tensor,
    num_classes: int,
    *,
    batch: int,
    processes: Processes = ALONE,
) -> Tensor:
    """Pixels that the prototype branch looks at, the same for an image on any number of processes.

    Args:
        settings: Prototype settings (sampling).
        rng: Generator that every process seeds alike.
        targets: (P*B, H, W) class ids of the P parts of a batch: labelled images, then each strong view;
            -1 where there is none.
        num_classes: C.
        batch: B, images of one part and process.
        processes: Who shares the global batch.

    Returns:
        (P*B, N) int64 flat pixel index ``row * W + column``.
    """
    # drawn for the global batch, part by part, and then cut
    total, size = len(targets) * processes.world, (targets.shape[1], targets.shape[2])
    first = range(processes.rank * batch, total, processes.world * batch)
    own = torch.cat([torch.arange(start, start + batch) for start in first])
    if settings.sampling == "grid":
        drawn = grid_points(rng, total if settings.per_image_positions else 1, settings.grid, size)
        return sent(drawn.expand(total, -1)[own], targets.device)
    uniform = torch.from_numpy(rng.random((total, settings.grid**2)))[own]
    return balanced_points(sent(uniform, targets.device), targets, num_classes, settings.balance)


def grid_points(rng: np.random.Generator, batch: int, grid: int, size: tuple[int, int]) -> Tensor:
    """One random pixel in each of ``grid`` x ``grid`` cells of the image [P].

    Args:
        rng: Source of randomness.
        batch: B.
        grid: Cells along a side.
        size: (H, W) in pixels; where a cell is smaller than a pixel, pixels repeat.

    Returns:
        (B, grid * grid) int64 flat pixel index ``row * W + column``.
    """
    height, width = size
    offsets = rng.random((2, batch, grid, grid))
    cells = np.arange(grid)
    rows = ((cells[:, None] + offsets[0]) * height / grid).astype(np.int64)
    columns = ((cells[None, :] + offsets[1]) * width / grid).astype(np.int64)
    flat = np.minimum(rows, height - 1) * width + np.minimum(columns, width - 1)
    return torch.from_numpy(flat.reshape(batch, grid * grid))


def balanced_points(uniform_BN: Tensor, target_BHW: Tensor, num_classes: int, balance: float) -> Tensor:
    """Pixels drawn with probability proportional to ``count(class of the pixel) ** -balance``.

    Counts are those of the pixel's own image, so that the draw does not depend on how images are
    spread over processes. Sampling is with replacement, by the inverse of the cumulated weights.

    Args:
        uniform_BN: Random numbers in [0, 1).
        target_BHW: Class ids; a value outside [0, num_classes) is never drawn, unless the image has
            nothing else.
        num_classes: C.
        balance: 0 is uniform over pixels with a class, 1 uniform over the classes present.

    Returns:
        (B, N) int64 flat pixel index.
    """
    flat = target_BHW.flatten(1)
    valid = (flat >= 0) & (flat < num_classes)
    own = torch.where(valid, flat, num_classes)
    counts = torch.zeros(len(flat), num_classes + 1, device=flat.device)
    counts.scatter_add_(1, own, torch.ones_like(own, dtype=counts.dtype))
    weight = counts.clamp(min=1).pow(-balance).gather(1, own) * valid
    edges = weight.double().cumsum(1)
    picked = torch.searchsorted(edges, uniform_BN.double() * edges[:, -1:], right=True)
    return picked.clamp(max=flat.shape[1] - 1)


def pixels_per_point(classes_BN: Tensor, target_BHW: Tensor, num_classes: int, balance: float) -> Tensor:
    """How many pixels of its image each point of ``balanced_points`` stands for.

    This is ``1 / (N q)`` with ``q`` the probability that a draw picks the pixel (importance weights): the
    weighted mean of a loss over points estimates its mean over all pixels, for every ``balance``.

    Args:
        classes_BN: Classes of the points drawn; a value outside [0, num_classes) stands for 0 pixels.
        target_BHW: What they were drawn from.
        num_classes: C.
        balance: What they were drawn with.

    Returns:
        (B, N) float32; a row's sum has the number of its image's pixels with a class as its mean.
    """
    flat = target_BHW.flatten(1)
    valid = (flat >= 0) & (flat < num_classes)
    counts = torch.zeros(len(flat), num_classes + 1, device=flat.device)
    counts.scatter_add_(1, torch.where(valid, flat, num_classes), valid.float())
    counts = counts[:, :num_classes]
    mass = (counts * counts.clamp(min=1).pow(-balance)).sum(1, keepdim=True)
    known = (classes_BN >= 0) & (classes_BN < num_classes)
    own = counts.gather(1, torch.where(known, classes_BN, 0)).clamp(min=1)
    return own.pow(balance) * mass / classes_BN.shape[1] * known


def features_at(
    features_BDYX: Tensor,
    index_BN: Tensor,
    width: int,
    padded_size: tuple[int, int],
    *,
    image_BN: Tensor | None = None,
) -> Tensor:
    """Features at image pixels, as if the map were upsampled bilinearly to the image first.

    Args:
        features_BDYX: Feature map of the padded image.
        index_BN: Flat pixel index ``row * width + column`` in the unpadded image.
        width: W of the unpadded image.
        padded_size: (H, W) of the image after padding, which the map covers.
        image_BN: Image of the map that each point is in, where rows of points are not images of it.

    Returns:
        (B, N, D) float32. Equal to ``interpolate(..., align_corners=False)`` followed by indexing.
    """
    dim, height, columns = features_BDYX.shape[1:]
    y0, y1, fy = _neighbours(torch.div(index_BN, width, rounding_mode="floor"), height, padded_size[0])
    x0, x1, fx = _neighbours(index_BN % width, columns, padded_size[1])
    image = torch.arange(len(index_BN), device=index_BN.device)[:, None] if image_BN is None else image_BN
    first = image * (height * columns)
    corners = [first + y * columns + x for y in (y0, y1) for x in (x0, x1)]
    weights = [wy * wx for wy in (1 - fy, fy) for wx in (1 - fx, fx)]
    # a weighted sum of four rows of the channels-last map: grid_sample's backward strides through
    # memory channel by channel and takes longer
    rows = features_BDYX.float().permute(0, 2, 3, 1).reshape(-1, dim)
    sampled = F.embedding_bag(
        torch.stack(corners, -1).view(-1, 4),
        rows,
        mode="sum",
        per_sample_weights=torch.stack(weights, -1).view(-1, 4).to(rows.dtype),
    )
    return sampled.view(len(index_BN), -1, dim)


def _neighbours(position: Tensor, cells: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper cell of a pixel centre along one axis, and the upper one's weight."""
    place = ((position.double() + 0.5) * cells / pixels - 0.5).clamp(0, cells - 1)
    lower = place.floor().long()
    return lower, (lower + 1).clamp(max=cells - 1), place - lower
