"""The Fréchet distance against closed forms, SciPy's matrix square root, and itself under what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from expost.evaluate.frechet import FeatureStats, frechet_distance


def normal(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def correlated(n: int, d: int, seed: int) -> Tensor:
    return normal(n, d, seed) @ normal(d, d, seed + 1) / d**0.5 + normal(1, d, seed + 2)


def exact_moments(n: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Rows whose sample mean and unbiased covariance are exactly these."""
    x = normal(n, len(mean), seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def sqrtm_oracle(x: Tensor, y: Tensor) -> float:
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum()) + float(np.trace(a) + np.trace(b) - 2 * np.trace(root).real)


def test_diagonal_gaussians_in_closed_form() -> None:
    mean = torch.tensor([1.0, -2.0, 0.5, 0.0]).double()
    s, t = torch.tensor([1.0, 0.2, 3.0, 0.01]).double(), torch.tensor([0.5, 0.4, 1.0, 2.0]).double()
    x = exact_moments(200, torch.zeros(4).double(), torch.diag(s**2), 0)
    y = exact_moments(300, mean, torch.diag(t**2), 1)
    result = frechet_distance(x, y)
    assert result.mean_term == pytest.approx(float(mean.square().sum()), rel=1e-10)
    assert result.covariance_term == pytest.approx(float((s - t).square().sum()), rel=1e-10)
    assert float(result) == result.value == result.mean_term + result.covariance_term
    assert (result.n, result.dim, result.rank, result.method) == ((200, 300), 4, 4, "cholesky")


def test_commuting_covariances_in_closed_form() -> None:
    rotation = torch.linalg.qr(normal(6, 6, 3)).Q
    s, t = torch.rand(6, dtype=torch.float64) + 0.1, torch.rand(6, dtype=torch.float64) + 0.1
    x = exact_moments(100, torch.zeros(6).double(), rotation @ torch.diag(s**2) @ rotation.T, 4)
    y = exact_moments(100, torch.zeros(6).double(), rotation @ torch.diag(t**2) @ rotation.T, 5)
    assert float(frechet_distance(x, y)) == pytest.approx(float((s - t).square().sum()), rel=1e-10)


def test_one_dimension_is_difference_of_means_and_deviations() -> None:
    x, y = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [9.0]])
    assert float(frechet_distance(x, y)) == pytest.approx(3.0**2 + (32**0.5 - 2.0) ** 2, rel=1e-12)


@pytest.mark.parametrize("d", [3, 32, 128])
def test_agrees_with_sqrtm_at_full_rank(d: int) -> None:
    x, y = correlated(6 * d, d, 10), correlated(8 * d, d, 20)
    expected = sqrtm_oracle(x, y)
    assert float(frechet_distance(x, y)) == pytest.approx(expected, rel=1e-8)
    by_statistics = frechet_distance(FeatureStats.from_features(x), FeatureStats.from_features(y))
    assert float(by_statistics) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(20, 30), (20, 200), (200, 20), (64, 65)])
def test_rank_deficient_is_the_nuclear_norm_of_the_data(n: int, m: int) -> None:
    d = 64
    x, y = correlated(n, d, 30), correlated(m, d, 40)
    a, b = (x - x.mean(0)) / (n - 1) ** 0.5, (y - y.mean(0)) / (m - 1) ** 0.5
    nuclear = float(torch.linalg.matrix_norm(a @ b.T, ord="nuc"))
    expected = float((x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()) - 2 * nuclear
    result = frechet_distance(x, y)
    assert (result.method, result.rank) == ("svd", min(n, m) - 1)
    assert float(result) == pytest.approx(expected, rel=1e-12)
    by_statistics = frechet_distance(FeatureStats.from_features(x), FeatureStats.from_features(y))
    assert by_statistics.method == "eigh"
    assert float(by_statistics) == pytest.approx(expected, rel=1e-10)
    assert float(frechet_distance(x, FeatureStats.from_features(y))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("as_statistics", [False, True])
def test_dead_units_do_not_break_it(as_statistics: bool) -> None:
    x, y = correlated(300, 10, 50), correlated(400, 10, 60)
    expected = sqrtm_oracle(x, y)
    pad = [torch.zeros(len(t), 3).double() for t in (x, y)]
    x, y = torch.cat([x, pad[0]], 1), torch.cat([y, pad[1]], 1)
    result = frechet_distance(FeatureStats.from_features(x), FeatureStats.from_features(y)) if as_statistics else frechet_distance(x, y)
    assert float(result) == pytest.approx(expected, rel=1e-9)
    assert (result.rank, result.method) == (10, "eigh" if as_statistics else "svd")


def test_constant_features_are_at_the_distance_of_their_means() -> None:
    assert float(frechet_distance(torch.zeros(10, 3), torch.ones(20, 3))) == 3.0


@pytest.mark.parametrize(("n", "d"), [(500, 16), (20, 64)])
def test_distance_to_itself_is_zero_even_far_from_the_origin(n: int, d: int) -> None:
    x = 1e4 + 3e-4 * normal(n, d, 70)
    variance = float(x.var(0).sum())
    assert 0 <= float(frechet_distance(x, x)) < 1e-9 * variance
    shifted = frechet_distance(x, x + 1e-3)
    assert shifted.value == pytest.approx(d * 1e-6, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(300, 400, 24), (15, 40, 24)])
def test_symmetric_and_blind_to_order(n: int, m: int, d: int) -> None:
    x, y = correlated(n, d, 80), correlated(m, d, 90)
    value = float(frechet_distance(x, y))
    assert float(frechet_distance(y, x)) == pytest.approx(value, rel=1e-11)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    assert float(frechet_distance(x[order], y)) == pytest.approx(value, rel=1e-11)
    rotation = torch.linalg.qr(normal(d, d, 95)).Q
    assert float(frechet_distance(x @ rotation, y @ rotation)) == pytest.approx(value, rel=1e-10)
    assert float(frechet_distance(3 * x, 3 * y)) == pytest.approx(9 * value, rel=1e-11)


@pytest.mark.parametrize("sizes", [(1,), (7,), (100, 3, 1), (5000,)])
def test_streaming_is_exact_where_sums_of_squares_cancel(sizes: tuple[int, ...]) -> None:
    x = 1e4 + 3e-4 * normal(5000, 5, 100)
    parts = list(x.split(sizes[0])) if len(sizes) == 1 else list(x.split([100, 3, 1, 5000 - 104]))
    stats = FeatureStats.empty(5)
    for part in parts:
        stats = stats.update(part)
    reference = np.cov((x - 1e4).numpy(), rowvar=False)
    assert stats.n == 5000
    np.testing.assert_allclose(stats.mean.numpy(), x.mean(0).numpy(), rtol=1e-14)
    # the data themselves are rounded to 2e-12, which is 6e-9 of their spread
    np.testing.assert_allclose(stats.covariance.numpy(), reference, rtol=1e-7, atol=1e-7 * 9e-8)
    naive = (x.T @ x - 5000 * torch.outer(x.mean(0), x.mean(0))) / 4999
    assert np.abs(naive.numpy() - reference).max() > 1e-2 * 9e-8, "the textbook formula would have done: the test is too easy"
    assert float(frechet_distance(stats, x)) == pytest.approx(0, abs=1e-6 * 9e-8)


def test_merging_equals_one_pass_and_leaves_its_arguments_alone() -> None:
    x = correlated(1000, 8, 110)
    left, right = FeatureStats.from_features(x[:300]), FeatureStats.from_features(x[300:])
    before = left.scatter.clone()
    both, once = left.merge(right), FeatureStats.from_features(x)
    torch.testing.assert_close(both.covariance, once.covariance, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(left.scatter, before, rtol=0, atol=0)
    torch.testing.assert_close(once.update(x[:0]).covariance, once.covariance, rtol=0, atol=0)


def test_float32_and_half_features_are_accumulated_in_float64() -> None:
    x, y = correlated(400, 16, 120), correlated(400, 16, 130)
    exact = float(frechet_distance(x.float().double(), y.float().double()))
    assert float(frechet_distance(x.float(), y.float())) == exact
    assert float(frechet_distance(x.half(), y.half())) == pytest.approx(exact, rel=1e-2)


def test_too_few_rows_are_noted_not_hidden() -> None:
    notes = frechet_distance(correlated(100, 64, 140), correlated(5000, 64, 150)).notes
    assert any("twice the feature dimension" in note for note in notes)
    assert any("below 2048" in note for note in notes)
    fine = frechet_distance(correlated(3000, 4, 160), correlated(2048, 4, 170))
    assert fine.notes == ()
    assert "n=3000 and 2048" in str(fine)
    assert "note:" in str(frechet_distance(correlated(10, 4, 0), correlated(10, 4, 5)))


def test_more_data_comes_closer() -> None:
    """FD of a distribution with itself is biased upwards by about 1/n."""
    small, large = (float(frechet_distance(normal(n, 16, 180), normal(n, 16, 190))) for n in (100, 1600))
    assert small / large == pytest.approx(16, rel=0.35)


@pytest.mark.parametrize("n", [200, 6])
def test_bad_features_are_refused_in_one_sentence(n: int) -> None:
    good = normal(n, 8, 200)
    bad = good.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"features of the second set hold NaN or infinity in 1 of .* row 3"):
        frechet_distance(good, bad)
    with pytest.raises(ValueError, match="one extractor for both"):
        frechet_distance(good, good[:, :5])
    with pytest.raises(ValueError, match="at least 2 feature vectors"):
        frechet_distance(good[:1], good)
    with pytest.raises(ValueError, match=r"matrix \(n, d\)"):
        frechet_distance(good.reshape(n, 2, 4), good)
    with pytest.raises(ValueError, match=r"matrix \(n, d\)"):
        frechet_distance(good.long(), good)


def test_bad_statistics_are_refused_in_one_sentence() -> None:
    stats = FeatureStats.from_features(normal(10, 4, 0))
    with pytest.raises(ValueError, match="at least 2 feature vectors"):
        frechet_distance(FeatureStats.empty(4), stats)
    with pytest.raises(ValueError, match="NaN"):
        stats.update(torch.full((3, 4), float("nan")))
    with pytest.raises(ValueError, match="one extractor for both"):
        stats.update(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="cannot be merged"):
        stats.merge(FeatureStats.empty(5))
    with pytest.raises(ValueError, match="at least 2 feature vectors"):
        _ = FeatureStats.from_features(torch.zeros(1, 4)).covariance
    with pytest.raises(ValueError, match="statistics of the first set"):
        frechet_distance(FeatureStats(5, torch.full((4,), float("inf")).double(), torch.eye(4).double()), stats)
