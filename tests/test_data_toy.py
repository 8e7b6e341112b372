"""expost.data.toy: the densities of Yu (2020) against published entropies, closed forms, and their own samplers."""

from __future__ import annotations

import math

import pytest
import torch

from expost.data import load, toy

# claim E1; facts recomputed from the tutorial's notebook, which prints the first one
ENTROPIES = {"8gaussians": -1.916776, "checkerboard": -1.0, "2spirals": -2.3358}


@pytest.mark.parametrize("name", toy.TOYS)
def test_grid_entropies(name: str) -> None:
    assert toy.entropy_bits(name) == pytest.approx(ENTROPIES[name], abs=1e-4)


def test_entropy_of_uniform_and_of_one_cell() -> None:
    uniform = torch.full((64, 64), 1 / 4096, dtype=torch.float64)
    assert toy.entropy_bits(uniform) == pytest.approx(0, abs=1e-9)
    single = torch.zeros(64, 64, dtype=torch.float64)
    single[3, 4] = 1
    assert toy.entropy_bits(single) == pytest.approx(-12, abs=1e-9)


def test_eight_gaussians_are_the_mixture_written_down() -> None:
    radius, scale = 0.353607, 0.0442008
    p = toy.density("8gaussians", 64)
    points = toy.grid(64)
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centres = radius * torch.stack([angles.cos(), angles.sin()], 1)
    direct = torch.exp(-((points[:, :, None] - centres) ** 2).sum(-1) / (2 * scale**2)).sum(-1)
    assert torch.allclose(p, direct / direct.sum(), rtol=1e-3, atol=1e-12)
    x, component = toy.sample("8gaussians", 40_000, 0)
    noise = (x - centres[component]).double()
    assert float(noise.std()) == pytest.approx(scale, rel=0.02)
    assert float(noise.mean(0).abs().max()) < 5 * scale / math.sqrt(40_000)


def test_checkerboard_occupies_the_listed_cells() -> None:
    occupied = {(0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2), (3, 1), (3, 3)}  # (column, row)
    p = toy.density("checkerboard", 4)
    assert {(c, r) for r in range(4) for c in range(4) if p[r, c] > 0} == occupied
    x, component = toy.sample("checkerboard", 20_000, 0)
    cells = ((x + 0.5) * 4).floor().long()
    assert {tuple(c) for c in cells.tolist()} == occupied
    assert all(len({tuple(c) for c in cells[component == k].tolist()}) == 1 for k in range(8))  # labels are cells


@pytest.mark.parametrize("name", toy.TOYS)
def test_sampler_and_grid_agree(name: str) -> None:
    """Total variation between a histogram of samples and the grid density on 32 x 32 cells: sampling noise is about sqrt(cells / n)."""
    x, _ = toy.sample(name, 200_000, 1)
    # a node stands for the cell of which it is the left edge: half a cell of shift, far below a 32nd
    cell = ((x.double() + 0.5) * 32).floor().long()
    inside = ((cell >= 0) & (cell < 32)).all(1)
    counts = torch.zeros(32, 32, dtype=torch.float64)
    counts.index_put_((cell[inside, 1], cell[inside, 0]), torch.ones(int(inside.sum()), dtype=torch.float64), accumulate=True)
    p = toy.density(name).reshape(32, 32, 32, 32).sum((1, 3))
    assert float(inside.double().mean()) > 0.999
    assert float((counts / counts.sum() - p).abs().sum() / 2) < 0.04
    if name == "2spirals":  # not symmetric: rows are x2, columns x1
        assert float((counts.T / counts.sum() - p).abs().sum() / 2) > 0.1


def test_spiral_arms_are_labelled_and_bounded() -> None:
    x, arm = toy.sample("2spirals", 20_000, 0)
    assert sorted(set(arm.tolist())) == [0, 1]
    assert float(x.norm(dim=1).max()) < math.pi / 8 + 6 / 80
    assert torch.allclose(x[arm == 0].mean(0), -x[arm == 1].mean(0), atol=0.01)


def test_samples_are_functions_of_the_keys_and_splits_differ() -> None:
    assert torch.equal(toy.sample("2spirals", 50, "a", 3)[0], toy.sample("2spirals", 50, "a", 3)[0])
    assert not torch.equal(toy.sample("2spirals", 50, "a", 3)[0], toy.sample("2spirals", 50, "a", 4)[0])
    found = load("8gaussians", max_items=100)
    assert found.shape == (2,)
    assert found.train.x.dtype == torch.float32
    assert not torch.equal(found.train.x, found.test.x)
    assert found.hash == load("8gaussians", max_items=100).hash != load("8gaussians", max_items=100, seed=1).hash
    assert (len(load("8gaussians").train), len(load("8gaussians").test)) == (100_000, 10_000)


@pytest.mark.parametrize("call", [lambda: toy.sample("moons", 3), lambda: toy.density("moons")])
def test_unknown_names(call: object) -> None:
    with pytest.raises(ValueError, match="'moons' is none of the toy densities: choose one of 8gaussians"):
        call()  # type: ignore[operator]
    with pytest.raises(ValueError, match="ask for at least 1"):
        toy.sample("2spirals", 0)
    with pytest.raises(ValueError, match="at least 2 nodes"):
        toy.density("2spirals", 1)
