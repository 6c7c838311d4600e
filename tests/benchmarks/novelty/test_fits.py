import numpy as np
import pytest
import torch

from benchmarks.novelty.fits import KEPT, NEIGHBOUR, covariance, fit, inverse_root


@pytest.fixture
def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[6.0, 0, 0, 0, 0, 0], [0, 6.0, 0, 0, 0, 0]])
    label = torch.arange(600) % 2
    scale = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.05, 0.05])
    return centres[label] + scale * torch.randn(600, 6, generator=generator), label


def test_all_distances_tell_far_from_near(labelled: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, label = labelled
    distances = fit(features, label, num_prototypes=1, rng=np.random.default_rng(0))
    near = distances(features)
    # along a direction in which labelled features do not vary
    far = distances(torch.tensor([[0.0, 0, 0, 0, 6.0, 0]]))
    assert set(near) == {"cosine", "mahalanobis", "residual", "neighbours"}
    for name, value in far.items():
        assert value.shape == (1,)
        assert value[0] > near[name].quantile(0.99), name


def test_mahalanobis_is_the_distance_under_the_covariance_within_prototypes(
    labelled: tuple[torch.Tensor, torch.Tensor],
) -> None:
    features, label = labelled
    distances = fit(features, label, num_prototypes=1, rng=np.random.default_rng(0))
    means = torch.stack([features[label == c].double().mean(0) for c in (0, 1)])
    within = covariance(features.double() - means[label])
    offset = features[:5].double()[:, None] - means
    expected = torch.einsum("npd,de,npe->np", offset, torch.linalg.inv(within), offset).amin(1)
    found = distances(features[:5])["mahalanobis"].double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_inverse_root_whitens() -> None:
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).double()
    root = inverse_root(matrix)
    torch.testing.assert_close(root @ root.t(), torch.linalg.inv(matrix))


def test_residual_is_measured_from_the_given_origin() -> None:
    line = torch.stack([torch.linspace(-3, 3, 50), torch.ones(50)], 1)
    kinds = {"num_prototypes": 1, "rng": np.random.default_rng(0)}
    from_mean = fit(line, torch.zeros(50).long(), **kinds)(torch.tensor([[2.0, 1.0]]))["residual"]  # type: ignore[arg-type]
    from_zero = fit(line, torch.zeros(50).long(), origin=torch.zeros(2), **kinds)  # type: ignore[arg-type]
    assert from_mean.item() == pytest.approx(0, abs=1e-5)
    assert from_zero(torch.tensor([[2.0, 1.0]]))["residual"].item() == pytest.approx(1, abs=1e-3)


def test_neighbours_is_the_tenth_nearest() -> None:
    assert KEPT >= NEIGHBOUR
    angles = torch.arange(20) * 0.01
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    distances = fit(circle, torch.zeros(20).long(), num_prototypes=1, rng=np.random.default_rng(0))
    # itself is the first, so that the tenth is nine steps away
    assert distances(circle[:1])["neighbours"].item() == pytest.approx(2 * np.sin(0.09 / 2), abs=1e-3)
