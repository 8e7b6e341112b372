"""Intrinsic dimension on sets whose dimension is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from expost.diagnose.codes.dimension import levina_bickel, nearest_distances, neighbourhoods, two_nn
from toys import pictures


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cube(d: int, n: int = 1500) -> Tensor:
    return torch.rand(n, d, generator=generator())


def sphere(d: int, n: int = 1500) -> Tensor:
    z = torch.randn(n, d + 1, generator=generator())
    return z / z.norm(dim=1, keepdim=True)


def plane(d: int, n: int = 1500) -> Tensor:
    """A linear subspace of 50 dimensions, far from the origin."""
    z = torch.randn(n, d, generator=generator(), dtype=torch.float64)
    return z @ torch.randn(d, 50, generator=generator(1), dtype=torch.float64) + 300


@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("shape", [cube, sphere, plane])
def test_known_dimensions(shape, d) -> None:
    near = neighbourhoods(shape(d))
    for estimate in (two_nn(near), levina_bickel(near)):
        assert estimate.value == pytest.approx(d, rel=0.1)
        assert estimate.details["half"] == pytest.approx(d, rel=0.2)
        assert estimate.error is not None
        assert 0 < estimate.error < 0.06 * d
        assert estimate.n == 1500


def test_the_ratios_by_hand() -> None:
    """Without discarding: N / Σ log r2/r1; the inverse mean of Levina and Bickel's terms for one k."""
    x = cube(3, 200)
    distances = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, 1:]
    assert two_nn(x, discard=0).value == pytest.approx(float(200 / (distances[:, 1] / distances[:, 0]).log().sum()), rel=1e-9)
    k = 7
    terms = (distances[:, k - 1 : k] / distances[:, : k - 1]).log().sum(1) / (k - 1)
    assert levina_bickel(x, k=(k, k)).value == pytest.approx(float(1 / terms.mean()), rel=1e-9)
    assert two_nn(x, discard=0.3).value == pytest.approx(3, rel=0.25)


def test_the_error_is_that_of_repetitions() -> None:
    found = [two_nn(torch.rand(400, 2, generator=generator(s))) for s in range(30)]
    spread = float(torch.tensor([f.value for f in found]).std())
    mean = sum(f.error or 0 for f in found) / len(found)
    assert mean == pytest.approx(spread, rel=0.4)


def wide(n: int = 60) -> Tensor:
    """Images of 12288 stored values: differences that float32 products cannot tell apart."""
    x = torch.rand(n, 12288, generator=generator())
    return 0.5 + 1e-3 * (x > 0.5) * x


@pytest.mark.parametrize("shape", [lambda n: plane(4, n), wide])
def test_distances_are_exact_in_any_memory(shape) -> None:
    x = torch.cat([shape(60), shape(60)[:5]])  # five copies
    truth = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf).sort(1).values[:, :6]
    for memory in (256 << 20, 16 * 1000 * x.shape[1]):
        found = nearest_distances(x, 6, memory=memory)
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)
        assert bool((found[:5, 0] == 0).all())
    before = x.clone()
    nearest_distances(x, 6)
    assert torch.equal(x, before), "data are left alone"
    order = torch.randperm(65, generator=generator())
    torch.testing.assert_close(nearest_distances(x[order], 6), truth[order], rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="choose 1 <= k < 65"):
        nearest_distances(x, 65)
    with pytest.raises(ValueError, match="allow at least"):
        nearest_distances(x, 2, memory=100)


class Made(TorchDispatchMode):
    """Bytes of every tensor that an operation gives inside the block: of all, and of those that are newly allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[int] = []
        self.new: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.all.append(out.numel() * out.element_size())
            if not (func.is_view or func._schema.is_mutable):
                self.new.append(self.all[-1])
        return out


def test_no_tile_is_made_anew() -> None:
    """Work goes through buffers: what is allocated in all is little more than the points and a small part of their distances."""
    x = torch.rand(400, 2000, generator=generator())
    with Made() as made:
        nearest_distances(x, 20, memory=16 << 20)
    assert sum(made.new) < 12 * 8 * x.numel()


def test_memory_is_bounded() -> None:
    """The largest tensor made on the way, for 3000 points under 4 MB, where all distances would take 72 MB."""
    x = cube(8, 3000)
    with Made() as made:
        nearest_distances(x, 3, memory=4 << 20)
    assert max(made.all) <= 2 << 20


def test_copies_are_left_out() -> None:
    x = cube(2, 800)
    once, twice = two_nn(x, n=None), two_nn(torch.cat([x, x[:300]]), n=None)
    assert twice.value == pytest.approx(once.value, rel=1e-9)
    assert twice.details["copies"] == 300
    assert any("300 of 1100 rows are copies" in note for note in twice.notes)


def test_noise_makes_the_estimate_depend_on_the_scale() -> None:
    """A line with noise in two more dimensions: at few points a line, at many a volume."""
    g = generator()
    t = torch.rand(4000, 1, generator=g)
    x = torch.cat([t, 2e-4 * torch.randn(4000, 2, generator=g)], 1)
    found = two_nn(x, n=None)
    assert found.details["half"] < 0.9 * found.value
    assert any("depends on the scale" in note for note in found.notes)


def test_images_seeds_and_refusals() -> None:
    u = pictures(120)
    assert two_nn(u) == two_nn(u)
    assert two_nn(u, n=60).value != two_nn(u, n=60, seed=1).value
    assert any("only 120 points" in note for note in two_nn(u).notes)
    with pytest.raises(ValueError, match="different points"):
        two_nn(torch.ones(100, 3))
    with pytest.raises(ValueError, match="discard"):
        two_nn(cube(2), discard=1.0)
    with pytest.raises(ValueError, match="two numbers in order"):
        levina_bickel(cube(2), k=(5, 3))
    with pytest.raises(ValueError, match="20 neighbours are needed"):
        levina_bickel(neighbourhoods(cube(2, 100), 3))
    with pytest.raises(ValueError, match="on a grid"):
        two_nn(torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0)))
    with pytest.raises(ValueError, match="NaN"):
        two_nn(torch.full((50, 2), math.nan))
