"""In which precision and memory layout a training computes, where its settings leave that open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

LAUNCHER = "ACCELERATE_MIXED_PRECISION"
CPU_PRODUCTS = ("avx512_bf16", "amx_bf16")
CPU_HINT = (
    "this processor computes bfloat16: train.mixed_precision=bf16 train.channels_last=true make a step about "
    "1.7 times as fast (train.mixed_precision=no ends this line)"
)


def computes_bf16(device: torch.device) -> bool:
    """Whether a CUDA device has bfloat16 in its tensor cores; those before Ampere only imitate it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def precision(
    wanted: str | None, device: torch.device, environment: Mapping[str, str] = os.environ
) -> str | None:
    """The precision to ask accelerate for.

    Args:
        wanted: ``train.mixed_precision``; it always wins.
        device: What this process computes on.
        environment: ``accelerate launch`` says there what its flag or file asks for, and ``no`` if these are
            silent: a ``no`` is nobody's wish.

    Returns:
        None where accelerate is to do what its launcher says, or nothing.
    """
    launched = environment.get(LAUNCHER, "no").lower() != "no"
    return "bf16" if wanted is None and not launched and computes_bf16(device) else wanted


def channels_last(wanted: bool | None, device: torch.device) -> bool:
    """Whether networks have the memory layout that tensor cores want; ``wanted`` is the setting."""
    return computes_bf16(device) if wanted is None else wanted


def cpu_hint(wanted: str | None, device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What to tell who trains on a CPU whose bfloat16 products nobody has decided about; else nothing.

    Args:
        wanted: ``train.mixed_precision``.
        device: What this process computes on.
        cpuinfo: Where Linux lists what processors can do.
    """
    if device.type != "cpu" or wanted is not None or os.environ.get(LAUNCHER, "no").lower() != "no":
        return ""
    try:
        flags = cpuinfo.read_text().partition("flags")[2].split("\n", 1)[0].split()
    except OSError:
        return ""
    return CPU_HINT if set(CPU_PRODUCTS) & set(flags) else ""
