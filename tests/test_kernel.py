"""KDE against SciPy and scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch

from expost.density import KDE
from expost.density.kde import KernelMixture


def test_scott_equals_scipy() -> None:
    from scipy.stats import gaussian_kde

    z, other = torch.randn(300, 3) @ torch.randn(3, 3) + 2, torch.randn(40, 3)
    ours = KDE(3, points=300).fit(z)().log_prob(other)
    reference = gaussian_kde(z.double().numpy().T, bw_method=300 ** (-1 / 7) * (299 / 300) ** 0.5)  # SciPy divides by n - 1
    torch.testing.assert_close(ours.double(), torch.from_numpy(reference.logpdf(other.double().numpy().T)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bandwidth", [0.425, 0.01, 30.0])
def test_a_number_equals_the_sum_in_double_precision(bandwidth: float) -> None:
    """Also far from every kernel, where scikit-learn's tree search is off by thousands of nats at h = 0.01."""
    z, other = torch.randn(300, 3) + 10, torch.randn(40, 3) + 10
    ours = KDE(3, bandwidth, points=300).fit(z)().log_prob(other)
    squared = ((other.double()[:, None] - z.double()) / bandwidth).square().sum(-1)
    exact = torch.logsumexp(-0.5 * squared, 1) - math.log(300) - 3 * math.log(bandwidth) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_codes_many_bandwidths_apart() -> None:
    """Products in float64 lose the distance to the nearest kernel at 1e8 bandwidths; that the bandwidth is out of proportion is said."""
    z = 1e9 * torch.randn(200, 3)
    density = KDE(3, 0.5, points=200).fit(z)
    own = -math.log(200) - 3 * math.log(0.5) - 1.5 * math.log(2 * math.pi)
    codes = z.clone().requires_grad_()
    found = density().log_prob(codes)
    torch.testing.assert_close(found, torch.full((200,), own), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(found.sum(), codes)[0].isfinite().all()
    assert density.report is not None
    assert "times the codes' standard deviation: choose another bandwidth, or scott or cv" in density.report.note


def test_a_number_equals_scikit_learn() -> None:
    from sklearn.neighbors import KernelDensity

    z, other = torch.randn(300, 3) + 10, torch.randn(40, 3) + 10
    ours = KDE(3, 0.425, points=300).fit(z)().log_prob(other)
    reference = KernelDensity(bandwidth=0.425, rtol=1e-8).fit(z.double().numpy()).score_samples(other.double().numpy())
    torch.testing.assert_close(ours.double(), torch.from_numpy(reference), rtol=1e-4, atol=1e-4)


def test_cross_validation_beats_a_rule_that_oversmooths() -> None:
    z = torch.randn(1200, 2) * 0.1 + 3 * torch.randint(-1, 2, (1200, 2))
    other = torch.randn(500, 2) * 0.1 + 3 * torch.randint(-1, 2, (500, 2))
    scott, cv = (float(KDE(2, b, points=1000).fit(z)().log_prob(other).mean()) for b in ("scott", "cv"))  # type: ignore[arg-type]
    assert cv > scott + 0.3


def test_cross_validation_finds_the_best_of_a_grid() -> None:
    z, other = torch.randn(800, 1), torch.randn(4000, 1)
    chosen = KDE(1, "cv", points=800).fit(z)
    grid = [KernelMixture(z, torch.tensor([[h]])).log_prob(other).mean() for h in torch.logspace(-2, 0.3, 25).tolist()]
    assert float(chosen().log_prob(other).mean()) > float(max(grid)) - 0.02


def test_chunks_do_not_change_values_or_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    p = KDE(2, points=100).fit(torch.randn(100, 2))()
    z = torch.randn(57, 2, requires_grad=True)
    whole = p.log_prob(z)
    (gradient,) = torch.autograd.grad(whole.sum(), z)
    monkeypatch.setattr("expost.density.kde._CHUNK", 300)
    parts = p.log_prob(z)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.sum(), z)[0], gradient)
    assert p.log_prob(z[:0]).shape == (0,)


def test_a_seeded_subset_of_many_codes() -> None:
    z = torch.randn(500, 2)
    a, b, c = (KDE(2, points=100).fit(z, seed=s).kernels for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert all(bool((row == z).all(1).any()) for row in a)
    assert len(a.unique(dim=0)) == 100


def test_moments() -> None:
    p = KDE(2, 0.5, points=200).fit(torch.randn(200, 2) * torch.tensor([1.0, 3.0]) + 1)()
    sample = p.sample((50_000,))
    torch.testing.assert_close(sample.mean(0), p.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(sample.var(0), p.variance, rtol=0.05, atol=0)


def test_a_smaller_fit_replaces_a_larger_one() -> None:
    density = KDE(2, points=100).fit(torch.randn(100, 2)).fit(torch.randn(30, 2) + 50)
    assert len(density().points) == 30
    assert float(density().sample((100,)).min()) > 40


@pytest.mark.parametrize("arguments", [{"bandwidth": "silverman"}, {"bandwidth": -1.0}, {"bandwidth": float("nan")}, {"points": 1}])
def test_bad_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        KDE(2, **arguments)  # type: ignore[arg-type]
