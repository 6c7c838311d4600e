"""The maths of a step on a tiny network: every setting, and what must never happen."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_step import batches, context_of
from tiny import tiny_config

from protoseg.errors import DataError
from protoseg.method.points import features_at
from protoseg.method.prototype_start import labeled_features
from protoseg.method.step import (
    Phase,
    Points,
    believe,
    compute_step,
    label_with_teacher,
    prototype_weight,
)
from protoseg.method.teacher import make_teacher
from protoseg.models.segmenter import build_segmenter
from protoseg.train.loop import update_prototypes

ON = Phase(unlabeled=True, prototypes=True, prototype_weight=1.0)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"method": {"preset": "prototype"}},
        {"method": {"preset": "fixmatch"}},
        {"method": {"preset": "unimatch_v2"}},
        {"views": {"strong_views": 2, "complementary_dropout": True}},
        {"views": {"mixing": "classmix", "mixing_partner": "flip", "mixing_per_image": True}},
        {"views": {"mixing": "cutout"}},
        {"views": {"mixing": "none"}},
        {"pseudo_labels": {"per_class": True}},
        {"pseudo_labels": {"agreement": "heads", "source": "fused"}},
        {"pseudo_labels": {"normalization": "masked"}},
        {"pseudo_labels": {"normalization": "u2pl"}},
        {"prototypes": {"pooling": "logsumexp", "sampling": "grid", "projection": "linear"}},
        {"prototypes": {"projection": "none", "per_image_positions": False, "sampling": "grid"}},
        {"prototypes": {"update_from": "labeled", "detach": True}},
        {"prototypes": {"update_features": "teacher"}},
        {"prototypes": {"reweight": True}},
        {"prototypes": {"reweight": True, "sampling": "grid"}},
        {"loss": {"ohem": True, "ohem_min_kept": 50}},
        {"model": {"aux_weight": 0.4, "linear_head": "conv3x3", "linear_head_channels": 16}},
    ],
    ids=lambda s: "-".join(f"{k}.{j}" for v in [s] for k, d in v.items() for j in d) or "default",
)
def test_every_setting_gives_a_finite_loss_and_gradients(sections):
    context = context_of(**sections)
    phase = ON if context.config.method.prototypes else Phase(True, False, 0.0)
    labeled, unlabeled = batches(context.config.views.strong_views)
    result = compute_step(context, labeled, unlabeled, phase, (3,))
    assert result.loss.isfinite()
    result.loss.backward()
    for name, parameter in context.network.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), name
    if result.points is not None:
        features, classes, similarity = result.points
        assert not features.requires_grad
        before = context.bank.prototypes.clone()
        context.bank.update(features, classes, similarity=similarity)
        assert not torch.equal(before, context.bank.prototypes)


def test_total_is_the_weighted_sum_of_its_parts():
    context = context_of(loss={"unsupervised_weight": 0.5})
    result = compute_step(context, *batches(), Phase(True, True, 0.25), (3,))
    parts = result.parts
    expected = (
        parts["loss/sup_linear"] + 0.5 * parts["loss/uns_linear"]
        + 0.25 * (parts["loss/sup_prototype"] + parts["loss/uns_prototype"])
    )  # fmt: skip
    torch.testing.assert_close(parts["loss/total"], expected)


def test_detached_prototype_losses_leave_the_network_alone():
    gradients = []
    for weight in (0.0, 5.0):
        context = context_of(prototypes={"detach": True, "projection": "none"})
        result = compute_step(context, *batches(), Phase(True, True, weight), (3,))
        result.loss.backward()
        gradients.append([p.grad.clone() for p in context.network.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_padding_is_never_a_pseudo_label():
    context = context_of(pseudo_labels={"threshold": 0.0}, views={"mixing": "none"})
    labeled, unlabeled = batches()
    labels = label_with_teacher(context, unlabeled["weak"], ON)
    believed = believe(context, labels.pseudo_label, labels.confidence, unlabeled["valid"])
    assert torch.equal(believed, unlabeled["valid"])
    unlabeled["valid"][:] = False
    result = compute_step(context, labeled, unlabeled, ON, (3,))
    assert result.parts["loss/uns_linear"] == 0
    assert result.parts["loss/uns_prototype"] == 0
    assert result.loss.isfinite()


def test_nothing_labelled_and_nothing_believed_is_a_zero_loss():
    context = context_of(pseudo_labels={"threshold": 1.0})
    labeled, unlabeled = batches()
    labeled["target"][:] = 255
    result = compute_step(context, labeled, unlabeled, ON, (3,))
    assert result.loss == 0
    result.loss.backward()


def test_an_inactive_class_is_no_target_and_starts_with_its_first_pixels():
    context = context_of()
    context.bank.active[2] = False
    result = compute_step(context, *batches(), ON, (3,))
    assert result.loss.isfinite()
    assert result.loss < 50  # the masked logit is no target, or the loss would be about 40 for its pixels
    features, classes, similarity = result.points
    assert (classes == 2).any()
    context.bank.update(features, classes, similarity=similarity)
    assert context.bank.active.all()


@pytest.mark.parametrize(("views", "expected"), [(1, 2 * 2), (2, 3 * 2)])
def test_encoder_cost_of_a_step(views, expected):
    context = context_of(views={"strong_views": views})
    seen = {"student": 0, "teacher": 0}

    def count(name):
        return lambda _, args: seen.__setitem__(name, seen[name] + len(args[0]))

    context.network.backbone.encoder.register_forward_pre_hook(count("student"))
    context.teacher.backbone.encoder.register_forward_pre_hook(count("teacher"))
    compute_step(context, *batches(views), ON, (3,))
    assert seen == {"student": expected, "teacher": 2}


def test_a_step_is_a_function_of_its_position():
    results = []
    for key in ((3,), (3,), (4,)):
        context = context_of(views={"mixing_probability": 1.0})
        torch.manual_seed(5)
        results.append(compute_step(context, *batches(), ON, key).parts["loss/total"])
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_teacher_gates():
    plain = context_of(pseudo_labels={"threshold": 0.0})
    gated = context_of(pseudo_labels={"threshold": 0.0, "agreement": "heads"})
    _, unlabeled = batches()
    everywhere = label_with_teacher(plain, unlabeled["weak"], ON).confidence
    some = label_with_teacher(gated, unlabeled["weak"], ON)
    refused = some.confidence == 0
    assert refused.any()
    assert torch.equal(some.confidence[~refused], everywhere[~refused])
    # a threshold of 0 does not let through what the gate refuses
    believed = believe(gated, some.pseudo_label, some.confidence, unlabeled["valid"])
    assert torch.equal(believed, unlabeled["valid"] & ~refused)


def test_micro_steps_move_prototypes_once():
    """Points of two micro-steps do what the same points do in one."""
    one, two = context_of(), context_of()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(40, one.bank.dim, generator=generator)
    classes = torch.arange(40) % 5
    similarity = one.bank.similarity(features)
    update_prototypes(one, [Points(features, classes, similarity)], 0)
    halves = [Points(features[part], classes[part], similarity[part]) for part in (slice(15), slice(15, 40))]
    update_prototypes(two, halves, 0)
    torch.testing.assert_close(two.bank.prototypes, one.bank.prototypes)
    assert torch.equal(two.bank.updates, one.bank.updates)
    assert torch.equal(two.bank.idle, one.bank.idle)


@pytest.mark.parametrize(("since", "expected"), [(-1, 0.0), (0, 0.0), (50, 0.4), (100, 0.8), (1000, 0.8)])
def test_weight_ramp(since, expected):
    config = tiny_config(prototypes={"weight": 0.8, "weight_ramp": 100})
    assert prototype_weight(config, since) == pytest.approx(expected)


def test_class_weights_reach_the_unlabelled_loss():
    """The only believed class has weight 3, so the unlabelled linear loss is three times as large."""
    labeled, unlabeled = batches()
    sections = {
        "method": {"preset": "fixmatch"},
        "pseudo_labels": {"threshold": 0.0},
        "views": {"mixing": "none"},
    }
    plain = context_of(**sections)
    with torch.no_grad():
        plain.network.linear_head[-1].bias.copy_(torch.tensor([50.0, 0, 0, 0, 0]))  # the teacher sees class 0
    plain = replace(plain, teacher=make_teacher(plain.network))
    weighted = replace(plain, class_weights=torch.tensor([3.0, 1, 1, 1, 1]))
    phase = Phase(unlabeled=True, prototypes=False, prototype_weight=0.0)
    losses = []
    for context in (plain, weighted):
        context.network.eval()  # no dropout, no batch statistics: the forward passes are equal
        with torch.no_grad():
            context.network.linear_head[-1].bias.zero_()
        losses.append(compute_step(context, labeled, unlabeled, phase, (0,)).parts["loss/uns_linear"])
    assert losses[0] > 0
    torch.testing.assert_close(losses[1], 3 * losses[0])


@pytest.mark.parametrize("reweight", [True, False])
def test_reweighted_points_give_the_loss_of_all_pixels(reweight):
    """The prototype loss of drawn points is that of the dense prototype logits, with the class weights."""
    sections = {"sampling": "balanced", "grid": 128, "reweight": reweight}
    context = replace(context_of(prototypes=sections), class_weights=torch.tensor([0.2, 2.0, 1.0, 1.0, 3.0]))
    context.network.eval()
    labeled, _ = batches()
    target = labeled["target"]
    target[target == 3] = 0  # shares that differ
    target[1, 16:] = 4
    drawn = compute_step(context, labeled, None, Phase(False, True, 1.0), (0,)).parts["loss/sup_prototype"]
    with torch.no_grad():
        features = context.network(labeled["image"]).features
        index = torch.arange(32 * 32).expand(2, -1)
        z = features_at(features, index, 32, context.network.padded_size(32, 32)).flatten(0, 1)
        logits = context.bank.point_logits(z)
        dense = torch.nn.functional.cross_entropy(
            logits, target.flatten(), weight=context.class_weights, ignore_index=255
        )
    assert torch.isclose(drawn, dense, rtol=0.03) == reweight


def test_k_means_passes_over_what_cannot_be_used_where_training_does():
    """Image 1 does not open, and the mask of image 2 is smaller than the image."""
    config = tiny_config(data={"on_error": "skip"})
    network = build_segmenter(config.model, config.prototypes, num_classes=5).network

    class Source:
        source = SimpleNamespace(name=lambda index: f"image{index}.png")

        def __len__(self):
            return 3

        def image(self, index):
            if index == 1:
                raise DataError("image1.png cannot be decoded")
            return np.full((40, 48, 3), 100, np.uint8)

        def mask(self, index):
            return np.full((40 if index == 0 else 30, 48), index, np.uint8)

    given = {"num_classes": 5, "device": torch.device("cpu")}
    found = labeled_features(network, Source(), config, **given, rng=np.random.default_rng(0))
    assert set(found) == {0}
    strict = tiny_config(data={"on_error": "raise"})
    with pytest.raises(DataError, match="image1"):
        labeled_features(network, Source(), strict, **given, rng=np.random.default_rng(0))
