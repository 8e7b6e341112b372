"""ghosh2020's second stage: standardised means in, noiseless samples out, one autoencoder when joined."""

from __future__ import annotations

import pytest
import torch

from expost.density import NotFittedError
from expost.distributions import point
from expost.optimise import Plateau
from expost.papers.ghosh2020.mean_stage import PAPER, MeanStage
from expost.train.second_stage import SecondStage
from expost.train.settings import Training
from toys import bits, model, same, vectors

QUICK = Training(steps=800, batch_size=128, lr=3e-3)


def codes(n: int = 600) -> torch.Tensor:
    return vectors(n, 3, seed=5) * torch.tensor([1.0, 20.0, 0.1]) + torch.tensor([0.0, 7.0, -3.0])


@pytest.fixture(scope="module")
def fitted() -> MeanStage:
    return MeanStage(3, 0.2, 32, QUICK).fit(codes())


def test_samples_have_the_moments_of_the_codes(fitted: MeanStage) -> None:
    torch.manual_seed(0)
    z, target = fitted().sample((4000,)), codes()
    scale = target.std(0)
    assert ((z.mean(0) - target.mean(0)).abs() / scale < 0.15).all()
    assert ((z.std(0) / scale - 1).abs() < 0.2).all()  # whatever the units of each dimension


@pytest.mark.parametrize("size", [1e-26, 1.0, 1e26])
def test_codes_of_any_scale_and_type(size: float) -> None:
    quick = Training(steps=60, batch_size=128, lr=3e-3)
    z = codes().double() * size
    z[0] = 1e6 * size  # a broken one
    z = torch.cat([z, torch.full((len(z), 1), size)], 1)
    sample = MeanStage(4, 0.02, 16, quick).fit(z)().sample((500,))
    assert sample.isfinite().all()
    assert ((sample.double().std(0)[:3] / codes().double().std(0) / size - 0.55).abs() < 0.5).all()
    assert float(sample[:, 3].double().std()) < 1e-5 * size


@pytest.mark.filterwarnings("ignore:the loss went from:expost.system.state.Note")
@pytest.mark.parametrize("z", [codes() * 1e-30, codes() * 1e30, codes() + 1e6, torch.zeros(50, 3)], ids=["tiny", "huge", "far", "zero"])
def test_the_other_second_stage_says_what_scale_it_takes(z: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"codes as they are.* bring them to about 1 and 0 first, or fit a gaussian, gmm or flow"):
        SecondStage.mlp(3, 8, Training(steps=2, batch_size=32)).fit(z)
    assert SecondStage.mlp(3, 8, Training(steps=2, batch_size=32)).fit(codes().double())().sample((5,)).isfinite().all()


def test_it_has_no_density_and_says_so(fitted: MeanStage) -> None:
    with pytest.raises(ValueError, match="samples without noise"):
        fitted().log_prob(codes(5))
    with pytest.raises(NotFittedError):
        MeanStage(3, 0.1)()
    with pytest.raises(ValueError, match="must not be negative"):
        MeanStage(3, -1.0)


def test_posteriors_enter_by_their_means() -> None:
    autoencoder = model(latent=3)
    x = vectors(200)
    by_means = MeanStage(3, 0.02, 8, Training(steps=5, batch_size=32)).fit(autoencoder.latents(x, at="mean"))
    by_posteriors = MeanStage(3, 0.02, 8, Training(steps=5, batch_size=32)).fit(autoencoder.posteriors(x))
    assert same(bits(by_means), bits(by_posteriors))


def test_state_moves_to_a_fresh_one(fitted: MeanStage) -> None:
    twin = MeanStage(3, 0.2, 32, QUICK)
    twin.load_state_dict(fitted.state_dict())
    u = torch.randn(10, 3)
    assert torch.equal(twin.codes(u), fitted.codes(u))


def test_joined_is_the_composition(fitted: MeanStage) -> None:
    autoencoder = model(latent=3).eval()
    both = fitted.joined(autoencoder)
    x = vectors(20)
    with torch.no_grad():
        z = point(autoencoder.encode(x))
        u = point(fitted.model.encode((z - fitted.mean) / fitted.scale))
        assert torch.allclose(both.latents(x, at="mean"), u, atol=1e-6)
        assert torch.allclose(both.decode_points(u), point(autoencoder.decode(fitted.codes(u))), atol=1e-6)
    assert both.generate(5, seed=1).shape == (5, 6)


def test_the_papers_training_holds_a_tenth_out() -> None:
    assert isinstance(PAPER.schedule, Plateau)
    short = Training(epochs=2, batch_size=32, lr=1e-3, schedule=Plateau(patience=1))
    assert bool(MeanStage(3, 0.02, 8, short).fit(codes(100)).fitted)


def test_many_dimensions_get_the_papers_rate() -> None:
    assert MeanStage(16, 0.02, 8).training_settings.lr == 1e-3
    assert MeanStage(128, 0.1, 8).training_settings.lr == PAPER.lr == 1e-4
