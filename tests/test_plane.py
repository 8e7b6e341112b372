"""The plane densities under models whose likelihood is known: the grid estimate reaches it, the maps show what they say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.data import toy
from expost.density import StandardNormal
from expost.papers.published import published
from expost.papers.yu2020.plane import DENSITIES, plane_table, reached
from expost.papers.yu2020.plane_maps import colours, density_map, grid_likelihood, latent_map
from expost.runs.lab import Lab


class Scaled(nn.Module):
    """z -> scale z, and as many features more as asked for, all constant."""

    def __init__(self, scale: float, constant: float) -> None:
        super().__init__()
        self.scale, self.constant = nn.Parameter(torch.tensor(scale)), constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.scale * x, torch.full_like(x, self.constant)], -1)


def gaussian_model(prior_to_data: float = 0.2, noise: float = 0.1) -> Autoencoder:
    """z ~ N(0, I), x | z ~ N(a z, s² I): p(x) = N(0, (a² + s²) I), with the true posterior as encoder."""
    a, s = prior_to_data, noise
    variance = s**2 / (a**2 + s**2)
    encoder = Conditional(Scaled(a / (a**2 + s**2), math.log(variance)), heads.Diagonal())
    return Autoencoder(encoder, Conditional(Scaled(a, math.log(s)), heads.Gaussian("pixel")), StandardNormal(2))


@pytest.mark.parametrize("name", list(toy.TOYS))
def test_grid_likelihood_of_a_known_density(name: str) -> None:
    model, nodes = gaussian_model(), 64
    found = grid_likelihood(model, name, samples=(1, 4), nodes=nodes)
    p = toy.density(name, nodes).flatten()
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), 0.05 * torch.eye(2).double()).log_prob(
        toy.grid(nodes).reshape(-1, 2)
    )
    nll = -float((p * exact).sum()) / math.log(2)
    assert found.nll[1] == pytest.approx(nll, abs=1e-4)  # with the true posterior one sample is exact
    assert found.nll[4] == pytest.approx(nll, abs=1e-4)
    assert found.entropy == pytest.approx(toy.entropy_bits(p), abs=1e-12)
    assert found.nll[4] > found.entropy


def test_more_samples_lower_the_bound() -> None:
    model = gaussian_model()
    model.encoder.net.constant = math.log(0.5)  # type: ignore[assignment] - too wide a posterior
    found = grid_likelihood(model, "8gaussians", samples=(1, 10, 100), nodes=48)
    assert found.nll[1] > found.nll[10] > found.nll[100]


def test_density_map_sums_to_the_mass_inside() -> None:
    total = float(density_map(gaussian_model(), nodes=64, samples=2).sum())
    scale = math.sqrt(0.05)
    inside = math.erf(0.5 / scale / math.sqrt(2)) ** 2
    assert total == pytest.approx(inside, abs=0.01)


@pytest.mark.parametrize("name", list(toy.TOYS))
def test_hues_tell_components_apart(name: str) -> None:
    x, component = toy.sample(name, 4000, 1)
    inside = ((x >= -0.5) & (x < 0.5)).all(1)
    hue, value = colours(name)
    column, row = ((x[inside] + 0.5) * 1024).floor().long().unbind(1)
    seen, true = hue[row, column], component[inside]
    if name == "2spirals":
        agree = ((seen >= 0.5) == (true == 1)).double().mean()  # one half of the wheel for each arm
        assert float(agree) > 0.97
    else:
        modes = {int(c): float(seen[true == c].mode().values) for c in true.unique()}
        assert len(set(modes.values())) == 8
        assert float((seen == torch.tensor([modes[int(c)] for c in true])).double().mean()) > 0.97
    assert float(value.max()) == 1.0
    assert float((value[row, column] > 0.01).double().mean()) > 0.95


def test_dark_mass_is_the_share_of_samples_that_miss_the_data() -> None:
    model = gaussian_model(noise=1e-4)
    found = latent_map(model, "checkerboard", nodes=400, reach=4.0)
    x = 0.2 * torch.randn(200_000, 2)
    cell = ((x + 0.5) * 4).floor().long()
    missed = ((cell.sum(1) % 2 == 1) | (cell < 0).any(1) | (cell > 3).any(1)).double().mean()
    assert found.dark == pytest.approx(float(missed), abs=0.01)
    assert found.hue.shape == found.value.shape == (400, 400)


def test_published_values_and_the_verdict() -> None:
    assert published("yu2020", "Table 2", "2 Spirals", "NLL (250 importance samples)") == -2.29
    with pytest.raises(KeyError):
        published("yu2020", "Table 3", "2 Spirals", "H")
    assert reached(-2.25, -2.29)
    assert not reached(-2.2, -2.29)


def test_tables_are_made_kept_and_drawn(tmp_path: Path) -> None:
    from expost.report.pictures import save_maps

    lab = Lab("digits", "smoke", tmp_path / "lab", 0, "cpu", progress=False)
    made = plane_table(lab, 2)
    assert [row[0] for row in made.table.rows] == list(DENSITIES.values())
    assert made.table.column("published NLL") == [-1.91, -0.87, -2.29]
    assert not made.reproduced  # thirty steps
    heard: list[str] = []
    lab.say = heard.append
    again = plane_table(lab, 2)
    assert again.table.rows == made.table.rows
    assert heard == []
    save_maps(tmp_path / "maps.png", made.pictures, "maps")
    assert (tmp_path / "maps.png").stat().st_size > 10_000
