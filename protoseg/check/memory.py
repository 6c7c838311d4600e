"""How much memory a training process will need, from the network itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, empty, nn, no_grad

from protoseg.config.sections import Config
from protoseg.models.segmenter import Segmenter

MIB = 2**20


Sizes = Mapping[tuple[int, int], int]
"""Number of images by (height, width) in pixels."""


def estimate_memory(config: Config, segmenter: Segmenter, labeled: Sizes, unlabeled: Sizes) -> dict[str, str]:
    """Estimate the memory of one training process.

    Weights, gradients, optimiser state and teacher are counted exactly from the network. Activations
    are the summed outputs of all layers for the student's batch at the training crop, found without
    computing; allocator slack, convolution workspaces and the loader's own memory are not in it.

    Args:
        config: The run's configuration.
        segmenter: Its network, which is moved to the meta device.
        labeled: Labelled images.
        unlabeled: Unlabelled ones.

    Returns:
        Readable lines by item; an item that cannot be had says why.
    """
    network = segmenter.network
    weights = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    buffers = sum(b.numel() for b in segmenter.buffers())
    slots = 2 if config.optim.name == "adamw" else int(config.optim.momentum > 0)
    fixed = 4 * (2 * (weights + buffers) + trainable * (1 + slots))
    lines = {
        "parameters": f"{weights / 1e6:.2f} M ({trainable / 1e6:.2f} M trained)",
        "weights, teacher, gradients, optimiser state": f"{fixed / MIB:.0f} MiB",
    }
    if config.data.cache == "device":
        images = image_bytes(config, labeled, 1)
        if config.method.unlabeled:
            images += image_bytes(config, unlabeled, 3 * (config.pseudo_labels.folder is not None))
        fixed += images
        lines["images, on the device"] = f"{images / MIB:.0f} MiB (data.cache=device)"
    views = config.views.strong_views if config.method.unlabeled else 0
    batch = config.train.batch_size * (1 + views)
    half = config.train.mixed_precision in ("bf16", "fp16")
    height, width = config.views.crop
    try:
        held = count_outputs(network, (2, config.data.in_channels, height, width))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        lines["activations"] = f"not estimated ({str(error).splitlines()[0]})"
        return lines
    activations = held * (2 if half else 4) * batch // 2
    lines["activations"] = (
        f"about {activations / MIB:.0f} MiB (layer outputs of {batch} images of {height}x{width}, "
        f"{'16' if half else '32'} bit)"
    )
    lines["sum"] = f"about {(fixed + activations) / MIB:.0f} MiB, without workspaces and slack"
    return lines


def image_bytes(config: Config, sizes: Sizes, labels: int) -> int:
    """Bytes of images at the working size with ``labels`` bytes more for each pixel."""
    rule, planes = config.data.resize, config.data.in_channels + labels
    return sum(number * planes * math.prod(rule.target_size(*size)) for size, number in sizes.items())


def count_outputs(network: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Numbers that all layers give for an image batch of ``shape``; moves the network to the meta device.

    Raises:
        ValueError, RuntimeError, NotImplementedError: If it cannot run there.
    """
    held = 0

    def count(module: nn.Module, args: object, output: object) -> None:
        nonlocal held
        leaf = next(module.children(), None) is None
        # in-place layers reuse the memory of their input
        if isinstance(output, Tensor) and leaf and not getattr(module, "inplace", False):
            held += output.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    network.to("meta").train()
    with no_grad():
        network(empty(shape, device="meta"))
    return held
