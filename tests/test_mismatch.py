"""Two-sample tests and marginals: closed forms, uniform p-values under equality, power under a shift."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Laplace, MultivariateNormal

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import FullGaussian, GaussianMixture, StandardNormal
from expost.diagnose.codes.marginals import marginal_divergence, marginals
from expost.diagnose.codes.mismatch import c2st, mmd
from expost.divergences import mmd as training_mmd
from toys import linear, model, vectors


def normal(n: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_value_is_that_of_a_plain_loop() -> None:
    a, b = normal(40), 0.3 + normal(30, seed=1)
    for memory in (256 << 20, 12 * 70**2):
        found = mmd(a, b, memory=memory)
        pooled = torch.cat([a, b]).double()
        scale = float((pooled - pooled.mean(0)).square().mean())
        truth = training_mmd(a.double() / math.sqrt(scale), b.double() / math.sqrt(scale))  # the same kernel, at unit scale
        assert found.value == pytest.approx(float(truth), abs=1e-10)
        assert found.details["scale"] == pytest.approx(scale)
    rbf = mmd(a, b, kernel="rbf")

    def k(x: Tensor, y: Tensor) -> Tensor:
        return (-torch.cdist(x.double(), y.double()).square() / (2 * rbf.details["scale"])).exp()

    n, m = len(a), len(b)
    naive = (k(a, a).sum() - n) / (n * (n - 1)) + (k(b, b).sum() - m) / (m * (m - 1)) - 2 * k(a, b).mean()
    assert rbf.value == pytest.approx(float(naive), abs=1e-10)
    assert rbf.details["scale"] == pytest.approx(float(torch.pdist(pooled).median()) ** 2)


def test_equal_and_shifted_distributions() -> None:
    same, shifted = mmd(normal(500), StandardNormal(3)), mmd(normal(500) + 0.3, StandardNormal(3))
    assert same.error is not None
    assert abs(same.value) < 3 * same.error
    assert same.details["p"] > 0.01
    assert shifted.error is not None
    assert shifted.value > 4 * shifted.error
    assert shifted.details["p"] == pytest.approx(1 / 501)
    far = mmd(normal(300) + 3, normal(300, seed=2))
    repeated = [mmd(normal(300, seed=s) + 3, normal(300, seed=100 + s), permutations=1).value for s in range(20)]
    assert far.error == pytest.approx(float(torch.tensor(repeated).std()), rel=0.5), "the standard error under a difference"


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_permutation_p_values_are_uniform_under_equality(kernel) -> None:
    p = torch.tensor(
        [mmd(normal(40, seed=s), normal(30, seed=1000 + s), kernel=kernel, permutations=39, seed=s).details["p"] for s in range(200)]
    )
    for level in (0.1, 0.25, 0.5, 0.75):
        assert float((p <= level + 1e-9).double().mean()) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 200))


def test_classifier_p_values_are_valid_under_equality_and_small_under_a_shift() -> None:
    """Nominal 10 % and 50 %: never exceeded by more than chance, and not empty either; a shift of one half is seen every time."""
    null = [c2st(normal(60, seed=s), normal(60, seed=1000 + s), classifier="logistic", seed=s) for s in range(50)]
    p = torch.tensor([r.details["p"] for r in null])
    assert float((p <= 0.1).double().mean()) <= 0.1 + 3 * math.sqrt(0.09 / 50)
    assert 0.2 < float((p < 0.49).double().mean()) < 0.65  # an accuracy of one half, which is common, has p = 0.5
    assert abs(sum(r.value for r in null) / 50 - 0.5) < 0.03
    for s in range(3):
        assert c2st(normal(200, seed=s) + 0.5, normal(200, seed=1000 + s), classifier="logistic", seed=s).details["p"] < 1e-3


def test_the_accuracy_and_the_bound_of_two_gaussians() -> None:
    """N(δ, I) against N(0, I): the best accuracy is Φ(‖δ‖/2), KL = ‖δ‖²/2. A spread that a linear classifier cannot see, the network sees."""
    delta = 0.5
    found = c2st(normal(1500) + delta, StandardNormal(3), classifier="logistic")
    best = 0.5 * math.erfc(-math.sqrt(3) * delta / 2 / math.sqrt(2))
    assert found.value == pytest.approx(best, abs=0.025)
    kl = 3 * delta**2 / 2
    assert 0.6 * kl < found.details["kl"] < kl + 3 * found.details["kl_error"]
    wide = 2 * normal(800)
    assert c2st(wide, StandardNormal(3), classifier="logistic").details["p"] > 1e-3
    assert c2st(wide, StandardNormal(3)).details["p"] < 1e-6


def test_seeds_and_sizes() -> None:
    a, b = normal(300), normal(260, seed=1)
    for test in (mmd, c2st):
        first, again, other = test(a, b, n=100), test(a, b, n=100), test(a, b, n=100, seed=1)
        assert first == again
        assert first.value != other.value
        assert first.n == 100
        assert any("100 codes" in note for note in first.notes)
    assert c2st(a.double(), b).n == 260
    assert mmd(a, MultivariateNormal(torch.zeros(3), torch.eye(3))).details["p"] > 0.01


def test_refusals() -> None:
    a = normal(50)
    for test in (mmd, c2st):
        with pytest.raises(ValueError, match="dimensions"):
            test(a, normal(50, d=2))
        with pytest.raises(ValueError, match="codes are needed"):
            test(a[:1], a)
        with pytest.raises(ValueError, match="NaN"):
            test(torch.full((50, 3), math.nan), a)
        with pytest.raises(ValueError, match="floating-point matrix"):
            test(a[:, 0], a)
    with pytest.raises(ValueError, match="raise it, or n = 7"):
        mmd(a, a, memory=48 * 49)
    with pytest.raises(ValueError, match='"imq" or "rbf"'):
        mmd(a, a, kernel="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two folds"):
        c2st(a, a, folds=1)


def test_marginals_from_codes() -> None:
    """N(m, s²) against N(0, 1) and against draws: ½ (s² + m² - 1 - log s²)."""
    z = normal(3000, 4) * torch.tensor([1.0, 0.5, 2.0, 1.0]) + torch.tensor([0.0, 0.0, 0.0, 1.0])
    truth = torch.tensor([0.0, 0.5 * (0.25 - 1) + math.log(2), 0.5 * (4 - 1) - math.log(2), 0.5], dtype=torch.float64)
    gaussian = MultivariateNormal(torch.zeros(4), torch.eye(4))
    mixture = GaussianMixture(torch.tensor([0.4, 0.6]).log(), torch.zeros(2, 4), torch.eye(4).expand(2, 4, 4))
    for reference in (None, gaussian, mixture):
        kl, error = marginal_divergence(z, reference)
        assert bool(((kl - truth).abs() < 0.02 + 4 * error).all())
    kl, error = marginal_divergence(z, normal(20_000, 4, seed=5))
    assert bool(((kl - truth).abs() < 0.02 + 4 * error)[[0, 1, 3]].all())
    assert float(kl[2]) < float(truth[2]) - 0.1, "codes lie beyond the draws"
    with pytest.raises(ValueError, match="marginals of Laplace are not known"):
        marginal_divergence(z, Independent(Laplace(torch.zeros(4), torch.ones(4)), 1))
    uniform, _ = marginal_divergence(torch.rand(4000, 1, generator=torch.Generator().manual_seed(0)))
    assert float(uniform) == pytest.approx(0.5 * math.log(2 * math.pi) + 1 / 6, abs=0.03)
    atoms, _ = marginal_divergence(torch.cat([z[:, :1], torch.zeros(3000, 1)], 1))
    assert math.isfinite(atoms[0])
    assert math.isinf(atoms[1])


def placed(scale: tuple[float, float], shift: float, head: heads.Head) -> Autoencoder:
    gain = torch.diag(torch.tensor(scale))
    encoder = Conditional(linear(gain, torch.tensor([0.0, shift])), head)
    return Autoencoder(encoder, Conditional(linear(torch.eye(2)), heads.Gaussian(1.0)), StandardNormal(2))


def test_the_guilty_dimension_is_named() -> None:
    """q(z) = N(0, 1) in dimension 0 and N(2, 1) in dimension 1: exactly for posteriors, within the estimate's error for codes."""
    x = normal(3000, 2)
    s = math.sqrt(0.51)
    known = marginals(placed((s, s), 2.0, heads.Constant(0.7)), x)
    assert known.method == "exact mixture"
    assert known.error is None
    assert known.guilty == (1,)
    torch.testing.assert_close(known.kl, torch.tensor([0.0, 2.0], dtype=torch.float64), rtol=0, atol=0.08)
    codes = marginals(placed((1.0, 1.0), 2.0, heads.Dirac()), x)
    assert codes.guilty == (1,)
    assert codes.error is not None
    assert abs(float(codes.kl[1]) - 2) < 0.1
    assert any("+0.01" in note for note in codes.notes)
    assert codes.results()["marginal_kl_largest"].details["unit"] == 1
    fitted = marginals(placed((1.0, 1.0), 2.0, heads.Dirac()), x, density=FullGaussian(2).fit(codes_of(x)))
    assert fitted.guilty == ()
    assert fitted.reference == "FullGaussian"
    assert json.loads(json.dumps(known.to_json()))["n"] == 3000
    assert "half of it in 1 of 2: 1" in str(known)
    constant = marginals(placed((1.0, 0.0), 0.0, heads.Dirac()), x)
    assert constant.guilty == (1,)
    assert any("one value" in note for note in constant.notes)


def codes_of(x: Tensor) -> Tensor:
    return x + torch.tensor([0.0, 2.0])


def test_marginals_need_something_to_compare_with() -> None:
    with pytest.raises(ValueError, match="no prior to compare"):
        marginals(model(heads.Dirac(), plain=True), vectors(50))
    with pytest.raises(ValueError, match="at least 20"):
        marginal_divergence(normal(10))


def test_arrays_are_refused_in_a_sentence() -> None:
    with pytest.raises(TypeError, match="as_tensor"):
        mmd(torch.zeros(10, 2).numpy(), torch.zeros(10, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="as_tensor"):
        c2st(torch.zeros(10, 2), [[0.0, 1.0]])  # type: ignore[arg-type]
