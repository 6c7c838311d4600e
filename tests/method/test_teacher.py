import pytest
import torch
from torch import nn

from protoseg.method.teacher import ema_decay, make_teacher, update_teacher, updates_behind


@pytest.mark.parametrize(
    ("updates", "expected"), [(0, 0.0), (1, 0.5), (3, 0.75), (98, 98 / 99), (99, 0.99), (5000, 0.99)]
)
def test_ema_ramp(updates, expected):
    assert ema_decay(updates, 0.99) == pytest.approx(expected)


def net(value):
    module = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    module[1].running_mean.fill_(value)
    return module


def test_update_averages_floats_and_copies_integers():
    student, teacher = net(1.0), make_teacher(net(0.0))
    student[1].num_batches_tracked.fill_(41)
    update_teacher(teacher, student, 0.75)
    for parameter in teacher.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.25))
    assert teacher[1].running_mean.item() == pytest.approx(0.25)
    assert teacher[1].num_batches_tracked.item() == 41
    assert teacher[1].num_batches_tracked.dtype == torch.int64


def test_new_parts_have_their_own_decay():
    student, teacher = net(1.0), make_teacher(net(0.0))
    update_teacher(teacher, student, 0.75, new=("1.",), new_decay=0.0)
    assert teacher[0].weight.item() == pytest.approx(0.25)
    assert teacher[1].weight.item() == 1.0
    assert teacher[1].running_mean.item() == 1.0


@pytest.mark.parametrize("largest", [0.0, 0.9, 0.99, 0.999])
def test_a_head_start_reaches_the_largest_decay_at_once(largest):
    assert ema_decay(updates_behind(largest), largest) == largest


def test_decay_zero_copies_exactly():
    student, teacher = net(0.1), make_teacher(net(0.7))
    update_teacher(teacher, student, 0.0)
    for ours, theirs in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_teacher_needs_no_gradient_and_stays_in_eval_mode():
    teacher = make_teacher(net(0.5).train())
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
