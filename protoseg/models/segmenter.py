"""The network with both heads.

Shape legend: ``B`` batch, ``C`` classes, ``K`` prototypes for each class, ``D`` feature channels,
``H W`` image, ``Y X`` feature map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from protoseg.config.method import PrototypeConfig
from protoseg.config.model import ModelConfig
from protoseg.models.decoders import build_backbone, conv_bn_relu
from protoseg.models.encoders import normalization
from protoseg.models.novelty import NoveltyHead
from protoseg.models.prototypes import PrototypeBank

AUX_STAGE = -2  # the third of four
NUM_ROW_STAGES = 2
STAGE_HEADS = "stage_heads."
"""Where a state has what classes read of the encoder's stages; the state of a training has none."""
STAGES = {"decoder": None, "stage3": -2, "stage4": -1}
"""Place among the encoder's stages of what ``prototypes.feature`` names."""


class NetworkOutput(NamedTuple):
    """What the trainable part computes, all at the decoder's stride."""

    features: Tensor
    """(B, D, Y, X) input of the prototype head, after its projection."""
    linear_logits: Tensor
    """(B, C, Y, X) scores of the linear head."""
    aux_logits: Tensor | None
    """(B, C, y, x) scores of the auxiliary head in training, or None."""
    stage: Tensor | None = None
    """(B, D', y, x) the encoder's last stage, where novelty is asked for."""


class SegmenterOutput(NamedTuple):
    """Scores of both heads."""

    linear_logits: Tensor
    """(B, C, H, W)."""
    prototype_logits: Tensor
    """(B, C, H, W); inactive classes far below the rest."""


class SegmentationNetwork(nn.Module):
    """Encoder, decoder, linear head and projection: everything that gradients reach.

    Takes images as uint8 or float in [0, 255]; normalisation is inside, so that trainer, export and
    serving cannot disagree about it.

    Args:
        config: Network settings.
        num_classes: C.
        prototypes: Prototype settings (the projection is part of the network).
        in_channels: Image channels.
        mean: Per-channel mean in [0, 1]; None takes the encoder's.
        std: Per-channel standard deviation in [0, 1]; None takes the encoder's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        prototypes: PrototypeConfig,
        *,
        in_channels: int = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        default_mean, default_std = normalization(config.encoder, config.pretrained, in_channels)
        shape = (1, in_channels, 1, 1)
        self.register_buffer("mean", 255 * torch.tensor(mean or default_mean).view(shape), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std or default_std).view(shape), persistent=False)
        self.backbone = build_backbone(config, in_channels)
        width = self.backbone.channels
        self.linear_head = _linear_head(config, width, num_classes)
        self.prototype_stage = STAGES[prototypes.feature]
        source = width if self.prototype_stage is None else self.backbone.stage_channels[self.prototype_stage]
        self.projection, self.feature_dim = _projection(prototypes, source)
        self.aux_head = (
            nn.Sequential(
                conv_bn_relu(self.backbone.stage_channels[AUX_STAGE], 256, 3),
                nn.Dropout2d(config.dropout),
                nn.Conv2d(256, num_classes, 1),
            )
            if config.aux_weight > 0
            else None
        )
        self.stage_heads = nn.ModuleList()
        self.detach_prototypes = prototypes.detach
        self.gives_stage = False
        self.freeze_bn = config.freeze_bn
        self.freeze_encoder = config.freeze_encoder
        if config.bn_momentum is not None:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = config.bn_momentum
        if config.freeze_encoder:
            self.backbone.encoder.requires_grad_(False)
        self.train(self.training)

    @property
    def stride_multiple(self) -> int:
        """Images are padded to a multiple of this, in pixels."""
        return int(self.backbone.stride_multiple)

    @property
    def stride(self) -> float:
        """Stride of the feature map in pixels."""
        return float(self.backbone.stride)

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """Training mode, except for what the settings freeze."""
        super().train(mode)
        if self.freeze_encoder:
            self.backbone.encoder.eval()
        if self.freeze_bn:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size after padding at the bottom and right to the stride multiple."""
        multiple = self.stride_multiple
        # this form, not `x + -x % m`: torch.export simplifies nested strides of a whole multiple
        return (height + multiple - 1) // multiple * multiple, (width + multiple - 1) // multiple * multiple

    def forward(self, image: Tensor, paired: int = 0, *, project: bool = True) -> NetworkOutput:
        """Images to features and linear scores.

        Args:
            image: (B, C_in, H, W) uint8 or float in [0, 255].
            paired: See ``Backbone.forward``.
            project: Without it ``features`` are what the projection would get, which takes up to a seventh of
                the time and which the linear head does not need.
        """
        height, width = image.shape[-2:]
        x = (image.to(self.mean.dtype) - self.mean) / self.std
        padded_height, padded_width = self.padded_size(height, width)
        # zero is the mean after normalisation
        x = F.pad(x, (0, padded_width - width, 0, padded_height - height))
        if self.mean.is_cuda and x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        features, stages = self.backbone(x, paired)
        aux = self.aux_head(stages[AUX_STAGE]) if self.aux_head is not None and self.training else None
        shared = features if self.prototype_stage is None else stages[self.prototype_stage]
        if project:
            projected = self.projection(shared.detach() if self.detach_prototypes else shared)
            if self.prototype_stage is not None:
                # the decoder's size, so that scores of both heads can be added wherever they are used
                projected = sized_like(projected, features)
        else:
            projected = shared
        stage = stages[-1] if self.gives_stage else None
        linear = self.linear_head(features)
        for head, read in zip(self.stage_heads, stages[-NUM_ROW_STAGES:], strict=False):
            assert isinstance(head, nn.Conv2d)
            linear = linear + sized_like(head(read.to(head.weight.dtype)), linear)
        return NetworkOutput(projected, linear, aux, stage)

    @property
    def row_stages(self) -> list[int]:
        """Channels of the encoder's stages that a class may read beside the decoder."""
        return self.backbone.stage_channels[-NUM_ROW_STAGES:]

    def use_stages(self) -> None:
        """Let classes read the encoder's last stages, too; rows of zeros leave a class as it is.

        ``protoseg adapt`` gives such rows to classes that the decoder was not trained for.
        """
        last = self.linear_head[-1]
        assert isinstance(last, nn.Conv2d)
        self.stage_heads.extend(
            nn.Conv2d(width, last.out_channels, 1, bias=False) for width in self.row_stages
        )

    @contextmanager
    def giving_stage(self) -> Iterator[None]:
        """Outputs have the encoder's last stage inside."""
        before, self.gives_stage = self.gives_stage, True
        try:
            yield
        finally:
            self.gives_stage = before

    def upsample(self, low: Tensor, height: int, width: int) -> Tensor:
        """Scores at the decoder's stride -> scores of the (unpadded) image, bilinear."""
        full = F.interpolate(low, size=self.padded_size(height, width), mode="bilinear", align_corners=False)
        return full[..., :height, :width]


class Segmenter(nn.Module):
    """Network and prototypes together: what is evaluated, saved, exported and served.

    Args:
        network: The trainable part.
        bank: The prototypes.
    """

    def __init__(self, network: SegmentationNetwork, bank: PrototypeBank) -> None:
        super().__init__()
        self.network, self.bank = network, bank
        self.novelty: NoveltyHead | None = None

    def use_novelty(self, head: NoveltyHead | None) -> None:
        """Tell novelty beside the scores from now on; None: no longer."""
        self.novelty, self.network.gives_stage = head, head is not None

    def forward(self, image: Tensor) -> SegmenterOutput:
        """(B, C_in, H, W) uint8 or float in [0, 255] -> scores of both heads at that size."""
        return self.with_novelty(image)[0]

    def with_novelty(self, image: Tensor) -> tuple[SegmenterOutput, Tensor | None]:
        """As ``forward``, with novelty (B, 1, H, W) in [0, 1] from the same pass; None where not fitted."""
        height, width = image.shape[-2:]
        linear, prototype, novelty = self.at_stride(image)
        assert prototype is not None
        scores = SegmenterOutput(
            self.network.upsample(linear, height, width), self.network.upsample(prototype, height, width)
        )
        return scores, None if novelty is None else self.network.upsample(novelty, height, width)

    def at_stride(
        self, image: Tensor, *, prototypes: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores at the decoder's stride, for ``network.upsample``.

        Args:
            image: (B, C_in, H, W) uint8 or float in [0, 255].
            prototypes: Compute the scores of that head, too.

        Returns:
            Scores of the linear head and of the prototype head, (B, C, Y, X) float32 each, and novelty
            (B, 1, Y, X) in [0, 1]; None for what is not asked for or not fitted.
        """
        output = self.network(image, project=prototypes)
        linear = output.linear_logits.float()
        prototype = self.bank.dense_logits(output.features) if prototypes else None
        return linear, prototype, None if self.novelty is None else self.novelty(output.stage, linear)


def sized_like(low: Tensor, other: Tensor) -> Tensor:
    """(B, D, y, x) -> (B, D, Y, X), as large as another map, bilinear."""
    return F.interpolate(low, size=other.shape[-2:], mode="bilinear", align_corners=False)


def _linear_head(config: ModelConfig, width: int, num_classes: int) -> nn.Sequential:
    if config.linear_head == "conv1x1":
        return nn.Sequential(nn.Dropout2d(config.dropout), nn.Conv2d(width, num_classes, 1))
    hidden = config.linear_head_channels
    return nn.Sequential(
        conv_bn_relu(width, hidden, 3),
        nn.Dropout2d(config.dropout),
        conv_bn_relu(hidden, hidden, 3),
        nn.Dropout2d(config.dropout),
        nn.Conv2d(hidden, num_classes, 1),
    )


def _projection(config: PrototypeConfig, width: int) -> tuple[nn.Module, int]:
    dim = config.projection_dim
    if config.projection == "none":
        return nn.Identity(), width
    if config.projection == "linear":
        return nn.Conv2d(width, dim, 1, bias=False), dim
    return nn.Sequential(conv_bn_relu(width, width, 1), nn.Conv2d(width, dim, 1)), dim


def build_segmenter(
    model: ModelConfig,
    prototypes: PrototypeConfig,
    *,
    num_classes: int,
    in_channels: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> Segmenter:
    """Network and an empty prototype bank.

    Raises:
        ModelError: If encoder and decoder do not fit.
        WeightsError: If pretrained weights do not fit.
    """
    network = SegmentationNetwork(model, num_classes, prototypes, in_channels=in_channels, mean=mean, std=std)
    bank = PrototypeBank(
        num_classes,
        prototypes.num_prototypes,
        network.feature_dim,
        temperature=prototypes.temperature,
        pooling=prototypes.pooling,
    )
    return Segmenter(network, bank)
