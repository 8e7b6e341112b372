"""The Fréchet distance against closed forms, SciPy's matrix square root, and itself under what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

import expost.evaluate.metrics.frechet as frechet
from expost.evaluate.metrics.frechet import FeatureStats, extrapolated, frechet_distance


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


@pytest.mark.parametrize("d", [5, 300, 600])  # within a block, and over two and three of them
def test_blocked_products_equal_plain_ones(d: int) -> None:
    x, y = correlated(2 * d + 50, d, 210), correlated(2 * d + 90, d, 220)
    stats = FeatureStats.from_features(x)
    np.testing.assert_allclose(stats.covariance.numpy(), np.cov(x.numpy(), rowvar=False).reshape(d, d), rtol=1e-10, atol=1e-12)
    assert torch.equal(stats.scatter, stats.scatter.T)
    result = frechet_distance(x, y)
    assert result.method == "cholesky"
    a, b = stats.covariance, FeatureStats.from_features(y).covariance
    lower = torch.linalg.cholesky(a)
    plain = torch.linalg.eigvalsh(lower.T @ b @ lower).clamp(min=0).sqrt().sum()
    assert result.covariance_term == pytest.approx(float(a.trace() + b.trace() - 2 * plain), rel=1e-10)


def test_chunks_and_threads_change_round_off_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = correlated(900, 40, 230), correlated(900, 40, 240)
    value = float(frechet_distance(x, y))
    torch.set_num_threads(2)
    try:
        assert float(frechet_distance(x, y)) == pytest.approx(value, rel=1e-12)
    finally:
        torch.set_num_threads(1)
    for name, size in (("CHUNK", 37), ("BLOCK", 7)):
        monkeypatch.setattr(frechet, name, size)
        assert float(frechet_distance(x, y)) == pytest.approx(value, rel=1e-12)


def test_as_a_result() -> None:
    distance = frechet_distance(correlated(100, 8, 250), correlated(120, 8, 260))
    result = distance.result("FD[test@0]")
    assert (result.name, result.value, result.n, result.notes) == ("FD[test@0]", distance.value, 100, distance.notes)
    assert result.details["mean_term"] + result.details["covariance_term"] == distance.value
    assert (result.details["rank"], result.context["method"]) == (8, "cholesky")


def test_extrapolation_removes_the_bias() -> None:
    """Two samples of one Gaussian: the distance sought is 0, the plain one is far from it."""
    found = [extrapolated(normal(1500, 24, 300 + s), normal(1500, 24, 400 + s)) for s in range(5)]
    plain = np.mean([f.details["all"] for f in found])
    assert abs(np.mean([f.value for f in found])) < 0.1 * plain
    assert all(abs(f.value) < 0.35 * f.details["all"] for f in found)
    assert all(f.error is not None and 0 < f.error < 0.2 * f.details["all"] for f in found)
    assert np.mean([f.details["slope"] for f in found]) / 1500 == pytest.approx(plain, rel=0.1)


def test_extrapolation_finds_a_known_distance() -> None:
    shift, scale = 0.3, 1.2
    found = extrapolated(scale * normal(2000, 16, 310) + shift, normal(2000, 16, 320))
    truth = 16 * (shift**2 + (scale - 1) ** 2)
    assert abs(found.value - truth) < 0.5 * abs(found.details["all"] - truth) + 0.03 * truth


def test_extrapolation_of_statistics_uneven_sets_and_order() -> None:
    x, y = normal(600, 8, 330), normal(400, 8, 340)
    one = extrapolated(x, y)
    assert one.details["all"] == pytest.approx(float(frechet_distance(x, y)), rel=1e-9)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert extrapolated(x[order], y.flip(0)).value == one.value
    assert extrapolated(x, y, seed=1).value != one.value
    assert one.n == 400
    half = extrapolated(x, FeatureStats.from_features(y))
    assert half.details["all"] == pytest.approx(one.details["all"], rel=1e-9)
    assert half.value > one.value
    assert any("its own sample size remains" in note for note in half.notes)
    assert any("no straight line" in note for note in extrapolated(normal(60, 30, 1), normal(60, 30, 2)).notes)
    with pytest.raises(ValueError, match="at least 3 sizes and 20 rows"):
        extrapolated(x[:10], y)
    with pytest.raises(ValueError, match="one extractor for both"):
        extrapolated(x, y[:, :3])
