r"""The linear-Gaussian autoencoder, where everything is known.

z ~ N(0, I), x | z ~ N(Wz + b, γI), hence x ~ N(b, WWᵀ + γI) and z | x ~ N(S⁻¹Wᵀ(x - b)/γ, S⁻¹) with S = I + WᵀW/γ. An encoder with a
full constant covariance can be made this posterior exactly; then every bound is tight, for every sample.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.objectives import ELBO, IWAE
from toys import StandardNormal, linear

GAMMA, D, LATENT = 0.3, 5, 2
F64 = torch.float64


def loadings(d: int = D, latent: int = LATENT, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(d, latent, generator=g, dtype=F64), torch.randn(d, generator=g, dtype=F64)


def exact_model(weight: Tensor, bias: Tensor, gamma: float = GAMMA, off: float = 0.0) -> Autoencoder:
    """The model with its exact posterior as the encoder; ``off`` shifts the posterior's mean, to make the bounds strict."""
    latent = weight.shape[1]
    precision = torch.eye(latent, dtype=F64) + weight.mT @ weight / gamma
    covariance = precision.inverse()
    gain = covariance @ weight.mT / gamma
    tril = torch.linalg.cholesky(covariance)
    rows, columns = torch.tril_indices(latent, latent, -1)
    constant = torch.cat([tril.diagonal().log(), tril[rows, columns]])
    head = heads.FullCovariance()
    matrix = torch.cat([gain, torch.zeros(len(constant), len(weight), dtype=F64)])
    encoder = linear(matrix, torch.cat([off - gain @ bias, constant]))
    decoder = Conditional(linear(weight, bias), heads.Gaussian(math.sqrt(gamma)).double())
    return Autoencoder(Conditional(encoder, head), decoder, StandardNormal(latent).double())


def marginal(weight: Tensor, bias: Tensor, gamma: float = GAMMA) -> MultivariateNormal:
    return MultivariateNormal(bias, weight @ weight.mT + gamma * torch.eye(len(weight), dtype=F64))


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, bias = loadings()
    truth = marginal(weight, bias)
    x = truth.sample((20,))
    return weight, bias, x, truth.log_prob(x)


TIGHT = {"rtol": 0, "atol": 1e-6}  # the fixed scale is kept in float32 before .double()


def test_the_marginal_is_exact_for_any_number_of_samples(case):
    weight, bias, x, truth = case
    model = exact_model(weight, bias)
    for samples in (1, 2, 16):
        torch.testing.assert_close(model(samples).log_prob(x), truth, **TIGHT)
        torch.testing.assert_close(-IWAE(samples)(model, x).total, truth, **TIGHT)
    weights = model().log_weights(x, 50).detach()
    assert float(weights.std(0).max()) < 1e-6, "every single weight is p(x)"


def test_elbo_with_the_exact_posterior_is_log_p(case):
    """Distortion averaged over z in closed form: E‖x - Wz - b‖² = ‖x - Wμ - b‖² + tr(W Σ Wᵀ). Nothing is left to chance."""
    weight, bias, x, truth = case
    model = exact_model(weight, bias)
    loss = ELBO()(model, x)
    q = model.encode(x)
    expected = (x - q.mean @ weight.mT - bias).square().sum(-1) + torch.einsum("dk,nkl,dl->n", weight, q.covariance_matrix, weight)
    distortion = 0.5 * expected / GAMMA + 0.5 * D * math.log(2 * math.pi * GAMMA)
    torch.testing.assert_close(-(distortion + loss.parts["rate"]), truth, **TIGHT)
    many = ELBO(samples=20_000)(model, x)
    deviation = (model.decode(q.sample((2000,))).log_prob(x)).std(0) / math.sqrt(20_000)
    assert bool(((many.parts["distortion"] - distortion).abs() < 4.5 * deviation).all())
    torch.testing.assert_close(many.total, many.parts["distortion"] + many.parts["rate"])


def test_sampled_elbo_with_the_exact_posterior_is_exact_for_each_sample(case):
    """With the rate estimated from the same z, log p(x|z) + log p(z) - log q(z|x) = log p(x) whatever z is."""
    weight, bias, x, truth = case

    class Hidden(heads.FullCovariance):
        """The same Gaussian in a wrapper that no closed form is registered for."""

        def forward(self, features, event_dims=1):
            return torch.distributions.Independent(super().forward(features, event_dims), 0)

    model = exact_model(weight, bias)
    model.encoder.head = Hidden()
    torch.testing.assert_close(-ELBO()(model, x).total, truth, **TIGHT)
    torch.testing.assert_close(-ELBO(samples=3)(model, x).total, truth, **TIGHT)


def test_a_wrong_posterior_costs_its_kl_and_more_samples_help(case):
    """ELBO = log p(x) - KL(q || posterior); the importance-weighted bound grows with K and stays below."""
    weight, bias, x, truth = case
    model, exact = exact_model(weight, bias, off=0.15), exact_model(weight, bias)
    gap = torch.distributions.kl_divergence(model.encode(x), exact.encode(x)).detach()
    assert float(gap.min()) > 0.05
    repeats, bounds = 400, []
    for samples in (1, 2, 8, 32):
        draws = torch.stack([model(samples).log_prob(x).detach().mean() for _ in range(repeats)])
        bounds.append((float(draws.mean()), float(draws.std()) / math.sqrt(repeats)))
    values, errors = zip(*bounds, strict=True)
    assert abs(values[0] - float((truth - gap).mean())) < 4 * errors[0]
    for i in range(len(values) - 1):
        assert values[i] < values[i + 1] + 4 * (errors[i] + errors[i + 1])
    assert values[0] < values[-1]
    assert values[-1] < float(truth.mean()) + 4 * errors[-1]
    assert float(truth.mean()) - values[-1] < 0.2 * float(gap.mean())


def test_samples_have_the_marginal_covariance(case):
    weight, bias, _, _ = case
    x = exact_model(weight, bias)().sample((40_000,))
    truth = marginal(weight, bias).covariance_matrix
    torch.testing.assert_close(x.T.cov(), truth, atol=0.05 * float(truth.abs().max()), rtol=0)
    torch.testing.assert_close(x.mean(0), bias, atol=0.06, rtol=0)


def test_two_levels():
    """A linear-Gaussian prior over the codes: p(x) = N(W c + b, W (V Vᵀ + δI) Wᵀ + γI), and both levels stay exact."""
    (w, b), (v, c), delta = loadings(), loadings(LATENT, 1, seed=1), 0.2
    inner = exact_model(v, c, delta)
    prior = marginal(v, c, delta)
    truth = MultivariateNormal(w @ c + b, w @ prior.covariance_matrix @ w.mT + GAMMA * torch.eye(D, dtype=F64))
    precision = prior.precision_matrix + w.mT @ w / GAMMA
    covariance = precision.inverse()
    gain, tril = covariance @ w.mT / GAMMA, torch.linalg.cholesky(covariance)
    mean_bias = covariance @ (prior.precision_matrix @ c - w.mT @ b / GAMMA)
    matrix = torch.cat([gain, torch.zeros(3, D, dtype=F64)])
    encoder = linear(matrix, torch.cat([mean_bias, tril.diagonal().log(), tril[1:, 0]]))
    outer = Autoencoder(Conditional(encoder, heads.FullCovariance()), exact_model(w, b).decoder, inner)
    x = truth.sample((12,))
    torch.testing.assert_close(outer(4).log_prob(x), truth.log_prob(x), **TIGHT)
    torch.testing.assert_close(-ELBO()(outer, x).total, truth.log_prob(x), **TIGHT)
    assert outer().sample((6,)).shape == (6, D)
