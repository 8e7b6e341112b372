"""The kernel distance against scikit-learn's kernel, a naive loop in float64, and its own errors over repeated draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor

import expost.evaluate.metrics.kid as kernel
from expost.evaluate.metrics.kid import kernel_distance


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def oracle(x: Tensor, y: Tensor) -> float:
    """The definition, with scikit-learn's kernel in float64."""
    a, b = x.double().numpy(), y.double().numpy()
    xx, yy, xy = (polynomial_kernel(p, q, degree=3, gamma=1 / a.shape[1], coef0=1) for p, q in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    return float((xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean())


def test_all_rows_equal_a_naive_loop() -> None:
    x, y = normal(9, 3, 0).double(), normal(7, 3, 1, 0.5).double()

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    yy = sum(k(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    xy = sum(k(a, b) for a in x for b in y) / 63
    assert kernel_distance(x, y, subsets=None).value == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(600, 600, 20), (300, 555, 64)])
def test_all_rows_equal_scikit_learn(n: int, m: int, d: int) -> None:
    x, y = normal(n, d, 2).relu(), normal(m, d, 3, 0.1).relu()
    expected = oracle(x, y)
    assert kernel_distance(x.double(), y.double(), subsets=None).value == pytest.approx(expected, rel=1e-10, abs=1e-13)
    mean_kernel = float(((x.double() @ y.double().T) / d + 1).pow(3).mean())
    assert abs(kernel_distance(x, y, subsets=None).value - expected) < 1e-7 * mean_kernel


def test_subsets_are_unbiased_for_the_same_number() -> None:
    x, y = normal(500, 10, 4), normal(500, 10, 5, 0.3)
    exact, drawn = kernel_distance(x, y, subsets=None), kernel_distance(x, y, subsets=200, size=100)
    assert abs(drawn.value - exact.value) < 4 * drawn.error
    assert drawn.error == pytest.approx(drawn.details["std"] / 200**0.5)
    assert drawn.error < exact.error  # of drawing subsets only, and the note says so
    assert any("overlap" in note for note in drawn.notes)


def test_one_subset_is_the_statistic_of_its_rows() -> None:
    x, y = normal(50, 4, 6), normal(50, 4, 7, 1.0)
    whole = kernel_distance(x, y, subsets=2, size=50)
    assert whole.value == pytest.approx(kernel_distance(x, y, subsets=None).value, rel=1e-6)
    assert whole.details["std"] < 1e-6 * whole.value  # every subset is the whole set: drawn without replacement


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1.0, 1.7), (0.4, 0.75, 1.35)])
def test_error_of_all_rows_is_that_of_fresh_data(shift: float, low: float, high: float) -> None:
    """Over 80 pairs of fresh sets: unbiased, and the jackknife tells the spread, up to √2 too much where both are one distribution."""
    found = [kernel_distance(normal(120, 6, 1000 + r, shift), normal(120, 6, 5000 + r), subsets=None) for r in range(80)]
    values = np.array([f.value for f in found])
    truth = 0.0 if shift == 0 else kernel_distance(normal(6000, 6, 1, shift), normal(6000, 6, 2), subsets=None).value
    assert abs(values.mean() - truth) < 4 * values.std() / 80**0.5
    assert low < np.mean([f.error for f in found]) / values.std() < high


def test_shuffling_changes_nothing_and_seeds_do() -> None:
    x, y = normal(300, 5, 8), normal(300, 5, 9, 0.2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    one, other = kernel_distance(x, y, subsets=10, size=100), kernel_distance(x[order], y[order.flip(0)], subsets=10, size=100)
    assert (one.value, one.error) == (other.value, other.error)
    assert kernel_distance(x, y, subsets=10, size=100, seed=1).value != one.value
    exact = kernel_distance(x, y, subsets=None)
    assert kernel_distance(x[order], y, subsets=None).value == pytest.approx(exact.value, rel=1e-5)
    assert kernel_distance(y, x, subsets=None).value == pytest.approx(exact.value, rel=1e-5)


@pytest.mark.parametrize("subsets", [None, 4])
def test_blocks_and_threads_change_round_off_only(subsets: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(400, 16, 10), normal(400, 16, 11, 0.2)
    reference = kernel_distance(x, y, subsets=subsets, size=300)
    torch.set_num_threads(2)
    try:
        assert kernel_distance(x, y, subsets=subsets, size=300).value == pytest.approx(reference.value, rel=1e-5)
    finally:
        torch.set_num_threads(1)
    assert kernel_distance(x, y, subsets=subsets, size=300, memory=2**16).value == pytest.approx(reference.value, rel=1e-5)
    monkeypatch.setattr(kernel, "TILE", 7)
    small = kernel_distance(x, y, subsets=subsets, size=300)
    assert small.value == pytest.approx(reference.value, rel=1e-5)
    assert small.error == pytest.approx(reference.error, rel=1e-4)


def test_half_precision_is_computed_in_float32() -> None:
    x, y = normal(200, 8, 12), normal(200, 8, 13, 1.0)
    half = kernel_distance(x.half(), y.half(), subsets=3, size=100)
    assert half.value == kernel_distance(x.half().float(), y.half().float(), subsets=3, size=100).value
    assert half.context["precision"] == "float32"
    assert kernel_distance(x.double(), y, subsets=None).context["precision"] == "float64"


def test_bad_arguments_are_refused_in_one_sentence() -> None:
    x = normal(20, 4, 14)
    with pytest.raises(ValueError, match="subsets of 1000 rows cannot be drawn from 20"):
        kernel_distance(x, x)
    with pytest.raises(ValueError, match="at least 2 subsets"):
        kernel_distance(x, x, subsets=1, size=5)
    with pytest.raises(ValueError, match="one extractor for both"):
        kernel_distance(x, x[:, :2], subsets=None)
    with pytest.raises(ValueError, match="generated set has 2"):
        kernel_distance(x[:2], x, subsets=None)
    with pytest.raises(ValueError, match="memory = 10"):
        kernel_distance(x, x, subsets=None, memory=10)
    bad = x.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"generated set hold NaN or infinity .* row 3"):
        kernel_distance(bad, x, subsets=None)
