"""An autoencoder is a density on x, and its prior is a slot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expost import heads
from expost.autoencoder import Autoencoder, evaluating, remembering
from expost.conditional import Conditional
from expost.distributions import Marginal, point
from toys import StandardNormal, bits, convolutional, model, pictures, same, vectors


def test_with_prior_shares_and_never_mutates():
    first = model()
    prior, before = first.prior, bits(first)
    other = StandardNormal(2)
    second = first.with_prior(other)
    assert second.encoder is first.encoder
    assert second.decoder is first.decoder
    assert second.prior is other
    assert first.prior is prior
    assert same(bits(first), before)
    assert first.with_prior(None).prior is None
    with torch.no_grad():
        next(first.decoder.parameters()).add_(1)
    assert torch.equal(next(first.decoder.parameters()), next(second.decoder.parameters()))


def test_without_a_prior_it_reconstructs_but_cannot_sample():
    m = model(heads.Dirac(), plain=True)
    assert m.reconstruct(vectors(5)).shape == (5, 6)
    for use in (lambda: m.generate(3), m.latent, lambda: m().sample((2,))):
        with pytest.raises(ValueError, match=r"no prior to sample from: fit one"):
            use()


def test_fit_names_the_remedy():
    with pytest.raises(ValueError, match=r"trained with expost.fit\(model, objective, x\).*SecondStage"):
        model().fit(torch.zeros(5, 2))


def test_latents_need_at():
    m, x = model(), vectors(9)
    with pytest.raises(TypeError, match="at"):
        m.latents(x)
    with pytest.raises(ValueError, match=r'"mean" or "sample", not \'mode\''):
        m.latents(x, at="mode")
    mean, sample = m.latents(x, at="mean"), m.latents(x, at="sample")
    torch.testing.assert_close(mean, m.encode(x).mean.detach())
    assert not torch.equal(mean, sample)
    assert torch.equal(sample, m.latents(x, at="sample"))
    assert not torch.equal(sample, m.latents(x, at="sample", seed=1))
    assert torch.equal(model(heads.Dirac()).latents(x, at="sample"), model(heads.Dirac()).latents(x, at="mean"))


def test_stored_bytes_are_scaled():
    m, x = convolutional(), pictures(7)
    for use in (lambda v: m.latents(v, at="mean"), m.reconstruct, lambda v: m.posteriors(v).stddev):
        torch.testing.assert_close(use(x), use(x.float() / 255))
    assert m.reconstruct(x).shape == (7, 1, 8, 8)
    assert m.reconstruct(x).dtype == torch.float32


@pytest.mark.parametrize("batch_size", [1, 7, 40])
@pytest.mark.parametrize("make", [lambda: (model(), vectors(40)), lambda: (convolutional(), pictures(40))], ids=["vectors", "images"])
def test_results_do_not_depend_on_the_batch_size(make, batch_size):
    m, x = make()
    z = m.latents(x, at="mean")
    for use in (
        lambda **k: m.latents(x, at="mean", **k), lambda **k: m.latents(x, at="sample", **k), lambda **k: m.reconstruct(x, **k),
        lambda **k: m.generate(40, **k), lambda **k: m.decode_points(z, **k), lambda **k: m.posteriors(x, **k).stddev,
    ):  # fmt: skip
        torch.testing.assert_close(use(batch_size=batch_size), use(batch_size=500))


def test_modes_gradients_and_random_state_are_restored():
    m, x = convolutional(), pictures(6)
    m.train()
    m.decoder.net[2].eval()
    before, state, random = [k.training for k in m.modules()], bits(m), torch.get_rng_state()
    m.latents(x, at="sample")
    m.generate(5)
    z = m.decode_points(m.latents(x, at="mean"))
    m.reconstruct(x)
    m.posteriors(x)
    assert not z.requires_grad
    assert [k.training for k in m.modules()] == before
    assert same(bits(m), state), "batch statistics must not move"
    assert torch.equal(torch.get_rng_state(), random)

    def fail() -> None:
        with evaluating(m):
            assert not m.training
            assert not torch.is_grad_enabled()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [k.training for k in m.modules()] == before
    assert torch.is_grad_enabled()


def test_generate_and_reconstruct_are_points():
    m, x = model(), vectors(8)
    torch.testing.assert_close(m.reconstruct(x), point(m.decode(m.encode(x).mean)).detach())
    samples = m.generate(8)
    assert samples.shape == (8, 6)
    assert torch.equal(samples, m.generate(8))
    assert not torch.equal(samples, m.generate(8, seed=1))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        m.generate(0)


@pytest.mark.parametrize("head", [heads.Diagonal(), heads.FullCovariance(), heads.Constant(0.7), heads.Dirac()])
def test_posteriors_are_one_distribution(head):
    m, x = model(head), vectors(11)
    q = m.posteriors(x, batch_size=4)
    assert (q.batch_shape, q.event_shape) == ((11,), (2,))
    direct = m.encode(x)
    torch.testing.assert_close(q.mean, direct.mean.detach())
    torch.testing.assert_close(q.variance, direct.variance.detach())
    if not isinstance(head, heads.Dirac):
        z = q.sample()
        torch.testing.assert_close(q.log_prob(z), direct.log_prob(z).detach())


def test_posteriors_of_another_family_are_refused():
    m = Autoencoder(Conditional(nn.Linear(6, 2), heads.Gaussian()), model().decoder, StandardNormal(2))
    with pytest.raises(TypeError, match="IsotropicGaussian cannot be gathered"):
        m.posteriors(vectors(3))
    assert m.latents(vectors(3), at="sample").shape == (3, 2)


def test_an_autoencoder_is_the_prior_of_an_autoencoder():
    inner = model(d=2, latent=2, seed=1)
    outer = model().with_prior(inner)
    assert isinstance(outer.latent(), Marginal)
    assert outer.generate(5).shape == (5, 6)
    assert outer().sample((4,)).shape == (4, 6)
    assert outer(3).log_prob(vectors(4)).shape == (4,)
    names = {name.split(".")[0] for name, _ in outer.named_parameters()}
    assert names == {"encoder", "decoder", "prior"}
    third = model().with_prior(model(d=2, seed=2).with_prior(inner))
    assert torch.isfinite(third(2).log_prob(vectors(4))).all()


def test_encode_and_decode_are_differentiable():
    m, x = model(), vectors(4)
    (-m(2).log_prob(x)).sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in m.parameters())


def test_an_encoder_that_remembers_answers_the_same_and_is_asked_once():
    m, x, asked = model(), vectors(30), []
    m.encoder.net.register_forward_hook(lambda *_: asked.append(1))

    def cost(**how):
        asked.clear()
        return m.latents(how.pop("x", x), at="sample", batch_size=20), len(asked)

    plain, every = cost()
    assert every == 2
    with remembering(m.encoder):
        again, first = cost()
        assert torch.equal(again, plain)
        assert first == 2
        again, second = cost()
        assert torch.equal(again, plain)
        assert second == 0
        changed = x.clone()
        changed[25] = 0
        assert cost(x=changed)[1] == 1  # the batch that differs
        m.encode(x[:20])
        assert len(asked) == 2, "with gradients nothing is remembered"
        with remembering(m.encoder):
            assert cost()[1] == 0
        assert cost()[1] == 0
    assert cost()[1] == 2
