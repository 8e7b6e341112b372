"""What is particular to single heads; what all share is in contracts/test_heads.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as D

from expost import heads


def test_scale_links():
    raw = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(heads.exp(raw), raw.exp())
    torch.testing.assert_close(heads.half_exp(raw).square(), raw.exp())
    torch.testing.assert_close(heads.softplus(raw), 1e-6 + (1 + raw.exp()).log())
    torch.testing.assert_close(heads.exp_tanh(raw), (5 * raw.tanh()).exp())
    big = torch.tensor([1e3, -1e3])
    assert bool(((heads.exp_tanh(big).log() - torch.tensor([5.0, -5.0])).abs() < 1e-5).all())


def test_diagonal_splits_mean_first():
    q = heads.Diagonal(heads.exp)(torch.tensor([1.0, 2.0, 0.0, math.log(3.0)]))
    torch.testing.assert_close(q.mean, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(q.stddev, torch.tensor([1.0, 3.0]))


def test_channels_are_split_for_images():
    features = torch.randn(5, 4, 3, 3)
    q = heads.Diagonal(heads.exp)(features, 3)
    torch.testing.assert_close(q.mean, features[:, :2])
    torch.testing.assert_close(q.stddev, features[:, 2:].exp())


@pytest.mark.parametrize("head", [heads.Diagonal(), heads.Gaussian("pixel")])
def test_odd_channels_are_refused(head):
    with pytest.raises(ValueError, match=r"even number of channels .* not 5: build the network with head.size\(n\)"):
        head(torch.zeros(2, 5))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_full_covariance_size_and_layout(n):
    head = heads.FullCovariance()
    assert head.size(n) == n + n * (n + 1) // 2
    features = 0.1 * torch.randn(4, head.size(n))
    q = head(features)
    tril = q.scale_tril
    torch.testing.assert_close(q.mean, features[:, :n])
    torch.testing.assert_close(tril.diagonal(dim1=-2, dim2=-1), features[:, n : 2 * n].exp())
    rows, columns = torch.tril_indices(n, n, -1)
    torch.testing.assert_close(tril[:, rows, columns], features[:, 2 * n :])
    assert tril.triu(1).abs().sum() == 0
    torch.testing.assert_close(q.covariance_matrix, tril @ tril.mT)


def test_full_covariance_refusals():
    with pytest.raises(ValueError, match="4 outputs fit no full covariance"):
        heads.FullCovariance()(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="for vectors"):
        heads.FullCovariance()(torch.zeros(3, 5, 2, 2), 3)


@pytest.mark.parametrize("make", [lambda: heads.Constant(0.0), lambda: heads.Constant(-1.0), lambda: heads.Constant(float("nan"))])
def test_constant_needs_a_positive_scale(make):
    with pytest.raises(ValueError, match=r"must be positive.*use Dirac"):
        make()


def test_constant_is_a_normal():
    features = torch.randn(4, 3)
    reference = D.Independent(D.Normal(features, 0.7), 1)
    x = torch.randn(4, 3)
    torch.testing.assert_close(heads.Constant(0.7)(features).log_prob(x), reference.log_prob(x))


def test_gaussian_scale_is_sigma_and_variance_is_gamma():
    head = heads.Gaussian(0.5)
    torch.testing.assert_close(head.variance, torch.tensor(0.25))
    assert not list(head.parameters())
    assert "scale=0.5" in repr(head)
    shared = heads.Gaussian("shared")
    assert float(shared.variance.detach()) == 1.0
    assert [p.shape for p in shared.parameters()] == [torch.Size(())]
    with pytest.raises(ValueError, match="one variance per pixel"):
        _ = heads.Gaussian("pixel").variance
    with pytest.raises(ValueError, match='not "learned"'):
        heads.Gaussian("learned")
    with pytest.raises(ValueError, match="must be positive"):
        heads.Gaussian(0.0)


def test_shared_variance_learns_the_mse():
    """γ that minimises the loss is the mean squared error."""
    head, x = heads.Gaussian("shared"), 0.3 * torch.randn(500, 4)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (-head(torch.zeros(500, 4)).log_prob(x).mean()).backward()
        optimiser.step()
    torch.testing.assert_close(head.variance, x.square().mean(), rtol=1e-3, atol=0)


def test_pixel_variances():
    features = torch.randn(3, 4, 2, 2)
    p = heads.Gaussian("pixel", torch.sigmoid)(features, 3)
    torch.testing.assert_close(p.mean, torch.sigmoid(features[:, :2]))
    torch.testing.assert_close(p.stddev, features[:, 2:].exp())


def test_optimal_variance_is_tracked_only_in_training():
    head = heads.Gaussian("optimal", momentum=0.25)
    x, features = torch.full((10, 4), 2.0), torch.zeros(10, 4)
    head.track()
    assert float(head.variance) == 1.0, "nothing has been used yet"
    p = head(features)
    p.log_prob(x)
    assert float(p.last_variance) == 4.0
    head.track()
    torch.testing.assert_close(head.variance, torch.tensor(4.0), msg="the first batch is all there is to know")
    head.track()
    torch.testing.assert_close(head.variance, torch.tensor(4.0), msg="one batch counts once")
    expected = 4.0
    for t in range(1, 6):
        head(features).log_prob(float(t) * x)
        head.track()
        weight = max(0.25, 1 / (t + 1))
        expected = (1 - weight) * expected + weight * 4 * t**2
        torch.testing.assert_close(head.variance, torch.tensor(expected))
    head.eval()
    q = head(features)
    torch.testing.assert_close(q.log_prob(x), D.Independent(D.Normal(features, expected**0.5), 1).log_prob(x))
    head.track()
    torch.testing.assert_close(head.variance, torch.tensor(expected), msg="evaluation moves nothing")
    assert not head.log_scale.requires_grad
