"""A step of training on a tiny network: its networks, its method, and images for it."""

from functools import partial

import torch
from tiny import tiny_config

from protoseg.config.plan import Phase
from protoseg.method.inputs import Method, Networks
from protoseg.method.pseudo_labels import ClassThresholds
from protoseg.method.step import compute_step
from protoseg.method.teacher import make_teacher
from protoseg.models.segmenter import build_segmenter
from protoseg.processes import Processes
from protoseg.seeds import generator

ON = Phase(unlabeled=True, prototypes=True, prototype_weight=1.0)


def step_of(class_weights=None, **sections):
    """Networks and method of the tiny configuration with ``sections`` over it."""
    config = tiny_config(**sections)
    torch.manual_seed(0)
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=5)
    network = segmenter.network.train()
    random = torch.Generator().manual_seed(0)
    bank = segmenter.bank
    bank.start({c: torch.randn(bank.num_prototypes, bank.dim, generator=random) for c in range(5)})
    thresholds = ClassThresholds(5, config.pseudo_labels.threshold)
    networks = Networks(network, network, make_teacher(network), bank, thresholds)
    method = Method(
        views=config.views, pseudo_labels=config.pseudo_labels, prototypes=config.prototypes,
        loss=config.loss, aux_weight=config.model.aux_weight, ignore_index=255, class_weights=class_weights,
        fill=torch.tensor([128, 128, 128], dtype=torch.uint8),
    )  # fmt: skip
    return networks, method


def run_step(networks, method, labeled, unlabeled, phase=ON, number=3):
    """One micro-step at position ``number``."""
    processes = Processes(device=labeled["image"].device)
    draw = partial(generator, 0, "global", number)
    return compute_step(networks, method, labeled, unlabeled, phase, processes=processes, draw=draw)


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
