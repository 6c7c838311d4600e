"""What ``method.preset`` and ``model.preset`` set; every key of a file still overrides it."""

from __future__ import annotations

from typing import Any

METHOD_PRESETS: dict[str, dict[str, Any]] = {
    "supervised": {"method": {"unlabeled": False, "prototypes": False}},
    "fixmatch": {"method": {"unlabeled": True, "prototypes": False}},
    "prototype": {"method": {"unlabeled": True, "prototypes": True}},
    "unimatch_v2": {
        "method": {"unlabeled": True, "prototypes": False},
        "views": {
            "strong_views": 2, "complementary_dropout": True, "mixing_partner": "flip",
            "mixing_per_image": True,
        },
    },
    "protoseg": {
        "method": {"unlabeled": True, "prototypes": True},
        "prototypes": {
            "sampling": "balanced", "projection": "mlp", "weight": 0.5, "weight_ramp": 150,
            "momentum_ramp": True, "reweight": True,
        },
    },
}  # fmt: skip


MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "pcr_resnet101": {
        "architecture": "pcr", "encoder": "resnet101c.gluon_in1k", "output_stride": 8,
        "linear_head": "conv3x3", "linear_head_channels": 256,
    },
    "dinov2_small_dpt": {
        "architecture": "dpt", "encoder": "vit_small_patch14_dinov2.lvd142m", "decoder_channels": 64,
    },
    "dinov2_base_dpt": {
        "architecture": "dpt", "encoder": "vit_base_patch14_dinov2.lvd142m", "decoder_channels": 128,
    },
    "dinov3_small_dpt": {
        "architecture": "dpt", "encoder": "vit_small_patch16_dinov3.lvd1689m", "decoder_channels": 64,
    },
    "convnext_tiny_upernet": {
        "architecture": "upernet", "encoder": "convnext_tiny.in12k_ft_in1k", "decoder_channels": 256,
    },
    "mobilenetv4_medium": {
        "architecture": "deeplabv3plus", "encoder": "mobilenetv4_conv_medium.e500_r256_in1k",
        "decoder_channels": 128,
    },
    "regnety_1_6gf": {
        "architecture": "deeplabv3plus", "encoder": "regnety_016.tv2_in1k", "decoder_channels": 256,
    },
}  # fmt: skip


def preset_values() -> dict[str, list[tuple[str, Any]]]:
    """Dotted name of a setting -> (preset as ``method.preset=NAME``, value that it sets) of each preset."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for preset, sections in METHOD_PRESETS.items():
        for section, values in sections.items():
            for key, value in values.items():
                found.setdefault(f"{section}.{key}", []).append((f"method.preset={preset}", value))
    for preset, values in MODEL_PRESETS.items():
        for key, value in values.items():
            found.setdefault(f"model.{key}", []).append((f"model.preset={preset}", value))
    return found
