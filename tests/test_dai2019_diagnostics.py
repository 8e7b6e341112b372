"""Diagnostics of dai2019 against closed forms, linear-Gaussian oracles, data of known dimension; figures and claims on a smoke lab."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.diagnose.codes.variances import encoder_variances, posterior_variances, summarise_variances
from expost.divergences import mmd
from expost.objectives import ELBO
from expost.papers.dai2019 import claims as measures
from expost.papers.dai2019.figures import (
    PRINTED,
    figure1_centre,
    figure1_left,
    figure1_right,
    figure9,
    figure10,
    reconstructions,
    sample_figure,
)  # fmt: skip
from expost.papers.dai2019.jacobian import decoder_gram, decoder_jacobian, jacobian_identity
from expost.papers.dai2019.manifold import gaussian_ring, learned_variance, linear_cost, manifold_check, manifold_data, optimal_linear_vae
from expost.papers.dai2019.noise import noise_correlation, noise_directions, spearman
from expost.papers.dai2019.spectra import latent_spectra, singular_spectrum, squared_mmd
from expost.papers.dai2019.variance import decoder_variance, optimal_variance, variance_trace
from expost.papers.yu2020.demonstrations.linear import exact_elbo, linear_model
from expost.papers.yu2020.demonstrations.variance import linear_optimum
from expost.results import Series
from expost.runs.lab import Lab
from expost.train.second_stage import SecondStage
from expost.train.settings import Training
from toys import convolutional, linear, model, pictures, vectors


def flat(scale: float = 0.5, gamma: float = 0.25, d: int = 3) -> Autoencoder:
    """q(z | x) = N(x, scale² I), p(x | z) = N(z, gamma I), float64."""
    eye = torch.eye(d, dtype=torch.float64)
    head = heads.Gaussian(math.sqrt(gamma)).double()
    return Autoencoder(Conditional(linear(eye), heads.Constant(scale)), Conditional(linear(eye), head), StandardNormal(d).double())


def full_covariance(seed: int = 0, gamma: float = 0.3) -> tuple[Autoencoder, Tensor, Tensor]:
    """The exact posterior of a linear decoder W with a full-covariance encoder; W and P = I + WᵀW/γ."""
    w = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    precision = torch.eye(3, dtype=torch.float64) + w.T @ w / gamma
    covariance = torch.linalg.inv(precision)
    zeros = torch.zeros(6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    m = linear_model((w, zeros[0]), (covariance @ w.T / gamma, zeros[1]), torch.linalg.cholesky(covariance), math.sqrt(gamma))
    return m, w, precision


# -- γ -------------------------------------------------------------------------------------------------------------------------------------


def test_optimal_variance_of_a_known_error() -> None:
    """The reconstruction is x + .5 ε: its squared error per pixel is .25, the model's own γ."""
    found = optimal_variance(flat(), torch.randn(4000, 3, dtype=torch.float64))
    assert found.error is not None
    assert abs(found.value - 0.25) < 4 * found.error < 0.02
    assert found.details["gamma"] == pytest.approx(0.25)
    assert found.details["gamma std"] == pytest.approx(0.5)
    assert found.details["std"] == pytest.approx(found.value**0.5)
    assert found.details["loss"] == pytest.approx(1.5 * (math.log(2 * math.pi * found.value) + 1))
    assert found.details["loss at gamma"] >= found.details["loss"]


def test_optimal_variance_is_the_minimum_of_the_mean_distortion() -> None:
    """Against the objective itself: no other fixed γ gives a smaller distortion at the same codes."""
    x = vectors(300)
    m = model(heads.Dirac(), heads.Gaussian(0.5), plain=True)
    found = optimal_variance(m, x)
    reconstructed = m.reconstruct(x)

    def loss(gamma: float) -> float:
        normal = torch.distributions.Normal(reconstructed, gamma**0.5)
        return float(-normal.log_prob(x).sum(1).mean())

    assert found.details["loss"] == pytest.approx(loss(found.value), rel=1e-5)
    assert all(loss(found.value * f) > loss(found.value) for f in (0.9, 1.1))


def test_optimal_variance_of_images_batches_seeds_and_other_heads() -> None:
    x, m = pictures(30), convolutional()
    first = optimal_variance(m, x, batch_size=30)
    assert optimal_variance(m, x, batch_size=30) == first
    assert optimal_variance(m, x, batch_size=7).value == pytest.approx(first.value, rel=1e-6)
    assert optimal_variance(m, x, seed=1).value != first.value
    assert any("n = 30" in note for note in first.notes)
    assert "gamma" not in optimal_variance(convolutional(heads.CrossEntropy()), x).details
    with pytest.raises(ValueError, match="at least 2 data"):
        optimal_variance(m, x[:1])
    with pytest.raises(ValueError, match="not one variance"):
        decoder_variance(convolutional(heads.CrossEntropy()))


def test_trace_recovers_the_error_from_logged_distortions() -> None:
    """Distortions averaged over 2000 small steps of a straight log γ at a constant error."""
    dims, error = 20, 0.03
    rows, ends = [{"split": "val", "step": "1", "distortion": ""}], [0.0, -1.0, -1.0, -3.0]
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        logs = torch.linspace(a, b, 2001, dtype=torch.float64)
        distortion = 0.5 * dims * (math.log(2 * math.pi) + logs + error * (-logs).exp())
        mean = torch.trapezoid(distortion, dx=1 / 2000)
        rows.append({"split": "train", "step": str(100 * (i + 1)), "distortion": str(float(mean)), "log_gamma": str(b)})
    trace = variance_trace(rows, dims)
    assert trace.squared_error == pytest.approx([error] * 3, rel=1e-5)
    assert trace.optimum == pytest.approx([math.log(error)] * 3, rel=1e-5)
    assert trace.steps == (100, 200, 300)
    assert trace.curves()["log γ"].y == [-1, -1, -3]


def test_trace_of_fixed_and_optimal_variance_and_of_misfits() -> None:
    def row(distortion: float, **more: float) -> dict[str, object]:
        return {"split": "train", "step": 5, "distortion": distortion, **more}

    fixed = [row(0.5 * 8 * (math.log(2 * math.pi * 0.5) + 0.2 / 0.5))]
    assert variance_trace(fixed, 8, gamma=0.5).squared_error == pytest.approx((0.2,))
    best = [row(0.5 * 8 * (math.log(2 * math.pi * 0.2) + 1), log_gamma=math.log(0.2))]
    assert variance_trace(best, 8, gamma="optimal").squared_error == pytest.approx((0.2,))
    odd = variance_trace([row(-100.0)], 8, gamma=1.0)
    assert math.isnan(odd.squared_error[0])
    assert odd.notes
    assert odd.curves()["squared error"].y == []
    for rows in ([], fixed):
        with pytest.raises(ValueError, match="lacks"):
            variance_trace(rows, 8)


# -- encoder variances -----------------------------------------------------------------------------------------------------------------------


def test_encoder_variances_of_the_optimal_linear_vae() -> None:
    """Three directions at γ / λ = γ, three at 1 (whitened data)."""
    x = manifold_data(500, 10, 3)
    found = encoder_variances(optimal_linear_vae(x, 6, 0.02), x)
    assert sorted(found.medians) == pytest.approx([0.02] * 3 + [1.0] * 3, abs=1e-9)
    assert (found.dimension.value, found.live, found.kappa) == (3, 3, 6)
    assert (found.small, found.large, found.outside.value) == (0.5, 0.5, 1)
    assert found.bimodal
    series = found.series()
    assert isinstance(series, Series)
    assert series.kind == "bars"
    assert sum(series.curve.y) == pytest.approx(1)
    assert "dimension r" in str(found.table())


def test_histogram_against_a_loop_and_one_peak_is_not_two() -> None:
    values = torch.rand(200, 5).double() * 1.4
    found = summarise_variances(values, bins=12)
    for i, count in enumerate(found.counts):
        low, high = 0.1 * i, 0.1 * (i + 1)
        assert count == int(((values >= low) & (values < high)).sum())
    assert found.above == int((values > 1.2).sum())
    assert sum(found.counts) + found.above == 1000
    assert found.dimension.value == pytest.approx(float((values < 0.5).sum()) / 200)
    assert not found.bimodal
    used = summarise_variances(torch.full((200, 4), 0.01))
    assert used.outside.value == 1
    assert not used.bimodal
    assert any("all 4 directions are used" in note for note in used.notes)


def test_eigenvalues_of_a_full_covariance() -> None:
    m, _, precision = full_covariance()
    q = m.posteriors(torch.randn(5, 6, dtype=torch.float64))
    assert torch.allclose(posterior_variances(q), (1 / torch.linalg.eigvalsh(precision)).flip(0).expand(5, 3))
    assert not torch.allclose(q.variance.sort().values, posterior_variances(q))  # the diagonal is something else


def test_encoder_variances_refuse_what_has_none() -> None:
    with pytest.raises(ValueError, match="deterministic"):
        encoder_variances(model(heads.Dirac()), vectors())
    with pytest.raises(ValueError, match="threshold"):
        encoder_variances(model(), vectors(), threshold=1.5)
    x, m = pictures(20), convolutional()
    assert encoder_variances(m, x, batch_size=3).medians == pytest.approx(encoder_variances(m, x).medians, rel=1e-5)


# -- noise -----------------------------------------------------------------------------------------------------------------------------------


def test_image_variance_of_a_linear_decoder() -> None:
    """f(μ + ε v) varies by var(ε) |W v|²: the closed form, for coordinates and for eigenvectors."""
    x = manifold_data(500, 10, 3)
    m = optimal_linear_vae(x, 6, 0.02)
    found = noise_directions(m, x[0], samples=15)
    images = found.images
    assert images.shape == (6, 15, 10)
    weight = m.decoder.net.weight.detach().square().sum(0)
    ratio = torch.tensor(found.image_variances[:3]).double() / weight[list(found.directions[:3])]
    assert torch.allclose(ratio, ratio[0].expand(3), rtol=1e-9)  # one var(ε) for all directions
    assert 0.2 < float(ratio[0]) < 3
    assert found.image_variances[3:] == pytest.approx((0, 0, 0), abs=1e-20)
    assert found.unused == pytest.approx(0, abs=1e-12)
    assert found.image_variances[0] == pytest.approx(float(images[0].var(0).sum()))
    assert torch.allclose(found.centre, m.reconstruct(x[:1])[0])

    full, w, precision = full_covariance()
    along = noise_directions(full, torch.randn(6, dtype=torch.float64))
    vectors_ = torch.linalg.eigh(torch.linalg.inv(precision)).eigenvectors
    expected = (w @ vectors_).square().sum(0)
    ratio = torch.tensor(along.image_variances).double() / expected
    assert torch.allclose(ratio, ratio[0].expand(3))
    assert along.correlation.value == -1


def test_noise_is_seeded_and_independent_of_batches() -> None:
    x, m = pictures(4), convolutional(latent=5)
    first = noise_directions(m, x[0], chosen=[0, 4])
    again = noise_directions(m, x[0], chosen=[0, 4])
    assert torch.equal(first.images, again.images)
    assert first.image_variances == again.image_variances
    assert first.image_variances == pytest.approx(noise_directions(m, x[0], batch_size=16).image_variances, rel=1e-4)
    assert noise_directions(m, x[0], seed=1).image_variances != first.image_variances
    assert first.images.shape == (2, 15, 1, 8, 8)
    assert first.table().column("direction") == [first.directions[0], first.directions[4]]
    with pytest.raises(ValueError, match=r"pass x\[0\]"):
        noise_directions(m, x)
    with pytest.raises(ValueError, match="positions from 0 to 4"):
        noise_directions(m, x[0], chosen=[5])
    with pytest.raises(ValueError, match="deterministic"):
        noise_directions(model(heads.Dirac()), vectors()[0])


def test_spearman_is_scipys() -> None:
    from scipy.stats import spearmanr

    a, b = torch.randint(0, 8, (40,)).double(), torch.randn(40).double()
    assert spearman(a, b) == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-10)
    assert math.isnan(spearman(a, torch.ones(40)))


def test_mean_correlation_over_images() -> None:
    x, m = pictures(5), convolutional(latent=5)
    found = noise_correlation(m, x, seed=3)
    each = [noise_directions(m, one, seed=3 + i).correlation.value for i, one in enumerate(x)]
    assert found.value == pytest.approx(sum(each) / 5)
    assert found.details["highest"] == max(each)
    constant = model(heads.Constant(0.5), latent=4)
    with pytest.raises(ValueError, match="same variance"):
        noise_correlation(constant, vectors()[:3])


# -- spectra ---------------------------------------------------------------------------------------------------------------------------------


def test_spectrum_is_the_svd_and_knows_normal_codes() -> None:
    z = torch.randn(5000, 20, dtype=torch.float64)
    found = singular_spectrum(z)
    assert found.values == pytest.approx((torch.linalg.svdvals(z) / 5000**0.5).tolist(), rel=1e-10)
    low, high = found.edges
    assert (low, high) == pytest.approx((1 - 0.0632456, 1 + 0.0632456), abs=1e-6)
    assert low - 0.02 < found.values[-1] < found.values[0] < high + 0.02
    assert found.deviation < 0.05
    assert singular_spectrum(z.flip(0)).values == pytest.approx(found.values, rel=1e-12)
    assert singular_spectrum(2 * z).values == pytest.approx([2 * v for v in found.values])
    with pytest.raises(ValueError, match="at least d rows"):
        singular_spectrum(z[:10])


def test_squared_mmd_is_the_librarys_and_the_loops() -> None:
    a, b = torch.randn(60, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64) + 0.5
    assert squared_mmd(a, b).value == pytest.approx(float(mmd(a, b)), rel=1e-10)
    k = lambda x, y: math.exp(-float((x - y).square().sum()) / 2.0)  # noqa: E731
    naive = sum(k(a[i], a[j]) for i in range(60) for j in range(60) if i != j) / (60 * 59)
    naive += sum(k(b[i], b[j]) for i in range(50) for j in range(50) if i != j) / (50 * 49)
    naive -= 2 * sum(k(p, q) for p in a for q in b) / 3000
    found = squared_mmd(a, b, kernel="rbf", bandwidth=2.0)
    assert found.value == pytest.approx(naive, abs=1e-12)
    assert squared_mmd(a, b, kernel="rbf", bandwidth=2.0, memory=1).value == pytest.approx(found.value, abs=1e-12)
    assert squared_mmd(a, b, kernel="rbf").context["bandwidth"] == pytest.approx(float(torch.pdist(b).square().median()))
    for bad in (a[:2], torch.randn(10, 4, dtype=torch.float64)):
        with pytest.raises(ValueError):
            squared_mmd(bad, b)


def test_squared_mmd_of_gaussians() -> None:
    """RBF with h: MMD² of N(0, I) and N(m, I) in closed form, within the jackknife's error."""
    g, h, shift = torch.Generator().manual_seed(0), 4.0, 1.0
    a, b = torch.randn(1500, 2, generator=g, dtype=torch.float64), torch.randn(1500, 2, generator=g, dtype=torch.float64)
    a[:, 0] += shift
    exact = 2 * (h / (h + 4)) * (1 - math.exp(-(shift**2) / (h + 4)))
    found = squared_mmd(a, b, kernel="rbf", bandwidth=h)
    assert found.error is not None
    assert abs(found.value - exact) < 4 * found.error < 0.1


def test_latent_spectra_with_a_second_stage() -> None:
    x = vectors(400)
    m = model()
    stage = SecondStage.mlp(2, 16, Training(steps=40, batch_size=100, lr=1e-2)).fit(m.posteriors(x))
    found = latent_spectra(m, x, stage=stage, rows=300)
    z = m.latents(x, at="sample")
    assert found.spectra["z"].values == singular_spectrum(z).values
    assert found.spectra["u"].values == singular_spectrum(stage.model.latents(z, at="sample")).values
    assert found.mmd["z", "rbf"].context["bandwidth"] == found.mmd["u", "rbf"].context["bandwidth"]  # one kernel for both
    assert found.mmd["z", "imq"].n == 300
    again = latent_spectra(m, x, stage=stage, rows=300)
    assert (again.spectra, again.mmd) == (found.spectra, found.mmd)
    assert len(found.series()) == 3
    alone = latent_spectra(m, x, rows=300)
    assert set(alone.spectra) == {"z", "normal"}
    assert alone.notes
    with pytest.raises(ValueError, match="not been fitted"):
        latent_spectra(m, x, stage=SecondStage.mlp(2, 16))


def test_codes_that_match_the_prior_are_told_from_those_that_do_not() -> None:
    x = torch.randn(1500, 4)
    eye = torch.eye(4)

    def with_encoder(weight: Tensor) -> Autoencoder:
        return Autoencoder(
            Conditional(linear(weight), heads.Constant(0.1)), Conditional(linear(eye), heads.Gaussian(1.0)), StandardNormal(4)
        )

    good, bad = (latent_spectra(with_encoder(w), x, rows=800) for w in (0.995 * eye, 0.6 * eye))
    for kernel in ("imq", "rbf"):
        error = good.mmd["z", kernel].error
        assert error is not None
        assert abs(good.mmd["z", kernel].value) < 4 * error
        assert bad.mmd["z", kernel].value > 4 * error
    assert bad.spectra["z"].deviation > 5 * good.spectra["z"].deviation


# -- Jacobian --------------------------------------------------------------------------------------------------------------------------------


def test_jacobian_is_exact_for_a_linear_vae() -> None:
    """eq. 73: full covariance by its eigenvalues; diagonal encoders 1 / P_jj, whether or not JᵀJ is diagonal."""
    m, w, precision = full_covariance()
    x = torch.randn(12, 6, dtype=torch.float64)
    assert torch.allclose(decoder_jacobian(m, torch.zeros(3, dtype=torch.float64)), w)
    assert jacobian_identity(m, x).difference.value == pytest.approx(0, abs=1e-9)

    zeros = torch.zeros(6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    best = (1 / precision.diagonal()).sqrt()
    mean_field = linear_model((w, zeros[0]), (torch.linalg.inv(precision) @ w.T / 0.3, zeros[1]), best, math.sqrt(0.3))
    found = jacobian_identity(mean_field, x)
    assert found.difference.value == pytest.approx(0, abs=1e-9)
    assert found.full_difference.value > 0.01
    assert found.cosine > 0.05
    assert bool((found.full >= found.predicted - 1e-12).all())
    for factor in (0.8, 1.25):  # and these σ are the best diagonal ones: the exact ELBO says so
        worse = linear_model((w, zeros[0]), (torch.linalg.inv(precision) @ w.T / 0.3, zeros[1]), factor * best, math.sqrt(0.3))
        with torch.no_grad():
            assert float(exact_elbo(worse, x).total.mean()) > float(exact_elbo(mean_field, x).total.mean())

    data = manifold_data(200, 10, 3)
    orthogonal = jacobian_identity(optimal_linear_vae(data, 5, 0.02), data[:12], at="sample")
    assert orthogonal.difference.value == pytest.approx(0, abs=1e-9)
    assert orthogonal.full_difference.value == pytest.approx(0, abs=1e-9)
    assert orthogonal.cosine == pytest.approx(0, abs=1e-6)


def test_jacobian_of_a_convolutional_decoder() -> None:
    m = convolutional(latent=5)
    m.train()
    z = torch.randn(2, 5)
    jacobian = decoder_jacobian(m, z[0])
    assert m.training
    assert jacobian.shape == (64, 5)
    step = 1e-2
    moved = m.decode_points(torch.cat([z[0] + step * torch.eye(5), z[0] - step * torch.eye(5)])).flatten(1)
    assert torch.allclose(jacobian.T, (moved[:5] - moved[5:]) / (2 * step), atol=1e-4)
    assert torch.allclose(decoder_jacobian(m, z[0], chunk=2), jacobian, atol=1e-6)
    assert torch.allclose(decoder_gram(m, z)[0].float(), jacobian.T @ jacobian, atol=1e-5)
    found = jacobian_identity(m, pictures(3), at="sample", draws=2)
    assert found.difference.value == jacobian_identity(m, pictures(3), at="sample", draws=2).difference.value
    assert "cosine" in str(found.table())


def test_jacobian_refuses() -> None:
    with pytest.raises(ValueError, match="deterministic"):
        jacobian_identity(model(heads.Dirac()), vectors()[:4])
    with pytest.raises(ValueError, match="not one variance"):
        jacobian_identity(convolutional(heads.CrossEntropy()), pictures(3))
    assert jacobian_identity(convolutional(heads.CrossEntropy()), pictures(3), gamma=0.1).gamma == 0.1
    with pytest.raises(ValueError, match="positive"):
        jacobian_identity(model(), vectors()[:4], gamma=0.0)


# -- manifolds -------------------------------------------------------------------------------------------------------------------------------


def test_manifold_data_have_their_rank() -> None:
    flat_ = torch.linalg.svdvals(manifold_data(300, 10, 3)) / 300**0.5
    assert torch.allclose(flat_, torch.tensor([1.0] * 3 + [0.0] * 7, dtype=torch.float64), atol=1e-12)
    curved = manifold_data(300, 10, 2, curved=0.5)
    assert int(torch.linalg.matrix_rank(curved)) == 4  # the surface fills twice its dimension, being curved
    with pytest.raises(ValueError, match="rank 6"):
        manifold_data(100, 10, 6, curved=0.5)
    assert torch.equal(gaussian_ring(10), gaussian_ring(10))


@pytest.mark.parametrize("gamma", [0.02, 0.5, 3.0])
def test_linear_cost_is_the_cost_of_its_model(gamma: float) -> None:
    """Against the exact -ELBO of the built model, and the tutorial's optimum, derived from eigenvalues alone."""
    x = vectors(200).double()
    found = linear_cost(x, 3, gamma)
    assert float(exact_elbo(optimal_linear_vae(x, 3, gamma), x).total.detach().mean()) == pytest.approx(found, abs=1e-8)
    centred = x - x.mean(0)
    assert linear_optimum(torch.linalg.eigvalsh(centred.T @ centred / 200).tolist(), 3, variance=gamma).loss == pytest.approx(
        found, abs=1e-8
    )


def test_closed_form_slope_is_half_of_d_minus_r() -> None:
    for dims, rank, latent in ((10, 3, 6), (5, 2, 2), (4, 4, 4)):
        found = manifold_check(manifold_data(400, dims, rank), rank, latent)
        assert found.slope.value == pytest.approx((dims - rank) / 2, abs=1e-9) == found.expected
        assert found.small == rank
        if latent > rank:
            assert found.unused == pytest.approx(0, abs=1e-9)
    too_large = manifold_check(manifold_data(400, 10, 3), 3, 6, gammas=(4.0, 2.0))  # nothing is worth its rate above the eigenvalues
    assert too_large.small == 0
    with pytest.raises(ValueError, match="at least 2 different"):
        manifold_check(manifold_data(50, 4, 2), 2, 3, gammas=(0.1, 0.1))


def test_a_trained_linear_vae_finds_the_rank() -> None:
    x = manifold_data(400, 6, 2)
    found = manifold_check(x, 2, 4, kind="linear", gammas=(0.2, 0.1), steps=500, lr=2e-2)
    assert found.small == 2
    assert found.unused is not None
    assert found.unused < 0.05
    assert found.slope.value == pytest.approx(found.expected, rel=0.05)
    assert list(found.costs) == pytest.approx([linear_cost(x, 4, g) for g in found.gammas], abs=0.1)


def test_learned_variance_is_watched() -> None:
    found = learned_variance(manifold_data(300, 2, 1), 1, steps=300, hidden=8)
    assert found.gamma == pytest.approx(math.exp(found.curve.y[-1]))
    assert found.gamma < 0.1  # a line in the plane, one latent dimension
    assert found.fall > 0.1
    again = learned_variance(manifold_data(300, 2, 1), 1, steps=300, hidden=8)
    assert again.curve == found.curve
    with torch.no_grad():
        assert math.isfinite(float(ELBO()(found.model, manifold_data(300, 2, 1).float()).total.mean()))
    with pytest.raises(ValueError, match="at least 100"):
        learned_variance(manifold_data(300, 2, 1), 1, steps=10)


# -- figures and claims on a smoke lab -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab("digits", "smoke", tmp_path_factory.mktemp("lab"), device="cpu", progress=False)


def test_figure_1(lab: Lab) -> None:
    left = figure1_left(lab)
    assert left.table.column("model") == ["learned γ", "γ = 1"]
    assert left.table.cell("γ = 1", "log γ") == 0
    assert {s.curve.y_label for s in left.series} == {"log γ", "squared error per pixel"}
    demonstration, strips = figure1_centre(lab)
    assert len(strips.rows) == 6
    assert all(images.shape == (16, 1, 8, 8) for images in strips.rows.values())
    assert demonstration.table.column("published lambda") == [None] * 6  # nothing is printed for digits
    right = figure1_right(lab)
    assert [s.label for s in right.series] == ["q(z)", "q(u), second stage", "N(0, I)"]
    assert all(len(s.curve.y) == 16 for s in right.series)


def test_other_figures(lab: Lab) -> None:
    shown = sample_figure(lab, 7)
    assert [strip.name for strip in shown] == ["samples", "reconstructions"]
    assert all("assumption" in strip.caption for strip in shown)
    rows = reconstructions(lab).rows
    assert torch.equal(rows["VAE, learned γ"], rows["two-stage VAE"])
    assert not torch.equal(shown[0].rows["VAE, learned γ"], shown[0].rows["two-stage VAE"])
    with pytest.raises(ValueError, match="shows no samples"):
        sample_figure(lab, 9)
    assert figure9(lab)[0].name == "figure9"
    histogram = figure10(lab)
    assert histogram.table.column("data") == ["digits"]
    assert any("not compared with CIFAR-10" in note for note in histogram.notes)
    assert histogram.series[0].kind == "bars"


def test_printed_numbers_stand_beside_measured_ones(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRINTED, "digits", PRINTED["mnist"])
    table = figure9(lab)[0].table
    assert table.column("published image variance") == [27.33, 27.2, 19.64, 13.9, 12.78, 0.0]
    assert len(set(table.column("lambda"))) == 6


@pytest.mark.parametrize("name", ["b7", "b8", "b10", "b12"])
def test_claims_are_measured(name: str, lab: Lab) -> None:
    verdict = getattr(measures, name)(lab)
    assert verdict.measured
    assert all(math.isfinite(v) for v in verdict.figures.values())
    assert isinstance(verdict.holds, bool)


def test_b9_saturates_only_if_the_last_dimensions_are_not_used(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "LATENTS", (2, 4, 8))
    verdict = measures.b9(lab)
    r = [verdict.figures[f"r at {k}"] for k in (2, 4, 8)]
    assert verdict.holds == ((r[2] - r[1]) / 4 < 0.5)
    assert "rests on the saturation" in verdict.measured


def test_b13_looks_at_bits_and_at_the_variance(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    short = lambda x, latent, seed=0: learned_variance(x, latent, steps=120, hidden=8, seed=seed)  # noqa: E731
    monkeypatch.setattr(measures, "learned_variance", short)
    verdict = measures.b13(lab)
    assert verdict.figures["identical"] == 1
    assert verdict.figures["slope, r = d"] == pytest.approx(0, abs=1e-9)
    assert not verdict.holds  # after 120 steps nothing has settled


def test_histories_are_read_from_the_run_folder(lab: Lab, tmp_path: Path) -> None:
    run = lab.run("dai2019/vae-fixed")
    assert run.folder is not None
    assert isinstance(run.model.decoder.net, nn.Module)
    from expost.papers.dai2019.figures import trace_of

    trace = trace_of(run, fixed=True)
    assert all(value == 0 for value in trace.log_gamma)
    assert 0 < trace.squared_error[-1] < 0.3
