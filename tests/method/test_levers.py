"""Terms that are off by default, against numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_step import ON, batches, run_step, step_of

from protoseg.config.method import PrototypeConfig
from protoseg.config.plan import Phase
from protoseg.method.calibration import Calibration
from protoseg.method.losses import assignment_divergence
from protoseg.method.points import features_at
from protoseg.method.prototype_branch import assignment_loss, clean_points
from protoseg.method.pseudo_labels import reweight, unpack_labels
from protoseg.models.prototypes import PrototypeBank
from protoseg.processes import ALONE, Processes


def divergence(student, teacher, counted=(True,), present=(True, True), **temperatures):
    return assignment_divergence(
        torch.tensor(student), torch.tensor(teacher), torch.tensor(counted), torch.tensor(present),
        **{"student_temperature": 1.0, "teacher_temperature": 1.0} | temperatures,
    )  # fmt: skip


def test_assignment_divergence_by_hand():
    # softmax(1, 0) = (s, 1 - s) with s = 0.731; KL of its mirror image is (2 s - 1) * 1 = tanh(1/2)
    found = divergence([[1.0, 0.0]], [[0.0, 1.0]])
    assert found.value.item() == pytest.approx(math.tanh(0.5), abs=1e-6)
    assert divergence([[0.5, 0.0]], [[1.0, 0.0]], student_temperature=0.5).value.item() == pytest.approx(
        0, abs=1e-6
    )


def test_assignment_divergence_counts_points_and_prototypes_that_exist():
    rows = [[1.0, 0.0, 5.0], [0.3, 0.2, 0.1]]
    found = divergence(rows, [[0.0, 1.0, -5.0], [9.0, 0.0, 0.0]], (True, False), (True, True, False))
    assert found.count == 1
    assert found.value.item() == pytest.approx(math.tanh(0.5), abs=1e-6)
    nothing = divergence(rows, rows, (False, False), (True, True, True))
    assert nothing.value == 0


def test_assignment_divergence_teaches_the_student_alone():
    student, teacher = torch.zeros(1, 2, requires_grad=True), torch.tensor([[0.2, 0.0]], requires_grad=True)
    assignment_divergence(
        student, teacher, torch.tensor([True]), torch.tensor([True, True]), student_temperature=1.0,
        teacher_temperature=0.1,
    ).value.backward()  # fmt: skip
    # the gradient of a cross entropy at the student's even assignment: 1/2 - softmax(2, 0)
    share = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(student.grad, torch.tensor([[0.5 - share, share - 0.5]]))
    assert teacher.grad is None


def test_features_of_another_image():
    maps = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    index, image = torch.tensor([[0, 5, 9]]), torch.tensor([[1, 0, 1]])
    assert features_at(maps, index, 4, (4, 4), image_BN=image)[0, :, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize("world", [1, 2])
def test_a_mixed_point_is_compared_with_the_image_it_came_from(world):
    generator = torch.Generator().manual_seed(0)
    bank = PrototypeBank(3, 2, 8)
    bank.start({c: torch.randn(2, 8, generator=generator) for c in range(3)})
    weak = torch.randn(2, 8, 8, 8, generator=generator)
    source = torch.zeros(2, 8, 8, dtype=torch.int64)
    source[1] = 1
    source[:, :, 4:] = 1 - source[:, :, 4:]
    strong = torch.where(source[:, None] == 0, weak[0], weak[1])
    settings = PrototypeConfig(grid=8, consistency_temperature=0.05)

    def loss(where):
        return assignment_loss(
            bank, settings, strong, weak, where, torch.ones_like(source, dtype=torch.bool), (8, 8), batch=2,
            rng=np.random.default_rng(0), processes=Processes(0, world),
        ).value  # fmt: skip

    assert loss(source).item() == pytest.approx(0, abs=1e-5)
    assert loss(1 - source) > 1


def test_consistency_is_a_part_of_the_total_with_its_weight():
    networks, method = step_of(prototypes={"consistency": 0.3})
    parts = run_step(networks, method, *batches(), Phase(True, True, 0.5, 0.25)).parts
    expected = (
        parts["loss/sup_linear"] + 0.25 * parts["loss/uns_linear"]
        + 0.5 * (parts["loss/sup_prototype"] + parts["loss/uns_prototype"]) + 0.3 * parts["loss/consistency"]
    )  # fmt: skip
    assert parts["loss/consistency"] > 0
    torch.testing.assert_close(parts["loss/total"], expected)
    labeled, unlabeled = batches()
    unlabeled["valid"][:] = False
    assert run_step(networks, method, labeled, unlabeled).parts["loss/consistency"] == 0


def test_clean_points_are_right_and_even_over_classes():
    targets = torch.zeros(1, 4, 4, dtype=torch.int64)
    targets[0, 0, 0], targets[0, 3, 3] = 1, 2
    right = torch.ones(1, 4, 4, dtype=torch.bool)
    right[0, 3, 3] = False  # the only pixel of class 2 is taken for something else
    right[0, 1] = False
    features = torch.arange(16.0).view(1, 1, 4, 4)
    points = clean_points(
        PrototypeConfig(grid=30), features, targets, right, (4, 4), num_classes=3,
        rng=np.random.default_rng(0), processes=ALONE,
    )  # fmt: skip
    assert set(points.classes.tolist()) == {0, 1}
    # one pixel of class 1 and eleven of class 0, half the 900 points each
    assert (points.classes == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert set(points.features.flatten().tolist()) == set(range(16)) - {4, 5, 6, 7, 15}
    nothing = clean_points(
        PrototypeConfig(grid=4), features, targets, ~right & (targets > 5), (4, 4), num_classes=3,
        rng=np.random.default_rng(0), processes=ALONE,
    )  # fmt: skip
    assert (nothing.classes == -1).all()


def test_reweighted_probabilities_by_hand():
    linear = torch.tensor([0.6, 0.4]).log().view(1, 2, 1, 1)
    cosine = torch.tensor([0.0, 0.1]).view(1, 2, 1, 1)
    probs = reweight(linear, cosine, torch.tensor([True, True]), 0.1).softmax(1).flatten()
    # the second class is nearer by 0.1 / T = 1: 0.6 against 0.4 e
    second = 0.4 * math.e / (0.6 + 0.4 * math.e)
    torch.testing.assert_close(probs, torch.tensor([1 - second, second]))
    # a class without prototypes counts as near as the nearest
    probs = reweight(linear, cosine, torch.tensor([False, True]), 0.1).softmax(1).flatten()
    torch.testing.assert_close(probs, torch.tensor([0.6, 0.4]))


def test_a_network_from_outside_labels_and_its_temperature_counts():
    networks, method = step_of(pseudo_labels={"threshold": 0.6}, views={"mixing": "none"})
    scores = torch.zeros(2, 5, 32, 32)
    scores[:, 3] = math.log(4 * 9)  # 36 / 40 = 0.9; at temperature 2: 6 / 10 = 0.6
    scores[:, 3, :16] = math.log(4 * 8)  # 0.889, 0.586
    outside = Phase(True, True, 1.0, outside=True)
    labeled, unlabeled = batches()
    unlabeled["valid"][:] = True
    seen = []
    networks = replace(networks, outside=lambda weak: seen.append(weak.shape) or scores)
    counts = run_step(networks, method, labeled, unlabeled, outside).counts
    assert counts["per_class"].tolist() == [0, 0, 0, 2 * 32 * 32, 0]
    calibration = Calibration(5, 0.599)
    calibration.temperature[3] = 2
    networks = replace(networks, calibration=calibration)
    counts = run_step(networks, method, labeled, unlabeled, outside).counts
    assert counts["per_class"].tolist() == [0, 0, 0, 2 * 16 * 32, 0]
    assert len(seen) == 2
    run_step(networks, method, labeled, unlabeled, ON)
    assert len(seen) == 2, "the own teacher labels after the hand-over"


def test_given_labels_are_taken_as_they_are():
    networks, method = step_of(pseudo_labels={"threshold": 0.5}, views={"mixing": "none"})
    labeled, unlabeled = batches()
    unlabeled["valid"][:] = True
    given = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    given[:, 0] = 2
    given[:, 1, :8] = 128  # 32768 / 65535
    label, confidence = unpack_labels(given)
    assert label.unique().tolist() == [2]
    assert confidence.unique().tolist() == pytest.approx([0, 32768 / 65535])

    def refuse(*_):
        raise AssertionError("the own teacher is not asked")

    networks.teacher.register_forward_pre_hook(refuse)
    found = run_step(
        networks, method, labeled, unlabeled | {"given": given}, Phase(True, True, 1.0, outside=True)
    )
    assert found.counts["per_class"].tolist() == [0, 0, 2 * 8 * 32, 0, 0]
