"""The tester is tested: every fault that exports are known for must fail the fp32 gate."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from export.bundle import verify_bundle
from export.calibration import checkpoint_images
from export.graph.edit import to_bytes
from export.proof.cases import make_cases
from export.proof.prove import ProbedOnnx, Setup, prove_case
from export.proof.reference import TorchRunner
from protoseg.checkpoint import Checkpoint
from protoseg.manifest import ParityCase
from protoseg.models.segmenter import Segmenter

NAMES = {"labels", "confidence", "agreement", "linear_logits", "prototype_logits"}


def judge(checkpoint: Checkpoint, candidate: Callable[[Any], dict[str, Any]]) -> ParityCase:
    info = checkpoint.info
    setup = Setup("linear", "uint8_nchw", len(info.classes), checkpoint.segmenter.bank.active.numpy(),
                  info.input.stride_multiple, info.ignore_index)  # fmt: skip
    images = checkpoint_images(info, "val", 2)
    cases = make_cases(images, info.input.crop, info.input.stride_multiple, None)[:6]
    return prove_case(
        setup, "fp32", cases, TorchRunner(checkpoint.segmenter, "linear"), candidate, expected=NAMES,
        labels=("torch", "fault"),
    )  # fmt: skip


def upsample_with(mode: str, corners: bool | None) -> Callable[[Segmenter], None]:
    def change(segmenter: Segmenter) -> None:
        def upsample(low: torch.Tensor, height: int, width: int) -> torch.Tensor:
            size = segmenter.network.padded_size(height, width)
            full = nn.functional.interpolate(low, size=size, mode=mode, align_corners=corners)
            return full[..., :height, :width]

        segmenter.network.upsample = upsample  # type: ignore[method-assign]

    return change


def swap_channels(segmenter: Segmenter) -> None:
    forward = segmenter.network.forward
    segmenter.network.forward = lambda image, paired=0: forward(image.flip(1), paired)  # type: ignore[method-assign]


def other_mean(segmenter: Segmenter) -> None:
    segmenter.network.mean += 0.02 * 255


def unscaled_mean(segmenter: Segmenter) -> None:
    segmenter.network.mean /= 255


def other_epsilon(segmenter: Segmenter) -> None:
    for module in segmenter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3 if module.eps < 5e-4 else 1e-5


def train_mode(segmenter: Segmenter) -> None:
    # the encoder alone: a 1x1 map cannot go through batch norm in training mode at all
    encoder = segmenter.network.backbone.encoder
    segmenter.eval = lambda: encoder.train() and segmenter  # type: ignore[method-assign]


def wrong_head(segmenter: Segmenter) -> None:
    network, bank = segmenter.network, segmenter.bank
    forward = network.forward
    network.forward = lambda image, paired=0: (  # type: ignore[method-assign]
        (out := forward(image, paired))._replace(linear_logits=bank.dense_logits(out.features))
    )


def moved_prototype(segmenter: Segmenter) -> None:
    moved = segmenter.bank.prototypes[1, 0] + 0.1 * torch.randn(segmenter.bank.dim)
    segmenter.bank.prototypes[1, 0] = moved / moved.norm()


def other_temperature(segmenter: Segmenter) -> None:
    segmenter.bank.temperature *= 1.01


def nan_weight(segmenter: Segmenter) -> None:
    convolution = next(m for m in segmenter.network.linear_head.modules() if isinstance(m, nn.Conv2d))
    assert convolution.bias is not None
    with torch.no_grad():
        convolution.bias[0] = float("nan")


FAULTS: dict[str, Callable[[Segmenter], None]] = {
    "align_corners": upsample_with("bilinear", True),
    "nearest": upsample_with("nearest", None),
    "bgr": swap_channels,
    "mean_0.02": other_mean,
    "mean_unscaled": unscaled_mean,
    "epsilon": other_epsilon,
    "train_mode": train_mode,
    "wrong_head": wrong_head,
    "moved_prototype": moved_prototype,
    "temperature": other_temperature,
    "nan": nan_weight,
}


def test_no_fault_passes(checkpoint: Checkpoint) -> None:
    case = judge(checkpoint, TorchRunner(deepcopy(checkpoint.segmenter), "linear"))
    assert case.failures == []
    assert case.details["vacuous"] == ""


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_fault_fails_the_gate(checkpoint: Checkpoint, name: str) -> None:
    torch.manual_seed(0)
    faulty = deepcopy(checkpoint.segmenter)
    FAULTS[name](faulty)
    case = judge(checkpoint, TorchRunner(faulty, "linear"))
    assert case.failures
    if name != "nan":
        # far outside, so that a gate fitted to rounding cannot let it through
        excess = max(
            (case.metrics[f"{head}/max_logit_diff"] or 0)
            / (3e-5 * (case.metrics[f"{head}/logit_range"] or 1))
            for head in ("linear", "prototype")
        )
        assert excess > 30


def edit_file(bundle: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> ProbedOnnx:
    model = onnx.load(str(bundle / "model.onnx"))
    change(model)
    target.write_bytes(to_bytes(model))
    return ProbedOnnx(target, "uint8_nchw")


def resize_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == "Resize" and n.input[0] == "linear_logits_stride")


def set_attribute(node: onnx.NodeProto, name: str, value: str) -> None:
    kept = [a for a in node.attribute if a.name not in (name, "nearest_mode", "cubic_coeff_a")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def flip_corners(model: onnx.ModelProto) -> None:
    set_attribute(resize_of(model), "coordinate_transformation_mode", "align_corners")


def nearest_resize(model: onnx.ModelProto) -> None:
    set_attribute(resize_of(model), "mode", "nearest")


def scale_weight(prefix: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Conv" and n.name.startswith(prefix))
        weight = next(w for w in model.graph.initializer if w.name == node.input[1])
        values = numpy_helper.to_array(weight) * np.float32(factor)
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float32), weight.name))

    return change


@pytest.mark.parametrize(
    "change",
    [flip_corners, nearest_resize, scale_weight("network.backbone", 1.001),
     scale_weight("prototypes", 1.001), scale_weight("network.backbone", float("nan"))],
    ids=["align_corners", "nearest", "weight", "prototype", "nan"],
)  # fmt: skip
def test_fault_in_the_file_fails_the_gate(
    checkpoint: Checkpoint, bundle: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    verify_bundle(bundle)
    probed = edit_file(bundle, tmp_path / "model.onnx", change)
    info = checkpoint.info
    setup = Setup("linear", "uint8_nchw", len(info.classes), checkpoint.segmenter.bank.active.numpy(),
                  info.input.stride_multiple, info.ignore_index)  # fmt: skip
    images = checkpoint_images(info, "val", 1)
    cases = make_cases(images, info.input.crop, info.input.stride_multiple, None)[:3]
    case = prove_case(
        setup, "fp32", cases, TorchRunner(checkpoint.segmenter, "linear"), probed, expected=probed.names,
        labels=("torch", "fault"),
    )  # fmt: skip
    assert case.failures
