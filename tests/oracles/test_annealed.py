"""Annealed bounds on linear-Gaussian models, whose log p(x) is known."""

from __future__ import annotations

import math

import pytest
import torch

from expost import heads
from expost.density import GMM, StandardNormal
from expost.evaluate.likelihood.annealed import Annealed, annealed_bound, bdmc, sigmoid_schedule
from oracles.test_linear_gaussian import exact_model, loadings, marginal
from toys import bits, model, same, vectors

SMALL = {"chains": 8, "temperatures": 60, "leapfrog": 4, "step": 0.3, "progress": False}


def test_schedule() -> None:
    b = sigmoid_schedule(100)
    assert (float(b[0]), float(b[-1]), len(b)) == (0.0, 1.0, 101)
    steps = b.diff()
    assert bool((steps > 0).all())
    torch.testing.assert_close(steps, steps.flip(0), rtol=1e-9, atol=1e-12)
    assert float(steps[50] / steps[0]) > 10, "dense at both ends"
    torch.testing.assert_close(sigmoid_schedule(1), torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("path", ["prior", "encoder"])
def test_bounds_enclose_the_exact_value(path) -> None:
    """On simulated data: lower <= log p(x) <= upper within the errors of the means, and the gap small."""
    weight, bias = loadings()
    m = exact_model(weight, bias, off=0.4)  # the encoder is off, so that its path has work to do
    result = bdmc(m, 24, path=path, seed=1, **SMALL)
    assert result.upper is not None
    assert result.gap is not None
    truth = marginal(weight, bias).log_prob(simulated(m, 24, seed=1))
    for difference in (truth - result.lower, result.upper - truth):
        assert float(difference.mean()) > -3 * float(difference.std()) / math.sqrt(24)
        assert float(difference.mean().abs()) < 0.2
    assert result.gap.value < 0.3
    assert result.gap.value == pytest.approx(float((result.upper - result.lower).mean()))
    assert 0.4 < result.acceptance < 0.95


def simulated(m, n: int, seed: int) -> torch.Tensor:
    """The images that bdmc draws (one batch)."""
    from expost.seeds import seeded

    with seeded("bdmc", seed, 0), torch.no_grad():
        return m.decode(m.latent().sample((n,))).sample()


def test_few_temperatures_are_loose_on_both_sides_and_more_close_the_gap() -> None:
    """With one temperature the forward bound is plain importance sampling from the prior, far below; the reverse one is far above."""
    weight, bias = loadings()
    m = exact_model(weight, bias)
    truth = marginal(weight, bias).log_prob(simulated(m, 40, seed=0))
    gaps = []
    for temperatures in (1, 8, 60):
        r = bdmc(m, 40, chains=4, temperatures=temperatures, leapfrog=4, step=0.3, progress=False)
        assert r.upper is not None
        assert float((truth - r.lower).mean()) > -0.05
        assert float((r.upper - truth).mean()) > -0.05
        gaps.append(float((r.upper - r.lower).mean()))
    assert gaps[0] > 3 * gaps[1] > 3 * gaps[2]
    assert gaps[0] > 2


def test_the_weights_are_unbiased_even_with_few_temperatures() -> None:
    """E w = p(x): the forward weights averaged over many chains, and 1 / (mean 1/w) of reverse chains, in probabilities."""
    weight, bias = loadings(3, 1)
    m = exact_model(weight, bias, gamma=1.0)
    x = marginal(weight, bias, 1.0).sample((3,))
    truth = marginal(weight, bias, 1.0).log_prob(x)
    lower = annealed_bound(m, x, chains=20_000, temperatures=5, leapfrog=2, step=0.5, progress=False).lower
    torch.testing.assert_close(lower, truth, rtol=0, atol=0.06)


def test_real_data_have_a_lower_bound_only_and_a_certificate_on_request() -> None:
    weight, bias = loadings()
    m = exact_model(weight, bias)
    x = marginal(weight, bias).sample((6,))
    before = bits(m)
    m.train()
    r = annealed_bound(m, x, simulated=5, seed=2, **SMALL)
    assert m.training
    assert same(before, bits(m))
    assert all(p.grad is None for p in m.parameters())
    assert r.upper is None
    assert r.gap is None
    assert r.certificate is not None
    assert r.certificate.n == 5
    assert abs(float((marginal(weight, bias).log_prob(x) - r.lower).mean())) < 0.3
    assert any("lower bound only" in note for note in r.notes)
    assert "gap on simulated data" in str(r)
    json = r.to_json()
    assert json["upper"] is None
    assert json["certificate"]["gap"]["value"] == pytest.approx(r.certificate.gap.value)  # type: ignore[union-attr]
    again = annealed_bound(m, x, simulated=5, seed=2, **SMALL)
    assert torch.equal(r.lower, again.lower)
    assert not torch.equal(r.lower, annealed_bound(m, x, seed=3, **SMALL).lower)


def test_batches_are_independent_of_each_other() -> None:
    """The first batch has the same numbers whether or not there is a second."""
    weight, bias = loadings()
    m, x = exact_model(weight, bias), marginal(weight, bias).sample((5,))
    both = annealed_bound(m, x, batch_size=3, **SMALL)
    assert torch.equal(both.lower[:3], annealed_bound(m, x[:3], batch_size=3, **SMALL).lower)


def test_step_sizes_are_tuned_to_the_target() -> None:
    """From a far too large or too small start, over enough temperatures."""
    m = model(decoder_head=heads.Gaussian(0.3))
    settings = {"chains": 16, "temperatures": 300, "leapfrog": 3, "progress": False}
    for step in (0.05, 2.0):
        r = annealed_bound(m, vectors(8), step=step, **settings)
        assert 0.5 < r.acceptance < 0.85, step


def test_bernoulli_images_by_enumeration() -> None:
    """One latent dimension, binary x: log p(x) by quadrature."""
    m = model(decoder_head=heads.Bernoulli(), latent=1, prior=StandardNormal(1), d=4)
    x = (vectors(5, d=4) > 0).float()
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None, None].float()
    with torch.no_grad():
        log_joint = m.decode(grid).log_prob(x) + m.latent().log_prob(grid)
    truth = torch.logsumexp(log_joint.double(), 0) + math.log(16 / 4000)
    r = annealed_bound(m, x, chains=32, temperatures=60, leapfrog=4, step=0.5, progress=False)
    torch.testing.assert_close(r.lower, truth, rtol=0, atol=0.03)
    assert r.mass


def test_refusals() -> None:
    x = vectors(4)
    with pytest.raises(ValueError, match="no prior"):
        annealed_bound(model(plain=True), x)
    with pytest.raises(ValueError, match="CrossEntropy is not a normalised"):
        annealed_bound(model(decoder_head=heads.CrossEntropy()), x.clamp(0, 1))
    with pytest.raises(ValueError, match="itself an autoencoder"):
        annealed_bound(model(prior=model(d=2)), x)
    with pytest.raises(ValueError, match="deterministic encoder"):
        annealed_bound(model(heads.Dirac()), x, path="encoder")
    with pytest.raises(ValueError, match="temperatures must be a whole number of at least 1"):
        bdmc(model(), 2, temperatures=0)
    with pytest.raises(ValueError, match='must be prior or encoder, not "posterior"'):
        bdmc(model(), 2, path="posterior")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        bdmc(model(), 0)


def test_a_deterministic_encoder_can_be_annealed_from_the_prior() -> None:
    """The prior path needs no encoder: an ex-post density makes a plain autoencoder a model with a likelihood."""
    m = model(heads.Dirac(), plain=True)
    m = m.with_prior(GMM(2, 2, restarts=1).fit(m.latents(vectors(200), at="mean")))
    r = bdmc(m, 8, **SMALL)
    assert isinstance(r, Annealed)
    assert r.gap is not None
    assert -0.1 < r.gap.value < 1.0


@pytest.mark.parametrize("call", [lambda m, x: annealed_bound(m, x, **SMALL), lambda m, x: bdmc(m, 3, **SMALL)])
def test_an_interruption_leaves_the_model_as_it_was(call, monkeypatch) -> None:
    m, x, calls = model().train(), vectors(3), []
    decode = m.decode

    def interrupted(z):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return decode(z)

    monkeypatch.setattr(m, "decode", interrupted)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        call(m, x)
    assert m.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
