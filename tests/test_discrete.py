"""Masses of stored values: they sum to one, agree with direct integration, survive extreme parameters, and give finite gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from expost import heads
from expost.discrete import (
    BetaBinomial,
    Discretized,
    DiscretizedGaussian,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    check_levels,
)

LEVELS = 256


def parameters(count: int, *, components: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shape = (7, components, 4) if components else (7, 4)
    return [torch.randn(shape, dtype=dtype) * 2 for _ in range(count)]


def families(dtype: torch.dtype = torch.float64) -> dict[str, Discretized]:
    location, scale = parameters(2, dtype=dtype)
    return {
        "logistic": DiscretizedLogistic(location, scale - 3),
        "gaussian": DiscretizedGaussian(location, scale - 3),
        "beta-binomial": BetaBinomial(location, scale),
        "mixture": DiscretizedLogisticMixture(*(p - o for p, o in zip(parameters(3, components=3, dtype=dtype), (0, 0, 4), strict=True))),
    }


def every_level(p: Discretized) -> Tensor:
    grid = torch.arange(p.levels, dtype=torch.float64) / (p.levels - 1)
    return grid.reshape(-1, 1, 1).expand(-1, *p.batch_shape, *p.event_shape)


@pytest.mark.parametrize("name", list(families()))
def test_masses_sum_to_one_and_both_forms_agree(name: str) -> None:
    p = families()[name]
    masses = p.log_mass(every_level(p)).exp()
    assert torch.allclose(masses.sum(0), torch.ones(7, 4, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(masses.movedim(0, -1), p.pmf(), atol=1e-10)
    assert torch.allclose(p.log_prob(every_level(p)), p.log_mass(every_level(p)).sum(-1))


@pytest.mark.parametrize("name", list(families()))
def test_float32_stays_within_rounding_of_float64(name: str) -> None:
    p = families(torch.float32)[name]
    masses = p.log_mass(every_level(p).float()).exp()
    assert torch.allclose(masses.sum(0), torch.ones(7, 4), atol=2e-5)
    assert p.pmf().dtype == torch.float32
    assert bool((p.pmf() >= 0).all())


def test_logistic_against_numerical_integration() -> None:
    from scipy import integrate, stats

    loc, scale = 0.4, 0.02
    p = DiscretizedLogistic(torch.tensor([loc], dtype=torch.float64), torch.tensor([math.log(scale)], dtype=torch.float64))
    for k in (0, 1, 90, 102, 200, 255):
        low, high = (k - 0.5) / 255 if k else -np.inf, (k + 0.5) / 255 if k < 255 else np.inf
        exact, _ = integrate.quad(stats.logistic(loc, scale).pdf, low, high)
        if not np.isfinite([low, high]).all():
            exact = float(np.diff(stats.logistic(loc, scale).cdf([low, high]))[0])
        assert float(p.log_mass(torch.tensor([k / 255], dtype=torch.float64)).exp()) == pytest.approx(exact, rel=1e-6, abs=1e-12)


def test_gaussian_and_beta_binomial_against_scipy() -> None:
    from scipy import stats

    k = torch.arange(LEVELS, dtype=torch.float64) / 255
    one = torch.ones(1, dtype=torch.float64)
    gaussian = DiscretizedGaussian(0.7 * one, math.log(0.05) * one).log_mass(k[:, None])[:, 0].exp().numpy()
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 255, [np.inf]])
    assert np.allclose(gaussian, np.diff(stats.norm(0.7, 0.05).cdf(edges)), atol=1e-12)
    beta = BetaBinomial(math.log(2.5) * one, math.log(0.7) * one).log_mass(k[:, None])[:, 0].exp().numpy()
    assert np.allclose(beta, stats.betabinom(255, 2.5, 0.7).pmf(np.arange(256)), rtol=1e-8)


def test_far_tails_are_finite_where_differences_of_cdfs_cancel() -> None:
    one = torch.ones(1, dtype=torch.float32, requires_grad=True)
    for p in (DiscretizedLogistic(0.9 * one, -7 * one), DiscretizedGaussian(0.9 * one, -4 * one)):
        value = p.log_mass(torch.tensor([0.2]))
        assert torch.isfinite(value).all()
        assert float(value.detach()) < -30  # the difference of two CDFs in float32 would be log 0
        (gradient,) = torch.autograd.grad(value.sum(), one)
        assert torch.isfinite(gradient).all()


def test_scale_to_zero_concentrates_on_the_bin_of_the_mean() -> None:
    loc = torch.tensor([100.2 / 255], dtype=torch.float64)
    for log_scale, least in ((-7.0, 0.3), (-9.0, 0.9), (-12.0, 0.999999)):
        p = DiscretizedLogistic(loc, torch.tensor([log_scale], dtype=torch.float64))
        assert int(p.mode * 255) == 100
        assert float(p.pmf().max()) > least


@pytest.mark.parametrize("log_scale", [-30.0, -8.0, 0.0, 20.0, 40.0])
def test_gradients_are_finite_for_extreme_scales(log_scale: float) -> None:
    raw = torch.full((256, 1), log_scale, requires_grad=True)
    grid = torch.arange(256.0)[:, None] / 255
    for family in (DiscretizedLogistic, DiscretizedGaussian):
        raw.grad = None
        family(torch.full((256, 1), 0.5), raw).log_mass(grid).clamp_min(-1e4).sum().backward()
        assert raw.grad is not None
        assert torch.isfinite(raw.grad).all(), family


def test_mean_variance_and_samples_agree() -> None:
    for name, p in families().items():
        x = p.sample((4000,))
        assert x.shape == (4000, 7, 4)
        check_levels(p, x)
        error = 5 * (p.variance / 4000).sqrt() + 1e-9
        assert bool(((x.mean(0) - p.mean).abs() < error).all()), name


def test_rows_are_the_same_distribution() -> None:
    for p in families().values():
        assert torch.equal(p.rows(2, 5).pmf(), p.pmf()[2:5])


def test_a_mixture_of_one_is_the_logistic() -> None:
    location, scale = parameters(2)
    single = DiscretizedLogistic(location, scale)
    mixture = DiscretizedLogisticMixture(torch.zeros(7, 1, 4, dtype=torch.float64), location[:, None], scale[:, None])
    x = single.sample((3,))
    assert torch.allclose(single.log_prob(x), mixture.log_prob(x))


@pytest.mark.parametrize("x", [torch.tensor([0.5]), torch.tensor([1.2]), torch.tensor([-1 / 255])])
def test_values_between_levels_are_refused(x: Tensor) -> None:
    p = heads.Logistic()(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="uint8"):
        check_levels(p, x)


def test_heads_start_where_they_say() -> None:
    p = heads.LogisticMixture(3)(torch.zeros(2, 9, 4, 4), event_dims=3)
    assert p.event_shape == (1, 4, 4)
    assert torch.allclose(p.mean, torch.full((2, 1, 4, 4), 0.5), atol=1e-3)
    assert heads.Logistic("shared").size(3) == 3
    assert heads.Logistic().size(3) == 6
    assert heads.BetaBinomial()(torch.zeros(1, 2)).pmf().std() < 1e-6  # alpha = beta = 1: uniform
    with pytest.raises(ValueError, match="scale must be"):
        heads.Logistic("fixed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one component"):
        heads.LogisticMixture(0)
