"""The module that is exported: image in, labels and what explains them out.

Shape legend: ``B`` batch, ``C`` classes, ``K`` prototypes for each class, ``D`` feature channels,
``H W`` image, ``Y X`` feature map at the decoder's stride.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoseg.manifest import Head
from protoseg.method.pseudo_labels import fuse, label_agreement, pseudo_labels
from protoseg.models.prototypes import PrototypeBank, unit
from protoseg.models.segmenter import Segmenter

Layout = Literal["uint8_nchw", "uint8_nhwc", "float32_nchw"]

# What the exported graph computes. The two heads' scores keep these names inside the graph whether or
# not they are outputs, so that parity can look at them in the very file that is served.
HEAD_LOGITS = ("linear_logits", "prototype_logits")
STRIDE_SUFFIX = "_stride"
ALL_OUTPUTS = ("labels", "confidence", "agreement", "prototype", "embedding", "logits")
DEFAULT_OUTPUTS = ("labels", "confidence", "agreement")
OPTIONAL_OUTPUTS = ("agreement", "logits", "logits_stride", "prototype", "embedding")


def label_dtype(num_values: int) -> torch.dtype:
    """Smallest integer type that ONNX Runtime and TensorRT both take as an output."""
    return torch.uint8 if num_values <= 256 else torch.int32


def top_probability(logits: Tensor) -> Tensor:
    """Largest softmax probability over axis 1: (B, C, H, W) -> (B, H, W).

    ``max softmax = 1 / sum exp(x - max x)``: no normalised (B, C, H, W) tensor is ever written.
    """
    return (logits - logits.amax(1, keepdim=True)).exp().sum(1).reciprocal()


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over axis 1, in a form that runs without transposing: (B, C, H, W) -> same."""
    shifted = (logits - logits.amax(1, keepdim=True)).exp()
    return shifted * shifted.sum(1, keepdim=True).reciprocal()


def probability_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax probability of one class at each pixel, the definition of ``label_agreement``.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) class ids, int64.

    Returns:
        (B, H, W).
    """
    shifted = logits - logits.amax(1, keepdim=True)
    chosen = shifted.gather(1, labels.unsqueeze(1)).squeeze(1)
    return chosen.exp() * shifted.exp().sum(1).reciprocal()


def enlarge(low: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, Y, X) -> (B, C, *size): bilinear with half-pixel centres, as the network's own upsampling."""
    return nn.functional.interpolate(low, size=size, mode="bilinear", align_corners=False)


class FoldedPrototypes(nn.Module):
    """The prototype bank as a 1x1 convolution: unit prototypes over the temperature are its weights.

    ``cos(z, p) / T = (z . p / T) / |z|``, so the feature map itself is never normalised.

    Args:
        bank: Prototypes; they are copied and normalised once.
    """

    weight: Tensor
    ones: Tensor
    bias: Tensor
    offset: Tensor

    def __init__(self, bank: PrototypeBank) -> None:
        super().__init__()
        self.num_classes, self.num_prototypes = bank.num_classes, bank.num_prototypes
        self.pooling = bank.pooling
        weight = unit(bank.prototypes.detach()).flatten(0, 1) / bank.temperature
        self.register_buffer("weight", weight[:, :, None, None].clone())
        self.register_buffer("ones", torch.ones(1, bank.dim, 1, 1))
        self.register_buffer("bias", bank.class_bias().detach().float().view(1, -1, 1, 1).clone())
        # a prototype of an absent class must not be named as the nearest
        absent = torch.where(bank.active, 0.0, -1e4).repeat_interleave(self.num_prototypes)
        self.register_buffer("offset", absent.view(1, -1, 1, 1))

    def norm(self, features: Tensor) -> Tensor:
        """(B, D, Y, X) -> (B, 1, Y, X) length, at least 1e-12 so that a zero vector gives no NaN."""
        # a 1x1 convolution with ones: ONNX Runtime sums over channels ten times faster this way
        return nn.functional.conv2d(features * features, self.ones).sqrt().clamp(min=1e-12)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, Y, X) -> logits (B, C, Y, X) and the scores of all prototypes (B, C * K, Y, X)."""
        scores = nn.functional.conv2d(features, self.weight) / self.norm(features)
        batch, _, height, width = scores.shape
        grouped = scores.view(batch, self.num_classes, self.num_prototypes, height, width)
        best = grouped.amax(2)
        if self.pooling == "logsumexp":
            spread = (grouped - best.unsqueeze(2)).exp().sum(2).log()
            best = best + spread - math.log(self.num_prototypes)
        return best + self.bias, scores


class ExportModule(nn.Module):
    """Everything between a decoded image and the answer, for ``torch.onnx.export``.

    Args:
        segmenter: Network and prototypes in eval mode.
        head: Head behind ``labels``, ``confidence`` and ``logits``.
        layout: Element type and axes of the image.
    """

    def __init__(self, segmenter: Segmenter, head: Head = "linear", layout: Layout = "uint8_nchw") -> None:
        super().__init__()
        self.network = segmenter.network
        self.prototypes = FoldedPrototypes(segmenter.bank)
        self.head, self.layout = head, layout

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what ``forward`` returns, in its order."""
        names = [*ALL_OUTPUTS]
        for head in (*HEAD_LOGITS, *(("mean_logits",) if self.head == "mean" else ())):
            names += [head, head + STRIDE_SUFFIX]
        return tuple(names)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image -> the tensors of ``output_names``.

        ``labels`` (B, H, W) class ids; ``confidence`` (B, H, W) the chosen head's largest probability;
        ``agreement`` (B, H, W) the linear head's probability of the label; ``prototype`` (B, Y, X) the
        nearest prototype's flat index ``c * K + k``; ``embedding`` (B, D, Y, X) unit length; ``logits``
        (B, C, H, W) of the chosen head; then scores of each head at the padded size and at the decoder's
        stride. ``mean_logits`` is the logarithm of the mean probability.
        """
        if self.layout == "uint8_nhwc":
            image = image.permute(0, 3, 1, 2)
        height, width = image.shape[-2:]
        output = self.network(image)
        features = output.features.float()
        linear_low = output.linear_logits.float()
        prototype_low, scores = self.prototypes(features)
        # outputs are cropped at the very end: a label map is far smaller than the scores behind it
        size = self.network.padded_size(height, width)
        linear, prototype = enlarge(linear_low, size), enlarge(prototype_low, size)
        extra: tuple[Tensor, ...] = ()
        if self.head == "mean":
            of_linear = probabilities(linear)
            mean = (of_linear + probabilities(prototype)) / 2
            labels, confidence = mean.argmax(1), mean.amax(1)
            agreement = of_linear.gather(1, labels.unsqueeze(1)).squeeze(1)
            chosen = mean.clamp(min=1e-30).log()
            mean_low = (probabilities(linear_low) + probabilities(prototype_low)) / 2
            extra = (chosen, mean_low.clamp(min=1e-30).log())
        else:
            chosen = linear if self.head == "linear" else prototype
            labels, confidence = chosen.argmax(1), top_probability(chosen)
            agreement = confidence if self.head == "linear" else probability_of(linear, labels)
        # the cast comes last: TensorRT takes uint8 as an output and nowhere else
        labels = labels[:, :height, :width].to(label_dtype(linear.shape[1]))
        nearest = (scores + self.prototypes.offset).argmax(1).to(label_dtype(scores.shape[1]))
        embedding = features / self.prototypes.norm(features)
        return (
            labels, confidence[:, :height, :width], agreement[:, :height, :width],
            nearest, embedding, chosen[..., :height, :width], linear, linear_low, prototype, prototype_low,
            *extra,
        )  # fmt: skip


class TorchRunner:
    """The checkpoint itself behind the call of ``export.runners.ort.Runner``, as the reference of parity.

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
        """(B, C, H, W) uint8 -> labels, confidence, agreement and the scores of both heads.

        Without prototypes there are no agreement (it would be the confidence) and no prototype scores.
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
            "mean": lambda: fuse(linear, prototype),
        }[self.head]()
        labels, confidence = pseudo_labels(probs)
        result = {
            "labels": labels.to(label_dtype(bank.num_classes)),
            "confidence": confidence,
            "agreement": label_agreement(linear, labels),
            "linear_logits": linear,
            "linear_logits_stride": linear_low,
            "prototype_logits": prototype,
            "prototype_logits_stride": prototype_low,
        }
        if not self.has_prototypes:
            result = {k: v for k, v in result.items() if not k.startswith(("prototype", "agreement"))}
        return {name: value.numpy() for name, value in result.items()}


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
