"""Bounds of the class radius: the table of papers.md 4.2, closed forms by quadrature, and the inequalities the theorem rests on."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from expost.diagnose.classes.bounds import (
    HIGHEST,
    TURN,
    entropy_bound,
    half_space_radius,
    isoperimetric_bound,
    radius_bounds,
    sector_radius,
    theorem_bound,
)  # fmt: skip
from expost.diagnose.classes.masses import class_masses, renyi_entropy
from expost.papers.published import published

EXAMPLE = torch.tensor([0.19, 0.17, 0.15, 0.13, 0.11, 0.09, 0.07, 0.05, 0.03, 0.01], dtype=torch.float64)


def uniform(k: int) -> Tensor:
    return torch.full((k,), 1 / k, dtype=torch.float64)


@pytest.mark.parametrize("k", [5, 6, 8, 10, 20, 50, 100, 1000])
def test_bounds_at_equal_masses_are_the_recomputed_ones(k: int) -> None:
    row = f"uniform p, K={k}"
    assert isoperimetric_bound(uniform(k)) == pytest.approx(
        published("manoj2018", "recomputed", row, "isoperimetric (first) bound"), abs=1e-6
    )
    assert theorem_bound(math.log(k)) == pytest.approx(published("manoj2018", "recomputed", row, "theorem bound"), abs=1e-6)


def test_the_uneven_example() -> None:
    assert isoperimetric_bound(EXAMPLE) == pytest.approx(0.49992, abs=1e-5)
    assert theorem_bound(renyi_entropy(EXAMPLE, 2)) == pytest.approx(1.60943, abs=1e-5)


def test_isoperimetric_bound_by_quadrature() -> None:
    """Each class replaced by a half-space of its mass: the mean distance to its boundary, integrated."""
    x = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    total = 0.0
    for p in EXAMPLE:
        edge = torch.special.ndtri(p)
        total += float(torch.trapezoid((edge - x).clamp_min(0) * density, x))
    assert isoperimetric_bound(EXAMPLE) == pytest.approx(total, abs=1e-8)


def test_half_spaces_attain_it() -> None:
    assert half_space_radius() == pytest.approx(0.797885, abs=1e-6)
    assert sector_radius(2) == pytest.approx(half_space_radius())
    for mass in (0.01, 0.3, 0.8):
        assert half_space_radius(mass) == pytest.approx(isoperimetric_bound(torch.tensor([mass, 1 - mass], dtype=torch.float64)))


@pytest.mark.parametrize(("k", "printed"), [(5, 0.38096), (10, 0.19526), (20, 0.09823)])
def test_sectors(k: int, printed: float) -> None:
    assert sector_radius(k) == pytest.approx(printed, abs=1e-5)
    angle = torch.linspace(-math.pi / k, math.pi / k, 20_001, dtype=torch.float64)
    to_the_ray = torch.sin(math.pi / k - angle.abs())  # of a code at distance one from the origin
    mean = float(torch.trapezoid(to_the_ray, angle)) / (2 * math.pi / k)
    assert sector_radius(k) == pytest.approx(math.sqrt(math.pi / 2) * mean, abs=1e-7)  # E of the norm in the plane


masses_of = st.lists(st.floats(1e-4, 1), min_size=5, max_size=60).map(lambda w: torch.tensor(w, dtype=torch.float64) / sum(w))


@given(masses_of)
@settings(max_examples=150, deadline=None)
def test_a_is_below_b_where_no_class_has_more_than_a_fifth(p: Tensor) -> None:
    assume(float(p.max()) <= 0.2)
    found = radius_bounds(p)
    assert found.applies
    assert found.theorem is not None
    assert found.isoperimetric.value <= found.theorem
    assert theorem_bound(math.log(len(p))) <= found.theorem + 1e-12, "equal masses have the smallest bound"
    assert isoperimetric_bound(p) >= isoperimetric_bound(uniform(len(p))) - 1e-12, "(A) is convex: it is smallest at equal masses"
    for alpha in (3.0, math.inf):
        looser = radius_bounds(p, alpha=alpha).theorem
        assert looser is not None
        assert looser >= found.theorem - 1e-12


@given(st.floats(TURN, 500))
@settings(max_examples=100, deadline=None)
def test_inversion_round_trip(entropy: float) -> None:
    radius = theorem_bound(entropy)
    assume(entropy > TURN * 1.001)  # at the turning point the inverse has no slope
    assert entropy_bound(radius) == pytest.approx(entropy, rel=1e-6)
    assert theorem_bound(entropy_bound(radius)) == pytest.approx(radius, rel=1e-9)


def test_b_falls_from_its_turning_point() -> None:
    entropies = torch.linspace(TURN, 20, 500).tolist()
    values = [theorem_bound(max(h, TURN)) for h in entropies]
    assert values[0] == pytest.approx(HIGHEST)
    assert all(b < a for a, b in itertools.pairwise(values))
    assert math.exp(-TURN) == pytest.approx(0.555, abs=1e-3)
    assert entropy_bound(HIGHEST) == pytest.approx(TURN, rel=1e-5)


def test_the_error_of_a_is_that_of_repeated_counts() -> None:
    results = []
    for seed in range(300):
        g = torch.Generator().manual_seed(seed)
        results.append(radius_bounds(class_masses(torch.multinomial(EXAMPLE, 2000, True, generator=g), classes=10)).isoperimetric)
    spread = float(torch.tensor([r.value for r in results]).std())
    claimed = sum(r.error or 0 for r in results) / len(results)
    assert claimed == pytest.approx(spread, rel=0.15)


def test_assumptions_are_named() -> None:
    uneven = radius_bounds(torch.tensor([0.6, 0.2, 0.2]))
    assert not uneven.applies
    assert uneven.theorem is not None
    assert any("0.600" in a for a in uneven.assumptions)
    assert radius_bounds(torch.tensor([0.95, 0.05])).theorem is None
    with_holes = radius_bounds(class_masses(torch.tensor([0, 1, 2, 3, 4, 5, 6, -1] * 10)))
    assert not with_holes.applies
    assert any("no class" in a for a in with_holes.assumptions)
    assert "(B)" in str(with_holes)
    assert isoperimetric_bound(torch.tensor([1.0, 0.0])) == math.inf
    assert isoperimetric_bound(torch.tensor([0.5, 0.5, 0.0])) == pytest.approx(0.797885, abs=1e-6)


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="more than a fifth"):
        theorem_bound(0.3)
    with pytest.raises(ValueError, match="some class has more than a fifth"):
        entropy_bound(2.0)
    with pytest.raises(ValueError, match="can be inverted"):
        entropy_bound(0.0)
    with pytest.raises(ValueError, match="order 2 or more"):
        radius_bounds(uniform(6), alpha=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        half_space_radius(1.0)
    with pytest.raises(ValueError, match="at least two"):
        sector_radius(1)
