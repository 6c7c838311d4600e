import math

import pytest
import torch
import torch.nn.functional as F

from protoseg.adapt.fit import fit_row


def problem(seed=0, cells=400, dim=6):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(cells, dim, generator=generator)
    logits = features @ torch.randn(dim, 3, generator=generator)
    share = torch.sigmoid(2 * features[:, 0] - 1 + 0.5 * torch.randn(cells, generator=generator))
    weight = torch.rand(cells, generator=generator)
    return features, share, weight, logits


def objective(row, features, share, weight, logits, prior, strength):
    """The softmax's weighted cross entropy with one more class, and the pull to the prior."""
    scores = torch.cat([logits, (features @ row[:-1] + row[-1])[:, None]], 1)
    new = scores.log_softmax(1)[:, -1]
    others = scores.log_softmax(1)[:, :-1].logsumexp(1)
    part = weight / weight.sum()
    variance = (part @ (features - part @ features).square()).mean()
    pull = torch.cat([(strength * variance).expand(len(row) - 1), torch.tensor([strength * 1e-3])])
    return -(weight * (share * new + (1 - share) * others)).sum() + 0.5 * (pull * (row - prior) ** 2).sum()


def test_row_is_what_training_that_row_of_the_head_alone_would_end_at():
    features, share, weight, logits = problem()
    prior = torch.linspace(-1, 1, 7)
    found = fit_row(features, share, weight, logits.logsumexp(1), prior, 3.0)
    row = torch.zeros(7, requires_grad=True)
    optimizer = torch.optim.LBFGS([row], max_iter=500, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective(row, features, share, weight, logits, prior, 3.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(found, row.detach(), atol=2e-3, rtol=1e-3)


def test_a_strong_pull_keeps_the_weights():
    features, share, weight, logits = problem()
    prior = torch.linspace(-1, 1, 7)
    found = fit_row(features, share, weight, logits.logsumexp(1), prior, 1e9)
    torch.testing.assert_close(found[:-1], prior[:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
def test_cells_that_can_be_told_apart_perfectly_give_a_finite_row(scale):
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) * scale
    share, weight = torch.tensor([1.0, 0.0]), torch.ones(2)
    row = fit_row(features, share, weight, torch.zeros(2), torch.zeros(3), 1.0)
    assert all(map(math.isfinite, row.tolist()))
    p = torch.sigmoid(features @ row[:-1] + row[-1])
    assert p[0] > 0.5 > p[1]


def test_a_weight_counts_as_so_many_cells():
    features, share, _, logits = problem(cells=60)
    weight = torch.randint(1, 4, (60,), generator=torch.Generator().manual_seed(1))
    others = logits.logsumexp(1)
    once = fit_row(features, share, weight.float(), others, torch.zeros(7), 1.0)
    index = torch.repeat_interleave(torch.arange(60), weight)
    many = fit_row(features[index], share[index], torch.ones(len(index)), others[index], torch.zeros(7), 1.0)
    torch.testing.assert_close(once, many, atol=1e-3, rtol=1e-3)
    assert F.cosine_similarity(once, many, 0) > 0.9999


def test_a_part_of_a_larger_scale_is_no_less_drawn():
    features, share, weight, logits = problem()
    others, scale = logits.logsumexp(1), torch.tensor([1.0, 1, 1, 1000, 1000, 1000])
    plain = fit_row(features, share, weight, others, torch.zeros(7), 3.0, parts=(3, 3))
    scaled = fit_row(features * scale, share, weight, others, torch.zeros(7), 3.0, parts=(3, 3))
    torch.testing.assert_close(scaled[:-1] * scale, plain[:-1], atol=5e-3, rtol=1e-2)
    in_one = fit_row(features * scale, share, weight, others, torch.zeros(7), 3.0)
    assert in_one[:3].norm() < 0.1 * plain[:3].norm()  # the variance of all draws the small ones too strongly
