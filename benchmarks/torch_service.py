"""What a torch service would run for a bundle's three outputs: a contestant of the latency benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoseg.manifest import Head
from protoseg.method.pseudo_labels import fuse, label_probability, pseudo_labels
from protoseg.models.segmenter import Segmenter

Call = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]


class Deployed(nn.Module):
    """What a torch service would run for the bundle's three outputs."""

    def __init__(self, segmenter: Segmenter, head: Head) -> None:
        super().__init__()
        self.segmenter, self.head = segmenter, head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) uint8 -> labels, confidence, agreement."""
        height, width = image.shape[-2:]
        network, bank = self.segmenter.network, self.segmenter.bank
        output = network(image)
        linear = network.upsample(output.linear_logits, height, width)
        if self.head == "linear":
            label, confidence = pseudo_labels(linear.softmax(1))
            return label.to(torch.uint8), confidence, confidence
        prototype = network.upsample(bank.dense_logits(output.features), height, width)
        probs = fuse(linear, prototype) if self.head == "fused" else prototype.softmax(1)
        label, confidence = pseudo_labels(probs)
        return label.to(torch.uint8), confidence, label_probability(linear, label)


def torch_call(module: nn.Module, device: str = "cpu", *, half: bool = False) -> Call:
    """``module`` as a contestant: pixels come from the host's memory, and outputs go back there.

    ``half`` computes in fp16 where autocast allows it.
    """
    module = module.eval().to(device)

    def call(image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=half):
            values = [value.cpu().numpy() for value in module(torch.from_numpy(image).to(device))]
        return dict(zip(("labels", "confidence", "agreement"), values, strict=True))

    return call
