"""The kernel distance between two sets of features: an unbiased estimate of a squared maximum mean discrepancy.

For a kernel k, the squared discrepancy of two distributions P and Q is

    MMD² = E k(x, x′) + E k(y, y′) − 2 E k(x, y),        x, x′ ~ P and y, y′ ~ Q independent,

(Gretton et al. 2012, "A kernel two-sample test", lemma 6). The score of a generator takes k(x, y) = (xᵀy / d + 1)³ on features of d
dimensions (Bińkowski et al. 2018, "Demystifying MMD GANs": KID), which compares the first three moments, and the estimate that leaves the
diagonals out of both means,

    Σ_{i≠j} k(xᵢ, xⱼ) / n(n − 1) + Σ_{i≠j} k(yᵢ, yⱼ) / m(m − 1) − 2 Σᵢⱼ k(xᵢ, yⱼ) / nm.

Its expectation is MMD² at any n, so it may be negative, and values at different n may be compared, which Fréchet distances may not. It is
not invariant to a shift or a rescaling of the features: it belongs to one extractor.

Arithmetic: float64 features are multiplied in float64, all others in float32; every sum over pairs is in float64. The kernel is taken without
its constant, k − 1 = t(t² + 3t + 3) with t = xᵀy/d, which drops out of MMD² and would hide small features in its round-off. In float32 the value
is right to about 10⁻⁷ of the mean of |k − 1| (not of the distance, which is a difference of such means). Kernel blocks of one set with itself are
computed once per pair, and of any size: the result depends on the block size by round-off only.

It assumes independent draws. Where the sets share images, or repeat some, a note says so, and the value is no estimate.
"""

from __future__ import annotations

from math import isfinite, isqrt

import torch
from torch import Tensor

from expost.evaluate.metrics.registry import Compared, metric
from expost.results import Result
from expost.seeds import permutation
from expost.statistics.samples import canonical_order, dependence, feature_pair
from expost.system.hashes import row_keys
from expost.system.progress import Bar
from expost.tensors import largest

__all__ = ["kernel_distance"]

#: Rows of a kernel block at most: large enough for a matrix product at full speed, small enough that the diagonal blocks waste little.
TILE = 256


def kernel_distance(
    generated: Tensor, real: Tensor, *, subsets: int | None = 100, size: int = 1000, seed: int = 0, memory: int = 256 * 2**20
) -> Result:
    """Unbiased squared MMD under k(x, y) = (xᵀy/d + 1)³ between two sets of features: KID, if the features are Inception's pool_3.

    Bińkowski et al. 2018, section 4: the mean over ``subsets`` random pairs of subsets of ``size`` rows, drawn without replacement within
    a subset. With ``subsets=None``: the same statistic over all pairs of rows, exact, hence with less noise and without a seed.

    The rows are brought into a canonical order before subsets are drawn: shuffling either set changes nothing, bit for bit.

    Args:
        generated: features (n, d), any floating dtype.
        real: features (m, d) of the same extractor.
        subsets: how many pairs of subsets, at least 2; None for all rows.
        size: rows of a subset, between 2 and min(n, m).
        seed: of the subsets.
        memory: bytes beyond the inputs for kernel blocks (a subset is copied too: 2 · size · d numbers; reordering copies no features).

    Returns:
        ``value``: the estimate, in no unit. ``error``: over subsets, their standard deviation / √subsets, which is the noise of drawing them
        from *these* rows; over all rows, the delete-one jackknife over the rows of both sets, which is the noise of the rows themselves and
        errs upwards (Efron and Stein 1981; by √2 where both distributions are one). ``details``: ``std`` over subsets.

    Raises:
        ValueError: features that are no finite matrices of one width, fewer than 3 rows, a size or number of subsets out of range.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(400, 8, generator=generator), torch.randn(400, 8, generator=generator)
    >>> print(kernel_distance(x + 1, y, subsets=10, size=100))
    kernel distance = 7.507 ± 0.217 (n = 400)
      note: n = 400 is below 1000: the estimate is unbiased, but its noise is of the order of the differences between models
      note: 10 subsets of 100 rows overlap: the error is that of drawing subsets, subsets=None gives that of the data
    """
    generated, real = feature_pair(generated, real, least=3)
    if memory < 2**16:
        raise ValueError(f"memory = {memory} bytes do not hold a kernel block: allow at least {2**16}")
    dtype = torch.float64 if torch.float64 in (generated.dtype, real.dtype) else torch.float32
    n, (dependent, _) = min(len(generated), len(real)), dependence(row_keys(generated, dtype), row_keys(real, dtype))
    if 0 < (most := largest(generated, real)) < (torch.finfo(dtype).tiny / torch.finfo(dtype).eps) ** 0.5:
        raise ValueError(f"features of at most {most:.2g} are too small for their products: multiply both sets by one constant")
    tile = min(TILE, isqrt(memory // (3 * dtype.itemsize)))  # the product, its cube and a temporary live at once
    context: dict[str, str | int | float] = {"kernel": "(x.y/d + 1)^3", "precision": str(dtype).removeprefix("torch.")}
    if subsets is None:
        value, error = _exact(generated.to(dtype), real.to(dtype), tile)
        _check_finite(value)
        return Result("kernel distance", value, error, n, notes=_notes(n) + dependent, context={**context, "subsets": "all rows"})

    if subsets < 2:
        raise ValueError(f"at least 2 subsets are needed for an error, not {subsets}: pass more, or subsets=None for all rows")
    if not 2 <= size <= n:
        raise ValueError(f"subsets of {size} rows cannot be drawn from {n}: pass a size between 2 and {n}, or subsets=None for all rows")
    orders = canonical_order(generated).to(generated.device), canonical_order(real).to(real.device)
    values = torch.empty(subsets, dtype=torch.float64)
    for s in range(subsets):
        x, y = (
            side[order[permutation(len(side), "kernel-distance", seed, which, s)[:size].to(side.device)]].to(dtype)
            for side, order, which in ((generated, orders[0], "generated"), (real, orders[1], "real"))
        )
        values[s] = _unbiased(x, y, tile)
    notes = _notes(n) + dependent
    if subsets * size > n:
        notes += (f"{subsets} subsets of {size} rows overlap: the error is that of drawing subsets, subsets=None gives that of the data",)
    std = float(values.std())
    context |= {"subsets": subsets, "size": size, "seed": seed}
    _check_finite(float(values.sum()))
    return Result("kernel distance", float(values.mean()), std / subsets**0.5, n, notes=notes, details={"std": std}, context=context)


def _check_finite(value: float) -> None:
    if not isfinite(value):
        raise ValueError("features are too large for the cubes of their products: divide both sets by one constant")


def _unbiased(x: Tensor, y: Tensor, tile: int) -> float:
    n, m = len(x), len(y)
    (within_x, _), (within_y, _), (between, _) = _sums(x, None, tile), _sums(y, None, tile), _sums(x, y, tile)
    return float(within_x.sum() / (n * (n - 1)) + within_y.sum() / (m * (m - 1)) - 2 * between.sum() / (n * m))


def _exact(x: Tensor, y: Tensor, tile: int) -> tuple[float, float]:
    """The statistic over all rows, and the delete-one jackknife error, which needs no more than the row sums of the three kernel matrices."""
    n, m = len(x), len(y)
    (r, _), (q, _), (t, u) = _sums(x, None, tile), _sums(y, None, tile), _sums(x, y, tile)
    xx, yy, xy = r.sum(), q.sum(), t.sum()
    value = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    without_x = (xx - 2 * r) / ((n - 1) * (n - 2)) + yy / (m * (m - 1)) - 2 * (xy - t) / ((n - 1) * m)
    without_y = xx / (n * (n - 1)) + (yy - 2 * q) / ((m - 1) * (m - 2)) - 2 * (xy - u) / (n * (m - 1))
    variance = sum((v - v.mean()).square().sum() * (len(v) - 1) / len(v) for v in (without_x, without_y))
    return float(value), float(variance) ** 0.5


def _sums(x: Tensor, y: Tensor | None, tile: int) -> tuple[Tensor, Tensor]:
    """Row and column sums, float64, of k − 1 for x (n, d) with y (m, d); y None: of x with itself, without the diagonal."""
    other = x if y is None else y
    rows = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    columns = rows if y is None else torch.zeros(len(other), dtype=torch.float64, device=x.device)
    unused = torch.zeros((), dtype=x.dtype, device=x.device)
    with Bar(len(range(0, len(x), tile)), what="kernel", after=1.0) as bar:
        for i in bar.over(range(0, len(x), tile)):
            a = x[i : i + tile]
            for j in range(i if y is None else 0, len(other), tile):
                b = other[j : j + tile]
                t = torch.addmm(unused, a, b.T, beta=0, alpha=1 / x.shape[1])
                k = torch.add(t, 3).mul_(t).add_(3).mul_(t)
                if y is None and i == j:
                    k.fill_diagonal_(0)
                    rows[i : i + tile] += k.sum(1, dtype=torch.float64)
                    continue
                rows[i : i + tile] += k.sum(1, dtype=torch.float64)
                columns[j : j + tile] += k.sum(0, dtype=torch.float64)
    return rows, columns


def _notes(n: int) -> tuple[str, ...]:
    return (
        (f"n = {n} is below 1000: the estimate is unbiased, but its noise is of the order of the differences between models",)
        if n < 1000
        else ()
    )


@metric("kid", "KID", forbidden=lambda sets: sets.dependent)
def _all_pairs(sets: Compared) -> dict[str, Result]:
    if sets.dependent:
        return {}
    return {"KID": kernel_distance(sets.generated, sets.test, subsets=None, memory=sets.memory)}
