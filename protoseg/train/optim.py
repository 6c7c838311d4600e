"""Optimiser and learning rate schedule from the configuration."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from protoseg.config.training import OptimConfig
from protoseg.models.segmenter import SegmentationNetwork


def parameter_groups(network: SegmentationNetwork, config: OptimConfig) -> list[dict[str, object]]:
    """Encoder and rest, each with and without weight decay (biases and norm parameters)."""
    norms = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))
        for name, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            in_encoder = name.startswith("backbone.encoder.")
            decays = name not in norms and not name.endswith("bias")
            groups.setdefault((in_encoder, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * (1.0 if in_encoder else config.decoder_lr_factor),
            "weight_decay": config.weight_decay if decays else 0.0,
            "name": f"{'encoder' if in_encoder else 'decoder'}{'' if decays else '_no_decay'}",
        }
        for (in_encoder, decays), parameters in sorted(groups.items(), reverse=True)
    ]


def make_optimizer(network: SegmentationNetwork, config: OptimConfig) -> Optimizer:
    """SGD with momentum, or AdamW, over ``parameter_groups``."""
    groups = parameter_groups(network, config)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    # one kernel instead of a dozen for many small parameters. torch calls it the fastest on CUDA, too, but
    # takes another unless asked; with fp16 it is given the scaler's factor, and skips a step by itself
    fused = True if next(network.parameters()).device.type in ("cpu", "cuda") else None
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=fused)


def lr_factor(config: OptimConfig, step: int, max_steps: int) -> float:
    """Learning rate at ``step`` (from 0) as a fraction of the configured one."""
    if step < config.lr_warmup_steps:
        return (step + 1) / (config.lr_warmup_steps + 1)
    progress = min(1.0, step / max_steps)
    if config.schedule == "poly":
        return float((1 - progress) ** config.poly_power)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def make_scheduler(optimizer: Optimizer, config: OptimConfig, max_steps: int) -> LambdaLR:
    """Scheduler over optimiser steps."""
    return LambdaLR(optimizer, lambda step: lr_factor(config, step, max_steps))
