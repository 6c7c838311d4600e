"""How much memory a training process will need, from the network itself."""

from __future__ import annotations

from protoseg.config.sections import Config

MIB = 2**20


def estimate_memory(config: Config, num_classes: int) -> dict[str, str]:
    """Estimate the memory of one training process.

    Weights, gradients, optimiser state and teacher are counted exactly from the network. Activations
    are the summed outputs of all layers for the student's batch at the training crop, found without
    computing; allocator slack, convolution workspaces and the loader's own memory are not in it.

    Returns:
        Readable lines by item; an item that cannot be had says why.
    """
    import torch
    from torch import Tensor, nn

    from protoseg.models.segmenter import build_segmenter

    model_config = config.model.model_copy(update={"pretrained": "none"})
    try:
        segmenter = build_segmenter(
            model_config, config.prototypes, num_classes=num_classes,
            in_channels=config.data.in_channels, mean=config.data.mean, std=config.data.std,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        return {"not estimated": f"the network cannot be built: {error}"}
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
    views = config.views.strong_views if config.method.unlabeled else 0
    images = config.train.batch_size * (1 + views)
    half = config.train.mixed_precision in ("bf16", "fp16")
    held = 0

    def count(module: nn.Module, args: object, output: object) -> None:
        nonlocal held
        leaf = next(module.children(), None) is None
        # in-place layers reuse the memory of their input
        if isinstance(output, Tensor) and leaf and not getattr(module, "inplace", False):
            held += output.numel()

    handles = [m.register_forward_hook(count) for m in network.modules()]
    try:
        network.to("meta").train()
        shape = (2, config.data.in_channels, *config.views.crop)
        with torch.no_grad():
            network(torch.empty(shape, device="meta"))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        lines["activations"] = f"not estimated ({str(error).splitlines()[0]})"
        return lines
    finally:
        for handle in handles:
            handle.remove()
    activations = held * (2 if half else 4) * images // 2
    lines["activations"] = (
        f"about {activations / MIB:.0f} MiB (layer outputs of {images} images of "
        f"{config.views.crop[0]}x{config.views.crop[1]}, {'16' if half else '32'} bit)"
    )
    lines["sum"] = f"about {(fixed + activations) / MIB:.0f} MiB, without workspaces and slack"
    return lines
