"""The tutorial's demonstrations against closed forms derived another way, and their pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from expost.papers.yu2020 import claims as measures
from expost.papers.yu2020.demonstrations import DEMONSTRATIONS, Demonstration, Series
from expost.papers.yu2020.demonstrations.channel import random_coding_error, simulated_error
from expost.papers.yu2020.demonstrations.flow import diagonal_plateau, flow_loss, sigma_vae
from expost.papers.yu2020.demonstrations.importance import estimates
from expost.papers.yu2020.demonstrations.linear import cubature, exact_elbo, linear_model
from expost.papers.yu2020.demonstrations.points import copying_solution, ignoring_solution
from expost.papers.yu2020.demonstrations.variance import bits_per_pixel, linear_optimum, quantised_bits
from expost.report.figures import draw, save
from expost.results import Curve
from expost.runs.lab import Lab


@pytest.fixture(scope="module")
def shown() -> dict[str, Demonstration]:
    return {name: make(0) for name, make in DEMONSTRATIONS.items()}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_every_demonstration_holds_and_is_named_as_listed(shown: dict[str, Demonstration], name: str) -> None:
    one = shown[name]
    assert one.name == name
    assert one.holds, str(one)
    assert one.table.rows
    assert one.series
    assert one.claim in str(one)
    assert one.to_json()["figures"] == one.figures


@pytest.mark.parametrize("name", [n for n in DEMONSTRATIONS if n != "rescaling"])
def test_same_seed_same_numbers(shown: dict[str, Demonstration], name: str) -> None:
    assert DEMONSTRATIONS[name](0).to_json() == shown[name].to_json()


def test_other_seeds_draw_other_samples() -> None:
    first, second = (DEMONSTRATIONS["two-solutions"](seed) for seed in (0, 1))
    assert first.table.column("sampled -ELBO") != second.table.column("sampled -ELBO")
    assert first.table.column("-ELBO") == pytest.approx(second.table.column("-ELBO"), abs=1e-9)


# -- the exact -ELBO ------------------------------------------------------------------------------------------------------------------


def posterior_model(full: bool) -> tuple[torch.Tensor, torch.Tensor, float, torch.Tensor, torch.Tensor]:
    w, b, gamma = torch.randn(4, 2).double(), torch.randn(4).double(), 0.3
    covariance = torch.linalg.inv(torch.eye(2).double() + w.T @ w / gamma)
    root = torch.linalg.cholesky(covariance) if full else covariance.diagonal().sqrt()
    return w, b, gamma, covariance @ w.T / gamma, root


def test_cubature_averages_quadratics_exactly() -> None:
    mean, root = torch.randn(3).double(), torch.randn(3, 3).double().tril()
    points, form = cubature(mean, root), torch.randn(3, 3).double()
    expected = torch.trace(form @ root @ root.T) + mean @ form @ mean
    assert torch.allclose(((points @ form) * points).sum(-1).mean(), expected, atol=1e-12)


def test_exact_elbo_with_the_posterior_is_the_likelihood() -> None:
    w, b, gamma, a, root = posterior_model(full=True)
    model, x = linear_model((w, b), (a, -a @ b), root, math.sqrt(gamma)), torch.randn(9, 4).double()
    marginal = torch.distributions.MultivariateNormal(b, w @ w.T + gamma * torch.eye(4).double())
    assert torch.allclose(exact_elbo(model, x).total, -marginal.log_prob(x), atol=1e-10)


def test_exact_elbo_of_a_wrong_posterior_is_above_by_its_divergence() -> None:
    w, b, gamma, a, _ = posterior_model(full=True)
    *_, narrow = posterior_model(full=False)
    model, x = linear_model((w, b), (a, -a @ b), narrow, math.sqrt(gamma)), torch.randn(9, 4).double()
    marginal = torch.distributions.MultivariateNormal(b, w @ w.T + gamma * torch.eye(4).double())
    posterior = torch.distributions.MultivariateNormal((x - b) @ a.T, torch.linalg.inv(torch.eye(2).double() + w.T @ w / gamma))
    q = torch.distributions.MultivariateNormal((x - b) @ a.T, torch.diag(narrow**2))
    gap = torch.distributions.kl_divergence(q, posterior)
    assert torch.allclose(exact_elbo(model, x).total + marginal.log_prob(x), gap, atol=1e-10)


# -- E7 -------------------------------------------------------------------------------------------------------------------------------


def test_linear_optimum_is_probabilistic_pca() -> None:
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).normal(size=(300, 6)) * np.array([3, 2, 1.5, 1, 0.5, 0.2])
    pca = PCA(3, svd_solver="full").fit(x)
    values = np.linalg.eigvalsh(np.cov(x.T)).tolist()
    unbiased = linear_optimum(values, 3)
    # scikit-learn's covariance is the unbiased one, the data's scatter is not
    off = 0.5 * 6 / 300
    assert unbiased.loss - off == pytest.approx(-pca.score(x), abs=1e-9)
    assert unbiased.variance == pytest.approx(pca.noise_variance_)


def test_linear_optimum_cannot_be_improved_by_gradient_descent() -> None:
    values, gamma = [3.0, 1.0, 0.2], 0.5
    best = linear_optimum(values, 2, gamma)
    x = torch.linalg.qr(torch.randn(50, 4).double()).Q[:, 1:]
    x = torch.linalg.svd(x - x.mean(0), full_matrices=False).U * math.sqrt(50) * torch.tensor(values).double().sqrt()
    model = linear_model(
        (torch.randn(3, 2).double(), torch.zeros(3).double()),
        (torch.randn(2, 3).double(), torch.zeros(2).double()),
        torch.ones(2).double(),
        math.sqrt(gamma),
    )
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = exact_elbo(model, x).total.mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = exact_elbo(model, x)
    assert float(found.total.mean().detach()) == pytest.approx(best.loss, abs=1e-4)
    assert float(found.parts["rate"].mean().detach()) == pytest.approx(best.rate, abs=1e-2)


def test_linear_optimum_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="latent must be"):
        linear_optimum([1.0, 2.0], 2)
    with pytest.raises(ValueError, match="positive"):
        linear_optimum([1.0, 0.0], 1)
    with pytest.raises(ValueError, match="variance must be positive"):
        linear_optimum([2.0, 1.0], 1, 0.0)


def test_only_the_learned_variance_ignores_the_scale(shown: dict[str, Demonstration]) -> None:
    rows = shown["rescaling"].table.rows
    learned, fixed = ([r for r in rows if r[0] == name] for name in ("learned", "fixed"))
    assert len({round(r[3], 9) for r in learned}) == 1
    assert len({round(r[3], 2) for r in fixed}) == len(fixed)
    assert [r[5] for r in fixed] == [0, 0, 1, 3, 4, 4, 4]  # eigenvalues above 1 / (2 c²)


# -- the best variance ----------------------------------------------------------------------------------------------------------------


def test_residual_of_an_8_bit_pixel() -> None:
    assert bits_per_pixel(0.01) == pytest.approx(6.725, abs=5e-4)
    assert bits_per_pixel(0.01, levels=512) == pytest.approx(7.725, abs=5e-4)
    assert quantised_bits(0.01) == pytest.approx(bits_per_pixel(0.01), abs=2e-4)
    assert quantised_bits(1e-9) == pytest.approx(0, abs=1e-6)  # everything falls into one bin, where the formula is negative
    assert bits_per_pixel(1e-9) < 0
    with pytest.raises(ValueError, match="positive"):
        bits_per_pixel(0.0)


def test_enumeration_agrees_with_scipy() -> None:
    from scipy.stats import norm

    k = np.arange(-400, 401)
    mass = norm.cdf((k + 0.5) / 256, scale=0.05) - norm.cdf((k - 0.5) / 256, scale=0.05)
    mass = mass[mass > 0]
    assert quantised_bits(0.05**2) == pytest.approx(-(mass * np.log2(mass)).sum(), abs=1e-9)


# -- E8 -------------------------------------------------------------------------------------------------------------------------------


def test_flow_loss_is_the_density_of_the_image_of_a_normal() -> None:
    jacobian, shift, x = torch.randn(3, 3).double(), torch.randn(3).double(), torch.randn(5, 3).double()
    image = torch.distributions.MultivariateNormal(shift, jacobian @ jacobian.T)
    assert torch.allclose(flow_loss(jacobian, shift, x), -image.log_prob(x), atol=1e-9)


def test_no_diagonal_posterior_beats_the_plateau() -> None:
    jacobian, shift, epsilon = torch.randn(3, 3).double() + torch.eye(3), torch.zeros(3).double(), 1e-3
    x = torch.randn(6, 3).double() @ jacobian.T
    inverse, best = torch.linalg.inv(jacobian), diagonal_plateau(jacobian)
    with torch.no_grad():
        reached = exact_elbo(sigma_vae(jacobian, shift, epsilon, diagonal=True), x).total - flow_loss(jacobian, shift, x)
        assert torch.allclose(reached, torch.full_like(reached, best), atol=1e-3)
        base = epsilon * (jacobian.T @ jacobian).diagonal().rsqrt()
        for factor in torch.randn(20, 3).double().mul(0.3).exp():
            other = linear_model((jacobian, shift), (inverse, -inverse @ shift), base * factor, epsilon)
            assert float((exact_elbo(other, x).total - flow_loss(jacobian, shift, x)).min()) > best - 1e-6


def test_plateau_vanishes_only_for_orthogonal_columns() -> None:
    rotation = torch.linalg.qr(torch.randn(4, 4).double()).Q
    stretch = torch.tensor([0.5, 1.0, 2.0, 3.0]).double()
    assert diagonal_plateau(rotation * stretch) == pytest.approx(0, abs=1e-12)
    assert diagonal_plateau(stretch[:, None] * rotation) > 0.05


# -- E9 -------------------------------------------------------------------------------------------------------------------------------


def test_two_random_words_are_confused_as_often_as_the_exact_average_says() -> None:
    # one dimension, one bit: P(|c' - y| < |e|) by brute force
    noise, n = 0.25, 400_000
    word, other, hiss = (math.sqrt(p) * torch.randn(n) for p in (1 - noise, 1 - noise, noise))
    brute = float(((other - word - hiss).abs() < hiss.abs()).float().mean())
    error, spread = random_coding_error(1, 1.0, noise)
    assert abs(error - brute) < 4.5 * math.hypot(spread, math.sqrt(brute / n))
    assert abs(simulated_error(1, 1.0, noise, codebooks=500, messages=4)[0] - brute) < 0.05


def test_far_beyond_what_can_be_searched() -> None:
    below, _ = random_coding_error(400, 0.5, 0.25, draws=500)
    above, _ = random_coding_error(400, 1.5, 0.25, draws=500)
    assert below < 1e-6
    assert above > 0.999
    with pytest.raises(ValueError, match="too large to search"):
        simulated_error(40, 0.5, 0.25)


# -- E13 ------------------------------------------------------------------------------------------------------------------------------


def test_solution_a_is_the_data_and_b_whitens_them() -> None:
    mu, x = torch.randn(2).double(), torch.randn(5, 2).double()
    truth = torch.distributions.Normal(mu, 0.4).log_prob(x).sum(-1)
    a, b = ignoring_solution(mu, 0.4), copying_solution(mu, 0.4, 1e-4)
    assert torch.allclose(exact_elbo(a, x).total, -truth, atol=1e-12)
    assert torch.allclose(exact_elbo(b, x).total, -truth, atol=1e-7)
    assert float(exact_elbo(a, x).parts["rate"].detach().abs().max()) == 0
    assert torch.allclose(b.encode(x).mean, (x - mu) / 0.4)
    # decoders: A says the same of every z, B tells them apart
    z = torch.randn(4, 2).double()
    assert torch.equal(a.decode(z).mean, mu.expand(4, 2))
    assert torch.allclose(b.decode(z).mean, 0.4 * z + mu)


# -- importance sampling --------------------------------------------------------------------------------------------------------------


def test_estimates_for_one_and_two_samples_by_hand() -> None:
    values, masses = estimates(2)
    assert values.tolist() == pytest.approx([0, 1 - math.log2(1 + 2**-10), 10])
    assert masses.tolist() == pytest.approx([0.81, 0.18, 0.01])
    values, masses = estimates(1)
    assert float(values @ masses) == pytest.approx(1)
    values, masses = estimates(1000)
    assert float(masses.sum()) == pytest.approx(1, abs=1e-10)
    assert float((2**-values) @ masses) == pytest.approx(0.9 + 0.1 * 2**-10)  # the mean of p stays unbiased


# -- results, pictures, claims --------------------------------------------------------------------------------------------------------


def test_a_series_refuses_lengths_that_differ() -> None:
    with pytest.raises(ValueError, match="as many of each"):
        Series("s", Curve([1.0, 2.0], [1.0]))
    with pytest.raises(ValueError, match="as many of each"):
        Series("s", Curve([1.0], [1.0]), "points", (0.1, 0.2))


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_pictures_have_labels_and_every_series(shown: dict[str, Demonstration], name: str, tmp_path: Path) -> None:
    one = shown[name]
    figure = draw(one)
    assert len(figure.axes) == len({(s.curve.x_label, s.curve.y_label) for s in one.series})
    drawn = sum(len(axes.get_legend_handles_labels()[1]) for axes in figure.axes)
    assert drawn == len(one.series)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    save(tmp_path / "a.png", one)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_says_when_the_claim_fails(shown: dict[str, Demonstration]) -> None:
    failed = replace(shown["two-solutions"], holds=False)
    assert "does not hold" in draw(failed).get_suptitle()
    with pytest.raises(ValueError, match="no series"):
        draw(replace(failed, series=()))


@pytest.mark.parametrize("name", ["e8", "e9", "e11", "e13"])
def test_claims_hold_with_figures(name: str, tmp_path: Path) -> None:
    verdict = getattr(measures, name)(Lab(root=tmp_path))
    assert verdict.holds, verdict.measured
    assert verdict.figures
    assert all(math.isfinite(v) for v in verdict.figures.values())
