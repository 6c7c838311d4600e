"""The maths of a step on a tiny network: every setting, and what must never happen."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_step import ON, batches, run_step, step_of
from tiny import tiny_config

from protoseg.config.plan import Phase
from protoseg.errors import DataError
from protoseg.method.labelling import believe, label_with_teacher
from protoseg.method.points import features_at
from protoseg.method.prototype_branch import Points, move_prototypes
from protoseg.method.prototype_start import labeled_features
from protoseg.method.teacher import make_teacher
from protoseg.models.segmenter import build_segmenter


def believed_of(networks, method, unlabeled):
    """What the teacher says about the weak views, and what is believed of it."""
    labels = label_with_teacher(
        networks.teacher, networks.bank, unlabeled["weak"], method.pseudo_labels, prototypes=True
    )
    return labels, believe(
        method.pseudo_labels, networks.thresholds, labels.label, labels.confidence, unlabeled["valid"]
    )


def same(value):
    return value


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
        {"prototypes": {"consistency": 0.1}},
        {"prototypes": {"consistency": 1.0, "consistency_pixels": "believed"}, "views": {"strong_views": 2}},
        {"prototypes": {"update_from": "clean"}},
        {"prototypes": {"feature": "stage3"}},
        {"prototypes": {"feature": "stage4", "projection": "linear"}},
        {"pseudo_labels": {"source": "reweighted", "distance_temperature": 0.2}},
        {"prototypes": {"reweight": True, "sampling": "grid"}},
        {"loss": {"ohem": True, "ohem_min_kept": 50}},
        {"model": {"aux_weight": 0.4, "linear_head": "conv3x3", "linear_head_channels": 16}},
    ],
    ids=lambda s: "-".join(f"{k}.{j}" for v in [s] for k, d in v.items() for j in d) or "default",
)
def test_every_setting_gives_a_finite_loss_and_gradients(sections):
    networks, method = step_of(**sections)
    prototypes = sections.get("method", {}).get("preset", "protoseg") in ("protoseg", "prototype")
    phase = ON if prototypes else Phase(True, False, 0.0)
    labeled, unlabeled = batches(method.views.strong_views)
    result = run_step(networks, method, labeled, unlabeled, phase)
    assert result.loss.isfinite()
    result.loss.backward()
    for name, parameter in networks.network.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), name
    if result.points is not None:
        features, classes, similarity = result.points
        assert not features.requires_grad
        before = networks.bank.prototypes.clone()
        networks.bank.update(features, classes, similarity=similarity)
        assert not torch.equal(before, networks.bank.prototypes)


def test_total_is_the_weighted_sum_of_its_parts():
    networks, method = step_of(loss={"unsupervised_weight": 0.5})
    result = run_step(networks, method, *batches(), Phase(True, True, 0.25))
    parts = result.parts
    expected = (
        parts["loss/sup_linear"] + 0.5 * parts["loss/uns_linear"]
        + 0.25 * (parts["loss/sup_prototype"] + parts["loss/uns_prototype"])
    )  # fmt: skip
    torch.testing.assert_close(parts["loss/total"], expected)


def test_detached_prototype_losses_leave_the_network_alone():
    gradients = []
    for weight in (0.0, 5.0):
        networks, method = step_of(prototypes={"detach": True, "projection": "none"})
        result = run_step(networks, method, *batches(), Phase(True, True, weight))
        result.loss.backward()
        gradients.append([p.grad.clone() for p in networks.network.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_padding_is_never_a_pseudo_label():
    networks, method = step_of(pseudo_labels={"threshold": 0.0}, views={"mixing": "none"})
    labeled, unlabeled = batches()
    believed = believed_of(networks, method, unlabeled)[1]
    assert torch.equal(believed, unlabeled["valid"])
    unlabeled["valid"][:] = False
    result = run_step(networks, method, labeled, unlabeled)
    assert result.parts["loss/uns_linear"] == 0
    assert result.parts["loss/uns_prototype"] == 0
    assert result.loss.isfinite()


def test_nothing_labelled_and_nothing_believed_is_a_zero_loss():
    networks, method = step_of(pseudo_labels={"threshold": 1.0})
    labeled, unlabeled = batches()
    labeled["target"][:] = 255
    result = run_step(networks, method, labeled, unlabeled)
    assert result.loss == 0
    result.loss.backward()


def test_an_inactive_class_is_no_target_and_starts_with_its_first_pixels():
    networks, method = step_of()
    networks.bank.active[2] = False
    result = run_step(networks, method, *batches())
    assert result.loss.isfinite()
    assert result.loss < 50  # the masked logit is no target, or the loss would be about 40 for its pixels
    features, classes, similarity = result.points
    assert (classes == 2).any()
    networks.bank.update(features, classes, similarity=similarity)
    assert networks.bank.active.all()


@pytest.mark.parametrize(("views", "expected"), [(1, 2 * 2), (2, 3 * 2)])
def test_encoder_cost_of_a_step(views, expected):
    networks, method = step_of(views={"strong_views": views})
    seen = {"student": 0, "teacher": 0}

    def count(name):
        return lambda _, args: seen.__setitem__(name, seen[name] + len(args[0]))

    networks.network.backbone.encoder.register_forward_pre_hook(count("student"))
    networks.teacher.backbone.encoder.register_forward_pre_hook(count("teacher"))
    run_step(networks, method, *batches(views))
    assert seen == {"student": expected, "teacher": 2}


def test_a_step_is_a_function_of_its_position():
    results = []
    for number in (3, 3, 4):
        networks, method = step_of(views={"mixing_probability": 1.0})
        torch.manual_seed(5)
        results.append(run_step(networks, method, *batches(), number=number).parts["loss/total"])
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_teacher_gates():
    plain = step_of(pseudo_labels={"threshold": 0.0})
    gated = step_of(pseudo_labels={"threshold": 0.0, "agreement": "heads"})
    _, unlabeled = batches()
    everywhere = believed_of(*plain, unlabeled)[0].confidence
    some, believed = believed_of(*gated, unlabeled)
    refused = some.confidence == 0
    assert refused.any()
    assert torch.equal(some.confidence[~refused], everywhere[~refused])
    # a threshold of 0 does not let through what the gate refuses
    assert torch.equal(believed, unlabeled["valid"] & ~refused)


def test_micro_steps_move_prototypes_once():
    """Points of two micro-steps do what the same points do in one."""
    (one, method), (two, _) = step_of(), step_of()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(40, one.bank.dim, generator=generator)
    classes = torch.arange(40) % 5
    similarity = one.bank.similarity(features)
    move_prototypes(one.bank, [Points(features, classes, similarity)], method.prototypes, 0, same)
    halves = [Points(features[part], classes[part], similarity[part]) for part in (slice(15), slice(15, 40))]
    move_prototypes(two.bank, [halves[0], None, halves[1]], method.prototypes, 0, same)
    torch.testing.assert_close(two.bank.prototypes, one.bank.prototypes)
    assert torch.equal(two.bank.updates, one.bank.updates)
    assert torch.equal(two.bank.idle, one.bank.idle)


def test_per_class_thresholds_follow_the_confidence_of_the_teacher():
    networks, method = step_of(pseudo_labels={"threshold": 0.0, "per_class": True})
    assert (networks.thresholds.mean == 1).all()
    labeled, unlabeled = batches()
    labels = believed_of(networks, method, unlabeled)[0]
    seen = labels.label[unlabeled["valid"]].unique()
    run_step(networks, method, labeled, unlabeled)
    assert (networks.thresholds.mean[seen] < 1).all()


def test_class_weights_reach_the_unlabelled_loss():
    """The only believed class has weight 3, so the unlabelled linear loss is three times as large."""
    labeled, unlabeled = batches()
    sections = {
        "method": {"preset": "fixmatch"},
        "pseudo_labels": {"threshold": 0.0},
        "views": {"mixing": "none"},
    }
    networks, method = step_of(**sections)
    with torch.no_grad():
        networks.network.linear_head[-1].bias.copy_(
            torch.tensor([50.0, 0, 0, 0, 0])
        )  # the teacher sees class 0
    networks = replace(networks, teacher=make_teacher(networks.network))
    weighted = replace(method, class_weights=torch.tensor([3.0, 1, 1, 1, 1]))
    phase = Phase(unlabeled=True, prototypes=False, prototype_weight=0.0)
    losses = []
    for settings in (method, weighted):
        networks.network.eval()  # no dropout, no batch statistics: the forward passes are equal
        with torch.no_grad():
            networks.network.linear_head[-1].bias.zero_()
        losses.append(run_step(networks, settings, labeled, unlabeled, phase, 0).parts["loss/uns_linear"])
    assert losses[0] > 0
    torch.testing.assert_close(losses[1], 3 * losses[0])


@pytest.mark.parametrize("reweight", [True, False])
def test_reweighted_points_give_the_loss_of_all_pixels(reweight):
    """The prototype loss of drawn points is that of the dense prototype logits, with the class weights."""
    sections = {"sampling": "balanced", "grid": 128, "reweight": reweight}
    weights = torch.tensor([0.2, 2.0, 1.0, 1.0, 3.0])
    networks, method = step_of(weights, prototypes=sections)
    networks.network.eval()
    labeled, _ = batches()
    target = labeled["target"]
    target[target == 3] = 0  # shares that differ
    target[1, 16:] = 4
    drawn = run_step(networks, method, labeled, None, Phase(False, True, 1.0), 0).parts["loss/sup_prototype"]
    with torch.no_grad():
        features = networks.network(labeled["image"]).features
        index = torch.arange(32 * 32).expand(2, -1)
        z = features_at(features, index, 32, networks.network.padded_size(32, 32)).flatten(0, 1)
        logits = networks.bank.pool(networks.bank.similarity(z))
        dense = torch.nn.functional.cross_entropy(logits, target.flatten(), weight=weights, ignore_index=255)
    assert torch.isclose(drawn, dense, rtol=0.03) == reweight


def test_k_means_passes_over_what_cannot_be_used_where_training_does():
    """Image 1 does not open, and the mask of image 2 is smaller than the image."""
    config = tiny_config()
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

    given = {"num_classes": 5, "ignore_index": 255, "device": torch.device("cpu")}
    rng = np.random.default_rng(0)
    found = labeled_features(network, Source(), config.prototypes, **given, on_error="skip", rng=rng)
    assert set(found) == {0}
    with pytest.raises(DataError, match="image1"):
        labeled_features(network, Source(), config.prototypes, **given, on_error="raise", rng=rng)
