"""k-means by Lloyd's algorithm, many restarts at once.

A partition of rows x₁ … x_n into K clusters has the inertia W = Σᵢ |xᵢ − c(i)|², c(i) the mean of the cluster of row i. Lloyd's algorithm
(1982, "Least squares quantization in PCM") assigns every row to its nearest mean and takes means anew; W never grows. It ends in a local
minimum that depends on the start, so R restarts are wanted, and they share their work:

* **Start**: greedy k-means++ (Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding"), with draws of its own for each
  restart, and Lloyd's algorithm until it settles, on a random subsample; then on one four times as large, and so on. On all rows only a few
  iterations are left to do.
* **Iteration**: the nearest of K means, for R restarts at once, is one product of the rows with R·K means, and the rows are read once.
* **Means**: sums of rows are kept in float64, and from the second iteration only rows that changed their cluster are added and taken off.
* **End**: per restart, once no row changes or W falls by less than ``tolerance`` of itself; it then leaves the product.

The mean of all rows is subtracted first (k-means does not depend on it), so that distances, which are compared in float32, do not cancel.
An empty cluster gets the row that is farthest from its mean. W is computed from the float64 sums, as the total minus what lies between
clusters, and is exact for the labels returned, of the features in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import torch
from torch import Tensor

from expost.seeds import generator, permutation
from expost.statistics.samples import feature_matrix
from expost.system.progress import Bar
from expost.tensors import in_range, shifted

__all__ = ["Clusters", "lloyd"]

#: Rows of the smallest subsample, on which restarts begin.
START = 2048


@dataclass(frozen=True, eq=False)
class Clusters:
    """R partitions of n rows.

    Attributes:
        labels: (R, n) int64, 0 … K − 1.
        inertias: (R,) float64, within-cluster sums of squares about the means of the clusters.
        iterations: (R,) int64, on all rows; those on subsamples are not counted.
    """

    labels: Tensor
    inertias: Tensor
    iterations: Tensor


def lloyd(
    features: Tensor,
    clusters: int,
    *,
    restarts: int = 1,
    seed: int = 0,
    tolerance: float = 3e-3,
    iterations: int = 100,
    memory: int = 256 * 2**20,
) -> Clusters:
    """``restarts`` independent k-means partitions of the rows of ``features`` (see the top of this file). Deterministic in the seed.

    Args:
        features: (n, d), any floating dtype; a centred float32 copy is made.
        clusters: K, at most n. Where there are fewer distinct rows, some clusters stay empty.
        restarts: R.
        seed: of subsamples and starts; restart r depends on (seed, r) alone.
        tolerance: a restart ends once an iteration lowers its inertia by less than this fraction.
        iterations: on all rows, at most.
        memory: bytes beyond that copy for products and subsamples.

    Raises:
        ValueError: features that are no finite matrix, or a number of clusters, restarts or iterations out of range.

    >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> found = lloyd(x, 2, restarts=3)
    >>> [bool(a[0] == a[1] != a[2] == a[3]) for a in found.labels], found.inertias.round(decimals=4).tolist()
    ([True, True, True], [0.01, 0.01, 0.01])
    """
    x = feature_matrix(features)
    if not 1 <= clusters <= len(x):
        raise ValueError(f"{clusters} clusters cannot be made of {len(x)} rows: pass more rows or fewer clusters")
    if restarts < 1 or iterations < 1:
        raise ValueError(f"at least 1 restart and 1 iteration are needed, not {restarts} and {iterations}")
    e, (x,) = in_range(x, single=True)
    found = lloyd_(
        x.to(torch.float32, copy=True), clusters, restarts=restarts, seed=seed, tolerance=tolerance, iterations=iterations, memory=memory
    )
    return replace(found, inertias=shifted(found.inertias, 2 * e))


def lloyd_(x: Tensor, clusters: int, *, restarts: int, seed: int, tolerance: float = 3e-3, iterations: int = 100, memory: int) -> Clusters:
    """:func:`lloyd` of float32 rows that it may overwrite: on leaving, ``x`` is centred."""
    n, d = x.shape
    step = max(min(4096, memory // (4 * (3 * restarts * clusters + d))), 1)  # rows per product: scores, members, and changed rows gathered
    x -= sum(rows.sum(0).double() for rows in x.split(step)).div_(n).to(x.dtype)
    order = permutation(n, "k-means", seed).to(x.device)
    sizes = [n]
    while sizes[-1] > 2 * START:
        sizes.append(max(sizes[-1] // 4, START))
    centres: Tensor | None = None
    with Bar(len(sizes) * iterations, what="k-means", unit="iteration", after=1.0) as bar:
        for stage, size in enumerate(reversed(sizes)):
            rows = x if size == n else x[order[:size]]
            state = _State(rows, _plus_plus(rows, clusters, restarts, seed) if centres is None else centres, step)
            active = torch.arange(restarts)
            for iteration in range(iterations):
                bar.update(stage * iterations + iteration)
                active = active[~state.iterate(active, tolerance)]
                if len(active) == 0:
                    break
            centres = state.centres
    return Clusters(state.labels.long(), state.inertias, state.count)


class _State:
    """Labels, float64 sums and sizes of all restarts, and one iteration of some of them."""

    def __init__(self, x: Tensor, centres: Tensor, step: int) -> None:
        restarts, clusters, d = centres.shape
        self.x, self.step, self.centres = x, step, centres  # centres (R, K, d)
        self.labels = torch.full((restarts, len(x)), -1, dtype=torch.int32, device=x.device)
        self.sums = torch.zeros(restarts, clusters, d, dtype=torch.float64, device=x.device)
        self.sizes = torch.zeros(restarts, clusters, dtype=torch.float64, device=x.device)
        self.squares = _squares(x, step)
        self.total = float(self.squares.sum(dtype=torch.float64))
        self.inertias = torch.full((restarts,), float("inf"), dtype=torch.float64)
        self.count = torch.zeros(restarts, dtype=torch.int64)

    def iterate(self, active: Tensor, tolerance: float) -> Tensor:
        """Assign, take means, reseed empty clusters, for the restarts ``active`` (A,); which of them have ended, (A,) bool."""
        labels, distances = self._assign(active)
        changed = labels != self.labels[active]
        first = bool((self.count[active] == 0).all())
        if first:
            self._add_all(active, labels)
        else:
            for a, r in enumerate(active.tolist()):
                self._move(r, changed[a].nonzero()[:, 0], labels[a])
        self.labels[active] = labels
        self.count[active] += 1
        means = self.sums[active] / self.sizes[active].clamp_min(1)[..., None]
        inertias = (self.total - (self.sums[active] * means).sum((1, 2))).clamp_min(0).cpu()
        drop = self.inertias[active] - inertias
        ended = ~changed.any(1).cpu() | (drop < tolerance * inertias)
        self.inertias[active] = inertias
        self.centres[active] = means.to(self.x.dtype)
        for a, k in (self.sizes[active] == 0).nonzero().tolist():
            far = int(distances[a].argmax())
            if float(distances[a, far]) > 0:
                self.centres[active[a], k] = self.x[far]
                distances[a, far] = 0
                ended[a] = False
        return ended

    def _assign(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest centre of every row (A, n) int32, and its squared distance (A, n)."""
        centres = self.centres[active].transpose(0, 1).reshape(-1, self.x.shape[1])  # (K·A, d): clusters outermost, for the minimum
        norms = centres.square().sum(1)[:, None]
        labels, distances = [], []
        for rows in self.x.split(self.step):
            score = torch.addmm(norms, centres, rows.T, alpha=-2).view(-1, len(active) * len(rows))
            least, label = score.min(0)
            labels.append(label.view(len(active), -1).int())
            distances.append(least.view(len(active), -1))
        return torch.cat(labels, 1), torch.cat(distances, 1).add_(self.squares)

    def _add_all(self, active: Tensor, labels: Tensor) -> None:
        """Sums over all rows: one product per chunk of rows for all restarts, added up in float64."""
        clusters = self.sums.shape[1]
        numbers = torch.arange(clusters, dtype=torch.int32, device=self.x.device)[None, :, None]
        for rows, part in zip(self.x.split(self.step), labels.split(self.step, 1), strict=True):
            member = (part[:, None] == numbers).to(rows.dtype)
            self.sums[active] += (member.view(-1, len(rows)) @ rows).view(len(active), clusters, -1)
            self.sizes[active] += member.sum(2)

    def _move(self, r: int, changed: Tensor, labels: Tensor) -> None:
        """Take the rows ``changed`` off their old clusters of restart r and add them to the new ones."""
        clusters = torch.arange(self.sums.shape[1], dtype=torch.int32, device=self.x.device)[:, None]
        for rows in changed.split(self.step):
            move = (labels[rows] == clusters).to(self.x.dtype) - (self.labels[r, rows] == clusters).to(self.x.dtype)
            self.sums[r] += move @ self.x[rows]
            self.sizes[r] += move.sum(1)


def _squares(x: Tensor, step: int) -> Tensor:
    """|x_i|² (n,), without a matrix of squares."""
    return torch.cat([torch.linalg.vector_norm(rows, dim=1).square_() for rows in x.split(step)])


def _plus_plus(x: Tensor, clusters: int, restarts: int, seed: int) -> Tensor:
    """Rows of ``x`` (n, d) as centres (R, K, d), by greedy k-means++ for all restarts at once.

    Each centre is the best of 2 + ln K candidates, drawn with probability ∝ squared distance to the centres before it.
    """
    trials = 2 + int(log(clusters))
    draws = [generator("k-means", seed, r) for r in range(restarts)]
    squares = _squares(x, len(x))
    each = torch.arange(restarts, device=x.device)
    chosen = [torch.stack([torch.randint(len(x), (), generator=draw) for draw in draws]).to(x.device)]
    least = (squares + squares[chosen[0], None] - 2 * (x[chosen[0]] @ x.T)).clamp_min(0)  # (R, n)
    for _ in range(clusters - 1):
        reach = least.double().cumsum(1)
        uniform = torch.stack([torch.rand(trials, dtype=torch.float64, generator=draw) for draw in draws]).to(x.device)
        candidates = torch.searchsorted(reach, uniform * reach[:, -1:], right=True).clamp_max(len(x) - 1)  # (R, trials)
        distances = squares + squares[candidates, None] - 2 * (x[candidates.flatten()] @ x.T).view(restarts, trials, -1)
        distances = torch.minimum(distances.clamp_min(0), least[:, None])
        best = distances.sum(2, dtype=torch.float64).argmin(1)
        chosen.append(candidates[each, best])
        least = distances[each, best]
    return x[torch.stack(chosen, 1)]
