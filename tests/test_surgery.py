"""ELBO surgery: the identity, and cases whose parts are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, MultivariateNormal, Normal

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.evaluate.likelihood.surgery import aggregate_log_prob, elbo_surgery
from oracles.test_linear_gaussian import exact_model, loadings, marginal
from toys import linear, model, pictures, vectors


def placed(scale: float, spread: float = 1.0, d: int = 2) -> Autoencoder:
    """q(z | x) = N(spread x, scale² I), p(x | z) = N(z, 1)."""
    eye = torch.eye(d)
    return Autoencoder(
        Conditional(linear(spread * eye), heads.Constant(scale)), Conditional(linear(eye), heads.Gaussian(1.0)), StandardNormal(d)
    )


def test_the_parts_add_up() -> None:
    s = elbo_surgery(model(), vectors(50), samples=3, progress=False)
    assert s.rate == pytest.approx(s.mutual_information + s.marginal_kl, abs=1e-9)
    assert s.elbo == pytest.approx(-s.distortion - s.rate, abs=1e-9)
    assert s.rate_exact is not None
    assert s.errors["rate"] is not None
    assert abs(s.rate - s.rate_exact) < 6 * s.errors["rate"]
    assert -0.1 < s.mutual_information <= s.log_n + 0.1


def test_one_image_has_no_information() -> None:
    s = elbo_surgery(model(), vectors(1), samples=500, progress=False)
    assert abs(s.mutual_information) < 1e-6
    assert s.marginal_kl == pytest.approx(s.rate, abs=1e-6)
    assert s.rate_exact == pytest.approx(s.rate, abs=0.5)
    assert not any("ceiling" in note for note in s.notes)


def test_separated_posteriors_reach_log_n() -> None:
    x = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0)) - 2
    s = elbo_surgery(placed(0.01), x, progress=False)
    assert s.mutual_information == pytest.approx(math.log(20), abs=1e-6)
    assert any("ceiling" in note for note in s.notes)


def test_posteriors_equal_to_the_prior_have_nothing() -> None:
    s = elbo_surgery(placed(1.0, spread=0.0), vectors(30, d=2), progress=False)
    for part in ("rate", "mutual_information", "marginal_kl"):
        assert getattr(s, part) == pytest.approx(0, abs=1e-6)


def test_two_posteriors_by_quadrature() -> None:
    """N(±1, 1) in one dimension: the mutual information and the marginal KL by integration on a grid."""
    m, x = placed(1.0, d=1), torch.tensor([[-1.0], [1.0]])
    grid = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    q = torch.stack([Normal(-1.0, 1.0).log_prob(grid), Normal(1.0, 1.0).log_prob(grid)])
    mixed, prior = torch.logsumexp(q, 0) - math.log(2), Normal(0.0, 1.0).log_prob(grid)
    information = float(torch.trapezoid((q.exp() * (q - mixed)).mean(0), grid))
    mismatch = float(torch.trapezoid(mixed.exp() * (mixed - prior), grid))
    s = elbo_surgery(m, x, samples=20_000, progress=False)
    assert s.mutual_information == pytest.approx(information, abs=0.03)
    assert s.marginal_kl == pytest.approx(mismatch, abs=0.03)
    assert s.rate_exact == pytest.approx(information + mismatch, abs=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_the_aggregate_is_the_mixture(full) -> None:
    """Against torch's own mixture in float64, in blocks of any size."""
    g = torch.Generator().manual_seed(0)
    mean, n, d = 5 + torch.randn(37, 3, generator=g, dtype=torch.float64), 37, 3
    if full:
        tril = torch.tril(0.3 * torch.randn(n, d, d, generator=g, dtype=torch.float64), -1) + 0.5 * torch.eye(d)
        q: MultivariateNormal | Independent = MultivariateNormal(mean, scale_tril=tril)
    else:
        q = Independent(Normal(mean, 0.01 + torch.rand(n, d, generator=g, dtype=torch.float64)), 1)
    z = q.sample((2,)).flatten(0, 1)
    truth = MixtureSameFamily(torch.distributions.Categorical(torch.ones(n, dtype=torch.float64)), q).log_prob(z)
    torch.testing.assert_close(aggregate_log_prob(q, z), truth, rtol=0, atol=1e-9)
    torch.testing.assert_close(aggregate_log_prob(q, z, memory=1000), truth, rtol=0, atol=1e-9)


def test_narrow_posteriors_far_from_the_origin_keep_their_digits() -> None:
    """d = 128, σ = 0.01, means near 1000: float32 would be off by nats."""
    g = torch.Generator().manual_seed(0)
    q = Independent(Normal(1000 + torch.randn(50, 128, generator=g), torch.full((50, 128), 0.01)), 1)
    z = q.sample()
    exact = Independent(Normal(q.mean.double(), q.stddev.double()), 1).log_prob(z.double()) - math.log(50)
    torch.testing.assert_close(aggregate_log_prob(q, z), exact, rtol=0, atol=1e-6)


def test_exact_posteriors_of_a_large_sample_have_no_marginal_mismatch() -> None:
    """With exact posteriors and data from the model, q(z) -> p(z): nearly all rate is information, I = H(z) - H(z | x)."""
    weight, bias = loadings()
    m = exact_model(weight, bias, gamma=2.0)
    s = elbo_surgery(m, marginal(weight, bias, 2.0).sample((3000,)), progress=False)
    precision = torch.eye(2, dtype=torch.float64) + weight.mT @ weight / 2.0
    information = 0.5 * float(torch.logdet(precision))
    assert abs(s.marginal_kl) < 0.05
    assert s.mutual_information == pytest.approx(information, abs=0.1)


def test_results_print_and_serialise() -> None:
    s = elbo_surgery(model(decoder_head=heads.CrossEntropy()), vectors(20).clamp(0, 1), progress=False)
    assert any("not a bound" in note for note in s.notes)
    assert json.loads(json.dumps(s.to_json()))["n"] == 20
    assert "I(n; z)" in str(s)
    assert s.result("mutual_information").value == s.mutual_information
    again = elbo_surgery(model(decoder_head=heads.CrossEntropy()), vectors(20).clamp(0, 1), progress=False)
    assert s.to_json() == again.to_json()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="deterministic encoder"):
        elbo_surgery(model(heads.Dirac()), vectors(5))
    with pytest.raises(ValueError, match="no prior"):
        elbo_surgery(model(plain=True), vectors(5))
    with pytest.raises(ValueError, match="NaN"):
        elbo_surgery(model(), torch.full((2, 6), math.nan))

    class Heavy(heads.Diagonal):
        def forward(self, features: Tensor, event_dims: int = 1) -> torch.distributions.Distribution:
            q = super().forward(features, event_dims)
            return Independent(torch.distributions.Laplace(q.mean, q.stddev), 1)

    with pytest.raises(ValueError, match="Gaussian posteriors"):
        elbo_surgery(model(Heavy()), vectors(5))


def test_stored_images() -> None:
    from toys import convolutional

    s = elbo_surgery(convolutional(), pictures(20), progress=False)
    assert math.isfinite(s.elbo)
