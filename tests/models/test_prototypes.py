import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protoseg.models.prototypes import INACTIVE_MARGIN, START_UPDATES, PrototypeBank, unit


def bank_of(rows, temperature=0.1, pooling="max"):
    """Bank with prototypes given as [class][k] vectors."""
    values = torch.tensor(rows, dtype=torch.float32)
    bank = PrototypeBank(*values.shape, temperature=temperature, pooling=pooling)
    bank.start(dict(enumerate(values)))
    return bank


TWO = [[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]]


def test_logits_are_the_highest_cosine_over_temperature():
    bank = bank_of(TWO, temperature=0.1)
    # (3, 4): unit (0.6, 0.8); class 0 best cosine 0.8, class 1 best cosine -0.6
    logits = bank.pool(bank.similarity(torch.tensor([[3.0, 4.0]])))
    torch.testing.assert_close(logits, torch.tensor([[8.0, -6.0]]))


def test_logsumexp_pooling_by_hand():
    bank = bank_of(TWO, temperature=0.5, pooling="logsumexp")
    logits = bank.pool(bank.similarity(torch.tensor([[3.0, 4.0]])))
    first = math.log((math.exp(1.2) + math.exp(1.6)) / 2)
    second = math.log((math.exp(-1.2) + math.exp(-1.6)) / 2)
    torch.testing.assert_close(logits, torch.tensor([[first, second]]))


def test_dense_logits_equal_point_logits():
    bank = bank_of(torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1)).tolist())
    z = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(2))
    dense = bank.dense_logits(z)
    points = (
        bank.pool(bank.similarity(z.permute(0, 2, 3, 1).reshape(-1, 5))).view(2, 4, 3, 3).permute(0, 3, 1, 2)
    )
    torch.testing.assert_close(dense, points)


def test_inactive_class_is_never_predicted():
    bank = PrototypeBank(3, 2, 2)
    bank.start({0: torch.eye(2), 2: -torch.eye(2)})
    logits = bank.pool(bank.similarity(torch.randn(50, 2)))
    assert not (logits.argmax(1) == 1).any()
    assert (logits[:, 1] <= -INACTIVE_MARGIN).all()
    assert logits.softmax(1)[:, 1].max() < 1e-12
    assert bank.pool(bank.similarity(torch.zeros(1, 2))).isfinite().all()


def test_gradient_reaches_features_and_never_prototypes():
    bank = bank_of(TWO)
    z = torch.tensor([[0.3, 0.7]], requires_grad=True)
    bank.pool(bank.similarity(z))[0, 0].backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert not bank.prototypes.requires_grad
    assert list(bank.parameters()) == []


def test_assignment_stays_within_the_own_class():
    bank = bank_of(TWO)
    z = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.1], [1.0, 1.0]])
    target = torch.tensor([0, 0, 1, 255])
    index = bank.assign(bank.similarity(z), target)
    # the third point looks like class 0 but belongs to class 1, whose nearest prototype is k=1
    assert index.tolist() == [0, 1, 3, 4]


def test_update_by_hand():
    bank = bank_of(TWO)
    z = torch.tensor([[4.0, 3.0], [5.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    target = torch.tensor([0, 0, 1, 255])
    bank.update(z, target, momentum=0.5)
    # class 0, k 0: mean of (0.8, 0.6) and (1, 0) is (0.9, 0.3); half old (1, 0): (0.95, 0.15)
    expected = unit(torch.tensor([0.95, 0.15]))
    torch.testing.assert_close(bank.prototypes[0, 0], expected)
    torch.testing.assert_close(bank.prototypes[0, 1], torch.tensor([0.0, 1.0]))
    # class 1: (0, 1) has cosine 0 with (-1, 0) and -1 with (0, -1): k 0 moves halfway to (0, 1)
    torch.testing.assert_close(bank.prototypes[1, 0], unit(torch.tensor([-0.5, 0.5])))
    assert (bank.updates - START_UPDATES).tolist() == [[1, 0], [1, 0]]
    assert bank.idle.tolist() == [[0, 1], [0, 1]]


def test_update_ramp_keeps_most_of_a_starting_centre():
    bank = bank_of(TWO)
    bank.update(torch.tensor([[0.8, 0.6]]), torch.tensor([0]), momentum=0.99, ramp=True)
    # the 11th update: 10 / 11 of (1, 0) and 1 / 11 of (0.8, 0.6)
    torch.testing.assert_close(bank.prototypes[0, 0], unit(torch.tensor([10.8, 0.6])))


def test_update_ramp_takes_the_first_mean_of_a_prototype_without_updates_whole():
    bank = bank_of(TWO)
    bank.updates.zero_()
    z = torch.tensor([[0.8, 0.6]])
    bank.update(z, torch.tensor([0]), momentum=0.99, ramp=True)
    torch.testing.assert_close(bank.prototypes[0, 0], z[0])
    bank.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), momentum=0.99, ramp=True)
    torch.testing.assert_close(bank.prototypes[0, 0], unit(torch.tensor([0.9, 0.3])))


def test_update_without_points_changes_nothing():
    bank = bank_of(TWO)
    before = bank.prototypes.clone()
    bank.update(torch.randn(5, 2), torch.full((5,), 255))
    torch.testing.assert_close(bank.prototypes, before, rtol=0, atol=0)
    assert (bank.idle == 0).all()


def test_first_pixels_of_an_absent_class_start_it():
    bank = PrototypeBank(2, 3, 4)
    bank.start({0: torch.randn(3, 4)})
    z = torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
    bank.update(z, torch.tensor([1, 1]))
    assert bank.active.tolist() == [True, True]
    cosine = bank.prototypes[1] @ torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert (cosine > 0.9).all()
    assert bank.closest_pair()[1] < 1


def test_reduced_update_of_two_parts_equals_the_whole():
    generator = torch.Generator().manual_seed(0)
    z, target = torch.randn(64, 3, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    start = {c: torch.randn(2, 3, generator=generator) for c in range(3)}
    whole, parts = PrototypeBank(3, 2, 3), [PrototypeBank(3, 2, 3) for _ in range(2)]
    for bank in (whole, *parts):
        bank.start(start)
    whole.update(z, target)
    tables = []
    for bank, rows in zip(parts, (slice(0, 40), slice(40, 64)), strict=True):
        bank.update(z[rows], target[rows], reduce=lambda t: tables.append(t.clone()) or t)
        bank.start(start)
    total = tables[0] + tables[1]
    for bank, rows in zip(parts, (slice(0, 40), slice(40, 64)), strict=True):
        bank.update(z[rows], target[rows], reduce=lambda _: total)
    torch.testing.assert_close(parts[0].prototypes, parts[1].prototypes, rtol=0, atol=0)
    torch.testing.assert_close(parts[0].prototypes, whole.prototypes)


def test_reseed_moves_the_idle_prototype_beside_the_most_used():
    bank = bank_of([[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [[-1.0, 0.0], [0.0, -1.0], [0.6, 0.8]]])
    bank.idle[0, 0] = 7
    bank.usage.copy_(torch.tensor([[0.0, 2.0, 6.0], [1.0, 1.0, 1.0]]))
    before = bank.prototypes.clone()
    assert bank.reseed(after=8).tolist() == [False, False]
    torch.testing.assert_close(bank.prototypes, before, rtol=0, atol=0)
    assert bank.reseed(after=7).tolist() == [True, False]
    cosine = float(bank.prototypes[0, 0] @ bank.prototypes[0, 2])
    assert 0.95 < cosine < 0.99999  # near, so that no other class's pixel is won, and not the same
    torch.testing.assert_close(bank.prototypes[0, 1:], before[0, 1:], rtol=0, atol=0)
    torch.testing.assert_close(bank.prototypes[1], before[1], rtol=0, atol=0)
    assert bank.idle[0, 0] == 0
    assert bank.updates[0, 0] == START_UPDATES
    assert bank.usage.tolist() == [[3.0, 2.0, 3.0], [1.0, 1.0, 1.0]]


def test_reseeded_prototypes_part():
    """Two kinds of pixels, both nearest to one prototype: the idle one takes one kind over."""
    bank = bank_of([[[1.0, 0.0], [-1.0, 0.0]]])
    z = unit(torch.tensor([[1.0, 0.5], [1.0, -0.5]])).repeat(50, 1)
    for _ in range(60):
        bank.update(z, torch.zeros(100, dtype=torch.int64), momentum=0.9)
        bank.reseed(after=20)
    assert (z @ bank.prototypes[0].t()).amax(1).min() > 0.999
    assert (bank.usage[0] > 0).all()


def test_prototypes_of_an_absent_class_are_not_idle():
    bank = bank_of(TWO)
    bank.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert bank.idle[0].tolist() == [0, 1]
    assert bank.idle[1].tolist() == [0, 0]


def test_usage_entropy_and_closest_pair():
    bank = bank_of(TWO)
    bank.usage.copy_(torch.tensor([[1.0, 1.0], [3.0, 0.0]]))
    torch.testing.assert_close(bank.usage_entropy(), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(bank.closest_pair(), torch.tensor([0.0, 0.0]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 30), st.integers(0, 10**6))
def test_prototypes_keep_unit_length(classes, k, points, seed):
    generator = torch.Generator().manual_seed(seed)
    bank = PrototypeBank(classes, k, 4)
    bank.start({c: torch.randn(k, 4, generator=generator) for c in range(classes)})
    z = torch.randn(points, 4, generator=generator)
    target = torch.randint(-1, classes + 1, (points,), generator=generator)
    bank.update(z, target, momentum=0.3)
    bank.reseed(after=1)
    torch.testing.assert_close(bank.prototypes.norm(dim=-1), torch.ones(classes, k))
