"""The optimal decoder of bozkurt2018: closed forms, and a decoder that memorises by construction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.diagnose.optimal import aggregate_of, distance, floor, latent_map, optimal_decoder


class Tail(nn.Module):
    """z = the first two pixels, σ given."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :2] * 4 - 2
        return torch.cat([z, torch.full_like(z, math.log(self.scale))], 1)


class Lookup(nn.Module):
    """Decodes to a stored function of z: logits (n, 1, 2, 2)."""

    def __init__(self, codes: Tensor, images: Tensor) -> None:
        super().__init__()
        self.codes, self.images = nn.Parameter(codes), images

    def forward(self, z: Tensor) -> Tensor:
        nearest = torch.cdist(z, self.codes).argmin(1)
        return torch.logit(self.images[nearest].clamp(1e-6, 1 - 1e-6))


class Known(nn.Module):
    """Decodes the two coded pixels exactly, the other two to grey."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        pixels = ((z + 2) / 4).clamp(1e-6, 1 - 1e-6)
        return torch.logit(torch.cat([pixels, torch.full_like(pixels, 0.5)], 1)).reshape(-1, 1, 2, 2)


def make(decoder: nn.Module, scale: float = 0.01, deterministic: bool = False) -> Autoencoder:
    head = heads.Dirac() if deterministic else heads.Diagonal(heads.exp)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) if deterministic else Tail(scale)
    return Autoencoder(Conditional(net, head, 1, 3), Conditional(decoder, heads.CrossEntropy(), 3, 1), StandardNormal(2))


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(60, 1, 2, 2, generator=g), torch.rand(40, 1, 2, 2, generator=g)


def test_a_decoder_that_looks_up_training_images_is_at_the_optimum(data: tuple[Tensor, Tensor]) -> None:
    train, x = data
    codes = train.flatten(1)[:, :2] * 4 - 2
    found = optimal_decoder(make(Lookup(codes, train), scale=1e-3), train, x)
    assert found.kind == "cross-entropy"
    assert found.closer_to_input.value < 0.3  # it gives the training image, not the input
    torch.testing.assert_close(found.to_average, found.floor_average, atol=1e-3, rtol=1e-3)
    assert found.weights.perplexity.max() < 1.2
    assert found.certain().value == 1
    nearest = torch.cdist(x.flatten(1)[:, :2], train.flatten(1)[:, :2]).argmin(1)
    assert torch.equal(found.weights.indices[:, 0].cpu(), nearest)
    torch.testing.assert_close(found.averages, train[nearest], atol=1e-4, rtol=0)


def test_a_decoder_that_generalises_is_closer_to_its_input(data: tuple[Tensor, Tensor]) -> None:
    train, x = data
    found = optimal_decoder(make(Known()), train, x)
    assert found.closer_to_input.value > 0.5
    assert found.gap.value < 0
    assert found.gap.error is not None


def test_broad_posteriors_average_the_data(data: tuple[Tensor, Tensor]) -> None:
    train, x = data
    found = optimal_decoder(make(Known(), scale=1e4), train, x)
    torch.testing.assert_close(found.averages, train.mean(0).expand_as(x), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.weights.perplexity.cpu(), torch.full((len(x),), 60.0, dtype=torch.float64), atol=1e-3, rtol=0)


def test_training_images_need_their_own_weight_left_out(data: tuple[Tensor, Tensor]) -> None:
    train, _ = data
    model = make(Known())
    with_own = optimal_decoder(model, train, train)
    without = optimal_decoder(model, train, train, exclude=torch.arange(len(train)))
    assert torch.equal(with_own.weights.indices[:, 0].cpu(), torch.arange(len(train)))
    assert (without.weights.indices[:, 0].cpu() != torch.arange(len(train))).all()


def test_distances_and_floors() -> None:
    t = torch.tensor([[0.25, 1.0], [0.0, 0.5]])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(floor(t), torch.tensor([entropy, math.log(2)], dtype=torch.float64))
    torch.testing.assert_close(distance(t, t), floor(t), atol=1e-5, rtol=0)
    assert (distance(t, torch.rand(2, 2)) >= floor(t)).all()
    torch.testing.assert_close(distance(t, torch.zeros(2, 2), "squared"), torch.tensor([1.0625, 0.25], dtype=torch.float64))
    assert torch.isfinite(distance(t, 1 - t.round())).all()  # outputs of exactly 0 and 1 are clamped, as in the authors' code


def test_deterministic_encoders_and_foreign_shapes_are_refused(data: tuple[Tensor, Tensor]) -> None:
    train, x = data
    with pytest.raises(ValueError, match="Constant"):
        aggregate_of(make(Known(), deterministic=True), train)
    with pytest.raises(ValueError, match="same kind of data"):
        optimal_decoder(make(Known()), train, x[:, :, :1])


def test_the_latent_map_is_a_map(data: tuple[Tensor, Tensor]) -> None:
    train, _ = data
    found = latent_map(make(Known(), scale=0.05), train, bound=3.0, points=61)
    assert found.largest.shape == (61, 61)
    assert 0 < found.certain_share() <= 1
    step = 6 / 60
    column, row = round(float(found.means[7, 0] + 3) / step), round(float(3 - found.means[7, 1]) / step)
    cell = torch.tensor([-3 + column * step, 3 - row * step])
    assert int(found.nearest[row, column]) == int((found.means - cell).norm(dim=1).argmin())  # equal scales: the nearest code wins
    area = step**2
    assert abs(float(found.log_aggregate.exp().sum() * area) - 1) < 0.02


def test_the_map_needs_two_dimensions() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6))
    model = Autoencoder(
        Conditional(net, heads.Diagonal(), 1, 3),
        Conditional(nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (1, 2, 2))), heads.CrossEntropy(), 3, 1),
    )
    with pytest.raises(ValueError, match="two latent dimensions"):
        latent_map(model, torch.rand(5, 1, 2, 2))
