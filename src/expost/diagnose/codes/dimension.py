r"""How many dimensions do points fill? Two estimates of the intrinsic dimension from distances to nearest neighbours.

Where the density is about constant over a few neighbours, their number within radius r grows as r^d. With T_j the distance of a point to its
j-th neighbour:

* **TwoNN** (Facco, d'Errico, Rodriguez, Laio 2017, "Estimating the intrinsic dimension of datasets by a minimal neighborhood information"):
  μ = T_2 / T_1 has density d μ^(-d-1), so the maximum-likelihood d is N / Σ log μ. The largest ratios come from isolated points; with a share
  ``discard`` of them left out, what remains is a censored sample, whose maximum likelihood is m / (Σ_{i≤m} log μ_(i) + (N - m) log μ_(m)).
  (Facco et al. fit a line through the origin to the same points.)
* **Levina and Bickel** (2005, "Maximum likelihood estimation of intrinsic dimension"): 1 / m_k(x) = 1/(k-1) Σ_{j<k} log T_k / T_j at every
  point; inverses are averaged over points (MacKay and Ghahramani 2005), d_k = 1 / mean(1 / m_k), and d_k over k = 10 ... 20.

Both see the scale of the nearest neighbours, which shrinks as N^(-1/d): noise raises the estimate when points are many, and curvature and edges
lower it when they are few, the more the higher d is (uniform in a cube, N = 5000: 1 % at d = 2, 3 to 8 % at d = 5, 12 to 16 % at d = 10, 20 to 25 % at d = 20). Therefore the
estimate from a half of the points stands beside it: where the two differ, there is no one dimension.

A copy of a point is no neighbour: it would make T_1 = 0. Copies are removed first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expost.results import Result
from expost.seeds import generator, permutation, some
from expost.statistics.neighbours import MEMORY, nearest
from expost.tensors import check_finite, unit

__all__ = ["MEMORY", "Neighbourhoods", "levina_bickel", "nearest_distances", "neighbourhoods", "two_nn"]

#: Rows used unless asked otherwise, and resamplings for the error.
ROWS, RESAMPLINGS = 5000, 200
#: Change from half of the points to all of them, in parts of the estimate, above which a note is made.
CHANGE = 0.1
#: Dimension above which edges of a cube lower the estimate from 5000 points by more than a tenth.
HIGH = 8


def nearest_distances(x: Tensor, k: int, *, memory: int = MEMORY) -> Tensor:
    """Distances of every row to its k nearest other rows, ascending: (n, k) float64 on the device of ``x``.

    Those of float64 arithmetic, copies at exactly 0, as told in :mod:`expost.statistics.neighbours`.

    Args:
        x: (n, d) floating, n > k.
        memory: bytes beyond the inputs and the result.

    >>> nearest_distances(torch.tensor([[0.0], [1.0], [3.0]]), 1).T
    tensor([[1., 1., 2.]], dtype=torch.float64)
    """
    if not 1 <= k < len(x):
        raise ValueError(f"{k} nearest neighbours cannot be found among {len(x) - 1} other points: choose 1 <= k < {len(x)}")
    return nearest(x, x, k, same=True, memory=memory).distances


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """log T_j of different points: what both estimates are made of.

    Attributes:
        logs: log distances to the nearest k other points, (n, k) float64 on the CPU; ``half``: the same among half of the points.
        copies: rows left out because they are equal to another one.
        notes: sentences that the reader must know; ``seed``: of the choice of rows, of the half, and of the bootstrap.
    """

    logs: Tensor
    half: Tensor
    copies: int
    seed: int
    notes: tuple[str, ...] = ()


def neighbourhoods(x: Tensor, k: int = 20, *, n: int | None = ROWS, seed: int = 0, memory: int = MEMORY) -> Neighbourhoods:
    """The search that :func:`two_nn` (k of at least 2) and :func:`levina_bickel` (k of at least its largest) can share.

    Args:
        x: (n, *event), data (uint8 too) or codes; flattened to vectors.
        k: neighbours.
        n: rows used, drawn with the seed; None for all of them.
        memory: bytes beyond the inputs.

    Raises:
        ValueError: NaN, or fewer than 2 k + 6 different rows.
    """
    check_finite(x, "data")
    chosen = x if n is None else some(x, n, "dimension", seed)
    rows = unit(chosen.flatten(1))
    points = torch.unique(rows, dim=0)
    copies, total = len(rows) - len(points), len(points)
    if total < 2 * k + 6:
        raise ValueError(
            f"the intrinsic dimension needs at least {2 * k + 6} different points for k = {k}, there are {total}: pass more data"
        )
    notes = [f"{copies} of {len(rows)} rows are copies of others and were left out"] if copies else []
    if total < 500:
        notes.append(f"only {total} points: edges and curvature lower the estimate")
    part = permutation(total, "dimension", "half", seed)[: total // 2].to(points.device)
    logs, half = (nearest_distances(rows, k, memory=memory).log().cpu() for rows in (points, points[part]))
    return Neighbourhoods(logs, half, copies, seed, tuple(notes))


def two_nn(
    x: Tensor | Neighbourhoods,
    *,
    n: int | None = ROWS,
    discard: float = 0.1,
    seed: int = 0,
    memory: int = MEMORY,
    name: str = "dimension[TwoNN]",
) -> Result:
    """Intrinsic dimension by TwoNN (see the top of this file).

    Args:
        x: (n, *event), data (uint8 too) or codes, flattened to vectors; or their :func:`neighbourhoods`.
        n: rows used, drawn with the seed; None for all of them.
        discard: share of the largest ratios left out, in [0, 1).
        seed, memory: as for :func:`neighbourhoods`.

    Returns:
        ``value``: d. ``error``: standard deviation over 200 bootstrap samples of the ratios, which ignores that neighbours share them.
        ``details``: ``half``, the estimate from half of the points; ``copies`` left out.

    Raises:
        ValueError: fewer than 10 different rows, NaN, or ``discard`` out of range.
    """
    if not 0 <= discard < 1:
        raise ValueError(f"discard must be a share in [0, 1), not {discard}")
    found = x if isinstance(x, Neighbourhoods) else neighbourhoods(x, 2, n=n, seed=seed, memory=memory)

    def estimate(ratios: Tensor) -> Tensor:
        total = len(ratios)
        kept = max(1, total - int(discard * total))
        ordered = ratios.sort().values[:kept]
        return kept / (ordered.sum() + (total - kept) * ordered[-1])

    return _result(name, found, lambda logs: logs[:, 1] - logs[:, 0], estimate, {"discard": discard})


def levina_bickel(
    x: Tensor | Neighbourhoods,
    *,
    k: tuple[int, int] = (10, 20),
    n: int | None = ROWS,
    seed: int = 0,
    memory: int = MEMORY,
    name: str = "dimension[MLE]",
) -> Result:
    """Intrinsic dimension by Levina and Bickel's maximum likelihood (see the top of this file), averaged over k from ``k[0]`` to ``k[1]``.

    Args:
        x: (n, *event), data (uint8 too) or codes, flattened to vectors; or their :func:`neighbourhoods`.
        k: smallest and largest number of neighbours, both included, at least 2.
        n: rows used, drawn with the seed; None for all of them.
        seed, memory: as for :func:`neighbourhoods`.

    Returns:
        ``value``: d. ``error``: standard deviation over 200 bootstrap samples of the points. ``details``: ``half``, the estimate from half of
        the points; ``k=...`` at both ends; ``copies`` left out.

    Raises:
        ValueError: fewer than 2 ``k[1]`` + 6 different rows, NaN, or k out of order.
    """
    low, high = k
    if not 2 <= low <= high:
        raise ValueError(f"k must be two numbers in order, the smallest at least 2, not {k}")
    found = x if isinstance(x, Neighbourhoods) else neighbourhoods(x, high, n=n, seed=seed, memory=memory)
    if found.logs.shape[1] < high:
        raise ValueError(f"{high} neighbours are needed and {found.logs.shape[1]} were searched: call neighbourhoods(x, {high})")

    def inverses(logs: Tensor) -> Tensor:
        counts = torch.arange(low, high + 1)
        return logs[:, counts - 1] - logs.cumsum(1)[:, counts - 2] / (counts - 1)  # (n, number of k): 1 / m_k(x)

    def estimate(values: Tensor) -> Tensor:
        return (1 / values.mean(0)).mean()

    ends = 1 / inverses(found.logs).mean(0)
    return _result(name, found, inverses, estimate, {f"k={low}": float(ends[0]), f"k={high}": float(ends[-1])})


def _result(
    name: str, found: Neighbourhoods, statistic: Callable[[Tensor], Tensor], estimate: Callable[[Tensor], Tensor], details: dict[str, float]
) -> Result:
    """The estimate from a statistic of every point, its bootstrap error, and the estimate from half of the points."""
    values, notes = statistic(found.logs), list(found.notes)
    n, value = len(values), float(estimate(values))
    if not math.isfinite(value):
        raise ValueError("all neighbours are at equal distances, as on a grid: the dimension cannot be read from them, add a little noise")
    index = torch.randint(n, (RESAMPLINGS, n), generator=generator("dimension", "bootstrap", found.seed))
    error = float(torch.stack([estimate(values[row]) for row in index]).std())
    half = float(estimate(statistic(found.half)))
    if abs(half - value) > max(CHANGE * value, 3 * error):
        notes.append(f"half of the points give {half:.2f}: the estimate depends on the scale, so it is no property of the data alone")
    if value > HIGH:
        notes.append("in more than about 8 dimensions neighbours are far apart and the estimate is too low")
    every = {**details, "half": half, "copies": float(found.copies)}
    return Result(name, value, error, n, notes=tuple(notes), details=every, context={"seed": found.seed})
