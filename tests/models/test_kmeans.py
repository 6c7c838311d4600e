import pytest
import torch

from protoseg.models.kmeans import spherical_kmeans
from protoseg.models.prototypes import unit


def test_kmeans_finds_separated_directions():
    generator = torch.Generator().manual_seed(3)
    centres = torch.eye(3)
    points = torch.cat([c + 0.05 * torch.randn(30, 3, generator=generator) for c in centres])
    found = spherical_kmeans(points, 3, torch.Generator().manual_seed(0))
    cosine = found @ centres.t()
    assert sorted(cosine.argmax(1).tolist()) == [0, 1, 2]
    assert cosine.amax(1).min() > 0.99


def test_kmeans_by_hand_for_one_centre():
    points = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    # the points are normalised first, so the longer one has no more say
    torch.testing.assert_close(
        spherical_kmeans(points.repeat(2, 1), 1, torch.Generator().manual_seed(0)),
        unit(torch.tensor([[1.0, 1.0]])),
    )


def test_kmeans_with_too_few_distinct_points_repeats_them_with_jitter():
    points = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = spherical_kmeans(points, 4, torch.Generator().manual_seed(0))
    assert found.shape == (4, 3)
    assert len(torch.unique(found, dim=0)) == 4
    assert (found.norm(dim=1) - 1).abs().max() < 1e-6
    assert (found @ points.t()).amax(1).min() > 0.9


def test_kmeans_needs_points():
    with pytest.raises(ValueError, match="at least one point"):
        spherical_kmeans(torch.zeros(0, 3), 2, torch.Generator())
