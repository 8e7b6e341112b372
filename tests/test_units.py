"""Units of models whose parts are known, and the linear VAE's prediction."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import FullGaussian, StandardNormal
from expost.diagnose.codes.linear import linear_units, spectrum
from expost.diagnose.codes.units import units
from oracles.test_linear_gaussian import exact_model, loadings, marginal
from toys import bits, convolutional, linear, model, pictures, same, vectors

F64 = torch.float64


def diagonal(gain: Tensor, spread: Tensor, decoder: Tensor, gamma: float = 0.25, prior: bool = True) -> Autoencoder:
    """q(z | x) = N(gain x, diag spread²), p(x | z) = N(decoder z, γ)."""
    rows = torch.cat([gain, torch.zeros_like(gain)])
    encoder = Conditional(linear(rows, torch.cat([torch.zeros_like(spread), 2 * spread.log()])), heads.Diagonal())
    head = heads.Gaussian(math.sqrt(gamma)).to(decoder.dtype)
    return Autoencoder(encoder, Conditional(linear(decoder), head), StandardNormal(len(gain)).to(decoder.dtype) if prior else None)


def probabilistic_pca(x: Tensor, d: int, gamma: float) -> Autoencoder:
    """The global maximum of the linear VAE's ELBO: W = U √(λ - γ), posterior variances γ / λ; dead units where λ < γ. x is centred."""
    values, vectors_ = torch.linalg.eigh(x.mT @ x / len(x))
    values, u = values.flip(0)[:d], vectors_.flip(1)[:, :d]
    w = u * (values - gamma).clamp_min(0).sqrt()
    variance = torch.where(values > gamma, gamma / values, 1.0)
    return diagonal(variance[:, None] * w.mT / gamma, variance.sqrt(), w, gamma)


def centred(n: int = 3000) -> Tensor:
    """Five dimensions with standard deviations 3, 2, 1, 0.3 and 0.1, rotated."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=g, dtype=F64) * torch.tensor([3.0, 2.0, 1.0, 0.3, 0.1], dtype=F64)
    x = x @ torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=F64)).Q
    return x - x.mean(0)


def test_one_dead_unit_of_three_is_named() -> None:
    """Unit 1 has the prior as its posterior; unit 2 varies and is paid for, and the decoder ignores it."""
    gain = torch.tensor([[0.9, 0.0], [0.0, 0.0], [0.0, 0.9]])
    m = diagonal(gain, torch.tensor([0.3, 1.0, 0.3]), torch.tensor([[1.0, 0.7, 0.0], [0.5, -0.2, 0.0]]))
    found = units(m, vectors(400, d=2), progress=False)
    assert found.active("variance").tolist() == [True, False, True]
    assert found.active("kl").tolist() == [True, False, True]
    assert found.active("ablation").tolist() == [True, False, False]
    assert found.disagreements() == {"varies but the decoder ignores it": [2]}
    assert float(found.ablation[2]) == 0, "an ignored unit costs nothing, exactly"
    assert found.table().column("unit")[0] == 0
    assert "unit 2: varies but the decoder ignores it" in str(found)
    results = found.results()
    assert [float(results[name]) for name in ("active_units", "kl_units", "used_units", "ignored_units")] == [2, 2, 1, 1]


def test_closed_forms_of_a_linear_model() -> None:
    """Variance, KL and ablation of q = N(g x, s²), x̂ = w z: the increase of the loss is w² E(z′ - z)(z′ + z - 2x/w) / 2γ."""
    g, s, w, gamma = 0.8, 0.5, 1.5, 0.2
    m = diagonal(torch.tensor([[g]]), torch.tensor([s]), torch.tensor([[w]]), gamma)
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    found = units(m, x, images=4000, progress=False)
    v = float(x.var(correction=0))
    assert float(found.variance) == pytest.approx(g * g * v, rel=1e-5)
    assert found.posterior_variance is not None
    assert float(found.posterior_variance) == pytest.approx(s * s, rel=1e-5)
    assert found.kl is not None
    assert float(found.kl) == pytest.approx(0.5 * (s * s + g * g * float(x.square().mean()) - 1 - math.log(s * s)), rel=1e-4)
    expected = (w * w * (1 - s * s - g * g * v) + 2 * w * g * v) / (2 * gamma)  # E(x - w z')² - E(x - w z)², z' ~ N(0, 1)
    assert float(found.ablation) == pytest.approx(expected, abs=5 * float(found.ablation_error))
    assert found.measure == "nats per image"


def test_a_unit_that_the_decoder_needs_but_that_does_not_vary() -> None:
    m = diagonal(torch.tensor([[0.9, 0.0], [0.0, 0.0]]), torch.tensor([0.3, 0.01]), torch.eye(2))
    assert units(m, vectors(200, d=2), progress=False).disagreements() == {"does not vary but the decoder depends on it": [1]}


def test_weakly_used_units_are_not_called_ignored() -> None:
    """A unit worth little is lost in the noise of few images, and found with many."""
    m = diagonal(0.9 * torch.eye(2), torch.tensor([0.3, 0.9]), torch.tensor([[1.0, 0.0], [0.0, 0.1]]))
    x = torch.randn(6000, 2) * torch.tensor([1.0, 0.3])
    few, many = units(m, x, images=30, progress=False), units(m, x, images=6000, progress=False)
    assert few.disagreements() == {"varies, and whether the decoder uses it is lost in the noise of the ablation (take more images)": [1]}
    assert not bool(few.ignored.any())
    assert many.disagreements() == {}


def test_deterministic_codes_are_exchanged_between_images() -> None:
    """x̂ = z = x: replacing a coordinate by another image's costs ‖x_u - x′_u‖², twice the variance on average."""
    eye = torch.eye(3)
    x = torch.randn(500, 3) * torch.tensor([1.0, 2.0, 0.0])
    m = Autoencoder(Conditional(linear(eye), heads.Dirac()), Conditional(linear(eye), heads.Gaussian(1.0)))
    found = units(m, x, images=500, progress=False)
    assert found.kl is None
    assert found.posterior_variance is None
    assert found.measure == "squared error per image"
    assert bool(((found.ablation - 2 * found.variance).abs() <= 4 * found.ablation_error + 1e-9).all())
    assert found.active("ablation").tolist() == [True, True, False]
    with pytest.raises(ValueError, match="not available"):
        found.active("kl")
    small = units(
        Autoencoder(Conditional(linear(0.01 * eye), heads.Dirac()), Conditional(linear(100 * eye), heads.Gaussian(1.0))), x, progress=False
    )
    assert small.disagreements() == {"varies by less than 0.01 only because codes are small": [0, 1]}
    assert small.scale_of == "largest"


def test_priors_and_posteriors_of_other_kinds() -> None:
    x = vectors(150)
    found = units(model(prior=FullGaussian(2).fit(torch.randn(300, 2) * 3)), x, progress=False)
    assert found.kl is None
    assert any("not available" in note for note in found.notes)
    full = units(model(heads.FullCovariance()), x, progress=False)
    assert full.kl is not None
    assert any("full covariance" in note for note in full.notes)
    q = model(heads.FullCovariance()).posteriors(x)
    marginals = torch.distributions.kl_divergence(Normal(q.mean, q.stddev), Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(full.kl, marginals.detach().double(), rtol=1e-4, atol=1e-6)
    loss = units(model(decoder_head=heads.CrossEntropy()), x.clamp(0, 1), progress=False)
    assert any("not a likelihood" in note for note in loss.notes)
    unscaled = units(model(heads.Constant(0.7)), x, progress=False)
    assert unscaled.posterior_variance is not None
    torch.testing.assert_close(unscaled.posterior_variance, torch.full((2,), 0.49, dtype=F64), rtol=1e-5, atol=0)


def test_batches_change_nothing_and_seeds_repeat() -> None:
    m, x = convolutional(), pictures(60)
    before = bits(m)
    first = units(m, x, progress=False)
    again, small = units(m, x, progress=False), units(m, x, batch_size=7, progress=False)
    assert same(before, bits(m))
    assert torch.equal(first.ablation, again.ablation)
    for name in ("variance", "kl", "ablation", "ablation_error"):
        torch.testing.assert_close(getattr(first, name), getattr(small, name), rtol=1e-4, atol=1e-4)
    assert not torch.equal(first.ablation, units(m, x, seed=1, progress=False).ablation)
    assert json.loads(json.dumps(first.to_json()))["n"] == 60


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least two"):
        units(model(), vectors(1))
    with pytest.raises(ValueError, match="no prior to replace"):
        units(model(plain=True), vectors(20), progress=False)
    with pytest.raises(ValueError, match="NaN"):
        units(model(), torch.full((3, 6), math.nan))
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        units(model(decoder_head=heads.Bernoulli()), vectors(20).clamp(0, 1), progress=False)


@pytest.mark.parametrize("gamma", [0.04, 0.5, 2.5, 20.0])
def test_a_linear_vae_keeps_what_is_predicted(gamma) -> None:
    """The closed-form optimum: units, posterior variances and rate are those of the prediction, for every γ."""
    x, d = centred(), 4
    m = probabilistic_pca(x, d, gamma)
    predicted, found = linear_units(m, x), units(m, x, progress=False)
    assert predicted.gamma == pytest.approx(gamma, rel=1e-5)
    assert predicted.kept == {0.04: 4, 0.5: 3, 2.5: 2, 20.0: 0}[gamma]
    assert int(found.active("relative").sum()) == int(found.active("ablation").sum()) == predicted.kept
    assert found.posterior_variance is not None
    torch.testing.assert_close(found.posterior_variance, predicted.posterior_variances, rtol=1e-5, atol=1e-7)
    assert float(found.results()["rate"]) == pytest.approx(predicted.rate, rel=1e-4, abs=1e-6)


def test_that_optimum_is_one() -> None:
    """The prediction rests on it: no small change of the closed-form model improves its exact ELBO."""
    from expost.papers.yu2020.demonstrations.linear import exact_elbo, linear_model

    x = centred(200)
    m = probabilistic_pca(x, 3, 0.5)
    q = m.encode(x[:1])
    w, gain = m.decoder.net.weight.detach(), m.encoder.net.weight.detach()[:3]  # type: ignore[union-attr,index]

    def loss(w: Tensor, gain: Tensor, log_spread: Tensor) -> Tensor:
        built = linear_model((w, torch.zeros(5, dtype=F64)), (gain, torch.zeros(3, dtype=F64)), log_spread.exp(), math.sqrt(0.5))
        return exact_elbo(built, x).total.mean().detach()

    start = (w, gain, q.stddev[0].log().detach())
    best = float(loss(*start))
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        moved = [p + 0.02 * torch.randn(p.shape, generator=g, dtype=F64) for p in start]
        assert float(loss(*moved)) > best - 1e-9


def test_the_spectrum_by_either_route_and_any_memory() -> None:
    x = torch.randn(40, 1, 5, 6, generator=torch.Generator().manual_seed(0)) + 100
    y = x.flatten(1).double()
    truth = torch.linalg.eigvalsh(torch.cov(y.mT, correction=0)).flip(0)
    for memory in (256 << 20, 32 * 30**2):
        torch.testing.assert_close(spectrum(x, memory=memory), truth, rtol=1e-9, atol=1e-9)
        few = spectrum(x[:12], memory=memory)
        assert few.shape == (12,)
        torch.testing.assert_close(few, torch.linalg.eigvalsh(torch.cov(y[:12].mT, correction=0)).flip(0)[:12], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(spectrum(x[torch.randperm(40)]), truth, rtol=1e-9, atol=1e-9)
    before = y.clone()
    spectrum(y)
    spectrum(y[:12])
    assert torch.equal(y, before), "data are left alone"
    u = pictures(20)
    torch.testing.assert_close(spectrum(u), spectrum(u / 255.0), rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="at most 10 rows"):
        spectrum(x, memory=3200)
    with pytest.raises(ValueError, match="two rows"):
        spectrum(x[:1])


def test_where_gamma_comes_from() -> None:
    weight, bias = loadings()
    x = marginal(weight, bias).sample((4000,))
    m = exact_model(weight, bias)
    own = linear_units(m, x)
    assert "the decoder's, fixed" in own.source
    assert own.kept == 2
    assert own.optimal_gamma == pytest.approx(0.3, rel=0.1), "the variance that pPCA itself would learn is the true one"
    assert linear_units(m, x, beta=10).gamma == pytest.approx(3.0)
    assert linear_units(m, x, gamma=1e9).kept == 0
    shared = model(decoder_head=heads.Gaussian("shared"))
    assert linear_units(shared, vectors(100)).gamma == pytest.approx(1.0)
    eye = torch.eye(2)
    plain = Autoencoder(Conditional(linear(0.5 * eye), heads.Dirac()), Conditional(linear(eye), heads.Gaussian(1.0)))
    points = torch.randn(500, 2)
    assert linear_units(plain, points).gamma == pytest.approx(0.25 * float(points.square().mean()), rel=1e-5)
    noisy = linear_units(model(decoder_head=heads.Gaussian("pixel")), vectors(100))
    assert "squared error" in noisy.source
    few = linear_units(convolutional(), pictures(30))
    assert any("30 rows of 64" in note for note in few.notes)
    assert json.loads(json.dumps(few.to_json()))["kept"] == few.kept
    assert few.table().rows
    with pytest.raises(ValueError, match="beta must be positive"):
        linear_units(m, x, beta=0)
    with pytest.raises(ValueError, match="positive variance"):
        linear_units(m, x, gamma=-1)


def test_posteriors_that_are_not_gaussian() -> None:
    class Heavy(heads.Diagonal):
        def forward(self, features: Tensor, event_dims: int = 1) -> torch.distributions.Distribution:
            q = super().forward(features, event_dims)
            return Independent(torch.distributions.Laplace(q.mean, q.stddev), 1)

    with pytest.raises(TypeError, match="cannot be gathered"):
        model(Heavy()).posteriors(vectors(5))
    found = units(model(Heavy()), vectors(120), progress=False)
    assert found.kl is None
    assert bool(torch.isfinite(found.ablation).all())
