"""Slerp against closed forms; pairs as in ghosh2020."""

from __future__ import annotations

import math

import pytest
import torch

from expost.evaluate.interpolate import lerp, pairs, slerp


def test_slerp_on_the_unit_circle() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for t in (0.0, 0.3, 0.5, 1.0):
        expected = torch.tensor([math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)])
        assert torch.allclose(slerp(t, a, b), expected, atol=1e-6)


def test_slerp_of_parallel_codes_is_linear() -> None:
    a = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert torch.allclose(slerp(0.25, a, 3 * a), lerp(0.25, a, 3 * a))
    assert torch.isfinite(slerp(0.5, a, -a)).all()


def test_slerp_over_a_path() -> None:
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    t = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None, None]
    path = slerp(t, a, b)
    assert path.shape == (4, 5, 7)
    assert torch.allclose(path[0], a)
    assert torch.allclose(path[-1], b)


def test_pairs_use_each_code_at_most_three_times_and_never_twice_in_one() -> None:
    first, second = pairs(20, 30, seed=1)
    assert len(first) == len(second) == 30
    assert (first != second).all()
    assert torch.bincount(torch.cat([first, second]), minlength=20).max() <= 3
    assert torch.equal(pairs(20, 30, seed=1)[1], second)
    assert not torch.equal(pairs(20, 30, seed=2)[0], first)
    with pytest.raises(ValueError, match="at most 30 pairs"):
        pairs(20, 31, seed=0)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_pairs_of_very_few_codes(n: int) -> None:
    for seed in range(20):
        first, second = pairs(n, n, seed)
        assert (first != second).all()
