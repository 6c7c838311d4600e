import numpy as np
import pytest
import torch
import torch.nn.functional as F

from protoseg.method.points import balanced_points, features_at, grid_points, pixels_per_point


def test_grid_has_one_pixel_in_each_cell():
    index = grid_points(np.random.default_rng(0), 2, 4, (16, 24))
    rows, columns = index // 24, index % 24
    cells = (rows // 4) * 4 + columns // 6
    assert cells.tolist() == [list(range(16))] * 2
    assert not torch.equal(index[0], index[1])


def test_grid_finer_than_the_image_stays_inside():
    index = grid_points(np.random.default_rng(0), 1, 32, (5, 7))
    assert index.min() >= 0
    assert index.max() < 35


@pytest.mark.parametrize("size", [(40, 56), (37, 50)])
def test_features_equal_upsampling_first(size):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 6, 10, 14, generator=generator)
    index = grid_points(np.random.default_rng(1), 2, 8, size)
    full = F.interpolate(z, size=(40, 56), mode="bilinear", align_corners=False)
    rows, columns = index // size[1], index % size[1]
    expected = torch.stack([full[b, :, rows[b], columns[b]].t() for b in range(2)])
    torch.testing.assert_close(features_at(z, index, size[1], (40, 56)), expected, atol=1e-5, rtol=1e-5)


def test_features_carry_gradient():
    z = torch.randn(1, 3, 4, 4, requires_grad=True)
    features_at(z, torch.tensor([[5]]), 16, (16, 16)).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_balanced_points_even_out_classes():
    target = torch.zeros(1, 40, 40, dtype=torch.int64)
    target[0, 0, :16] = 1  # one percent
    target[0, 1, :] = 255
    uniform = torch.from_numpy(np.random.default_rng(0).random((1, 4000)))
    drawn = target.flatten(1).gather(1, balanced_points(uniform, target, 2, 1.0))
    assert not (drawn == 255).any()
    assert 0.45 < (drawn == 1).float().mean() < 0.55
    even = target.flatten(1).gather(1, balanced_points(uniform, target, 2, 0.0))
    assert (even == 1).float().mean() < 0.03


def test_balanced_points_of_an_unlabelled_image():
    target = torch.full((1, 4, 4), -1)
    index = balanced_points(torch.rand(1, 10), target, 3, 1.0)
    assert ((index >= 0) & (index < 16)).all()


def test_pixels_per_point_by_hand():
    target = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [1, 255, 255, 255]]])  # 9 and 4 pixels
    classes = torch.tensor([[0, 1, -1, 255]])
    # q(pixel) = count ** -0.5 / (9 / 3 + 4 / 2): 1 / 15 and 1 / 10; a point of four stands for 1 / (4 q)
    weights = pixels_per_point(classes, target, 2, 0.5)
    torch.testing.assert_close(weights, torch.tensor([[15 / 4, 10 / 4, 0, 0]]))
    assert pixels_per_point(classes, torch.full((1, 4, 4), -1), 2, 0.5)[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_weighted_points_estimate_the_mean_over_pixels(balance):
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(2, 30, 40, generator=generator) > 0.9).long() * 2
    target[0, :15] = 255
    loss = torch.rand(2, 30, 40, generator=generator) + target
    uniform = torch.from_numpy(np.random.default_rng(0).random((2, 40_000)))
    index = balanced_points(uniform, target, 3, balance)
    classes = target.flatten(1).gather(1, index)
    weights = pixels_per_point(classes, target, 3, balance)
    valid = target != 255
    torch.testing.assert_close(weights.sum(1), valid.flatten(1).sum(1).float(), rtol=0.02, atol=0)
    estimate = (weights * loss.flatten(1).gather(1, index)).sum() / weights.sum()
    torch.testing.assert_close(estimate, loss[valid].mean(), rtol=0.02, atol=0)
