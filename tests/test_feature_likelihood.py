"""Feature likelihood against naive sums, against Adam on the same objective, and on generators whose answer is known."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from torch import Tensor

from expost.evaluate.metrics.fld import Mixture, feature_likelihood

D = 16


def data(n: int, seed: int) -> Tensor:
    """Ten clusters in 16 dimensions, rectified: features of a small classifier, roughly."""
    draws = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(10, D, generator=torch.Generator().manual_seed(99))
    return (centres[torch.randint(0, 10, (n,), generator=draws)] + torch.randn(n, D, generator=draws)).relu()


def log_density(x: Tensor, centres: Tensor, log_variance: Tensor) -> Tensor:
    """log (1/n Σⱼ N(x; μⱼ, σⱼ² I)), term by term in float64."""
    squares = (x.double()[:, None] - centres.double()).square().sum(2)
    d = x.shape[1]
    return (-squares / 2 / log_variance.exp() - d / 2 * (log(2 * pi) + log_variance)).logsumexp(1) - log(len(centres))


def fitted_by_adam(x: Tensor, centres: Tensor, steps: int, start: float = 1.0) -> tuple[Tensor, float]:
    """The authors' way: log variances by Adam at rate 0.5 from the nearest row, with the component behind; the best mean found."""
    d = x.shape[1]
    squares = (x.double()[:, None] - centres.double()).square().sum(2)
    far = 0.81 * (x.double() - x.double().mean(0)).square().sum(1)
    variances = (start * (squares.amin(0) + 1e-3) / d).log().requires_grad_()
    behind = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser, best = torch.optim.Adam([variances, behind], lr=0.5), -float("inf")
    for _ in range(steps):
        optimiser.zero_grad()
        each = -squares / 2 / variances.exp() - d / 2 * (log(2 * pi) + variances) - log(len(centres))
        back = -far / 2 / behind.exp() - d / 2 * (log(2 * pi) + behind)
        mean = torch.cat([each, back[:, None]], 1).logsumexp(1).mean()
        best = max(best, float(mean.detach()))
        (-mean / d).backward()
        optimiser.step()
        with torch.no_grad():
            variances.clamp_(-40, 20)
    return variances.detach(), best


def test_log_density_equals_the_naive_sum() -> None:
    x, centres = data(70, 1), data(50, 2)
    mixture = Mixture(centres, torch.randn(50, dtype=torch.float64))
    torch.testing.assert_close(mixture.log_prob(x), log_density(x, centres, mixture.log_variance), rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(mixture.log_prob(x, memory=1), mixture.log_prob(x), rtol=1e-6, atol=1e-5)


def test_near_pairs_do_not_cancel() -> None:
    """Rows 10⁻⁴ from a component of variance 10⁻⁸, far from the origin: a float32 product alone would be wrong by thousands of nats."""
    centres = 30 + data(40, 3)
    x = centres + 1e-4 * torch.randn(40, D, generator=torch.Generator().manual_seed(4))
    mixture = Mixture(centres, torch.full((40,), -8 * log(10), dtype=torch.float64))
    torch.testing.assert_close(mixture.log_prob(x), log_density(x, centres, mixture.log_variance), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("n", "m"), [(150, 300), (200, 100)])
def test_the_fit_reaches_what_adam_reaches(n: int, m: int) -> None:
    centres, x = data(n, 5), data(m, 6)
    default, long = Mixture(centres).fit(x), Mixture(centres).fit(x, steps=500, tolerance=1e-7)
    assert 100 / D * (fitted_by_adam(x, centres, 50)[1] - default.objective[-1]) < 0.05  # their number of steps, the result's unit
    assert long.objective[-1] >= fitted_by_adam(x, centres, 1000)[1] - 1e-3
    assert all(b >= a - 1e-6 for a, b in zip(long.objective, long.objective[1:], strict=False)), "a step made it less likely"
    first = fitted_by_adam(x, centres, 1, start=2)[1]
    assert long.objective[0] == pytest.approx(first, rel=1e-5)  # the same objective from the same start


def test_result_is_what_the_definition_says() -> None:
    """Standardise, fit, evaluate: with own loops, and Adam instead of expectation maximisation."""
    generated, test, train = data(200, 7), data(250, 8), data(400, 9)
    found = feature_likelihood(generated, test, train, tolerance=1e-5, steps=300)
    mean, std = test.double().mean(0), test.double().std(0)
    g, t, r = (((side.double() - mean) / std).float() for side in (generated, test, train))
    variances, _ = fitted_by_adam(r, g, 400)
    nll = {"test": -float(log_density(t, g, variances).mean()) / D, "train": -float(log_density(r, g, variances).mean()) / D}
    assert 100 * abs(found.fld.details["nll_test"] - nll["test"]) < 1.0
    assert 100 * abs(found.fld.details["nll_train"] - nll["train"]) < 0.5
    assert found.gap.value == pytest.approx(100 * (found.gap.details["nll_train"] - found.gap.details["nll_test"]), rel=1e-9)
    assert found.fld.value == pytest.approx(100 * (found.fld.details["nll_test"] - found.fld.details["nll_base"]), rel=1e-9)
    # an affine change of every feature is undone by the standardisation
    moved = feature_likelihood(5 * generated + 3, 5 * test + 3, 5 * train + 3, tolerance=1e-5, steps=300)
    assert moved.gap.value == pytest.approx(found.gap.value, abs=1e-2)


def test_fresh_copied_shifted_and_collapsed_generators() -> None:
    test, train = data(600, 10), data(1200, 11)
    fresh = feature_likelihood(data(600, 12), test, train)
    assert abs(fresh.fld.value) < 5
    assert abs(fresh.gap.value) < 8  # the variances were fitted to the training rows: slightly negative
    assert fresh.memorised == 0
    copied = feature_likelihood(train[:600].clone(), test, train)
    assert copied.gap.value < -100
    assert copied.memorised == 1
    assert any("equal a training row" in note for note in copied.notes)
    jittered = feature_likelihood(train[:600] + 0.05 * data(600, 13), test, train)
    assert copied.gap.value < jittered.gap.value < 5 * fresh.gap.value - 10
    shifted, collapsed = (feature_likelihood(x, test, train) for x in (data(600, 14) + 1, data(6, 15).repeat(100, 1) + 0.1 * data(600, 16)))
    for worse in (shifted, collapsed, jittered):
        assert worse.fld.value > fresh.fld.value + 10 * (fresh.fld.error or 0)
    assert abs(shifted.gap.value) < 8  # bad, but not overfitted


def test_error_is_the_spread_over_test_sets() -> None:
    generated, train = data(200, 17), data(400, 18)
    found = [feature_likelihood(generated, data(300, 100 + r), train) for r in range(20)]
    gaps = torch.tensor([f.gap.value for f in found])
    own = torch.tensor([f.gap.error or 0.0 for f in found]).mean()
    assert 0.3 < float(gaps.std() / own) < 1.5  # the errors allow for the training rows too, which stay the same here


def test_order_chunks_and_threads() -> None:
    generated, test, train = data(300, 19), data(200, 20), data(260, 21)
    one = feature_likelihood(generated, test, train, size=150)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    other = feature_likelihood(generated.flip(0), test[order], train.flip(0), size=150)
    assert (other.fld.value, other.gap.value) == (one.fld.value, one.gap.value)
    assert feature_likelihood(generated, test, train, size=150, memory=1000).fld.value == pytest.approx(one.fld.value, abs=1e-3)
    assert feature_likelihood(generated, test, train, size=150, seed=1).fld.value != one.fld.value
    torch.set_num_threads(2)
    try:
        assert feature_likelihood(generated, test, train, size=150).fld.value == pytest.approx(one.fld.value, abs=1e-3)
    finally:
        torch.set_num_threads(1)


def test_constant_features_are_left_out_and_limits_are_noted() -> None:
    generated, test, train = (torch.cat([data(100, s), torch.ones(100, 2)], 1) for s in (22, 23, 24))
    found = feature_likelihood(generated, test, train)
    assert found.fld.value == feature_likelihood(generated[:, :D], test[:, :D], train[:, :D]).fld.value
    notes = " ".join(found.notes)
    assert "2 of 18 features are constant" in notes
    assert "below 1000" in notes
    assert "base mixture has 50 components" in notes
    assert any("cut short after 1 steps" in note for note in feature_likelihood(generated, test, train, steps=1, tolerance=0).notes)
    assert set(found.results()) == {"fld", "gap"}


def test_bad_arguments_are_refused_in_one_sentence() -> None:
    x = data(20, 25)
    with pytest.raises(ValueError, match="one extractor for both"):
        feature_likelihood(x, x, x[:, :3])
    with pytest.raises(ValueError, match="at least 4 feature vectors"):
        feature_likelihood(x[:3], x, x)
    with pytest.raises(ValueError, match="all features are constant"):
        feature_likelihood(x, torch.ones(20, D), x)
    with pytest.raises(ValueError, match="at least 2 components and 1 step"):
        feature_likelihood(x, x, x, steps=0)
