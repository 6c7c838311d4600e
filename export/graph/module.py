"""The module that is exported: image in, labels and what explains them out.

Shape legend: ``B`` batch, ``C`` classes, ``K`` prototypes for each class, ``D`` feature channels,
``H W`` image, ``Y X`` feature map at the decoder's stride.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from export.runners.contract import Layout
from protoseg.manifest import Head
from protoseg.models.novelty import NoveltyHead
from protoseg.models.prototypes import PrototypeBank, unit
from protoseg.models.segmenter import Segmenter

# What the exported graph computes. The two heads' scores keep these names inside the graph whether or
# not they are outputs, so that parity can look at them in the very file that is served.
HEAD_LOGITS = ("linear_logits", "prototype_logits")
STRIDE_SUFFIX = "_stride"
ALL_OUTPUTS = ("labels", "confidence", "agreement", "prototype", "embedding", "logits", "similarity")
DEFAULT_OUTPUTS = ("labels", "confidence", "agreement")
NOVELTY = "novelty"
OPTIONAL_OUTPUTS = ("agreement", "logits", "logits_stride", "prototype", "embedding", "similarity", NOVELTY)
EXPLAINING_OUTPUTS = ("prototype", "similarity")
"""What the service's ``output=explain`` reads."""
ABSENT_SIMILARITY = -1.0
"""Similarity to a class without prototypes."""


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
    """Softmax probability of one class at each pixel, the definition of ``label_probability``.

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
    missing: Tensor

    def __init__(self, bank: PrototypeBank) -> None:
        super().__init__()
        self.num_classes, self.num_prototypes = bank.num_classes, bank.num_prototypes
        self.pooling, self.temperature = bank.pooling, bank.temperature
        weight = unit(bank.prototypes.detach()).flatten(0, 1) / bank.temperature
        self.register_buffer("weight", weight[:, :, None, None].clone())
        self.register_buffer("ones", torch.ones(1, bank.dim, 1, 1))
        self.register_buffer("bias", bank.class_bias().detach().float().view(1, -1, 1, 1).clone())
        # a prototype of an absent class must not be named as the nearest
        absent = torch.where(bank.active, 0.0, -1e4).repeat_interleave(self.num_prototypes)
        self.register_buffer("offset", absent.view(1, -1, 1, 1))
        # its own cosines are 0: the zero vector is no direction
        self.register_buffer("missing", torch.where(bank.active, 0.0, ABSENT_SIMILARITY).view(1, -1, 1, 1))

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

    def similarity(self, scores: Tensor) -> Tensor:
        """Scores of all prototypes -> cosine with the nearest one of each class, (B, C, Y, X)."""
        batch, _, height, width = scores.shape
        grouped = scores.view(batch, self.num_classes, self.num_prototypes, height, width)
        return grouped.amax(2) * self.temperature + self.missing


class FoldedNovelty(nn.Module):
    """Novelty with its prototypes as a 1x1 convolution, as in ``FoldedPrototypes``.

    Args:
        head: What was fitted; it is copied.
    """

    weight: Tensor
    ones: Tensor

    def __init__(self, head: NoveltyHead) -> None:
        super().__init__()
        self.scale = head.scale
        self.register_buffer("weight", head.prototypes[:, :, None, None].clone())
        self.register_buffer("ones", torch.ones(1, head.prototypes.shape[1], 1, 1))

    def forward(self, stage: Tensor, linear_logits: Tensor) -> Tensor:
        """(B, D, y, x) and (B, C, Y, X) -> (B, 1, Y, X) in [0, 1]."""
        features = stage.float()
        length = nn.functional.conv2d(features * features, self.ones).sqrt().clamp(min=1e-12)
        cosine = nn.functional.conv2d(features, self.weight).amax(1, keepdim=True) / length
        distance = 1 - enlarge(cosine, (linear_logits.shape[-2], linear_logits.shape[-1]))
        doubt = 1 - top_probability(linear_logits).unsqueeze(1)
        (middle, deviation), (usual, width) = self.scale.distance, self.scale.doubt
        return ((distance - middle) / deviation + (doubt - usual) / width - self.scale.threshold).sigmoid()


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
        self.novelty = None if segmenter.novelty is None else FoldedNovelty(segmenter.novelty)
        self.head, self.layout = head, layout

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what ``forward`` returns, in its order."""
        names = [*ALL_OUTPUTS]
        for head in (*HEAD_LOGITS, *(("fused_logits",) if self.head == "fused" else ())):
            names += [head, head + STRIDE_SUFFIX]
        return (*names, *(() if self.novelty is None else (NOVELTY,)))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Image -> the tensors of ``output_names``.

        ``labels`` (B, H, W) class ids; ``confidence`` (B, H, W) the chosen head's largest probability;
        ``agreement`` (B, H, W) the linear head's probability of the label; ``prototype`` (B, Y, X) the
        nearest prototype's flat index ``c * K + k``; ``embedding`` (B, D, Y, X) unit length; ``logits``
        (B, C, H, W) of the chosen head; ``similarity`` (B, C, Y, X) cosine with the nearest prototype of each
        class, -1 for a class without prototypes; then scores of each head at the padded size and at the
        decoder's stride. ``fused_logits`` is the logarithm of the mean probability. ``novelty`` (B, H, W) in
        [0, 1] comes last, where it was fitted.
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
        if self.head == "fused":
            of_linear = probabilities(linear)
            fused = (of_linear + probabilities(prototype)) / 2
            labels, confidence = fused.argmax(1), fused.amax(1)
            agreement = of_linear.gather(1, labels.unsqueeze(1)).squeeze(1)
            chosen = fused.clamp(min=1e-30).log()
            fused_low = (probabilities(linear_low) + probabilities(prototype_low)) / 2
            extra = (chosen, fused_low.clamp(min=1e-30).log())
        else:
            chosen = linear if self.head == "linear" else prototype
            labels, confidence = chosen.argmax(1), top_probability(chosen)
            agreement = confidence if self.head == "linear" else probability_of(linear, labels)
        if self.novelty is not None:
            novelty = enlarge(self.novelty(output.stage, linear_low), size)[:, 0, :height, :width]
            extra = (*extra, novelty)
        # the cast comes last: TensorRT takes uint8 as an output and nowhere else
        labels = labels[:, :height, :width].to(label_dtype(linear.shape[1]))
        nearest = (scores + self.prototypes.offset).argmax(1).to(label_dtype(scores.shape[1]))
        embedding = features / self.prototypes.norm(features)
        return (
            labels, confidence[:, :height, :width], agreement[:, :height, :width],
            nearest, embedding, chosen[..., :height, :width], self.prototypes.similarity(scores),
            linear, linear_low, prototype, prototype_low,
            *extra,
        )  # fmt: skip
