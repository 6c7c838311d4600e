"""The exported module says what the checkpoint says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from tiny import tiny_config, tiny_segmenter
from torch import nn

from export.graph.module import (
    ExportModule,
    FoldedPrototypes,
    label_dtype,
    probabilities,
    probability_of,
    top_probability,
)
from export.graph.prepare import StaticSameConv, StaticSamePool, prepare_network
from export.proof.reference import TorchRunner
from protoseg.checkpoint import Checkpoint
from protoseg.manifest import Head
from protoseg.method.pseudo_labels import fuse, label_probability
from protoseg.models.prototypes import PrototypeBank
from protoseg.models.segmenter import build_segmenter


def make_bank(pooling: Any = "max", active: int = 3) -> PrototypeBank:
    bank = PrototypeBank(3, 2, 5, temperature=0.2, pooling=pooling)
    generator = torch.Generator().manual_seed(1)
    bank.start({c: torch.randn(2, 5, generator=generator) for c in range(active)})
    return bank


@pytest.mark.parametrize("pooling", ["max", "logsumexp"])
@pytest.mark.parametrize("active", [2, 3])
def test_folded_prototypes_equal_the_bank(pooling: str, active: int) -> None:
    bank = make_bank(pooling, active)
    features = 7 * torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(2))
    logits, _ = FoldedPrototypes(bank)(features)
    torch.testing.assert_close(logits, bank.dense_logits(features), rtol=0, atol=1e-5)


def test_unnormalised_prototypes_are_normalised_once() -> None:
    bank = make_bank()
    features = torch.randn(1, 5, 2, 2)
    expected = bank.dense_logits(features)
    bank.prototypes.mul_(3.0)
    torch.testing.assert_close(FoldedPrototypes(bank)(features)[0], expected, rtol=0, atol=1e-5)


def test_zero_features_give_no_nan() -> None:
    bank = make_bank()
    logits, scores = FoldedPrototypes(bank)(torch.zeros(1, 5, 2, 2))
    assert torch.equal(scores, torch.zeros_like(scores))
    assert torch.equal(logits, torch.zeros_like(logits))


def test_probabilities_are_softmax() -> None:
    logits = 30 * torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(probabilities(logits), logits.softmax(1))
    torch.testing.assert_close(top_probability(logits), logits.softmax(1).amax(1))


def test_agreement_follows_the_training_definition() -> None:
    logits = 30 * torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(4))
    labels = torch.randint(0, 4, (2, 3, 5), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(probability_of(logits, labels), label_probability(logits, labels))
    # by hand: p = (.75, .25)
    one = torch.tensor([3.0, 1.0]).log().view(1, 2, 1, 1)
    for label, expected in ((0, 0.75), (1, 0.25)):
        assert probability_of(one, torch.full((1, 1, 1), label)).item() == pytest.approx(expected)


@pytest.mark.parametrize("head", ["linear", "prototype", "fused"])
def test_agreement_is_the_linear_heads_probability_of_the_label(head: Head) -> None:
    segmenter = tiny_segmenter(num_classes=4)
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    module = ExportModule(segmenter, head).eval()
    with torch.no_grad():
        found = dict(zip(module.output_names, module(image), strict=True))
        linear = segmenter(image).linear_logits.softmax(1)
    expected = linear.gather(1, found["labels"].long()[:, None])[:, 0]
    torch.testing.assert_close(found["agreement"], expected, rtol=0, atol=1e-5)
    if head == "linear":
        torch.testing.assert_close(found["agreement"], found["confidence"])
    else:
        assert (found["agreement"] - found["confidence"]).abs().max() > 1e-3


@pytest.mark.parametrize("feature", ["stage3", "stage4"])
def test_prototypes_on_an_encoder_stage_are_exported_at_the_decoders_size(feature: str) -> None:
    config = tiny_config(prototypes={"feature": feature})
    torch.manual_seed(0)
    segmenter = build_segmenter(config.model, config.prototypes, num_classes=3).eval()
    bank = segmenter.bank
    bank.start({c: torch.randn(bank.num_prototypes, bank.dim) for c in range(3)})
    image = torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8)
    module = ExportModule(segmenter, "fused").eval()
    with torch.no_grad():
        found = dict(zip(module.output_names, module(image), strict=True))
        expected = segmenter(image)
    assert found["prototype_logits_stride"].shape == found["linear_logits_stride"].shape
    wanted = fuse(expected.linear_logits, expected.prototype_logits)
    torch.testing.assert_close(found["confidence"], wanted.amax(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("count", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int32)])
def test_label_type_is_the_smallest_that_fits(count: int, dtype: torch.dtype) -> None:
    assert label_dtype(count) is dtype


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_static_same_padding_equals_the_dynamic_rule(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    conv = Conv2dSame(2, 3, kernel, stride=stride, dilation=dilation)
    for size in ((8, 8), (4, 14), (32, 6)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(StaticSameConv(conv)(x), conv(x))


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_static_pooling_equals_the_dynamic_rule(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    for pool in (
        AvgPool2dSame(kernel, stride, ceil_mode=True, count_include_pad=False), MaxPool2dSame(kernel, stride),
    ):  # fmt: skip
        for size in ((8, 8), (4, 14), (32, 6)):
            x = torch.randn(1, 2, *size)
            torch.testing.assert_close(StaticSamePool(pool)(x), pool(x))


def test_preparing_leaves_the_original_alone(checkpoint: Checkpoint) -> None:
    before = [type(m) for m in checkpoint.segmenter.modules()]
    prepare_network(checkpoint.segmenter)
    assert [type(m) for m in checkpoint.segmenter.modules()] == before


@pytest.mark.parametrize("head", ["linear", "prototype", "fused"])
@pytest.mark.parametrize("size", [(64, 96), (33, 41)])
def test_module_equals_the_checkpoint(checkpoint: Checkpoint, head: Any, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    expected = TorchRunner(checkpoint.segmenter, head)(image)
    module = ExportModule(prepare_network(checkpoint.segmenter), head).eval()
    with torch.no_grad():
        found = dict(zip(module.output_names, module(torch.from_numpy(image)), strict=True))
    assert (found["labels"].numpy() == expected["labels"]).mean() > 0.9999
    compared = ("confidence", "agreement", "similarity", "linear_logits_stride", "prototype_logits_stride")
    for name in compared:
        np.testing.assert_allclose(found[name].numpy(), expected[name], atol=2e-5, err_msg=name)
    assert found["logits"].shape == (2, 4, *size)
    assert torch.equal(found["logits"].argmax(1).to(torch.uint8), found["labels"])


@pytest.mark.parametrize("layout", ["uint8_nhwc", "float32_nchw"])
def test_layouts_give_the_same(checkpoint: Checkpoint, layout: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8, generator=generator)
    other = image.permute(0, 2, 3, 1).contiguous() if layout == "uint8_nhwc" else image.float()
    prepared = prepare_network(checkpoint.segmenter)
    with torch.no_grad():
        plain = ExportModule(prepared)(image)
        changed = ExportModule(prepared, layout=layout)(other)
    for first, second in zip(plain, changed, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_embedding_and_nearest_prototype(checkpoint: Checkpoint) -> None:
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    module = ExportModule(checkpoint.segmenter).eval()
    with torch.no_grad():
        found = dict(zip(module.output_names, module(image), strict=True))
        features = checkpoint.segmenter.network(image).features
        cosine = checkpoint.segmenter.bank.similarity_map(features).flatten(1, 2)
    torch.testing.assert_close(found["embedding"], F.normalize(features, dim=1), rtol=0, atol=1e-5)
    nearest = cosine.gather(1, found["prototype"].long()[:, None])[:, 0]
    torch.testing.assert_close(nearest, cosine.amax(1), rtol=0, atol=1e-5)


def test_prototypes_of_absent_classes_are_never_nearest() -> None:
    bank = make_bank(active=2)
    module = FoldedPrototypes(bank)
    _, scores = module(-bank.prototypes[0, 0].view(1, 5, 1, 1))
    assert int((scores + module.offset).argmax(1)) < 4


@pytest.mark.parametrize("pooling", ["max", "logsumexp"])
def test_similarity_is_the_cosine_with_each_classs_nearest_prototype(pooling: str) -> None:
    bank = make_bank(pooling, active=2)
    features = 7 * torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(2))
    module = FoldedPrototypes(bank)
    found = module.similarity(module(features)[1])
    torch.testing.assert_close(found[:, :2], bank.nearest_map(features)[:, :2], rtol=0, atol=1e-5)
    assert (found[:, 2] == -1).all()  # a class without prototypes is like nothing


def test_reference_leaves_out_what_needs_prototypes(checkpoint: Checkpoint) -> None:
    from copy import deepcopy

    segmenter = deepcopy(checkpoint.segmenter)
    segmenter.bank.start({})
    outputs = TorchRunner(segmenter, "linear")(np.zeros((1, 3, 32, 32), np.uint8))
    assert set(outputs) == {"labels", "confidence", "linear_logits", "linear_logits_stride"}
    assert isinstance(segmenter, nn.Module)
