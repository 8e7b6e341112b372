"""Precision, recall, density and coverage against package prdc 0.2 of the authors of density and coverage, in float64."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from torch import Tensor

from expost.evaluate.metrics.neighbours import neighbour_panel

prdc = pytest.importorskip("prdc")


def oracle(generated: Tensor, real: Tensor, k: int) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        found = prdc.compute_prdc(real.double().numpy(), generated.double().numpy(), nearest_k=k)
    return {name: float(value) for name, value in found.items()}


def ours(generated: Tensor, real: Tensor, k: int) -> dict[str, float]:
    panel = neighbour_panel(generated, real, k=k, k_coverage=k)
    return {name: getattr(panel, name) for name in ("precision", "recall", "density", "coverage")}


def normal(n: int, d: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "d"), [(300, 300, 2), (300, 450, 16), (500, 250, 64), (200, 220, 700)])
def test_agrees_with_prdc(n: int, m: int, d: int, k: int, dtype: torch.dtype) -> None:
    generated, real = normal(n, d, 0, dtype) * 1.05 + 0.05, normal(m, d, 1, dtype)
    expected = oracle(generated, real, k)
    assert 0 < expected["precision"] <= 1
    assert ours(generated, real, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_far_from_the_origin(dtype: torch.dtype) -> None:
    generated, real = 1.1 * normal(400, 20, 0, dtype) + 1e4, normal(300, 20, 1, dtype) + 1e4
    assert ours(generated, real, 5) == pytest.approx(oracle(generated, real, 5), abs=1e-12)


def test_agrees_where_features_are_rectified_and_heavy_tailed() -> None:
    generated, real = (normal(400, 100, seed, torch.float32).relu() ** 3 * (1 + seed / 10) for seed in (0, 1))
    assert ours(generated, real, 3) == pytest.approx(oracle(generated, real, 3), abs=1e-12)


def test_density_and_coverage_agree_on_ties_where_arithmetic_is_exact() -> None:
    """Small integers: every distance of both implementations is exact, so that < means the same. Their < in precision is not ours."""
    draws = torch.Generator().manual_seed(0)
    generated, real = (torch.randint(7, (n, 5), generator=draws).double() for n in (300, 400))
    expected, found = oracle(generated, real, 3), ours(generated, real, 3)
    assert found["density"] == pytest.approx(expected["density"], abs=1e-12)
    assert found["coverage"] == pytest.approx(expected["coverage"], abs=1e-12)
    assert found["precision"] >= expected["precision"]
    assert found["recall"] >= expected["recall"]


def test_identical_sets_of_repeated_points() -> None:
    """clovaai/generative-evaluation-prdc, issue 7: all four scores of prdc are 0; here a ball of radius 0 still holds copies of its centre."""
    x = normal(4, 3, 0, torch.float64).repeat(10, 1).round(decimals=1) * 10
    assert oracle(x, x, 3) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    assert ours(x, x.clone(), 3) == {"precision": 1, "recall": 1, "density": pytest.approx(10 / 3), "coverage": 1}
