"""The VampPrior: its density, its parameters, and that the encoder is owned once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import NotFittedError, VampPrior
from expost.distributions import Dirac
from expost.heads import Head
from expost.system.files import load_tensors, save_tensors


def model(head: Head | None = None, k: int = 7) -> Autoencoder:
    head = head or heads.Diagonal()
    encoder = Conditional(nn.Linear(5, head.size(2)), head)
    decoder_head = heads.Gaussian(0.5)
    return Autoencoder(encoder, Conditional(nn.Linear(2, decoder_head.size(5)), decoder_head), VampPrior(encoder, k, (5,)))


def vamp(m: Autoencoder) -> VampPrior:
    assert isinstance(m.prior, VampPrior)
    return m.prior


@pytest.mark.parametrize("head", [heads.Diagonal, heads.FullCovariance, lambda: heads.Constant(0.7)], ids=["diagonal", "full", "constant"])
def test_a_mixture_of_posteriors(head: object) -> None:
    m = model(head())  # type: ignore[operator]
    q = m.encoder(vamp(m).inputs)
    z = torch.randn(3, 4, 2)
    oracle = MixtureSameFamily(Categorical(torch.ones(7)), q)
    torch.testing.assert_close(m.latent().log_prob(z), oracle.log_prob(z))
    assert m.latent().sample((6,)).shape == (6, 2)
    axis = torch.linspace(-14, 14, 401)
    grid = torch.cartesian_prod(axis, axis)
    assert float(m.latent().log_prob(grid).detach().exp().sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-3)


def test_gradients_reach_pseudo_inputs_and_encoder() -> None:
    m = model()
    m.latent().log_prob(torch.randn(10, 2)).sum().backward()
    assert vamp(m).inputs.grad is not None
    assert float(vamp(m).inputs.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in m.encoder.parameters())


def test_the_encoder_is_owned_once(tmp_path: Path) -> None:
    m = model()
    names = [name for name, _ in m.named_parameters(remove_duplicate=False)]
    assert "prior.inputs" in names
    assert [n for n in names if n.startswith("prior.")] == ["prior.inputs"]
    assert list(vamp(m).state_dict()) == ["inputs"]
    save_tensors(tmp_path / "m.safetensors", m.state_dict())
    other = model()
    other.load_state_dict(load_tensors(tmp_path / "m.safetensors", "a model")[0])
    z = torch.randn(5, 2)
    assert torch.equal(other.latent().log_prob(z), m.latent().log_prob(z))


def test_a_copy_refers_to_the_copied_encoder() -> None:
    m = model()
    other = copy.deepcopy(m)
    assert vamp(other).encoder is other.encoder
    assert vamp(other).encoder is not m.encoder
    with torch.no_grad():
        for p in other.encoder.parameters():
            p.add_(1)
    z = torch.randn(5, 2)
    assert not torch.equal(other.latent().log_prob(z), m.latent().log_prob(z))


def test_the_encoder_moves_with_the_model() -> None:
    m = model().double()
    assert m.latent().log_prob(torch.randn(3, 2, dtype=torch.float64)).dtype == torch.float64


def test_from_data() -> None:
    m, x = model(), torch.randn(20, 5)
    assert vamp(m).from_data(x, seed=1) is m.prior
    first = vamp(m).inputs.detach().clone()
    assert all(bool((row == x).all(1).any()) for row in first)
    assert len(first.unique(dim=0)) == 7
    assert torch.equal(vamp(m).from_data(x, seed=1).inputs, first)
    assert not torch.equal(vamp(m).from_data(x, seed=2).inputs, first)
    assert len(vamp(m).from_data(x[:3]).inputs.unique(dim=0)) == 3
    with pytest.raises(ValueError, match="pseudo-inputs have shape"):
        vamp(m).from_data(torch.randn(20, 4))
    with pytest.raises(ValueError, match="at least one example"):
        vamp(m).from_data(x[:0])


def test_images_are_stored_as_bytes_and_used_as_floats() -> None:
    head = heads.Diagonal()
    encoder = Conditional(nn.Sequential(nn.Flatten(), nn.Linear(16, head.size(2))), head, condition_dims=3)
    prior = VampPrior(encoder, 4, (1, 4, 4), bounds=(0.0, 1.0)).from_data(torch.full((9, 1, 4, 4), 255, dtype=torch.uint8))
    assert torch.equal(prior.inputs, torch.ones(4, 1, 4, 4))
    before = prior().log_prob(torch.zeros(2))
    with torch.no_grad():
        prior.inputs.add_(5)
    torch.testing.assert_close(prior().log_prob(torch.zeros(2)), before)  # clamped to the bounds


def test_what_cannot_work_says_so() -> None:
    m = model()
    with pytest.raises(ValueError, match="learns with its autoencoder"):
        vamp(m).fit(torch.randn(10, 2))
    with pytest.raises(ValueError, match="give the shape of one input"):
        VampPrior(m.encoder, 5)
    with pytest.raises(ValueError, match="at least one pseudo-input"):
        VampPrior(m.encoder, 0, (5,))
    with pytest.raises(ValueError, match="needs an encoder with a density"):
        VampPrior(lambda x: Dirac(x), 5, (5,))()
    with pytest.raises(ValueError, match="has no spec"):
        _ = vamp(m).spec


def test_usable_before_from_data_and_reproducible() -> None:
    state = torch.get_rng_state()
    a = VampPrior(lambda x: Dirac(x), 5, (3,)).inputs
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, VampPrior(lambda x: Dirac(x), 5, (3,)).inputs)
    try:
        model().latent()
    except NotFittedError:  # pragma: no cover
        pytest.fail("a VampPrior needs no fit")
