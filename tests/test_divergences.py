"""KL against closed forms, torch and Monte Carlo; MMD against a hand-computed value."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as D

from expost import heads
from expost.distributions import Dirac
from expost.divergences import has_closed_form, kl, kl_per_dimension, mmd, multi_scale_imq
from toys import StandardNormal
from toys import model as toy

F64 = torch.float64


def diagonal(*batch, d=3):
    return D.Independent(D.Normal(torch.randn(*batch, d, dtype=F64), torch.rand(*batch, d, dtype=F64) + 0.3), 1)


def full(*batch, d=3):
    tril = torch.randn(*batch, d, d, dtype=F64).tril(-1) + torch.diag_embed(torch.rand(*batch, d, dtype=F64) + 0.3)
    return D.MultivariateNormal(torch.randn(*batch, d, dtype=F64), scale_tril=tril)


def as_full(p):
    return D.MultivariateNormal(p.mean, scale_tril=torch.diag_embed(p.stddev))


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_diagonal_kl_is_torch_and_sums_its_dimensions(batch):
    q, p = diagonal(*batch), diagonal()
    each = kl_per_dimension(q, p)
    assert each.shape == (*batch, 3)
    assert bool((each >= 0).all())
    torch.testing.assert_close(each, D.kl_divergence(q.base_dist, p.base_dist.expand((*batch, 3))))
    torch.testing.assert_close(kl(q, p), each.sum(-1))
    assert kl(q, p).shape == torch.Size(batch)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_full_covariance_against_factorised_is_torchs_formula(batch):
    q, p = full(*batch), diagonal()
    assert has_closed_form(q, p)
    torch.testing.assert_close(kl(q, p), D.kl_divergence(q, as_full(p).expand(batch)))
    factorised = diagonal(*batch)
    torch.testing.assert_close(kl(as_full(factorised), p), kl(factorised, p))


def test_kl_to_a_standard_normal():
    q, p = heads.Diagonal()(torch.randn(5, 8)), StandardNormal(4)()
    variance = q.variance
    torch.testing.assert_close(kl(q, p), 0.5 * (variance + q.mean.square() - 1 - variance.log()).sum(-1))
    assert float(kl(StandardNormal(4)(), StandardNormal(4)())) == 0.0
    other = heads.FullCovariance()(torch.zeros(5, 14))
    torch.testing.assert_close(kl(other, p), torch.zeros(5))


def test_images_are_events_too():
    q, p = (D.Independent(D.Normal(torch.randn(4, 1, 2, 2), 0.5), 3) for _ in range(2))
    assert kl(q, p).shape == (4,)
    torch.testing.assert_close(kl(q, p), D.kl_divergence(q, p))


@pytest.mark.parametrize("make", [diagonal, full])
def test_closed_form_is_the_mean_of_the_estimate(make):
    q, p = make(3), diagonal()
    z = q.sample((40_000,))
    estimate = q.log_prob(z) - p.log_prob(z)
    error = estimate.std(0) / math.sqrt(len(z))
    assert bool(((estimate.mean(0) - kl(q, p)).abs() < 4 * error).all())


def mixture(d=3):
    return D.MixtureSameFamily(
        D.Categorical(torch.ones(2, dtype=F64)),
        D.Independent(D.Normal(torch.tensor([[-1.0], [1.0]], dtype=F64).expand(2, d), torch.ones(2, d, dtype=F64)), 1),
    )


def test_estimate_where_there_is_no_closed_form():
    q, p = diagonal(4), mixture()
    assert not has_closed_form(q, p)
    with pytest.raises(ValueError, match=r"KL of Normal to MixtureSameFamily has no closed form: pass samples"):
        kl(q, p)
    z = q.sample((5,))
    each = torch.stack([q.log_prob(row) - p.log_prob(row) for row in z])
    torch.testing.assert_close(kl(q, p, z), each.mean(0))
    torch.testing.assert_close(kl(q, p, z[0]), each[0])
    q = diagonal()  # no batch at all
    assert kl(q, p, q.sample((7,))).shape == ()
    assert kl(q, p, q.sample()).shape == ()


def test_samples_are_ignored_where_the_closed_form_exists():
    q, p = diagonal(4), diagonal()
    assert torch.equal(kl(q, p, torch.full((4, 3), float("nan"), dtype=F64)), kl(q, p))


def test_an_autoencoder_as_prior_has_no_closed_form():
    inner = toy(d=2)
    q = heads.Diagonal()(torch.randn(5, 4))
    assert not has_closed_form(q, inner())
    assert kl(q, inner(), q.rsample((3,))).shape == (5,)


def test_refusals():
    with pytest.raises(ValueError, match=r"a deterministic encoder has no ELBO: use RAE\(\.\.\.\)"):
        kl(Dirac(torch.zeros(3, 2)), diagonal())
    with pytest.raises(ValueError, match=r"needs factorised Gaussians, not MultivariateNormal against Normal.*free_bits=0"):
        kl_per_dimension(full(), diagonal())


def test_kl_gradients():
    mean, raw = (torch.randn(4, 3, dtype=F64, requires_grad=True) for _ in range(2))
    p = diagonal()
    assert torch.autograd.gradcheck(lambda m, r: kl(D.Independent(D.Normal(m, r.exp()), 1), p), (mean, raw))
    tril = torch.randn(3, 3, dtype=F64).tril(-1) + 0.5 * torch.eye(3, dtype=F64)
    tril.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, t: kl(D.MultivariateNormal(m, scale_tril=t.tril(), validate_args=False), p), (mean[0], tril))


def test_kernel_constants():
    squared, d = torch.tensor([0.0, 1.0, 7.5], dtype=F64), 4
    expected = sum(2 * d * s / (2 * d * s + squared) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))
    torch.testing.assert_close(multi_scale_imq(squared, d), expected)
    assert float(multi_scale_imq(squared, d)[0]) == 7.0
    torch.testing.assert_close(multi_scale_imq(squared, 2, prior_variance=2.0), expected)


def test_mmd_by_hand():
    """Two points on each side: every distance written out."""
    a, b = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64), torch.tensor([[0.0, 2.0], [3.0, 0.0]], dtype=F64)

    def k(squared):
        return sum(4 * s / (4 * s + squared) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    by_hand = k(1) + k(13) - 2 / 4 * (k(4) + k(9) + k(5) + k(4))
    assert abs(float(mmd(a, b)) - by_hand) < 1e-12


def test_mmd_is_unbiased_and_may_be_negative():
    values = torch.stack([mmd(torch.randn(20, 2), torch.randn(20, 2)) for _ in range(400)])
    assert float(values.min()) < 0 < float(values.max())
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20
    assert float(mmd(torch.randn(50, 2) + 2, torch.randn(50, 2))) > 10 * float(values.std())


def test_mmd_is_differentiable_and_needs_two():
    a = torch.randn(6, 2, requires_grad=True)
    mmd(a, torch.randn(5, 2)).backward()
    assert torch.isfinite(a.grad).all()
    assert a.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="at least two points"):
        mmd(torch.zeros(1, 2), torch.zeros(5, 2))
