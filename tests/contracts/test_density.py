"""One suite of checks over every density that is fitted to codes; what is particular to one class is in its own test file."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from expost.density import (
    GMM,
    KDE,
    Density,
    Flow,
    FullGaussian,
    NotFittedError,
    StandardNormal,
    load_density,
    save_density,
)
from expost.seeds import generator

Build = Callable[[int], Density]

FITTED: dict[str, Build] = {
    "gaussian": FullGaussian,
    "gmm": lambda d: GMM(d, 3),
    "gmm-diagonal": lambda d: GMM(d, 3, "diagonal"),
    "kde-scott": lambda d: KDE(d, points=300),
    "kde-cv": lambda d: KDE(d, "cv", points=300),
    "kde-number": lambda d: KDE(d, 0.5, points=300),
    "flow-nsf": lambda d: Flow(d, 2, (16,), steps=60),
    "flow-maf": lambda d: Flow(d, 2, (16,), kind="maf", steps=60),
}
ALL: dict[str, Build] = {"normal": StandardNormal, **FITTED}

fitted = pytest.mark.parametrize("build", FITTED.values(), ids=FITTED.keys())
every = pytest.mark.parametrize("build", ALL.values(), ids=ALL.keys())


def codes(n: int = 400, d: int = 2, seed: int = 0) -> Tensor:
    """Two correlated clusters, away from the origin: a density that ignores the data is far off."""
    g = generator("codes of the contract", seed)
    mix = torch.eye(d) + 0.4 * torch.ones(d, d).tril(-1)
    side = torch.where(torch.rand(n, 1, generator=g) < 0.5, -2.0, 2.0)
    return 3 + side + 0.7 * torch.randn(n, d, generator=g) @ mix


def ready(build: Build, d: int = 2, n: int = 400) -> Density:
    density = build(d)
    return density if isinstance(density, StandardNormal) else density.fit(codes(n, d))


def same(a: Density, b: Density) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@every
def test_shapes_and_dtype(build: Build) -> None:
    p = ready(build, 3)()
    assert p.batch_shape == ()
    assert p.event_shape == (3,)
    for shape in [(), (5,), (2, 4)]:
        z = p.sample(torch.Size(shape))
        assert z.shape == (*shape, 3)
        assert z.dtype == torch.float32
        assert not z.requires_grad
        assert p.log_prob(z).shape == shape
        assert torch.isfinite(p.log_prob(z)).all()


@every
def test_log_prob_does_not_depend_on_the_batch(build: Build) -> None:
    p = ready(build, 3)()
    z = codes(12, 3, seed=1)
    with torch.no_grad():
        whole = p.log_prob(z)
        torch.testing.assert_close(p.log_prob(z.reshape(3, 4, 3)), whole.reshape(3, 4))
        torch.testing.assert_close(torch.stack([p.log_prob(row) for row in z]), whole)


@every
@pytest.mark.parametrize("d", [1, 2])
def test_integrates_to_one(build: Build, d: int) -> None:
    p = ready(build, d)()
    low, high, n = (-12.0, 18.0, 3001) if d == 1 else (-6.0, 12.0, 301)
    axis = torch.linspace(low, high, n)
    grid = axis[:, None] if d == 1 else torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = p.log_prob(grid).double().exp().sum() * (float(axis[1] - axis[0])) ** d
    assert float(mass) == pytest.approx(1, abs=5e-3)


@every
def test_samples_follow_log_prob(build: Build) -> None:
    """E_p[log p] by sampling equals ∫ p log p by quadrature."""
    p = ready(build, 1)()
    axis = torch.linspace(-12, 18, 6001)[:, None]
    with torch.no_grad():
        log_p = p.log_prob(axis).double()
        negative_entropy = float((log_p.exp() * log_p).sum() * (axis[1, 0] - axis[0, 0]))
        values = p.log_prob(p.sample(torch.Size((20_000,)))).double()
    assert float(values.mean()) == pytest.approx(negative_entropy, abs=5 * float(values.std()) / math.sqrt(20_000) + 5e-3)


@fitted
def test_the_same_seed_gives_the_same_fit(build: Build) -> None:
    z = codes()
    first = build(2).fit(z, seed=3)
    torch.rand(7)  # the state of the global generator must not matter
    second = build(2).fit(z, seed=3)
    assert same(first, second)
    assert same(first, first.fit(z, seed=3)), "a second fit must replace the first"


@fitted
def test_state_survives_a_file(build: Build, tmp_path: Path) -> None:
    density = ready(build)
    save_density(tmp_path / "p.safetensors", density)
    loaded = load_density(tmp_path / "p.safetensors")
    assert type(loaded) is type(density)
    assert same(loaded, density)
    assert loaded.report == density.report
    z = codes(20, seed=2)
    with torch.no_grad():
        assert torch.equal(loaded().log_prob(z), density().log_prob(z))
        torch.manual_seed(1)
        one = loaded().sample(torch.Size((9,)))
        torch.manual_seed(1)
        assert torch.equal(one, density().sample(torch.Size((9,))))
    assert not list(tmp_path.glob("*.tmp*")), "no temporary file may stay behind"


@fitted
def test_state_loads_into_a_fresh_one(build: Build) -> None:
    density, fresh = ready(build), build(2)
    fresh.load_state_dict(density.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh().log_prob(codes(5)), density().log_prob(codes(5)))


@fitted
def test_an_unfitted_one_says_so(build: Build) -> None:
    with pytest.raises(NotFittedError, match=r"has not been fitted: call \.fit\(z\)"):
        build(2)()


@fitted
@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (torch.full((50, 2), float("nan")), "NaN or infinity in 50 of 50 rows"),
        (codes(50).index_fill(0, torch.tensor([7]), float("inf")), "first: row 7"),
        (codes(50)[:, 0], "must be a matrix"),
        (codes(50).reshape(25, 2, 2), "must be a matrix"),
        (codes(1), "at least 2"),
        (codes(50, 3), "for codes of dimension 2, but these have 3"),
        (torch.ones(50, 2, dtype=torch.int64), "floating-point"),
    ],
    ids=["nan", "inf", "vector", "cube", "one", "dimension", "integers"],
)
def test_bad_codes_raise_one_sentence(build: Build, bad: Tensor, sentence: str) -> None:
    density = build(2)
    with pytest.raises(ValueError, match=sentence) as error:
        density.fit(bad)
    assert "\n" not in str(error.value)
    with pytest.raises(NotFittedError):
        density()


def test_the_standard_normal_has_nothing_to_fit() -> None:
    with pytest.raises(ValueError, match="cannot be fitted to codes: fit a FullGaussian"):
        StandardNormal(2).fit(codes())


@fitted
def test_posteriors_are_codes_too(build: Build) -> None:
    """Fitting to q(z | x_i) is fitting to draws: the density is wider than one fitted to the means, by the posteriors' variance."""
    means = codes(400)
    q = Independent(Normal(means, torch.full_like(means, 3.0)), 1)
    wide, narrow = build(2).fit(q, seed=1), build(2).fit(means, seed=1)
    assert same(wide, build(2).fit(q, seed=1))
    with torch.no_grad():
        far = codes(1) + torch.tensor([[9.0, -9.0]])
        assert float(wide().log_prob(far)) > float(narrow().log_prob(far))


@fitted
def test_beats_a_density_that_ignores_the_codes(build: Build) -> None:
    z = codes(200, seed=5)
    with torch.no_grad():
        assert float(ready(build)().log_prob(z).mean()) > float(StandardNormal(2)().log_prob(z).mean()) + 2


@fitted
def test_near_the_truth_on_a_gaussian(build: Build) -> None:
    truth = MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.3], [0.3, 0.5]]))
    torch.manual_seed(2)
    train, test = truth.sample(torch.Size((2000,))), truth.sample(torch.Size((2000,)))
    with torch.no_grad():
        loss = float((truth.log_prob(test) - build(2).fit(train)().log_prob(test)).mean())
    assert -0.02 < loss < 0.25


@every
def test_gradients_with_respect_to_codes(build: Build) -> None:
    p = ready(build)()
    z = codes(6).requires_grad_()
    (gradient,) = torch.autograd.grad(p.log_prob(z).sum(), z)
    assert torch.isfinite(gradient).all()
    step = 1e-2
    with torch.no_grad():
        ahead = torch.tensor([step, 0.0])
        numerical = (p.log_prob(z + ahead) - p.log_prob(z - ahead)) / (2 * step)
    torch.testing.assert_close(gradient[:, 0], numerical, rtol=0.05, atol=0.05)


@fitted
def test_constant_dimensions_still_give_a_proper_density(build: Build) -> None:
    z = codes(300, 3)
    z[:, 1] = 4.0
    p = build(3).fit(z)()
    with torch.no_grad():
        assert torch.isfinite(p.log_prob(z)).all()
        sample = p.sample(torch.Size((50,)))
        assert torch.isfinite(sample).all()
        assert torch.isfinite(p.log_prob(sample)).all()


def planted() -> dict[str, Tensor]:
    """Codes as trained encoders make them when something is off: not of full rank, of any scale, with a broken one among them."""
    z = codes(150, 3)
    small, large = torch.tensor([1e-8, 1.0, 1e8]), torch.tensor([1e-30, 1.0, 1e30])
    return {
        "of lower rank": z @ codes(3, 6, seed=4),
        "duplicated": torch.cat([z, z], 1),
        "tied": torch.stack([z[:, 0], 2 - 3 * z[:, 0], 1e-3 * z[:, 0]], 1),
        "tied and far": torch.stack([z[:, 0], -z[:, 0], z[:, 1]], 1) + 1e4,
        "constant": torch.stack([z[:, 0], torch.full((150,), 4.0), torch.zeros(150), torch.full((150,), 1e6)], 1),
        "fewer than dimensions": codes(12, 15),
        "equal": torch.full((50, 3), 2.5),
        "zero": torch.zeros(50, 3),
        "few different": codes(3, 3).repeat(40, 1),
        "outlier": torch.cat([z, 1e7 * torch.ones(1, 3)]),
        "outlier in one": torch.cat([z, torch.tensor([[0.0, 1e12, 0.0]])]),
        "tiny": 1e-30 * z,
        "huge": 1e30 * z,
        "mixed": small * z,
        "mixed far apart": large * z,
        "mixed and tied": torch.cat([small * z, small.flip(0) * z], 1),
        "far": z + 1e6,
        "far, double": z.double() + 1e6,
        "half": z.half(),
    }


def deviation(z: Tensor) -> Tensor:
    """Half of what lies between two quantiles, (d,): blind to an outlier."""
    return (z.double().quantile(0.84, 0) - z.double().quantile(0.16, 0)) / 2


@pytest.mark.filterwarnings("error")
@fitted
@pytest.mark.parametrize("name", planted())
def test_codes_of_any_rank_and_scale(build: Build, name: str, tmp_path: Path) -> None:
    z = planted()[name]
    density = build(z.shape[1])
    if isinstance(density, Flow):
        density.steps = 20
    if isinstance(density, GMM):
        density.restarts = 2
    p = density.fit(z)()
    sample = p.sample(torch.Size((400,)))
    with torch.no_grad():
        assert torch.isfinite(sample).all()
        if not (isinstance(density, KDE) and density.bandwidth == 0.5):  # a bandwidth in units of its own
            assert torch.isfinite(p.log_prob(z.float())).all()
            std = z.double().std(0)
            varies = std > 1e-6 * z.double().abs().amax(0)
            broken = "outlier" in name and not isinstance(density, FullGaussian)  # whose maximum likelihood is what it is
            ratio = deviation(sample)[varies] / (deviation(z) if broken else std)[varies]
            assert ((ratio > 0.3) & (ratio < (5 if broken else 3))).all(), ratio
            assert (sample.double().std(0)[~varies] <= 5e-5 * z.double().abs().amax(0)[~varies].clamp_min(1)).all()
    save_density(tmp_path / "p.safetensors", density)
    assert same(load_density(tmp_path / "p.safetensors"), density)


@fitted
@pytest.mark.parametrize("size", [1e36, 1e-36])
def test_codes_beyond_float32_are_one_sentence(build: Build, size: float) -> None:
    with pytest.raises(ValueError, match="beyond float32: multiply them by a constant"):
        build(2).fit(size * codes().double())


@fitted
def test_nothing_global_changes(build: Build) -> None:
    state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    validate = torch.distributions.Distribution._validate_args
    build(2).fit(codes())()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert random.getstate() == python_state
    assert torch.distributions.Distribution._validate_args == validate


@every
def test_copies_and_moves(build: Build) -> None:
    density = ready(build)
    other = copy.deepcopy(density).to("cpu")
    z = codes(5)
    with torch.no_grad():
        assert torch.equal(other().log_prob(z), density().log_prob(z))
        wide = copy.deepcopy(density).double()().log_prob(z.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), density().log_prob(z).detach(), rtol=1e-3, atol=1e-3)


@fitted
def test_fit_leaves_the_codes_alone(build: Build) -> None:
    z = codes()
    before = z.clone()
    build(2).fit(z)
    assert torch.equal(z, before)
