"""What torch computes: the reference of every proof made at export."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.graph.module import ABSENT_SIMILARITY, label_dtype
from protoseg.manifest import Head
from protoseg.method.pseudo_labels import fuse, label_probability, pseudo_labels
from protoseg.models.segmenter import Segmenter


class TorchRunner:
    """The checkpoint itself behind the call of a ``Runner``, as the reference of parity.

    Not built from ``ExportModule``: scores come from ``Segmenter`` and the functions that training and
    evaluation use, so that a mistake in the export module shows as a difference.

    Args:
        segmenter: Network and prototypes in eval mode.
        head: Head behind ``labels`` and ``confidence``.
    """

    def __init__(self, segmenter: Segmenter, head: Head) -> None:
        self.segmenter, self.head = segmenter.eval(), head
        self.has_prototypes = bool(segmenter.bank.active.any())

    @torch.no_grad()
    def __call__(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """(B, C, H, W) uint8 -> labels, confidence, agreement, similarity, novelty and the heads' scores.

        Without prototypes there are no agreement (it would be the confidence), no similarity and no
        prototype scores.
        """
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        height, width = tensor.shape[-2:]
        network, bank = self.segmenter.network, self.segmenter.bank
        output = network(tensor)
        linear_low = output.linear_logits.float()
        prototype_low = bank.dense_logits(output.features)
        linear = network.upsample(linear_low, height, width)
        prototype = network.upsample(prototype_low, height, width)
        probs = {
            "linear": lambda: linear.softmax(1),
            "prototype": lambda: prototype.softmax(1),
            "fused": lambda: fuse(linear, prototype),
        }[self.head]()
        labels, confidence = pseudo_labels(probs)
        result = {
            "labels": labels.to(label_dtype(bank.num_classes)),
            "confidence": confidence,
            "agreement": label_probability(linear, labels),
            "similarity": self._similarity(output.features),
            "linear_logits": linear,
            "linear_logits_stride": linear_low,
            "prototype_logits": prototype,
            "prototype_logits_stride": prototype_low,
        }
        if self.segmenter.novelty is not None:
            novelty = self.segmenter.novelty(output.stage, linear_low)
            result["novelty"] = network.upsample(novelty, height, width)[:, 0]
        if not self.has_prototypes:
            without = ("prototype", "agreement", "similarity")
            result = {k: v for k, v in result.items() if not k.startswith(without)}
        return {name: value.numpy() for name, value in result.items()}

    def _similarity(self, features: Tensor) -> Tensor:
        bank = self.segmenter.bank
        nearest = bank.nearest_map(features)
        return torch.where(bank.active[:, None, None], nearest, ABSENT_SIMILARITY)


def _to_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = module.weight.dtype
    assert isinstance(dtype, torch.dtype)
    return tuple(v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs)


def _first_modules(segmenter: Segmenter, count: int) -> list[nn.Module]:
    """Modules with weights in the order of execution, up to what follows convolution ``count``."""
    order: list[nn.Module] = []
    network = segmenter.network
    weighted = [m for m in network.modules() if isinstance(getattr(m, "weight", None), Tensor)]
    hooks = [m.register_forward_pre_hook(lambda module, _: order.append(module)) for m in weighted]
    side = 2 * network.stride_multiple
    with torch.no_grad():
        network(torch.zeros(1, network.mean.shape[1], side, side))
    for hook in hooks:
        hook.remove()
    first: list[nn.Module] = []
    for module in order:
        count -= isinstance(module, nn.Conv2d)
        if count < 0 or isinstance(module, nn.Linear):
            break
        first.append(module)
    return first


def half_reference(segmenter: Segmenter, head: Head, first: int) -> TorchRunner:
    """The checkpoint with encoder, decoder and heads truly in half precision, on the CPU.

    Unlike ONNX Runtime on a CPU, torch rounds every intermediate value: an overflow shows as infinity.
    Slow: for a few small images.

    Args:
        segmenter: Network and prototypes.
        head: Head behind ``labels`` and ``confidence``.
        first: Convolutions at the start that stay in float32, as in the graph (``half.first_nodes``).
    """
    half = copy.deepcopy(segmenter).eval()
    network = half.network
    kept = _first_modules(half, first)
    for part in (network.backbone, network.linear_head, network.projection):
        part.half()
        for module in part.modules():
            if isinstance(getattr(module, "weight", None), Tensor):
                module.register_forward_pre_hook(_to_own_type)
    for module in kept:
        module.float()
    if kept:
        kept[-1].register_forward_hook(lambda _, __, output: output.half())
    return TorchRunner(half, head)
