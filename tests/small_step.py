"""A step of training on a tiny network: its context, and images for it."""

from contextlib import nullcontext

import torch
from tiny import tiny_config

from protoseg.method.pseudo_labels import ClassThresholds
from protoseg.method.step import Context
from protoseg.method.teacher import make_teacher
from protoseg.models.segmenter import build_segmenter


def context_of(**sections):
    config = tiny_config(**sections)
    torch.manual_seed(0)
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=5)
    network = segmenter.network.train()
    generator = torch.Generator().manual_seed(0)
    bank = segmenter.bank
    bank.start({c: torch.randn(bank.num_prototypes, bank.dim, generator=generator) for c in range(5)})
    return Context(
        config=config, network=network, student=network, teacher=make_teacher(network), bank=bank,
        thresholds=ClassThresholds(5, config.pseudo_labels.threshold), num_classes=5,
        fill=torch.tensor([128, 128, 128], dtype=torch.uint8), class_weights=None, autocast=nullcontext,
        reduce=lambda value: value, rank=0, world=1,
    )  # fmt: skip


def batches(views=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def image(*shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    target = torch.randint(0, 5, (2, 32, 32), generator=generator)
    target[:, :4] = 255
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[0, 20:] = False
    labeled = {"image": image(2, 3, 32, 32), "target": target}
    return labeled, {"weak": image(2, 3, 32, 32), "strong": image(2, views, 3, 32, 32), "valid": valid}
