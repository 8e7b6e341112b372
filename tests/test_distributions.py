"""Distributions that torch does not have, against closed forms and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions as D

from expost.distributions import CrossEntropy, Dirac, IsotropicGaussian, Marginal, binary, check_data, deterministic, normalised, point
from toys import model as toy
from toys import vectors


def test_dirac():
    loc = torch.randn(4, 3, requires_grad=True)
    q = Dirac(loc)
    assert (q.batch_shape, q.event_shape) == ((4,), (3,))
    assert torch.equal(q.rsample((5,)), loc.expand(5, 4, 3))
    assert torch.equal(q.sample(), loc)
    assert not q.sample().requires_grad
    assert torch.equal(q.mean, loc)
    assert torch.equal(q.mode, loc)
    assert q.variance.abs().sum() == 0
    q.rsample((2,)).sum().backward()
    assert torch.equal(loc.grad, torch.full((4, 3), 2.0))
    with pytest.raises(ValueError, match=r"has no density: use RAE"):
        q.log_prob(loc)


def test_cross_entropy_is_bernoulli_on_bits():
    logits, x = torch.randn(4, 1, 3, 3), torch.randint(0, 2, (4, 1, 3, 3)).float()
    p = CrossEntropy(logits, 3)
    bernoulli = D.Independent(D.Bernoulli(logits=logits), 3)
    torch.testing.assert_close(p.log_prob(x), bernoulli.log_prob(x))
    torch.testing.assert_close(p.mean, bernoulli.mean)
    torch.testing.assert_close(p.variance, bernoulli.variance)
    assert torch.equal(p.mode, (logits > 0).float())
    assert p.sample((2,)).shape == (2, 4, 1, 3, 3)
    assert set(p.sample((2,)).unique().tolist()) <= {0.0, 1.0}


def test_cross_entropy_of_grey_levels_has_the_entropy_as_floor_and_does_not_integrate_to_one():
    x = torch.tensor([[0.3]])
    best = CrossEntropy(torch.logit(x)).log_prob(x)
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    torch.testing.assert_close(best, torch.tensor([-entropy]))
    grid = torch.linspace(0, 1, 20001)[:, None]
    mass = torch.trapezoid(CrossEntropy(torch.zeros(20001, 1)).log_prob(grid).exp(), grid[:, 0])
    assert abs(float(mass) - 0.5) < 1e-4, "at logit 0 the density is 1/2 everywhere"


def test_cross_entropy_broadcasts_over_samples():
    logits, x = torch.randn(5, 4, 3), torch.rand(4, 3)
    each = torch.stack([CrossEntropy(row).log_prob(x) for row in logits])
    torch.testing.assert_close(CrossEntropy(logits).log_prob(x), each)


@pytest.mark.parametrize("dims", [1, 3])
def test_isotropic_gaussian_is_torch_normal(dims):
    shape = (4, 2, 3, 3) if dims == 3 else (4, 5)
    loc, x, log_scale = torch.randn(shape), torch.randn(shape), torch.tensor(-0.7)
    p = IsotropicGaussian(loc, log_scale, dims)
    reference = D.Independent(D.Normal(loc, log_scale.exp()), dims)
    assert (p.batch_shape, p.event_shape) == (reference.batch_shape, reference.event_shape)
    torch.testing.assert_close(p.log_prob(x), reference.log_prob(x))
    torch.testing.assert_close(p.log_prob(x.expand(2, *shape)), reference.log_prob(x.expand(2, *shape)))
    torch.testing.assert_close(p.variance, reference.variance)
    assert torch.equal(p.mode, p.mean)
    draws = p.rsample((4000,))
    torch.testing.assert_close(draws.mean(0), loc, atol=5 * float(p.scale) / math.sqrt(4000), rtol=0)
    torch.testing.assert_close(draws.var(0), p.variance, atol=0.05, rtol=0)


def test_isotropic_gaussian_integrates_to_one():
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    p = IsotropicGaussian(torch.tensor([0.3], dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))
    assert abs(float(torch.trapezoid(p.log_prob(grid[:, None]).exp(), grid)) - 1) < 1e-10


def test_optimal_variance_is_the_mse_and_its_gradient_that_of_half_d_log_mse():
    x, target = torch.randn(8, 5, dtype=torch.float64, requires_grad=True), torch.randn(8, 5, dtype=torch.float64)
    p = IsotropicGaussian(x, torch.tensor(3.0, dtype=torch.float64), optimal=True)
    loss = -p.log_prob(target).mean()
    mse = (x - target).square().mean()
    torch.testing.assert_close(p.last_variance, mse.detach())
    torch.testing.assert_close(loss, 2.5 * (torch.log(2 * math.pi * mse) + 1))
    (ours,) = torch.autograd.grad(loss, x)
    (reference,) = torch.autograd.grad(2.5 * mse.log(), x)
    torch.testing.assert_close(ours, reference)
    for factor in (0.9, 1.1):  # the maximiser of the likelihood
        other = IsotropicGaussian(x, 0.5 * (factor * mse.detach()).log())
        assert -other.log_prob(target).mean() > loss


def test_optimal_variance_survives_a_perfect_fit():
    x = torch.ones(3, 2)
    assert torch.isfinite(IsotropicGaussian(x, torch.tensor(0.0), optimal=True).log_prob(x)).all()


def test_point_normalised_deterministic_binary():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    normal = D.Independent(D.Normal(logits, 1.0), 1)
    bernoulli = D.Independent(D.Bernoulli(logits=logits), 1)
    assert torch.equal(point(normal), logits)
    assert torch.equal(point(bernoulli), torch.sigmoid(logits)), "grey levels are shown, not bits"
    assert point(D.Categorical(logits=logits)).tolist() == [0]
    assert point(D.Independent(D.Categorical(logits=logits), 1)).tolist() == [0]
    assert torch.equal(point(CrossEntropy(logits)), torch.sigmoid(logits))
    assert torch.equal(point(Dirac(logits)), logits)
    assert [normalised(d) for d in (normal, bernoulli, CrossEntropy(logits), Dirac(logits))] == [True, True, False, False]
    assert [deterministic(d) for d in (normal, Dirac(logits))] == [False, True]
    assert [binary(d) for d in (normal, bernoulli, CrossEntropy(logits))] == [False, True, False]


def test_check_data():
    p = D.Independent(D.Bernoulli(logits=torch.zeros(4, 3)), 1)
    check_data(p, torch.ones(4, 3))
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        check_data(p, torch.full((4, 3), 0.5))
    with pytest.raises(ValueError, match=r"the decoder makes \(3,\) and the data is \(1,\)"):
        check_data(p, torch.ones(4, 1))


def test_marginal_shapes_and_refusals():
    model = toy()
    p = Marginal(model, 4)
    assert p.sample((5,)).shape == (5, 6)
    assert p.sample((2, 3)).shape == (2, 3, 6)
    assert p.log_prob(vectors(7)).shape == (7,)
    assert p.log_prob(vectors(6).reshape(2, 3, 6)).shape == (2, 3)
    assert p.log_weights(vectors(7), 9).shape == (9, 7)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        Marginal(model, 0)


def test_marginal_samples_have_the_decoder_noise():
    model = toy()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    x = Marginal(model).sample((4000,))
    torch.testing.assert_close(x.std(0), torch.full((6,), 0.5), atol=0.03, rtol=0)
