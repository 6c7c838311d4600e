"""Fine-tuning, which `adapt` is measured against: five more classes by gradients, in the head or in all."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.held_out import HELD_OUT

if TYPE_CHECKING:
    from protoseg.adapt.cells import Pixels
    from protoseg.adapt.rows import Heads
    from protoseg.checkpoint import Checkpoint
    from protoseg.models.segmenter import Segmenter

    Pools = list[list[tuple[Pixels, Pixels]]]


def pixels_of(source: Checkpoint, data: Path, lines: dict[str, list[str]], others: int) -> Pools:
    """Images and labels for fine-tuning: of the new classes, and of the training.

    A pixel beside a new class is what the network says: the mask says only that it is not of the class.
    """
    from PIL import Image

    from protoseg.data.images import read_image
    from protoseg.data.sources import open_source
    from protoseg.predict.images import predict_image

    given = []
    for label, chosen in enumerate(lines.values(), start=len(source.info.classes)):
        for image_name, mask_name in map(str.split, chosen):
            image, mask = read_image(data / image_name), np.asarray(Image.open(data / mask_name))
            said = predict_image(source.segmenter, image, source.info.input).labels
            target = np.where(mask == label, label, np.where(mask == 255, 255, said))
            given.append((image, target.astype(np.uint8)))
    labeled = open_source(source.info.data, "labeled", source.info.classes)
    places = [i * len(labeled) // others for i in range(others)]
    return [given, [(labeled.image(i), labeled.mask(i)) for i in places]]


def read_wider(source: Checkpoint, seed: int) -> Heads:
    """Heads with five more rows, small and random, at the mean bias of the others; of the decoder's alone."""
    import torch

    from protoseg.adapt.cells import last_layer
    from protoseg.adapt.rows import Heads, read_heads

    heads, new = read_heads(source.segmenter), len(HELD_OUT)
    generator = torch.Generator().manual_seed(seed)
    channels = last_layer(source.segmenter.network).in_channels
    weight = torch.zeros(new, heads.weight.shape[1] - 1)
    weight[:, :channels] = 0.01 * torch.randn(new, channels, generator=generator)
    rows = torch.cat([weight, heads.weight[1:, -1:].mean(0).expand(new, 1)], 1)
    return Heads(
        torch.cat([heads.weight, rows]), torch.cat([heads.prototypes, heads.prototypes[:new]]),
        torch.cat([heads.active, heads.active[:new]]),
    )  # fmt: skip


def trained_head(source: Checkpoint, pools: Pools, seconds: float, seed: int) -> tuple[Heads, int]:
    """Rows of the linear head, five of them new, trained on cells of the feature maps; and the steps.

    Args:
        source: The network that knows fifteen classes.
        pools: See ``pixels_of``; each gives half of a batch of 4,096 cells.
        seconds: How long; thousands of steps in a minute.
        seed: Of rows and order.
    """
    import torch
    import torch.nn.functional as F

    from protoseg.adapt.cells import image_cells

    generator, heads = torch.Generator().manual_seed(seed), read_wider(source, seed)
    stride, known = round(source.segmenter.network.stride), []
    for pool in pools:
        features, labels = [], []
        for image, mask in pool:
            nothing = np.zeros(mask.shape, np.float32)
            features.append(image_cells(source, image, nothing, nothing + 1, mask.size).linear)
            room = [-length % stride for length in mask.shape]
            padded = np.pad(mask, ((0, room[0]), (0, room[1])), constant_values=255)
            middle = padded[stride // 2 :: stride, stride // 2 :: stride]
            labels.append(torch.from_numpy(middle.reshape(-1).astype(np.int64)))
        known.append((torch.cat(features), torch.cat(labels)))
    weight = torch.cat([heads.weight[:, : known[0][0].shape[1]], heads.weight[:, -1:]], 1).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=2e-3, weight_decay=1e-4)
    start, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - spent / seconds) ** 0.9
        loss = torch.zeros(())
        for features, labels in known:
            index = torch.randint(len(labels), (2048,), generator=generator)
            scores = features[index] @ weight[:, :-1].t() + weight[:, -1]
            loss = loss + F.cross_entropy(scores, labels[index], ignore_index=255) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    rows = heads.weight.clone()
    rows[:, : weight.shape[1] - 1], rows[:, -1] = weight.detach()[:, :-1], weight.detach()[:, -1]
    return replace(heads, weight=rows), steps


def trained_network(source: Checkpoint, pools: Pools, seconds: float, seed: int) -> tuple[Segmenter, int]:
    """All of the network trained with five more rows, on crops; and the steps.

    Batch norm keeps its statistics. Arguments as for ``trained_head``, but that ``seconds`` are of processor
    time, so that a busy machine makes no difference; a batch has 4 + 4 images.
    """
    import torch
    import torch.nn.functional as F

    from protoseg.adapt.rows import with_heads

    rng = np.random.default_rng(seed)
    segmenter = with_heads(source.segmenter, source.info, read_wider(source, seed))
    network = segmenter.network
    decoder = [p for n, p in network.backbone.named_parameters() if not n.startswith("encoder.")]
    groups: list[dict[str, Any]] = [
        {"params": list(network.linear_head.parameters()), "lr": 2e-3},
        {"params": decoder, "lr": 5e-4},
        {"params": list(network.backbone.encoder.parameters()), "lr": 5e-5},
    ]
    optimizer, rates = torch.optim.AdamW(groups, weight_decay=1e-4), [group["lr"] for group in groups]
    start, steps = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - spent / seconds) ** 0.9
        crops = [_crop(pool[int(rng.integers(len(pool)))], rng) for pool in pools for _ in range(4)]
        image, mask = (torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))
        logits = network.upsample(network(image.permute(0, 3, 1, 2)).linear_logits, *mask.shape[-2:])
        loss = F.cross_entropy(logits, mask.long(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    return segmenter, steps


def _crop(pair: tuple[Pixels, Pixels], rng: np.random.Generator, size: int = 192) -> tuple[Pixels, Pixels]:
    image, mask = pair
    tall, wide = (max(0, size - length) for length in mask.shape)
    image = np.pad(image, ((0, tall), (0, wide), (0, 0)), mode="edge")
    mask = np.pad(mask, ((0, tall), (0, wide)), constant_values=255)
    y, x = (int(rng.integers(length - size + 1)) for length in mask.shape)
    step = 1 if rng.random() < 0.5 else -1
    return image[y : y + size, x : x + size][:, ::step], mask[y : y + size, x : x + size][:, ::step]
