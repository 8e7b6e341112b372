"""The importance-weighted bound: exact cases, streaming, and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import expost
from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import GMM, StandardNormal
from expost.distributions import Marginal
from expost.evaluate.likelihood import streaming
from expost.evaluate.likelihood.annealed import annealed_bound
from expost.evaluate.likelihood.importance import importance_bound, log_likelihood
from expost.evaluate.likelihood.streaming import BLOCK, Running
from expost.evaluate.likelihood.surgery import elbo_surgery
from oracles.test_linear_gaussian import exact_model, loadings, marginal
from toys import bits, convolutional, linear, model, pictures, same, vectors


def bound(m: Autoencoder, x: Tensor, **k):
    return importance_bound(m, x, progress=False, **k)


def log_weights(m: Autoencoder, x: Tensor, samples: int, seed: int, start: int = 0) -> Tensor:
    """All weights of one batch at once, from the same noise."""
    with torch.no_grad():
        q, z = m.encode(x), []
        for block in range(-(-samples // BLOCK)):
            with expost.seeded("likelihood", seed, start, block):
                z.append(m.encode(x).sample((BLOCK,)))
        codes = torch.cat(z)[:samples]
        return (m.decode(codes).log_prob(x) + m.latent().log_prob(codes) - q.log_prob(codes)).double()


def test_exact_posterior_gives_log_p() -> None:
    weight, bias = loadings()
    truth = marginal(weight, bias)
    x = truth.sample((20,))
    r = bound(exact_model(weight, bias), x, samples=7, batch_size=6)
    torch.testing.assert_close(r.log_prob, truth.log_prob(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(r.elbo, truth.log_prob(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(r.effective, torch.full((20,), 7.0, dtype=torch.float64), rtol=0, atol=1e-6)
    assert r.nll.value == pytest.approx(-float(truth.log_prob(x).mean()), abs=1e-6)
    assert r.error == pytest.approx(float(truth.log_prob(x).std()) / math.sqrt(20), rel=1e-6)


def test_a_wrong_posterior_is_below_and_rises_with_k() -> None:
    weight, bias = loadings()
    truth = marginal(weight, bias)
    x = truth.sample((60,))
    log_p = truth.log_prob(x)
    m = exact_model(weight, bias, off=0.3)
    r = bound(m, x, samples=2000)
    slack = 4 * float((log_p - r.log_prob).std()) / math.sqrt(60)
    assert float((r.elbo - log_p).max()) < 0
    assert float((r.log_prob - log_p).mean()) < slack
    assert float((log_p - r.log_prob).mean()) < 0.1
    assert float((log_p - r.elbo).mean()) > 0.3
    values = list(r.growth.values())
    assert list(r.growth) == [500, 1000, 2000]
    assert values[0] < values[-1] + slack
    assert values[-1] == pytest.approx(r.mean)
    gap = torch.distributions.kl_divergence(m.encode(x), exact_model(weight, bias).encode(x)).detach()
    assert float((log_p - r.elbo - gap).mean()) == pytest.approx(0, abs=0.05), "ELBO = log p - KL(q || posterior)"


@pytest.mark.parametrize("samples", [1, 3, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("head", [heads.Gaussian(0.5), heads.Gaussian("pixel"), heads.Bernoulli()])
def test_streaming_is_the_one_shot_sum(samples, head) -> None:
    m = model(decoder_head=head).double()
    x = vectors(9).double()
    if isinstance(head, heads.Bernoulli):
        x = (x > 0).double()
    r = bound(m, x, samples=samples, seed=5)
    w = log_weights(m, x, samples, seed=5)
    torch.testing.assert_close(r.log_prob, torch.logsumexp(w, 0) - math.log(samples), rtol=0, atol=1e-9)
    torch.testing.assert_close(r.elbo, w.mean(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(r.effective, (2 * torch.logsumexp(w, 0) - torch.logsumexp(2 * w, 0)).exp(), rtol=1e-9, atol=0)
    for k, value in r.growth.items():
        assert value == pytest.approx(float((torch.logsumexp(w[:k], 0) - math.log(k)).mean()), abs=1e-9)


def test_chunk_size_changes_rounding_only() -> None:
    m, x = model().double(), vectors(10).double()
    reference = bound(m, x, samples=150)
    for chunk in (1, 7, 64, 1000):
        other = bound(m, x, samples=150, chunk=chunk)
        torch.testing.assert_close(other.log_prob, reference.log_prob, rtol=0, atol=1e-10)
        torch.testing.assert_close(other.effective, reference.effective, rtol=1e-9, atol=0)


def test_same_seed_same_numbers_and_batches_do_not_touch_each_other() -> None:
    m, x = model(), vectors(10)
    state = torch.get_rng_state()
    first = bound(m, x, samples=80, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state), "global randomness is left alone"
    assert torch.equal(first.log_prob, bound(m, x, samples=80, batch_size=4).log_prob)
    assert torch.equal(first.log_prob[:4], bound(m, x[:4], samples=80, batch_size=4).log_prob)
    assert not torch.equal(first.log_prob, bound(m, x, samples=80, batch_size=4, seed=1).log_prob)
    assert bound(m, x, samples=160, batch_size=4).growth[80] == pytest.approx(first.mean, abs=1e-9), "more samples keep the earlier ones"


def test_running_sums_of_known_weights() -> None:
    """Effective sample sizes: equal weights k, one weight alone 1, weights 1 and 2: 9/5; huge and tiny logarithms; zero weights."""
    rows = torch.tensor(
        [[0.0, 0.0, 0.0, 900.0, -900.0, -math.inf], [0.0, -math.inf, math.log(2), 900.0, -900.0, -math.inf]], dtype=torch.float64
    )
    running = Running(6, torch.device("cpu"))
    for row in rows:
        running.update(row[None])
    mean = running.log_mean()
    torch.testing.assert_close(running.effective()[:5], torch.tensor([2, 1, 9 / 5, 2, 2], dtype=torch.float64))
    torch.testing.assert_close(mean[:5], torch.tensor([0, -math.log(2), math.log(1.5), 900, -900], dtype=torch.float64))
    assert float(mean[5]) == -math.inf
    both = Running(6, torch.device("cpu"))
    both.update(rows)
    torch.testing.assert_close(both.log_mean(), mean)


def test_extreme_logits_keep_their_digits() -> None:
    logits = 60 * torch.ones(3, 784)
    p = heads.Bernoulli()(logits)
    assert float(log_likelihood(p, torch.ones(3, 784)).abs().max()) < 1e-6
    x = (torch.rand(3, 784) > 0.5).float()
    q = heads.Bernoulli()(5 * torch.randn(3, 784))
    torch.testing.assert_close(log_likelihood(q, x), q.log_prob(x), rtol=1e-5, atol=0)


def test_bits_per_dim_and_its_notes() -> None:
    """All-zero logits on binary images: exactly one bit per pixel, whatever z is."""
    flat = Conditional(linear(torch.zeros(6, 2)), heads.Bernoulli())
    base = model()
    m = Autoencoder(Conditional(linear(torch.zeros(2, 6)), heads.Constant(1.0)), flat, StandardNormal(2))
    r = bound(m, (vectors(8) > 0).float(), samples=4)
    assert r.mass
    assert r.bits_per_dim.value == pytest.approx(1.0, abs=1e-6)
    assert r.bits_per_dim.notes[0] == "4.15888 nats / (6 x ln 2) = 1 bits/dim"
    assert len(r.bits_per_dim.notes) == 1 + len(r.notes)
    r = bound(base, vectors(8), samples=4)
    assert not r.mass
    note = r.bits_per_dim.notes[1]
    assert "density" in note
    assert "log2(256)" in note
    assert r.bits_per_dim.details["dequantised"] == pytest.approx(r.bits_per_dim.value + 8)
    assert r.bits_per_dim.value == pytest.approx(r.nll.value / 6 / math.log(2))
    assert r.bits_per_dim.error == pytest.approx(r.nll.error / 6 / math.log(2))


def test_few_effective_samples_are_noted() -> None:
    x = vectors(20)
    assert any("effective sample size" in note for note in bound(model(decoder_head=heads.Gaussian(0.01)), x, samples=50).notes)
    assert not any("effective sample size" in note for note in bound(model(decoder_head=heads.Gaussian(3.0)), x, samples=50).notes)


def test_two_levels() -> None:
    """A linear-Gaussian prior over codes of a linear-Gaussian model; the inner encoder is exact, so the weights are too."""
    (w, b), (v, c) = loadings(), loadings(2, 1, seed=1)
    inner = exact_model(v, c, 0.2)
    outer = exact_model(w, b, off=0.1).with_prior(inner)
    truth = MultivariateNormal(w @ c + b, w @ marginal(v, c, 0.2).covariance_matrix @ w.mT + 0.3 * torch.eye(5, dtype=torch.float64))
    x = truth.sample((12,))
    assert isinstance(outer.latent(), Marginal)
    r = bound(outer, x, samples=3000)
    torch.testing.assert_close(r.log_prob, truth.log_prob(x), rtol=0, atol=0.5)
    assert abs(float((r.log_prob - truth.log_prob(x)).mean())) < 0.1
    assert any("16 inner samples" in note for note in r.notes)


def test_a_nested_model_is_independent_of_the_chunk() -> None:
    m, x = model(prior=model(d=2)).double(), vectors(6).double()
    a, b = bound(m, x, samples=70), bound(m, x, samples=70, chunk=3)
    torch.testing.assert_close(a.log_prob, b.log_prob, rtol=0, atol=1e-10)


def test_ex_post_density_and_stored_images() -> None:
    m = convolutional()
    x = pictures(30)
    m = m.with_prior(GMM(2, 2, restarts=1).fit(m.latents(x, at="sample")))
    before = bits(m)
    m.train()
    r = bound(m, x, samples=10)
    assert m.training
    assert same(before, bits(m))
    assert r.n == 30
    assert r.dims == 64
    assert any("pixel variance" in note for note in r.notes)
    torch.testing.assert_close(r.log_prob, bound(m, x.float() / 255, samples=10).log_prob)


def test_the_optimal_variance_is_the_stored_one() -> None:
    """A head that fits its variance to the batch in training is evaluated at what it stored; images then do not help each other."""
    m = model(decoder_head=heads.Gaussian("optimal")).train()
    m.decoder.head.log_scale.fill_(math.log(0.7))
    x = vectors(8)
    fixed = model(decoder_head=heads.Gaussian(0.7))
    torch.testing.assert_close(bound(m, x, samples=9).log_prob, bound(fixed, x, samples=9).log_prob)
    assert any("0.49" in note for note in bound(m, x, samples=9).notes)

    class Fitting(heads.Gaussian):
        def forward(self, features: Tensor, event_dims: int = 1) -> torch.distributions.Distribution:
            self.train()
            return super().forward(features, event_dims)

    with pytest.raises(ValueError, match="fits its variance"):
        bound(model(decoder_head=Fitting("optimal")), x)


def test_it_prints_and_serialises() -> None:
    r = bound(model(), vectors(12), samples=20)
    text = str(r)
    for word in ("NLL, k = 20", "NLL, k = 5", "NLL, k = 10", "negative ELBO", "bits/dim", "effective samples", "n = 12"):
        assert word in text
    back = json.loads(json.dumps(r.to_json()))
    assert back["growth"]["20"] == pytest.approx(r.mean)
    assert bound(model(), vectors(1), samples=2).nll.error is None


@pytest.mark.parametrize(
    ("m", "x", "sentence"),
    [
        (model(plain=True), vectors(3), "no prior"),
        (model(heads.Dirac()), vectors(3), "deterministic encoder"),
        (model(decoder_head=heads.CrossEntropy()), vectors(3).clamp(0, 1), "CrossEntropy is not a normalised likelihood"),
        (model(decoder_head=heads.Bernoulli()), vectors(3), "exactly 0 or 1"),
        (model(prior=model(d=2, decoder_head=heads.CrossEntropy())), vectors(3), "not a normalised likelihood"),
        (model(), torch.full((3, 6), math.nan), "NaN"),
        (model(), vectors(3)[:0], "no images"),
    ],
)
def test_refusals(m, x, sentence) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        bound(m, x, samples=3)
    text = str(caught.value).replace("e.g. ", "")
    assert ". " not in text
    assert "\n" not in text, "one sentence"


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "10", None, math.nan, torch.tensor(5)])
@pytest.mark.parametrize(
    ("function", "names"),
    [
        (importance_bound, ["samples", "batch_size"]),
        (annealed_bound, ["chains", "temperatures", "leapfrog", "batch_size"]),
        (elbo_surgery, ["samples", "batch_size"]),
    ],
)
def test_counts_are_checked_before_any_work(function, names, wrong) -> None:
    for name in names:
        with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1, not "):
            function(model(), vectors(3), **{name: wrong})


def test_counts_of_numpy_are_counts_and_marks_are_checked() -> None:
    assert bound(model(), vectors(3), samples=np.int64(4)).samples == 4
    for marks in ((0,), (5,), (1.5,)):
        with pytest.raises(ValueError, match="marks must be a whole number of at least 1 and at most 4"):
            bound(model(), vectors(3), samples=4, marks=marks)
    with pytest.raises(ValueError, match="chunk must be"):
        bound(model(), vectors(3), chunk=0)


@pytest.mark.parametrize("function", [importance_bound, annealed_bound, elbo_surgery])
def test_images_of_another_size_are_a_sentence(function) -> None:
    maps = Autoencoder(  # takes any size, makes one
        Conditional(nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), heads.Diagonal(), 1, 3),
        Conditional(nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8))), heads.Gaussian(0.1), 3, 1),
        StandardNormal(2),
    )
    for m, x, shape in (
        (model(), torch.randn(3, 7), r"\(7,\)"),
        (model(), torch.randn(3, 1, 6), r"\(1, 6\)"),
        (model(), torch.randn(3), r"\(\)"),
        (maps, torch.rand(3, 1, 9, 9), r"\(1, 9, 9\)"),
        (maps, torch.rand(3, 3, 8, 8), r"\(3, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=f"{shape}: give images of the shape that it was trained on"):
            function(m, x)


def test_diverged_models_are_named() -> None:
    m = model()
    with torch.no_grad():
        m.decoder.net[-1].bias.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite for 3 of 3 images"):
        bound(m, vectors(3), samples=4)


def test_memory_does_not_grow_with_k(monkeypatch) -> None:
    """No decoded chunk is larger than the limit, however many samples."""
    m, x, rows = model(), vectors(10), []
    decode = m.decode
    monkeypatch.setattr(m, "decode", lambda z: (rows.append(z.shape[:2].numel()), decode(z))[1])
    monkeypatch.setitem(streaming.ELEMENTS, "cpu", 600)
    bound(m, x, samples=300)
    assert max(rows) <= 600 // 6
    assert sum(rows) == 3000


def test_the_command(tmp_path, capsys) -> None:
    """On a small trained run: prints all three parts and keeps them in the run folder."""
    from expost.cli import main
    from expost.cli.likelihood import Likelihood
    from expost.train.folder import RunFolder

    folder = tmp_path / "vae"
    train = ["train", "ghosh2020/vae", "--data", "digits", "--budget", "smoke", "--device", "cpu", "--set", "training.steps=20"]
    assert main([*train, "--set", "latent=4", "--out", str(folder)]) == 0
    capsys.readouterr()
    Likelihood(folder, samples=20, n=30, annealed=True, annealed_n=2, chains=2, temperatures=5, surgery=True, device="cpu").run()
    out = capsys.readouterr().out
    for word in ("bits/dim", "NLL, k = 5", "NLL, k = 20", "effective samples", "gap on simulated data", "I(n; z)", "log N", "p(z): prior"):
        assert word in out
    results = RunFolder.existing(folder).results()
    assert results["likelihood"]["nll"]["n"] == 30
    assert results["annealed"]["certificate"]["gap"]["n"] == 2
    assert results["surgery"]["n"] == 30
    assert main(["likelihood", str(folder), "--samples", "0"]) == 2
    assert "--samples must be a whole number of at least 1, not 0" in capsys.readouterr().err
    Likelihood(folder, samples=5, n=10, density="gmm:2", device="cpu").run()
    assert "likelihood gmm:2@sample" in RunFolder.existing(folder).results()
