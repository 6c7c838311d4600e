"""Encoder-decoder pairs: segmentation-models-pytorch by name, and the network of the paper."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder
from torch import Tensor, nn

from protoseg.config.model import ModelConfig
from protoseg.errors import ModelError, WeightsError
from protoseg.models.encoders import (
    check_encoder,
    load_encoder_weights,
    read_package_weights,
    read_weight_file,
)
from protoseg.processes import sent

# The architecture's own argument for the one number of decoder channels, where it has one.
CHANNEL_ARGUMENT = {
    "deeplabv3plus": "decoder_channels",
    "deeplabv3": "decoder_channels",
    "upernet": "decoder_channels",
    "segformer": "decoder_segmentation_channels",
    "fpn": "decoder_segmentation_channels",
}
STRIDE_ARGUMENT = {"deeplabv3plus", "deeplabv3"}


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class PCRDecoder(nn.Module):
    """Decoder of arXiv 2210.04388: ASPP on the last stage, joined with the first at stride 4.

    Dilations 12, 24, 36; the low-level branch keeps 256 channels; the output is the concatenation,
    2 * ``channels`` at stride 4, which both heads share.

    Args:
        encoder_channels: Channels of the stages at strides 4, 8, 8, 8.
        channels: Width of each branch.
        dropout: Dropout2d after the ASPP.
    """

    def __init__(self, encoder_channels: list[int], channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        last = encoder_channels[-1]
        self.branches = nn.ModuleList(
            [conv_bn_relu(last, channels, 1)]
            + [conv_bn_relu(last, channels, 3, dilation) for dilation in (12, 24, 36)]
        )
        self.pool = conv_bn_relu(last, channels, 1)
        self.project = nn.Sequential(conv_bn_relu(5 * channels, channels, 3), nn.Dropout2d(dropout))
        self.low_level = conv_bn_relu(encoder_channels[0], channels, 1)
        self.out_channels = 2 * channels

    def forward(self, features: list[Tensor]) -> Tensor:
        """Stage outputs -> (B, 2 * channels, H / 4, W / 4)."""
        last, low = features[-1], features[0]
        pooled = self.pool(last.mean((2, 3), keepdim=True)).expand(-1, -1, *last.shape[2:])
        joined = torch.cat([pooled, *(branch(last) for branch in self.branches)], 1)
        high = F.interpolate(self.project(joined), size=low.shape[2:], mode="bilinear")
        return torch.cat([self.low_level(low), high], 1)


class ConcatDecoder(nn.Module):
    """DeepLabV3+ without its last convolution: z is the concatenation, as in the paper."""

    def __init__(self, decoder: nn.Module, out_channels: int) -> None:
        super().__init__()
        parts = dict(decoder.named_children())
        self.aspp, self.up, self.block1 = parts["aspp"], parts["up"], parts["block1"]
        self.out_channels = out_channels

    def forward(self, features: list[Tensor]) -> Tensor:
        """Stage outputs -> (B, decoder + 48, H / 4, W / 4)."""
        high: Tensor = self.up(self.aspp(features[-1]))
        return torch.cat([high, self.block1(features[2])], 1)


class Backbone(nn.Module):
    """Encoder and decoder with what the rest needs to know about them.

    Attributes:
        channels: D, channels of the feature map.
        stride: Stride of the feature map in pixels (may be a fraction for vision transformers).
        stride_multiple: Height and width must be a multiple of this, in pixels.
        stage_channels: Channels of the encoder's stages, the last one last.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, stride_multiple: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.stride_multiple = stride_multiple
        self.channels, self.stage_channels, self.stride = self._measure()

    @torch.no_grad()
    def _measure(self) -> tuple[int, list[int], float]:
        size = 2 * self.stride_multiple
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        channels = self.in_channels
        z, stages = self(torch.zeros(1, channels, size, size))
        for module, training in modes:
            module.training = training
        return z.shape[1], [stage.shape[1] for stage in stages], size / z.shape[2]

    @property
    def in_channels(self) -> int:
        """Channels of the image that the first convolution takes."""
        first = next(m for m in self.encoder.modules() if isinstance(m, nn.Conv2d))
        return int(first.in_channels * (first.groups if first.groups > 1 else 1))

    def forward(self, image: Tensor, paired: int = 0) -> tuple[Tensor, list[Tensor]]:
        """(B, C, H, W) normalised image -> feature map (B, D, Y, X) and the encoder's stages, last one last.

        Args:
            image: Height and width multiples of ``stride_multiple``.
            paired: The last 2 * ``paired`` images are two views of the same images and get
                complementary channel dropout (UniMatch V2, arXiv 2410.10777).
        """
        output = self.encoder(image)
        if isinstance(output, tuple):  # vision transformer: feature maps and prefix tokens
            features, prefix = output
            features = complementary_dropout(features, paired) if paired else features
            return self.decoder(features, prefix), list(features)
        features = list(output)
        if paired:
            features = complementary_dropout(features, paired)
        return self.decoder(features), features


def complementary_dropout(features: list[Tensor], paired: int) -> list[Tensor]:
    """Channel mask m in {0, 2} for the first view and 2 - m for the second, half the pairs untouched.

    Args:
        features: Maps (B, D, Y, X) whose last 2 * ``paired`` entries are the views, first then second.
        paired: Images in each view.

    Returns:
        New maps; entries before the views are unchanged.
    """
    untouched = torch.randperm(paired) < paired // 2
    result = []
    for feature in features:
        batch, channels = feature.shape[:2]
        mask = 2.0 * torch.bernoulli(torch.full((paired, channels, 1, 1), 0.5))
        mask[untouched] = 1.0
        rest = torch.ones(batch - 2 * paired, channels, 1, 1)
        scale = torch.cat([rest, mask, 2.0 - mask]).to(feature.dtype)
        result.append(feature * sent(scale, feature.device))
    return result


def _smp_backbone(config: ModelConfig, in_channels: int, pretrained: bool) -> Backbone:
    arguments: dict[str, Any] = {}
    if config.decoder_channels is not None:
        name = CHANNEL_ARGUMENT.get(config.architecture)
        if name is None:
            raise ModelError(
                f"model.architecture={config.architecture} has no single number of decoder channels; "
                "leave model.decoder_channels out"
            )
        arguments[name] = config.decoder_channels
    if config.output_stride is not None and config.architecture in STRIDE_ARGUMENT:
        arguments["encoder_output_stride"] = config.output_stride
    elif config.output_stride is not None:
        raise ModelError(
            f"model.architecture={config.architecture} has a fixed stride; leave model.output_stride out"
        )
    network = smp.create_model(
        config.architecture,
        f"tu-{config.encoder}",
        encoder_weights="imagenet" if pretrained else None,
        in_channels=in_channels,
        classes=2,
        **arguments,
    )
    decoder: nn.Module = network.decoder
    if config.feature == "concat":
        decoder = ConcatDecoder(decoder, (config.decoder_channels or 256) + 48)
    return Backbone(network.encoder, decoder, 32)


def _dpt_backbone(config: ModelConfig, in_channels: int, pretrained: bool) -> Backbone:
    encoder = TimmViTEncoder(
        config.encoder, pretrained=pretrained, in_channels=in_channels, dynamic_img_size=True
    )
    # DPT reads intermediate layers; what comes after them gets no gradient, and DistributedDataParallel waits
    # for the gradient of whatever is trained
    for name in ("norm", "fc_norm", "attn_pool", "head"):
        if isinstance(part := getattr(encoder.model, name, None), nn.Module):
            part.requires_grad_(False)
    patch = int(encoder.output_stride)
    fusion = config.decoder_channels or 256
    # DPT's four scales are 4, 2, 1 and 1/2 of the patch grid; declaring stride 16 gives just that for
    # any patch size, where DINOv2's real 14 would ask for fractional factors.
    decoder = DPTDecoder(
        encoder_out_channels=encoder.out_channels,
        encoder_output_strides=[16] * len(encoder.out_channels),
        encoder_has_prefix_tokens=encoder.has_prefix_tokens,
        intermediate_channels=[fusion, fusion * 2, fusion * 4, fusion * 4],
        fusion_channels=fusion,
    )
    return Backbone(encoder, decoder, 2 * patch)


def _pcr_backbone(config: ModelConfig, in_channels: int, pretrained: bool) -> Backbone:
    encoder: Any = timm.create_model(
        config.encoder,
        features_only=True,
        output_stride=config.output_stride or 8,
        out_indices=(1, 2, 3, 4),
        in_chans=in_channels,
        pretrained=pretrained,
    )
    if config.encoder.startswith("resnet"):
        # multi-grid 1, 2, 4 on the last stage [P]
        for block, grid in zip(encoder.layer4, (1, 2, 4), strict=True):
            base = 32 // (config.output_stride or 8)
            block.conv2.dilation = block.conv2.padding = (base * grid, base * grid)
    decoder = PCRDecoder(encoder.feature_info.channels(), config.decoder_channels or 256, config.dropout)
    return Backbone(encoder, decoder, 32)


def build_backbone(config: ModelConfig, in_channels: int) -> Backbone:
    """Encoder and decoder of the configuration, with weights if it asks for any.

    Raises:
        ModelError: If encoder and decoder do not fit or weights cannot be downloaded.
        WeightsError: If given weights do not fit.
    """
    check_encoder(config.encoder, config.pretrained)
    from_hub = config.pretrained == "timm"
    build = {"pcr": _pcr_backbone, "dpt": _dpt_backbone}.get(config.architecture, _smp_backbone)
    try:
        backbone = build(config, in_channels, from_hub)
    except (ModelError, WeightsError):
        raise
    except Exception as error:
        # timm, smp and the hub client raise many types; the cause stays chained
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        hint = (
            "the weights could not be fetched or fit: check the network, or set model.pretrained to a "
            "local file"
            if from_hub
            else "choose another encoder or architecture"
        )
        raise ModelError(
            f"cannot build {config.architecture} on {config.encoder}: {cause}; {hint}"
        ) from error
    if config.pretrained in ("none", "timm"):
        return backbone
    state = (
        read_package_weights(config.encoder)
        if config.pretrained == "package"
        else read_weight_file(config.pretrained)
    )
    target = getattr(backbone.encoder, "model", backbone.encoder)
    load_encoder_weights(target, state, in_channels=in_channels, allow_missing=config.allow_missing)
    return backbone
