"""The aggregate posterior against plain float64 computations, closed forms and quadrature."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Laplace, MultivariateNormal, Normal
from torch.utils._python_dispatch import TorchDispatchMode

from expost.distributions import Dirac
from expost.posterior.aggregate import AggregatePosterior, Responsibilities, mutual_information
from expost.posterior.entropy import mixture_entropy
from expost.posterior.kernel import NATS, Diagonal, blocks, kernel_of


def gaussians(mean: Tensor, std: Tensor) -> Independent:
    return Independent(Normal(mean, std), 1)


def posteriors(n: int, d: int, width: float, seed: int = 0, spread: float = 0.3, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Means and standard deviations around ``width``, (n, d) float32."""
    g = torch.Generator().manual_seed(seed)
    return shift + torch.randn(n, d, generator=g), width * torch.exp(spread * torch.randn(n, d, generator=g))


def codes(mean: Tensor, std: Tensor, m: int = 24) -> Tensor:
    """Half draws of N(mean of means, 1), half of posteriors, one far away, one on a mean: (m, d)."""
    g = torch.Generator().manual_seed(99)
    z = mean.mean(0) + torch.randn(m, mean.shape[1], generator=g)
    z[::2] = (mean + std * torch.randn(mean.shape, generator=g))[torch.arange(0, m, 2) % len(mean)]
    z[1], z[3] = 1000.0, mean[0]
    return z


def naive(mean: Tensor, std: Tensor, z: Tensor) -> Tensor:
    """log q(z_i | x_n) (m, n), from differences in float64."""
    m, s = mean.double(), std.double()
    constant = -s.log().sum(1) - 0.5 * m.shape[1] * math.log(2 * math.pi)
    return torch.stack([constant - 0.5 * ((code - m) / s).square().sum(1) for code in z.double()])


def check(found: Responsibilities, scores: Tensor, n: int | None = None) -> None:
    """All of ``found`` against the naive scores (m, n)."""
    top = found.weights.shape[1]
    total = torch.logsumexp(scores, 1)
    w = (scores - total[:, None]).exp()
    scale = scores.amax(1).abs().clamp_min(1.0)  # of log q: rounding of the oracle itself is relative to it
    assert float(((found.log_prob - total + math.log(n or scores.shape[1])) / scale).abs().max()) < 1e-9
    best = w.topk(top, 1).values
    torch.testing.assert_close(found.weights, best, rtol=1e-9, atol=1e-16)
    torch.testing.assert_close(w.gather(1, found.indices), best, rtol=1e-9, atol=1e-16)
    torch.testing.assert_close(found.largest, w.amax(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.entropy, -torch.xlogy(w, w).sum(1), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.perplexity, (-torch.xlogy(w, w).sum(1)).exp(), rtol=1e-8, atol=0)
    torch.testing.assert_close(found.ess, 1 / w.square().sum(1), rtol=1e-9, atol=0)


def ways(kernel: Diagonal, z: Tensor, top: int = 3) -> tuple[int, int]:
    """How many codes were pruned, and how many compared with all posteriors."""
    parts = list(blocks(kernel, z.double(), top=top, exclude=None, memory=10**8))
    assert sorted(int(i) for rows, _, _ in parts for i in rows) == list(range(len(z)))
    return sum(len(rows) for rows, _, which in parts if which is not None), sum(len(rows) for rows, _, which in parts if which is None)


# -- the kernel ------------------------------------------------------------------------------------------------------------------------------

CASES = {  # n, d, width, what most codes go through
    "one dimension": (3000, 1, 0.1, "dense"),
    "two dimensions": (3000, 2, 0.1, "dense"),
    "few survivors": (3000, 16, 0.05, "pruned"),
    "many survivors": (3000, 8, 0.3, "both"),
    "all survive": (1000, 50, 3.0, "dense"),
    "fifty dimensions": (3000, 50, 0.3, "pruned"),
    "high dimension": (2000, 128, 0.01, "pruned"),
    "highest dimension, tiny widths": (1000, 256, 1e-4, "pruned"),
    "small n": (5, 4, 0.5, "dense"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_plain_float64_computation_agrees(case: str) -> None:
    n, d, width, way = CASES[case]
    mean, std = posteriors(n, d, width)
    z = codes(mean, std)
    aggregate = AggregatePosterior(gaussians(mean, std))
    check(aggregate.query(z), naive(mean, std, z))
    torch.testing.assert_close(aggregate.log_prob(z), aggregate.query(z).log_prob, rtol=1e-12, atol=1e-12)
    kernel = aggregate.kernel
    assert isinstance(kernel, Diagonal)
    pruned, dense = ways(kernel, z)
    assert {"pruned": pruned > dense, "dense": dense > pruned, "both": pruned > 3 and dense > 3}[way]


@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("d", [2, 64, 256])
def test_the_bound_is_one(d: int, shift: float) -> None:
    """u_n lies above log q(z | x_n) for every pair, also where widths differ by five orders of magnitude between points."""
    mean, std = posteriors(400, d, 0.01, shift=shift)
    std *= torch.logspace(-2, 3, 400)[:, None]
    kernel = Diagonal(mean, std)
    z = codes(mean, std, 60).double()
    weight, bias = kernel.bounds
    centred = z - kernel.centre
    upper = torch.addmm(bias, torch.cat([centred.square(), centred], 1).float(), weight.T)[:, :400]
    scores = naive(mean, std, z)
    assert bool((upper.double() >= scores).all())
    values, which, many = kernel.survivors(z, 3, None, torch.empty(60, len(bias)))
    for i in (~many).nonzero()[:, 0].tolist():
        needed = set((scores[i] >= scores[i].max() - NATS).nonzero()[:, 0].tolist()) | set(scores[i].topk(3).indices.tolist())
        assert needed <= set(which[i, values[i].isfinite()].tolist())
    check(AggregatePosterior(gaussians(mean, std)).query(z), scores)


def test_where_the_product_would_lose_digits_differences_are_taken() -> None:
    """Narrow equal posteriors: everything survives, and a float64 product would be off by 1e-6."""
    mean = torch.full((500, 40), 3.0) + 1e-4 * torch.randn(500, 40)
    std = torch.full((500, 40), 1e-4)
    z = mean[:20] + 1e-4 * torch.randn(20, 40)
    check(AggregatePosterior(gaussians(mean, std)).query(z), naive(mean, std, z))
    far = torch.cat([mean[:250], mean[250:] + 100])
    check(AggregatePosterior(gaussians(far, std)).query(z), naive(far, std, z))


@pytest.mark.parametrize("width", [1e-20, 1e-30])
def test_widths_whose_precisions_float32_cannot_hold(width: float) -> None:
    mean, std = posteriors(300, 3, 0.1)
    std[7] = width
    z = torch.cat([codes(mean, std, 10), mean[7:8]])
    check(AggregatePosterior(gaussians(mean, std)).query(z), naive(mean, std, z))


@pytest.mark.parametrize("distance", [1e6, 1e12, 1e30])
def test_codes_infinitely_far_away_still_belong_to_someone(distance: float) -> None:
    mean, std = posteriors(2000, 8, 0.1)
    z = distance * torch.tensor([[1.0] * 8, [-1.0] * 8, [1.0, -1.0] * 4])
    found = AggregatePosterior(gaussians(mean, std)).query(z, values=torch.ones(2000, 1), top=5)
    assert bool(torch.isfinite(found.log_prob).all())
    torch.testing.assert_close(found.average, torch.ones(3, 1))
    widest = naive(mean, std, z).argmax(1)
    assert found.indices[:, 0].tolist() == widest.tolist()
    with pytest.raises(ValueError, match="so far"):
        AggregatePosterior(gaussians(mean, std)).query(torch.full((1, 8), 1e200, dtype=torch.float64))


def test_duplicates_share() -> None:
    mean, std = posteriors(600, 20, 0.05)
    mean, std = mean.repeat(3, 1), std.repeat(3, 1)
    found = AggregatePosterior(gaussians(mean, std)).query(mean[:10])
    torch.testing.assert_close(found.weights, torch.full((10, 3), 1 / 3, dtype=torch.float64))
    assert [sorted(row) for row in found.indices.tolist()] == [[i, i + 600, i + 1200] for i in range(10)]
    torch.testing.assert_close(found.perplexity, torch.full((10,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize(("d", "width"), [(2, 0.1), (16, 0.2), (64, 0.05)])
def test_neither_memory_nor_order_matters(d: int, width: float) -> None:
    n = 700
    mean, std = posteriors(n, d, width)
    z, values = codes(mean, std, 30), torch.rand(n, 2, 3)
    whole = AggregatePosterior(gaussians(mean, std)).query(z, values=values)
    order = torch.randperm(n)
    for memory, rows in ((1, slice(None)), (100_000, order), (10**9, order)):
        found = AggregatePosterior(gaussians(mean[rows], std[rows]), memory=memory).query(z, values=values[rows])
        for name in ("log_prob", "entropy", "ess", "weights"):
            torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.average, whole.average, rtol=0, atol=1e-6)
        original = torch.arange(n)[rows][found.indices]
        certain = whole.weights > 1e-12
        assert torch.equal(original[certain], whole.indices[certain])
    again = AggregatePosterior(gaussians(mean, std)).query(z, values=values)
    assert torch.equal(again.weights, whole.weights)
    assert torch.equal(again.log_prob, whole.log_prob)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(("d", "width"), [(2, 0.1), (16, 0.1)])
def test_memory_is_bounded(d: int, width: float) -> None:
    """No temporary is above half of the bound: with all pairs at once it would be 60 times as much."""
    mean, std = posteriors(3000, d, width)
    z, memory = codes(mean, std, 1000), 800_000
    aggregate = AggregatePosterior(gaussians(mean, std), memory=memory)
    assert isinstance(aggregate.kernel, Diagonal)
    _ = aggregate.kernel.bounds
    with Largest() as seen:
        aggregate.query(z, values=torch.rand(3000, 5))
    assert seen.bytes <= memory / 2
    for rows, scores, _ in blocks(aggregate.kernel, z.double(), top=3, exclude=None, memory=memory):
        assert len(rows) * 3000 * 8 <= memory
        assert scores.numel() * 8 <= memory / 2


def test_precision_and_autocast_of_the_caller_do_not_matter() -> None:
    mean, std = posteriors(2000, 32, 0.1)
    z = codes(mean, std)
    truth = AggregatePosterior(gaussians(mean, std)).query(z)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = AggregatePosterior(gaussians(mean, std)).query(z)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.log_prob, truth.log_prob)
    assert torch.equal(found.weights, truth.weights)


# -- the optimal decoder (claim A1) ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "width"), [(2, 0.3), (16, 0.1), (50, 1.0)])
def test_weights_are_a_distribution_over_the_data(d: int, width: float) -> None:
    n = 1200
    mean, std = posteriors(n, d, width)
    z = codes(mean, std, 60)
    images = torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8)
    aggregate = AggregatePosterior(gaussians(mean, std))
    every = aggregate.query(z, values=images, top=n)
    torch.testing.assert_close(every.weights.sum(1), torch.ones(60, dtype=torch.float64), rtol=0, atol=1e-12)
    assert [len(set(row)) for row in every.indices.tolist()] == [n] * 60
    found = aggregate.query(z, values=images)
    assert found.average is not None
    assert found.average.shape == (60, 1, 4, 4)
    assert bool((found.largest >= 1 / n).all())
    assert bool((found.perplexity >= 1).all())
    assert bool((found.perplexity <= n * (1 + 1e-12)).all())
    assert float(found.average.min()) >= 0
    assert float(found.average.max()) <= 1
    w = torch.softmax(naive(mean, std, z), 1)
    truth = (w @ (images.double() / 255).flatten(1)).view(60, 1, 4, 4)
    torch.testing.assert_close(found.average.double(), truth, rtol=0, atol=1e-6)
    white = aggregate.query(z, values=torch.full((n, 3), 255, dtype=torch.uint8)).average
    assert white is not None
    assert bool((white == 1).all())


def test_averages_keep_their_dtype() -> None:
    mean, std = posteriors(100, 4, 0.5)
    aggregate, z = AggregatePosterior(gaussians(mean, std)), codes(mean, std, 8)
    x = torch.rand(100, dtype=torch.float64)
    found = aggregate.query(z, values=x).average
    assert found is not None
    torch.testing.assert_close(found, torch.softmax(naive(mean, std, z), 1) @ x, rtol=1e-12, atol=1e-12)
    assert aggregate.query(z, values=x.half()).average.dtype == torch.float32  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="uint8"):
        aggregate.query(z, values=torch.ones(100, dtype=torch.int64))


def test_a_free_decoder_ends_at_the_weighted_average() -> None:
    """Minimise Σ_n q(z | x_n) BCE(x_n, m) over m in [0, 1]^D without knowing the answer (Bozkurt et al. 2018, theorem 1)."""
    mean, std = posteriors(80, 3, 0.6)
    x = torch.rand(80, 12, dtype=torch.float64).square()
    z = codes(mean, std, 6)[[0, 2, 4, 5]]
    found = AggregatePosterior(gaussians(mean, std)).query(z, values=x)
    assert found.average is not None
    assert float(found.perplexity.max()) > 1.5
    density = naive(mean, std, z).exp()
    density = density / density.amax(1, keepdim=True)  # the minimum is where it was, and the optimiser's scale is 1
    logits = torch.zeros(4, 12, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        each = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[:, None].expand(4, 80, 12), x.expand(4, 80, 12), reduction="none"
        )
        total = (density * each.sum(2)).sum()
        total.backward()
        return total

    optimiser.step(loss)
    torch.testing.assert_close(torch.sigmoid(logits.detach()), found.average, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("d", "width"), [(2, 0.2), (16, 0.2), (32, 0.05)])
def test_leaving_one_out_is_deleting_it(d: int, width: float) -> None:
    n = 700
    mean, std = posteriors(n, d, width)
    chosen = torch.tensor([0, 5, 699, 350])
    z = mean[chosen] + 0.1 * std[chosen]
    values = torch.rand(n, 4)
    found = AggregatePosterior(gaussians(mean, std)).query(z, values=values, exclude=chosen)
    for i, out in enumerate(chosen.tolist()):
        rest = torch.cat([torch.arange(out), torch.arange(out + 1, n)])
        alone = AggregatePosterior(gaussians(mean[rest], std[rest])).query(z[i : i + 1], values=values[rest])
        torch.testing.assert_close(found.log_prob[i], alone.log_prob[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.weights[i], alone.weights[0], rtol=1e-9, atol=1e-18)
        assert found.indices[i].tolist() == rest[alone.indices[0]].tolist()
        torch.testing.assert_close(found.average[i], alone.average[0])  # type: ignore[index]
    torch.testing.assert_close(AggregatePosterior(gaussians(mean, std)).log_prob(z, exclude=chosen), found.log_prob)


def test_one_posterior() -> None:
    q = gaussians(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 2.0]]))
    z = torch.tensor([[0.0, 0.0], [50.0, 1.0]])
    found = AggregatePosterior(q).query(z, values=torch.tensor([[0.25]]))
    torch.testing.assert_close(found.log_prob, q.log_prob(z).double(), rtol=1e-6, atol=1e-6)
    assert found.weights.tolist() == [[1.0], [1.0]]
    assert found.perplexity.tolist() == [1.0, 1.0]
    assert found.average.tolist() == [[0.25], [0.25]]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="cannot be excluded"):
        AggregatePosterior(q).log_prob(z, exclude=torch.tensor([0, 0]))
    assert len(AggregatePosterior(q).query(torch.empty(0, 2))) == 0


# -- full covariance, samples, marginals -----------------------------------------------------------------------------------------------------


def full(n: int, d: int) -> MultivariateNormal:
    g = torch.Generator().manual_seed(1)
    tril = torch.tril(0.3 * torch.randn(n, d, d, generator=g, dtype=torch.float64), -1)
    tril = tril + torch.diag_embed(0.2 + torch.rand(n, d, generator=g, dtype=torch.float64))
    return MultivariateNormal(5 + torch.randn(n, d, generator=g, dtype=torch.float64), scale_tril=tril)


@pytest.mark.parametrize("memory", [1, 10_000, 10**8])
def test_full_covariances(memory: int) -> None:
    q = full(90, 4)
    z = q.sample()[:30]
    aggregate = AggregatePosterior(q, memory=memory)
    scores = q.log_prob(z[:, None])
    check(aggregate.query(z), scores)
    index = torch.arange(30) * 2
    torch.testing.assert_close(aggregate.pair_log_prob(z, index), scores[torch.arange(30), index], rtol=1e-10, atol=1e-10)
    out = aggregate.log_prob(z, exclude=index)
    scores[torch.arange(30), index] = -math.inf
    torch.testing.assert_close(out, torch.logsumexp(scores, 1) - math.log(89), rtol=1e-10, atol=1e-10)


def test_a_diagonal_covariance_is_a_diagonal_gaussian() -> None:
    mean, std = (x.double() for x in posteriors(200, 5, 0.3))
    z = codes(mean, std)
    a, b = (
        AggregatePosterior(q).query(z, values=mean)
        for q in (gaussians(mean, std), MultivariateNormal(mean, scale_tril=torch.diag_embed(std)))
    )
    for name in ("log_prob", "entropy", "weights", "average"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9)
    assert mutual_information(gaussians(mean, std)).value == pytest.approx(
        mutual_information(MultivariateNormal(mean, scale_tril=torch.diag_embed(std))).value, abs=1e-9
    )


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_samples_come_from_the_mixture(kind: str) -> None:
    q: Distribution = full(3, 2) if kind == "full" else gaussians(*posteriors(3, 2, 0.2))
    aggregate = AggregatePosterior(q)
    z, index = aggregate.sample(20_000, seed=4)
    assert torch.equal(z, aggregate.sample(20_000, seed=4)[0])
    assert not torch.equal(z, aggregate.sample(20_000, seed=5)[0])
    assert z.shape == (20_000, 2)
    assert z.dtype == q.mean.dtype
    for i in range(3):
        own = z[index == i].double()
        assert abs(len(own) / 20_000 - 1 / 3) < 0.015
        torch.testing.assert_close(own.mean(0), q.mean[i].double(), rtol=0, atol=0.06)
        torch.testing.assert_close(own.var(0), q.variance[i].double(), rtol=0.08, atol=0)
    entropy = -float(aggregate.log_prob(z).mean())
    more = -float(aggregate.log_prob(aggregate.sample(20_000, seed=6)[0]).mean())
    assert entropy == pytest.approx(more, abs=0.05)


def test_marginals_are_one_dimensional_mixtures() -> None:
    mean, std = posteriors(50, 3, 0.4)
    grid = torch.linspace(-14, 14, 4001, dtype=torch.float64)
    for q in (gaussians(mean, std), full(50, 3)):
        shift = float(q.mean[:, 1].mean())
        found = AggregatePosterior(q).marginal_log_prob(1, grid + shift)
        m, s = q.mean[:, 1].double(), q.variance[:, 1].double().sqrt()
        truth = torch.logsumexp(Normal(m, s).log_prob((grid + shift)[:, None]), 1) - math.log(50)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)
        assert float(torch.trapezoid(found.exp(), grid)) == pytest.approx(1, abs=1e-9)
        assert torch.equal(AggregatePosterior(q, memory=1).marginal_log_prob(1, grid[:9] + shift), found[:9])


def test_marginal_kl_of_one_gaussian_is_its_closed_form() -> None:
    mean, std = torch.tensor([[0.0, 1.5, -3.0, 0.0]]), torch.tensor([[1.0, 0.01, 2.0, 40.0]])
    truth = torch.distributions.kl_divergence(Normal(mean.double(), std.double()), Normal(0.0, 1.0))[0]
    for n in (1, 5000):  # also where all are merged into one
        found = AggregatePosterior(gaussians(mean.repeat(n, 1), std.repeat(n, 1))).marginal_kl()
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("gap", "narrow", "wide"), [(1.0, 0.5, 0.5), (2.0, 0.1, 0.7), (0.5, 0.05, 0.05), (6.0, 0.01, 1.0)])
def test_marginal_kl_of_two_gaussians_by_quadrature(gap: float, narrow: float, wide: float) -> None:
    from scipy.integrate import quad

    def integrand(z: float) -> float:
        a, b = (math.exp(-0.5 * ((z - m) / s) ** 2) / s / math.sqrt(2 * math.pi) for m, s in ((-gap, narrow), (gap, wide)))
        q = 0.5 * (a + b)
        return q * (math.log(q) + 0.5 * z * z + 0.5 * math.log(2 * math.pi)) if q > 0 else 0.0

    edges = sorted({-gap - 12 * narrow, -gap - 3 * narrow, -gap, -gap + 3 * narrow, gap - 3 * wide, gap, gap + 3 * wide, gap + 12 * wide})
    truth = sum(quad(integrand, a, b, limit=400, epsabs=1e-11)[0] for a, b in itertools.pairwise(edges))
    q = gaussians(torch.tensor([[-gap], [gap]]), torch.tensor([[narrow], [wide]]))
    assert float(AggregatePosterior(q).marginal_kl()) == pytest.approx(truth, abs=2e-6)


def test_merging_and_coarse_grids_cost_what_is_stated() -> None:
    g = torch.Generator().manual_seed(0)
    n = 5000
    normal = torch.randn(n, generator=g)
    cases = {
        "live": (normal, 0.05 + 0.25 * torch.rand(n, generator=g)),
        "dead": (0.02 * normal, 1 + 0.02 * torch.randn(n, generator=g)),
        "clusters": (torch.randint(5, (n,), generator=g) + 0.01 * normal, 0.05 * torch.exp(0.3 * torch.randn(n, generator=g))),
        "widths differ": (0 * normal, torch.exp(0.5 * torch.randn(n, generator=g))),
    }
    for name, (mean, std) in cases.items():
        exact, second = mixture_entropy(mean, std, few=n)
        merged, same = mixture_entropy(mean, std, few=0)
        assert merged == pytest.approx(exact, abs=1e-4), name
        assert same == pytest.approx(second, rel=1e-9), name
        assert mixture_entropy(mean, std, few=n, memory=1_000_000)[0] == pytest.approx(exact, abs=1e-9), name
        coarse = mixture_entropy(mean, std, points=100, few=n)[0]
        if name == "dead":
            assert coarse == pytest.approx(exact, abs=1e-6)
        else:
            assert coarse > exact - 1e-3, name  # widened: more entropy, less KL


# -- mutual information ----------------------------------------------------------------------------------------------------------------------


def test_information_of_separated_posteriors_is_log_n() -> None:
    x = torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0))
    found = mutual_information(gaussians(x, torch.full_like(x, 0.01)), samples=2)
    assert found.value == pytest.approx(math.log(400), abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.details["log_n"] == math.log(400)
    assert any("ceiling" in note for note in found.notes)


def test_information_of_equal_posteriors_is_nothing() -> None:
    found = mutual_information(gaussians(torch.ones(300, 4), torch.full((300, 4), 0.3)))
    assert abs(found.value) < 1e-10
    assert not found.notes
    assert abs(mutual_information(gaussians(torch.ones(1, 2), torch.ones(1, 2))).value) < 1e-12


def test_information_is_below_log_n_and_right() -> None:
    """Against quadrature for N(±1, 1), where N is two; and its standard error against the spread over seeds."""
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    q = torch.stack([Normal(-1.0, 1.0).log_prob(grid), Normal(1.0, 1.0).log_prob(grid)])
    truth = float(torch.trapezoid((q.exp() * (q - torch.logsumexp(q, 0) + math.log(2))).mean(0), grid))
    two = gaussians(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    assert mutual_information(two, samples=3000).value == pytest.approx(truth, abs=0.03)

    mean, std = posteriors(200, 3, 0.4)
    runs = [mutual_information(gaussians(mean, std), seed=seed) for seed in range(25)]
    values = torch.tensor([r.value for r in runs])
    assert max(r.value for r in runs) <= math.log(200)
    assert runs[0].error is not None
    assert float(values.std()) < 1.3 * runs[0].error
    assert mutual_information(gaussians(mean, std), seed=3) == runs[3]
    assert mutual_information(AggregatePosterior(gaussians(mean, std), memory=50_000), seed=3).value == pytest.approx(
        runs[3].value, abs=1e-9
    )


# -- refusals --------------------------------------------------------------------------------------------------------------------------------


def test_posteriors_that_are_refused() -> None:
    ones = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"Constant\(scale\) head.*bandwidth"):
        AggregatePosterior(Dirac(ones))
    with pytest.raises(ValueError, match="Gaussian posteriors, not Laplace"):
        AggregatePosterior(Independent(Laplace(ones, ones), 1))
    with pytest.raises(ValueError, match="Independent"):
        AggregatePosterior(Normal(ones, ones))
    with pytest.raises(ValueError, match="batch shape"):
        AggregatePosterior(gaussians(ones[0], ones[0]))
    with pytest.raises(ValueError, match="means hold NaN"):
        AggregatePosterior(Independent(Normal(ones * math.nan, ones, validate_args=False), 1))
    with pytest.raises(ValueError, match="are zero"):
        AggregatePosterior(Independent(Normal(ones, 0 * ones, validate_args=False), 1))
    with pytest.raises(ValueError, match="memory"):
        AggregatePosterior(gaussians(ones, ones), memory=0)
    with pytest.raises(ValueError, match="samples"):
        mutual_information(gaussians(ones, ones), samples=0)
    assert kernel_of(Independent(Normal(ones, 0.5), 1)).n == 4  # codes with a bandwidth


def test_queries_that_are_refused() -> None:
    aggregate, z = AggregatePosterior(gaussians(torch.ones(4, 2), torch.ones(4, 2))), torch.zeros(3, 2)
    for bad, sentence in ((torch.zeros(3, 5), "matrix"), (torch.zeros(2), "matrix"), (z.long(), "matrix"), (z / 0, "NaN")):
        with pytest.raises(ValueError, match=sentence):
            aggregate.query(bad)
    with pytest.raises(ValueError, match="top"):
        aggregate.query(z, top=0)
    with pytest.raises(ValueError, match="values for 4"):
        aggregate.query(z, values=torch.ones(5, 1))
    for bad in (torch.tensor([0, 1]), torch.ones(3), torch.tensor([0, 1, 4]), torch.tensor([0, -1, 2])):
        with pytest.raises(ValueError, match="exclude must"):
            aggregate.query(z, exclude=bad)
    with pytest.raises(ValueError, match="dimension 2"):
        aggregate.marginal_log_prob(2, z[:, 0])
    with pytest.raises(ValueError, match="grid"):
        aggregate.marginal_log_prob(0, z)
    with pytest.raises(ValueError, match="100"):
        aggregate.marginal_kl(points=5)
    with pytest.raises(ValueError, match="at least 1"):
        aggregate.sample(0)
