"""One contract over all objectives, and the identities between them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from expost import heads
from expost.autoencoder import Autoencoder, evaluating
from expost.conditional import Conditional
from expost.divergences import mmd
from expost.heads import Gaussian
from expost.objectives import (
    ELBO,
    IWAE,
    RAE,
    WAE,
    Adversarial,
    Annealed,
    Binarised,
    ClassDistance,
    Clipped,
    DecoderL2,
    Dequantised,
    GradientPenalty,
    Sum,
)
from expost.seeds import seeded
from toys import convolutional, linear, model, pictures, vectors


def critic() -> nn.Module:
    with seeded("critic"):
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


# name: (objective, encoder head, does one example's loss depend on the others?)
OBJECTIVES = {
    "elbo": (lambda: ELBO(), heads.Diagonal, False),
    "elbo-samples": (lambda: ELBO(beta=2.0, samples=3), heads.Diagonal, False),
    "elbo-free-bits": (lambda: ELBO(free_bits=0.05), heads.Diagonal, False),
    "elbo-full": (lambda: ELBO(), heads.FullCovariance, False),
    "elbo-constant": (lambda: ELBO(), lambda: heads.Constant(0.7), False),
    "iwae": (lambda: IWAE(5), heads.Diagonal, False),
    "ae": (lambda: RAE(), heads.Dirac, False),
    "rae": (lambda: RAE(0.1), heads.Dirac, False),
    "rae-l2": (lambda: RAE(0.1, DecoderL2(1e-3)), heads.Dirac, False),
    "rae-gp": (lambda: RAE(0.1, GradientPenalty(0.1)), heads.Dirac, False),
    "rae-gp-jacobian": (lambda: RAE(0.1, GradientPenalty(0.1, "jacobian")), heads.Dirac, False),
    "rae-constant": (lambda: RAE(0.1), lambda: heads.Constant(0.7), False),
    "wae": (lambda: WAE(), heads.Dirac, True),
    "wae-noise": (lambda: WAE(input_noise=0.01), heads.Dirac, True),
    "adversarial": (lambda: Adversarial(critic()), heads.Dirac, False),
    "omega": (lambda: ELBO() + ClassDistance(30), heads.Diagonal, True),
    "omega-batch": (lambda: ELBO() + ClassDistance(30, "batch"), heads.Diagonal, True),
    "clipped": (lambda: Clipped(ELBO() + ClassDistance(30)), heads.Diagonal, True),
    "annealed": (lambda: Annealed(ELBO(), "beta", 10), heads.Diagonal, False),
}
NOISY = {"wae", "wae-noise"}
each = pytest.mark.parametrize("name", OBJECTIVES)


def case(name):
    make, head, batch_statistics = OBJECTIVES[name]
    return make(), model(head()), batch_statistics


@each
def test_total_parts_and_gradients(name):
    objective, m, _ = case(name)
    x = vectors(10)
    loss = objective(m, x)
    assert loss.total.shape == (10,)
    assert torch.isfinite(loss.total).all()
    assert loss.parts
    assert all(v.shape in (torch.Size(()), torch.Size((10,))) and torch.isfinite(v).all() for v in loss.parts.values())
    assert all(isinstance(k, str) and k.isidentifier() for k in loss.parts)
    loss.total.mean().backward()
    for parameter_name, parameter in m.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@each
def test_images_with_learned_variance(name):
    objective, _, _ = case(name)
    m = convolutional(heads.Gaussian("shared", torch.sigmoid))
    m.encoder.head = OBJECTIVES[name][1]()
    m.encoder.net[-1] = nn.Linear(32, m.encoder.head.size(2))
    x = pictures(6).float() / 255
    loss = objective(m, x)
    assert loss.total.shape == (6,)
    loss.total.mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in m.parameters())


@each
def test_objectives_are_frozen_dataclasses_that_step(name):
    objective, m, _ = case(name)
    assert dataclasses.is_dataclass(objective)
    first = dataclasses.fields(objective)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(objective, first, None)
    for step in (0, 5, 10_000):
        at = objective.at(step)
        players = at.players(m)
        assert players[0].name == "model"
        assert players[0].module is m
        assert len({p.name for p in players}) == len(players)
        assert {p.name for p in players[1:]} == set(objective.modules())
        loss = players[0].loss(m, vectors(4))
        assert loss.total.shape == (4,)
    assert objective.after_step(m) is None


@each
def test_same_seed_same_loss(name):
    objective, m, _ = case(name)
    x = vectors(8)
    totals = []
    for _ in range(2):
        with seeded("objective"):
            totals.append(objective(m, x).total)
    assert torch.equal(*totals)


@each
def test_usable_without_gradients(name):
    """As in validation."""
    objective, m, _ = case(name)
    with evaluating(m):
        loss = objective(m, vectors(8))
    assert torch.isfinite(loss.total).all()
    assert not loss.total.requires_grad


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if not OBJECTIVES[n][2]])
def test_an_example_does_not_see_the_others(name):
    """The gradient of one example's loss with respect to another example is zero; noise cannot hide it."""
    objective, m, _ = case(name)
    x = vectors(6).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(m, x).total[2], x)
    assert gradient[2].abs().sum() > 0
    assert gradient[[0, 1, 3, 4, 5]].abs().sum() == 0


@pytest.mark.parametrize("name", ["ae", "rae", "rae-l2", "rae-gp", "adversarial"])
def test_splitting_the_batch_changes_nothing(name):
    objective, m, _ = case(name)
    x = vectors(12)
    whole = objective(m, x).total
    torch.testing.assert_close(whole, torch.cat([objective(m, part).total for part in x.split(5)]))


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if OBJECTIVES[n][2]])
def test_batch_statistics_do_see_the_others(name):
    objective, m, _ = case(name)
    x = vectors(6).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(m, x).total[2], x)
    assert gradient[[0, 1, 3, 4, 5]].abs().sum() > 0


# -- identities ------------------------------------------------------------------------------------------------------------------------


def noise(objective, m, x):
    with seeded("same noise"):
        return objective(m, x)


def test_iwae_of_one_sample_is_the_sampled_elbo():
    """The same noise, and the rate estimated from the same z."""
    m, x = model(), vectors(9)
    loss = noise(IWAE(1), m, x)
    with seeded("same noise"):
        q = m.encode(x)
        z = q.rsample((1,))[0]
    by_hand = -m.decode(z).log_prob(x) + q.log_prob(z) - m.latent().log_prob(z)
    torch.testing.assert_close(loss.total, by_hand)
    hidden = m.with_prior(Opaque(2))  # a prior without closed form: ELBO estimates the rate from its z
    torch.testing.assert_close(noise(ELBO(), hidden, x).total, by_hand)
    torch.testing.assert_close(noise(IWAE(1), hidden, x).total, by_hand)


class Opaque(type(model().prior)):
    """N(0, I) in a wrapper that no closed form is registered for."""

    def forward(self):
        return torch.distributions.Independent(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), 0)


def test_iwae_reports_the_elbo_of_its_samples():
    loss = IWAE(20)(model(), vectors(9))
    assert bool((-loss.total >= loss.parts["elbo"] - 1e-5).all()), "Jensen"
    assert torch.equal(loss.parts["bound"], loss.total)


def test_ae_is_rae_without_weights():
    """C18: at β = λ = 0 what remains is the reconstruction."""
    m, x = model(heads.Dirac()), vectors(9)
    plain = RAE()(m, x).total
    for objective in (RAE(0.0), RAE(0.0, DecoderL2(0.0)), RAE(0.0, GradientPenalty(0.0)), RAE(0.0, GradientPenalty(0.0, "jacobian"))):
        torch.testing.assert_close(objective(m, x).total, plain)
    reconstruction = m.decode(m.encode(x).mean).mean
    constant = 3 * math.log(2 * math.pi * 0.25)
    torch.testing.assert_close(plain, (x - reconstruction).square().sum(1) / 0.5 + constant)


def test_constant_variance_vae_tends_to_rae():
    """C18: as σ -> 0, ELBO(β) of N(μ, σ² I) is RAE(β) plus the constant β d (σ² - 1 - log σ²) / 2, in value and in gradient."""
    x, beta, sigma, d = vectors(9), 0.3, 1e-3, 2
    vae, rae = model(heads.Constant(sigma)), model(heads.Dirac())
    constant = beta * 0.5 * d * (sigma**2 - 1 - math.log(sigma**2))
    a, b = ELBO(beta)(vae, x).total, RAE(beta)(rae, x).total
    torch.testing.assert_close(a - constant, b, rtol=0, atol=0.05)
    for left, right in zip(
        torch.autograd.grad(a.mean(), list(vae.parameters())), torch.autograd.grad(b.mean(), list(rae.parameters())), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=0, atol=0.02 * float(right.abs().max()))
    with seeded("z"):
        same_noise = RAE(beta)(vae, x).total
    with seeded("z"):
        torch.testing.assert_close(ELBO(beta)(vae, x).total - constant, same_noise)  # exact at any σ, given the noise


def test_elbo_is_linear_in_beta():
    m, x = model(), vectors(9)
    totals = [noise(ELBO(beta), m, x).total for beta in (0.0, 1.0, 4.0)]
    torch.testing.assert_close(totals[2], totals[0] + 4 * (totals[1] - totals[0]))
    parts = noise(ELBO(4.0), m, x).parts
    torch.testing.assert_close(totals[2], parts["distortion"] + 4 * parts["rate"])
    torch.testing.assert_close(totals[0], parts["distortion"])


def test_more_samples_average_the_distortion():
    m, x = model(), vectors(9)
    with seeded("same noise"):
        q = m.encode(x)
        z = q.rsample((3,))
    by_hand = torch.stack([-m.decode(row).log_prob(x) for row in z]).mean(0)
    loss = noise(ELBO(samples=3), m, x)
    torch.testing.assert_close(loss.parts["distortion"], by_hand)
    torch.testing.assert_close(loss.total, by_hand + loss.parts["rate"])


def test_free_bits_are_a_floor_in_bits_per_dimension():
    """Σ_j [relu(KL_j - α ln 2) + α ln 2] (yu2020's code)."""
    m, x, alpha = model(), vectors(9), 0.3
    q = m.encode(x)
    per_dimension = 0.5 * (q.variance + q.mean.square() - 1 - q.variance.log())
    floor = alpha * math.log(2)
    by_hand = (torch.relu(per_dimension - floor) + floor).sum(1)
    loss, free = noise(ELBO(), m, x), noise(ELBO(free_bits=alpha), m, x)
    torch.testing.assert_close(free.total, loss.parts["distortion"] + by_hand)
    torch.testing.assert_close(free.parts["rate"], loss.parts["rate"], msg="the true rate is reported")
    assert bool((by_hand >= 2 * floor - 1e-6).all())
    collapsed = noise(ELBO(free_bits=50.0), m, x)
    torch.testing.assert_close(collapsed.total, loss.parts["distortion"] + 2 * 50 * math.log(2))
    with pytest.raises(ValueError, match="factorised Gaussians"):
        ELBO(free_bits=0.1)(model(heads.FullCovariance()), x)


# -- penalties ---------------------------------------------------------------------------------------------------------------------------


def linear_model(weight, bias=None):
    """A decoder that is linear, for closed forms."""
    d, latent = weight.shape
    return Autoencoder(Conditional(nn.Linear(d, latent), heads.Dirac()), Conditional(linear(weight, bias), heads.Gaussian(0.5**0.5)))


def test_energy_penalty_on_a_linear_decoder():
    weight, bias = torch.randn(6, 2), torch.randn(6)
    m, x = linear_model(weight, bias), vectors(9)
    z = m.encode(x).mean
    by_hand = 0.7 * (2 * (z @ weight.T + bias) @ weight).square().mean(1)
    torch.testing.assert_close(RAE(0.0, GradientPenalty(0.7))(m, x).parts["penalty"], by_hand)


def test_jacobian_penalty_on_a_linear_decoder_has_the_frobenius_norm_as_mean():
    weight = torch.randn(6, 2)
    m, x = linear_model(weight, torch.randn(6)), vectors(20_000)
    penalty = RAE(0.0, GradientPenalty(0.7, "jacobian"))(m, x).parts["penalty"].detach()
    error = float(penalty.std()) / math.sqrt(len(x))
    assert abs(float(penalty.mean()) - 0.7 * float(weight.square().sum())) < 4 * error
    assert error < 0.02 * float(penalty.mean())


def test_gradient_penalties_agree_on_a_linear_decoder_up_to_the_known_factor():
    """C17: with D(z) = sQz, QᵀQ = I, energy = 4 s⁴ ‖z‖² / d and ‖J‖²_F = s² d, so energy = jacobian · 4 s² ‖z‖² / d²."""
    q, _ = torch.linalg.qr(torch.randn(6, 2))
    s, d = 1.7, 2
    m, x = linear_model(s * q), vectors(9)
    norm = m.encode(x).mean.square().sum(1)
    energy = RAE(0.0, GradientPenalty(1.0))(m, x).parts["penalty"]
    torch.testing.assert_close(energy, (s**2 * d) * 4 * s**2 * norm / d**2)


def test_jacobian_penalty_on_a_curved_decoder():
    """Its mean is the Jacobian's Frobenius norm, by autograd, one code at a time."""
    m = model(heads.Dirac(), heads.Gaussian(0.5, torch.sigmoid))
    x = vectors(1).expand(20_000, 6)
    penalty = RAE(0.0, GradientPenalty(1.0, "jacobian"))(m, x).parts["penalty"].detach()
    z = m.encode(x[:1]).mean[0].detach()
    jacobian = torch.autograd.functional.jacobian(lambda code: m.decode(code).mean, z)
    assert abs(float(penalty.mean()) - float(jacobian.square().sum())) < 4 * float(penalty.std()) / math.sqrt(20_000)


def test_decoder_l2():
    m, x = model(heads.Dirac()), vectors(5)
    kernels = [layer.weight for layer in m.decoder.net if isinstance(layer, nn.Linear)]
    by_hand = 0.3 * sum(k.square().sum() for k in kernels)
    torch.testing.assert_close(RAE(0.0, DecoderL2(0.3))(m, x).parts["penalty"], by_hand)
    m = convolutional()
    z = m.encode(pictures(3).float() / 255).mean
    kernels = [layer.weight for layer in m.decoder.net if isinstance(layer, (nn.Linear, nn.ConvTranspose2d))]
    torch.testing.assert_close(DecoderL2(1.0)(m, z, m.decode(z)), sum(k.square().sum() for k in kernels), msg="no batch normalisation")
    with pytest.raises(ValueError, match=r"no layer of the types \['Conv1d'\]"):
        DecoderL2(1.0, (nn.Conv1d,))(m, z, m.decode(z))


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match='not "norm"'):
        GradientPenalty(1.0, "norm")
    with pytest.raises(ValueError, match='not "sum"'):
        ClassDistance(30, "sum")


# -- single objectives ---------------------------------------------------------------------------------------------------------------------


def test_wae_is_distortion_plus_mmd():
    m, x = model(heads.Dirac()), vectors(9)
    loss = noise(WAE(3.0), m, x)
    with seeded("same noise"):
        z = m.encode(x).mean
        ideal = m.latent().sample((9,))
    torch.testing.assert_close(loss.parts["mmd"], mmd(z, ideal))
    torch.testing.assert_close(loss.total, -m.decode(z).log_prob(x) + 3 * mmd(z, ideal))
    noisy = noise(WAE(3.0, input_noise=0.5), m, x)
    assert not torch.allclose(noisy.total, loss.total)


def test_wae_input_noise_is_clipped_and_the_target_is_clean():
    seen = []
    m, x = model(heads.Dirac()), torch.zeros(500, 6)
    m.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss = WAE(0.0, input_noise=0.1)(m, x)
    assert float(seen[0].abs().max()) == pytest.approx(0.1)
    assert float(seen[0].std()) > 0.05
    torch.testing.assert_close(loss.total, -m.decode(m.encode(seen[0]).mean).log_prob(x))


def test_class_distance_by_hand():
    m, x = model(), vectors(7)  # odd: the last example has no partner
    q = m.encode(x)
    mu = q.mean
    ratios = [((mu[i] - mu[i + 3]).square().sum() / (x[i] - x[i + 3]).square().sum()) for i in range(3)]
    loss = ClassDistance(30)(m, x)
    torch.testing.assert_close(loss.parts["omega"], sum(ratios))
    torch.testing.assert_close(loss.total.sum(), 30 * sum(ratios), msg="λ Σ ω belongs to the batch-summed loss")
    batch = noise(ClassDistance(30, "batch"), m, x)
    with seeded("same noise"):
        z = q.rsample()
    ratio = torch.nn.functional.mse_loss(z[:3], z[3:6]) / torch.nn.functional.mse_loss(x[:3], x[3:6])
    torch.testing.assert_close(batch.parts["omega"], ratio)
    torch.testing.assert_close(batch.total.sum(), 30 * ratio)
    same = torch.ones(4, 6)
    assert torch.isfinite(ClassDistance()(m, same).total).all(), "identical images"
    with pytest.raises(ValueError, match="at least 2 examples"):
        ClassDistance()(m, x[:1])


def test_clipping_touches_the_encoder_only():
    m = model()
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.mul_(10)
    before = [p.detach().clone() for p in m.decoder.parameters()]
    objective = Clipped(ELBO(), 0.3)
    assert any(p.abs().max() > 0.3 for p in m.encoder.parameters())
    objective.at(7).after_step(m)
    assert all(p.abs().max() <= 0.3 for p in m.encoder.parameters())
    assert max(float(p.detach().abs().max()) for p in m.encoder.parameters()) == pytest.approx(0.3)
    assert all(torch.equal(p, b) for p, b in zip(m.decoder.parameters(), before, strict=True))
    nested = Clipped(ELBO(), 0.1) + ClassDistance()
    nested.after_step(m)
    assert all(p.abs().max() <= 0.1 for p in m.encoder.parameters()), "a sum passes after_step on"


def test_sum_keeps_parts_players_and_schedules():
    adversarial = Adversarial(critic())
    total = Annealed(ELBO(2.0), "beta", 10) + ClassDistance(30) + WAE(0.0)
    m, x = model(), vectors(8)
    loss = noise(total, m, x)
    assert set(loss.parts) == {"distortion", "rate", "omega", "mmd"}
    assert isinstance(total.at(3), Sum)
    assert total.at(5).terms[0].terms[0] == ELBO(1.0)
    both = ClassDistance(1.0) + adversarial
    assert [p.name for p in both.players(m)] == ["model", "critic"]
    torch.testing.assert_close(noise(both.players(m)[0].loss, m, x).total, noise(both, m, x).total)
    assert both.modules() == {"critic": adversarial.critic}


def test_annealing():
    warm = Annealed(ELBO(beta=4.0), "beta", steps=10)
    assert [warm.at(s).beta for s in (0, 5, 10, 1000)] == [0.0, 2.0, 4.0, 4.0]
    assert [Annealed(RAE(2.0), "beta", 4, start=0.5).at(s).beta for s in (0, 2, 4)] == [1.0, 1.5, 2.0]
    clipped = Clipped(warm).at(5)
    assert clipped == Clipped(ELBO(2.0))
    with pytest.raises(ValueError, match='ELBO has no weight "gamma": it has beta, free_bits, samples'):
        Annealed(ELBO(), "gamma", 10)
    with pytest.raises(ValueError, match="at least 1"):
        Annealed(ELBO(), "beta", 0)


def test_adversarial_players_pull_in_opposite_directions():
    own = critic()
    objective, m, x = Adversarial(own, 3.0), model(heads.Dirac()), vectors(9)
    fool, judge = objective.players(m)
    loss, against = fool.loss(m, x), noise(judge.loss, m, x)
    z = m.encode(x).mean
    torch.testing.assert_close(loss.parts["fool"], -torch.sigmoid(own(z)[:, 0]).log())
    torch.testing.assert_close(loss.total, loss.parts["distortion"] + 3 * loss.parts["fool"])
    with seeded("same noise"):
        ideal = m.latent().sample((9,))
    by_hand = -torch.sigmoid(own(ideal)[:, 0]).log() - (1 - torch.sigmoid(own(z)[:, 0])).log()
    torch.testing.assert_close(against.total, by_hand)
    against.total.mean().backward()
    assert all(p.grad is None for p in m.parameters()), "the critic's loss does not train the model"
    assert all(p.grad is not None for p in own.parameters())
    with torch.no_grad():
        for p in own.parameters():
            p.zero_()
    torch.testing.assert_close(judge.loss(m, x).total, torch.full((9,), math.log(4)))


def test_optimal_variance_under_elbo():
    """The γ used is the batch's MSE, and the gradient that of D/2 log MSE."""
    head = Gaussian("optimal")
    m, x = model(heads.Dirac(), head), vectors(9)
    loss = RAE()(m, x).total.mean()
    reconstruction = m.decoder.net(m.encoder.net(x))
    mse = (x - reconstruction).square().mean()
    torch.testing.assert_close(loss, 3 * (torch.log(2 * math.pi * mse) + 1))
    for ours, reference in zip(
        torch.autograd.grad(loss, list(m.parameters())), torch.autograd.grad(3 * mse.log(), list(m.parameters())), strict=True
    ):
        torch.testing.assert_close(ours, reference)
    head.track()
    torch.testing.assert_close(head.variance, mse.detach())


# -- refusals ------------------------------------------------------------------------------------------------------------------------------


def test_a_deterministic_encoder_has_no_elbo():
    m, x = model(heads.Dirac()), vectors(4)
    with pytest.raises(
        ValueError, match=r"a deterministic encoder has no ELBO: use RAE\(\.\.\.\), or give the encoder a Constant\(scale\) head"
    ):
        ELBO()(m, x)
    with pytest.raises(ValueError, match="no importance-weighted bound"):
        IWAE()(m, x)
    with pytest.raises(ValueError, match="no importance-weighted bound"):
        m().log_prob(x)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(2), RAE(), WAE()])
def test_bernoulli_refuses_grey_levels(objective):
    m = model(heads.Constant(0.1), heads.Bernoulli())
    grey = torch.rand(6, 6)
    with pytest.raises(ValueError, match=r"exactly 0 or 1: binarise the images, or use a CrossEntropy\(\) head"):
        objective(m, grey)
    assert torch.isfinite(objective(m, (grey > 0.5).float()).total).all()
    with pytest.raises(ValueError, match="exactly 0 or 1"):
        m().log_prob(grey)


def test_an_unnormalised_head_has_no_likelihood():
    m, x = model(heads.Diagonal(), heads.CrossEntropy()), torch.rand(5, 6)
    assert torch.isfinite(ELBO()(m, x).total).all()
    for use in (lambda: m().log_prob(x), lambda: IWAE()(m, x)):
        with pytest.raises(ValueError, match=r"CrossEntropy is not a normalised likelihood: use a Bernoulli, Gaussian"):
            use()


@pytest.mark.parametrize("objective", [ELBO(), IWAE(2), RAE()])
def test_data_of_another_shape_is_refused(objective):
    m = Autoencoder(Conditional(nn.Linear(6, 4), heads.Diagonal()), Conditional(nn.Linear(2, 1), heads.Gaussian()), model().prior)
    with pytest.raises(ValueError, match=r"the decoder makes \(1,\) and the data is \(6,\)"):
        objective(m, vectors(4))


def test_objectives_without_a_prior():
    m, x = model(heads.Constant(0.5), plain=True), vectors(4)
    RAE(0.1)(m, x)
    for objective in (ELBO(), IWAE(), WAE()):
        with pytest.raises(ValueError, match="no prior"):
            objective(m, x)


def test_binarised_and_dequantised_data_are_what_they_say():
    x = torch.rand(500, 12)
    with seeded("noise"):
        b, u = Binarised(ELBO()).change(x), Dequantised(ELBO()).change((x * 255).round() / 255)
    assert bool(((b == 0) | (b == 1)).all())
    assert float((b - x).mean().abs()) < 0.02
    assert bool(((u * 256).floor() == (x * 255).round()).all())  # the byte survives, the rest is uniform
    assert float(((u * 256) % 1).mean()) == pytest.approx(0.5, abs=0.02)
    zero_one = (x > 0.5).float()
    assert torch.equal(Binarised(ELBO()).change(zero_one), zero_one)


def test_wrapped_objectives_pass_everything_on():
    objective = Binarised(Annealed(ELBO(), "beta", 10))
    assert objective.at(5) == Binarised(ELBO(beta=0.5))
    m, x = model(decoder_head=heads.Bernoulli()), (vectors(20) > 0).float()
    with seeded("a"):
        inside = ELBO()(m, x).total
    with seeded("a"):
        torch.bernoulli(x)
        expected = ELBO()(m, x).total
    with seeded("a"):
        wrapped = Binarised(ELBO())(m, x).total
    assert torch.equal(wrapped, expected)
    assert inside.shape == wrapped.shape
    (player,) = Binarised(ELBO()).players(m)
    assert player.module is m
    assert Binarised(Adversarial(critic())).modules().keys() == Adversarial(critic()).modules().keys()
    assert len(Binarised(Adversarial(critic())).players(m)) == 2
