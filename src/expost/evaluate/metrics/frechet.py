"""The Fréchet distance between two sets of features, in float64 and without a matrix square root.

Two Gaussians N(m₁, S₁) and N(m₂, S₂) are at 2-Wasserstein distance

    FD = |m₁ − m₂|² + tr S₁ + tr S₂ − 2 tr (S₁S₂)^½

(Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions"), and the score of a generator is this distance
between the moments of features of real and of generated data (Heusel et al. 2017, "GANs trained by a two time-scale update rule converge
to a local Nash equilibrium", eq. 6). Covariances are the unbiased ones (n − 1).

The trace of the root is the nuclear norm (sum of singular values) of R₁ᵀR₂ for *any* factors S₁ = R₁R₁ᵀ, S₂ = R₂R₂ᵀ, which gives three
routes; none adds a multiple of the identity, and round-off below zero is clipped:

* ``svd``: the factors are the centred data themselves. Nothing is squared, so it stays exact when a set has fewer rows than dimensions.
* ``cholesky``: S₁ = LLᵀ, and the eigenvalues of LᵀS₂L are the squared singular values. The fastest, used when both have full rank.
* ``eigh``: factors from eigenvectors without the null space, for a singular covariance whose data are gone.

What is not promised: FD is biased upwards by about (1/n) times a constant that depends on both sets, so values at different n, and values
of different feature extractors, are not comparable. :attr:`FrechetDistance.notes` says when n is small; ``controls.floor`` measures it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from expost.evaluate.metrics.registry import Compared, metric
from expost.results import Result
from expost.seeds import permutation
from expost.statistics.samples import canonical_order, dependence, feature_matrix, feature_pair
from expost.system.hashes import row_keys
from expost.system.progress import Bar
from expost.tensors import in_range, largest, shifted

__all__ = ["FeatureStats", "FrechetDistance", "extrapolated", "frechet_distance"]

#: FD∞ is fifteen distances: cheap for small features, minutes for Inception's.
EXTRAPOLATED_UP_TO = 512

#: Below this many rows the literature's scores (10 000 or 50 000 rows) are not approached; the sentence is recorded in the result.
FEW = 2048
CHUNK = 4096
#: Columns per block of a symmetric or triangular product, of which only the blocks on and above the diagonal are computed.
BLOCK = 256
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """Number, mean and scatter of feature vectors, enough for a Fréchet distance.

    ``update`` and ``merge`` return new statistics by the pairwise formula of Chan, Golub and LeVeque (1983): the rows of every update are
    centred at their own mean before they are squared, so nothing cancels when the mean is large against the spread.

    Attributes:
        n: rows seen.
        mean: (d,) float64 on the CPU.
        scatter: (d, d) float64, Σᵢ (fᵢ − mean)(fᵢ − mean)ᵀ.

    >>> stats = FeatureStats.empty(2)
    >>> for batch in (torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[4.0, 3.0]])):
    ...     stats = stats.update(batch)
    >>> stats.n, stats.mean.tolist(), stats.covariance.tolist()
    (3, [2.0, 1.0], [[4.0, 3.0], [3.0, 3.0]])
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dim: int) -> FeatureStats:
        """Statistics of no rows at all in ``dim`` dimensions."""
        if dim < 1:
            raise ValueError(f"features need at least 1 dimension, not {dim}")
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def from_features(cls, features: Tensor) -> FeatureStats:
        """Statistics of the rows of ``features`` (n, d); memory beyond the input is one chunk in float64 and d² numbers.

        ``ValueError`` for features that are no finite matrix, or of a size beyond 1e±140: their squares are lost in float64.
        """
        return _statistics(feature_matrix(features))

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (d, d) float64; ``ValueError`` below two rows."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, not {self.n}: pass more data")
        return self.scatter / (self.n - 1)

    def update(self, features: Tensor) -> FeatureStats:
        """The statistics of these rows and ``features`` (m, d) together."""
        return self.merge(_statistics(feature_matrix(features, dim=self.dim)))

    def merge(self, other: FeatureStats) -> FeatureStats:
        """The statistics of both sets of rows together."""
        if self.dim != other.dim:
            raise ValueError(f"features of {self.dim} and of {other.dim} dimensions cannot be merged: use one extractor for both")
        n = self.n + other.n
        if n == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.n / n)
        return FeatureStats(n, mean, self.scatter + other.scatter + torch.outer(shift, shift) * (self.n * other.n / n))


@dataclass(frozen=True)
class FrechetDistance:
    """A Fréchet distance with what is needed to judge it.

    Attributes:
        value: |m₁ − m₂|² + the covariance term, in squared feature units.
        mean_term: |m₁ − m₂|².
        covariance_term: tr S₁ + tr S₂ − 2 tr (S₁S₂)^½, clipped at 0.
        n: rows of the first and of the second set.
        dim: dimension d of the features.
        rank: singular values of R₁ᵀR₂ above round-off; below ``dim``, directions exist in which one of the sets does not vary.
        method: ``svd``, ``cholesky`` or ``eigh``.
        notes: sentences on small n; empty when there is nothing to warn of.
    """

    value: float
    mean_term: float
    covariance_term: float
    n: tuple[int, int]
    dim: int
    rank: int
    method: str
    notes: tuple[str, ...] = ()

    def __float__(self) -> float:
        return self.value

    def result(self, name: str = "FD") -> Result:
        """This distance as a :class:`~expost.results.Result`; give the name of the extractor, e.g. ``extractor.label``."""
        details = {"mean_term": self.mean_term, "covariance_term": self.covariance_term, "rank": self.rank, "dim": self.dim}
        context: dict[str, str | int | float] = {"method": self.method, "n_first": self.n[0], "n_second": self.n[1]}
        return Result(name, self.value, n=min(self.n), notes=self.notes, details=details, context=context)

    def __str__(self) -> str:
        sizes = f"n={self.n[0]}" if self.n[0] == self.n[1] else f"n={self.n[0]} and {self.n[1]}"
        text = f"{self.value:.6g} (mean {self.mean_term:.4g} + covariance {self.covariance_term:.4g}; {sizes}, d={self.dim})"
        return "\n".join([text, *(f"  note: {note}" for note in self.notes)])


def frechet_distance(a: Tensor | FeatureStats, b: Tensor | FeatureStats) -> FrechetDistance:
    """Fréchet distance FD = |m₁ − m₂|² + tr S₁ + tr S₂ − 2 tr (S₁S₂)^½ between two sets of feature vectors.

    Heusel et al. 2017, eq. 6; computed in float64 on the CPU by the route that suits the rank (see the top of this file).

    Args:
        a: features (n, d) of any floating dtype, or their :class:`FeatureStats`.
        b: features (m, d), or statistics; n and m may differ, but both bias the value.

    Raises:
        ValueError: NaN or infinite features, different dimensions, fewer than two rows, or a distance beyond the range of float64.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> float(frechet_distance(x, x + 3))
    9.0
    """
    sides = (_checked(a, "first"), _checked(b, "second"))
    (n_a, n_b), (dim, dim_b) = (_size(side) for side in sides), (_dim(side) for side in sides)
    if dim != dim_b:
        raise ValueError(f"features of {dim} and of {dim_b} dimensions cannot be compared: use one extractor for both sets")

    e, sides = _in_range(sides)
    singular: Tensor | None = None
    method = "cholesky"
    if min(n_a, n_b) > dim:
        stats_a, stats_b = (FeatureStats.from_features(side) if isinstance(side, Tensor) else side for side in sides)
        mean_a, mean_b = stats_a.mean, stats_b.mean
        traces = float(stats_a.covariance.trace() + stats_b.covariance.trace())
        singular = _by_cholesky(stats_a.covariance, stats_b.covariance)
    if singular is None:
        method = "svd" if all(isinstance(side, Tensor) for side in sides) else "eigh"
        (mean_a, root_a), (mean_b, root_b) = (_root(side) for side in sides)
        traces = float(root_a.square().sum() + root_b.square().sum())
        singular = torch.linalg.svdvals(root_a @ root_b.T)

    rank = int((singular > (float(singular.max()) if len(singular) else 0.0) * dim * EPS).sum())
    terms = torch.tensor([float((mean_a - mean_b).square().sum()), max(traces - 2 * float(singular.sum()), 0.0)], dtype=torch.float64)
    mean_term, covariance_term = shifted(terms, 2 * e).tolist()
    value = mean_term + covariance_term
    if not isfinite(value) or (float(terms.sum()) > 0 and value < torch.finfo(torch.float64).tiny):
        raise ValueError("the distance of these features is beyond the range of float64: multiply both sets by one constant")
    notes = _notes(min(n_a, n_b), dim)
    return FrechetDistance(value, mean_term, covariance_term, (n_a, n_b), dim, rank, method, notes)


def extrapolated(
    generated: Tensor, real: Tensor | FeatureStats, *, sizes: int = 15, seed: int = 0, name: str = "FD at infinite n"
) -> Result:
    """Fréchet distance without its bias of order 1/n: the intercept of a straight line in 1/n through the distances of random subsets.

    FD∞ of Chong and Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find them", section 3: FD of n rows is biased by
    c/n + O(1/n²), so the distances at several n lie on a line whose end at 1/n = 0 is the value sought. Subsets are drawn independently of
    each other for every size (they overlap, and the last is all rows), from rows in canonical order: shuffling a set changes the value by
    round-off only. The points are weighted by n², because the noise of FD falls as 1/n (the authors weigh them alike: in our simulations that
    leaves twice the bias and up to 1.7 times the spread). Both sets shrink in the same proportion, so the bias of both is removed; if ``real`` is given by its statistics, only the
    generated set's is.

    Args:
        generated: features (n, d).
        real: features (m, d), or their statistics.
        sizes: subset sizes, at least 3, evenly spaced from n/10 (or 2d, where that is more; at most n/2) to n.
        seed: of the subsets.
        name: of the result.

    Returns:
        ``value``: the intercept, which may be negative by chance. ``error``: its standard error in the fit, given these rows: the noise of
        drawing subsets, not that of the rows themselves (about half of the spread over fresh sets of rows). ``details``: ``all``, the plain distance of all rows, and ``slope``, c.

    Raises:
        ValueError: as :func:`frechet_distance`; fewer than 20 rows; fewer than 3 sizes.

    Both sets must be independent draws. Where they share images, or repeat some, a note says so, and the value is no estimate.

    >>> x, y = (torch.randn(2000, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    >>> found = extrapolated(x, y)
    >>> bool(abs(found.value) < 0.2 * found.details["all"])
    True
    """
    if isinstance(real, FeatureStats):
        generated = feature_matrix(generated, what="features of the generated set")
    else:
        generated, real = feature_pair(generated, real)
    n, dim = generated.shape
    if sizes < 3 or min(n, _size(real)) < 20:
        raise ValueError(
            f"a line and its error need at least 3 sizes and 20 rows, not {sizes} sizes and {min(n, _size(real))} rows: pass more of them"
        )
    orders = canonical_order(generated), canonical_order(real) if isinstance(real, Tensor) else None
    counts = torch.linspace(min(max(n / 10, 2 * dim, 10), n / 2), n, sizes, dtype=torch.float64).round().long().tolist()
    distances = []
    with Bar(len(counts), what="FD at smaller n", after=1.0) as bar:
        for k, count in bar.over(enumerate(counts)):
            first = generated[orders[0][permutation(n, "extrapolated", seed, "generated", k)[:count]].to(generated.device)]
            second = real
            if isinstance(real, Tensor) and orders[1] is not None:
                many = max(round(count * len(real) / n), 2)
                second = real[orders[1][permutation(len(real), "extrapolated", seed, "real", k)[:many]].to(real.device)]
            distances.append(frechet_distance(first, second).value)

    x, y = 1 / torch.tensor(counts, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    weight = x**-2 / (x**-2).sum()
    middle = (weight * x).sum()
    leverage = (weight * (x - middle).square()).sum()
    slope = float((weight * (x - middle) * y).sum() / leverage)
    intercept = float((weight * y).sum() - slope * middle)
    spread = float((weight * (y - intercept - slope * x).square()).sum()) * sizes / (sizes - 2)
    error = (spread / sizes * (1 + float(middle**2 / leverage))) ** 0.5
    notes: tuple[str, ...] = (
        () if n >= 4 * dim else (f"n = {n} is below four times the feature dimension {dim}: FD is no straight line in 1/n there",)
    )
    if isinstance(real, Tensor):
        kind = torch.promote_types(generated.dtype, real.dtype)
        notes += dependence(row_keys(generated, kind), row_keys(real, kind))[0]
    else:
        notes += ("real is given by its statistics: the bias of its own sample size remains",)
    details = {"all": distances[-1], "slope": slope, "smallest": counts[0]}
    return Result(name, intercept, error, min(n, _size(real)), notes=notes, details=details, context={"seed": seed, "sizes": sizes})


def _in_range(
    sides: tuple[Tensor | FeatureStats, Tensor | FeatureStats],
) -> tuple[int, tuple[Tensor | FeatureStats, Tensor | FeatureStats]]:
    """As :func:`expost.tensors.in_range`, for statistics too."""
    e, _ = in_range(*(side if isinstance(side, Tensor) else torch.stack([side.mean, side.covariance.diagonal().sqrt()]) for side in sides))

    def scaled(side: Tensor | FeatureStats) -> Tensor | FeatureStats:
        if isinstance(side, Tensor):
            return shifted(side.double(), -e)
        return FeatureStats(side.n, shifted(side.mean, -e), shifted(side.scatter, -2 * e))

    return e, sides if e == 0 else (scaled(sides[0]), scaled(sides[1]))


def _by_cholesky(a: Tensor, b: Tensor) -> Tensor | None:
    """Singular values of R₁ᵀR₂ from the eigenvalues of LᵀS₂L, or None where a covariance is singular to working precision."""
    (lower, info_a), (other, info_b) = torch.linalg.cholesky_ex(a), torch.linalg.cholesky_ex(b)
    for factor, info in ((lower, info_a), (other, info_b)):
        pivots = factor.diagonal().square()
        if int(info) != 0 or not bool(pivots.min() > pivots.max() * len(a) * EPS):  # a unit that never fires, say
            return None
    return torch.linalg.eigvalsh(_sandwich(lower, b), UPLO="U").clamp(min=0).sqrt()


def _statistics(features: Tensor) -> FeatureStats:
    """Statistics of all rows of ``features`` (n, d), centred at their common mean: two passes over the rows, one product of half its size."""
    n, d = features.shape
    if features.dtype == torch.float64 and n and not 1e-140 < (most := largest(features)) < 1e140 and most != 0:
        raise ValueError(f"features of a size up to {most:.2g} have squares beyond the range of float64: multiply them by a constant")
    mean, scatter = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for chunk in features.split(CHUNK):
        mean += chunk.to("cpu", torch.float64).sum(0)
    mean /= max(n, 1)
    residual = torch.zeros(d, dtype=torch.float64)
    for chunk in features.split(CHUNK):
        rows = chunk.to("cpu", torch.float64) - mean
        residual += rows.sum(0)
        for i in range(0, d, BLOCK):
            scatter[i : i + BLOCK, i:].addmm_(rows[:, i : i + BLOCK].T, rows[:, i:])
    residual /= max(n, 1)  # round-off of the mean, which counts where it is large
    scatter.addr_(residual, residual, alpha=-n)
    for i in range(0, d, BLOCK):
        block = scatter[i : i + BLOCK, i : i + BLOCK]
        block.copy_(block.triu() + block.triu(1).T)
        scatter[i + BLOCK :, i : i + BLOCK] = scatter[i : i + BLOCK, i + BLOCK :].T
    return FeatureStats(n, mean + residual, scatter)


def _sandwich(lower: Tensor, b: Tensor) -> Tensor:
    """The blocks on and above the diagonal of LᵀBL, L lower triangular: half of the first product and a third of the second."""
    first, product = torch.empty_like(b), torch.zeros_like(b)
    for i in range(0, len(b), BLOCK):
        first[:, i : i + BLOCK] = b[:, i:] @ lower[i:, i : i + BLOCK]
    for i in range(0, len(b), BLOCK):
        product[i : i + BLOCK, i:] = lower[i:, i : i + BLOCK].T @ first[i:, i:]
    return product


def _root(side: Tensor | FeatureStats) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a matrix Y (r, d) with YᵀY = S.

    From data: the centred rows over √(n − 1), or their triangular factor where that is smaller. From statistics: eigenvectors, without
    the null space (at least d − n + 1 directions), of which each would add the root of its round-off.
    """
    if isinstance(side, Tensor):
        rows = side.to("cpu", torch.float64)
        mean = rows.mean(0)
        root = (rows - mean) / (len(rows) - 1) ** 0.5
        return mean, torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root
    values, vectors = torch.linalg.eigh(side.covariance)
    kept = values > values.max().clamp(min=0) * len(values) * EPS
    kept[: max(side.dim - side.n + 1, 0)] = False
    return side.mean, (vectors[:, kept] * values[kept].sqrt()).T


def _notes(n: int, dim: int) -> tuple[str, ...]:
    notes = []
    if n < 2 * dim:
        notes.append(f"n = {n} is below twice the feature dimension {dim}: the covariances are poorly estimated and FD is biased upwards")
    if n < FEW:
        notes.append(f"n = {n} is below {FEW}: compare with values at the same n only")
    return tuple(notes)


def _checked(side: Tensor | FeatureStats, which: str) -> Tensor | FeatureStats:
    if not isinstance(side, FeatureStats):
        side = feature_matrix(side, what=f"features of the {which} set")
    elif not (torch.isfinite(side.mean).all() and torch.isfinite(side.scatter).all()):
        raise ValueError(f"the statistics of the {which} set hold NaN or infinity: recompute them from finite features")
    if _size(side) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 feature vectors on each side, not {_size(side)}: pass more data")
    return side


def _size(side: Tensor | FeatureStats) -> int:
    return len(side) if isinstance(side, Tensor) else side.n


def _dim(side: Tensor | FeatureStats) -> int:
    return side.shape[1] if isinstance(side, Tensor) else side.dim


@metric("fd", "FD", "FD∞")
def _distances(sets: Compared) -> dict[str, Result]:
    """FD, and FD∞ where fifteen more distances are cheap and lie on a line in 1/n, and the sets are independent."""
    reference = sets.reference
    distance, (n, d) = frechet_distance(sets.generated, reference.stats).result(reference.label), sets.generated.shape
    if sets.dependent:
        return {"FD": distance}
    if d <= EXTRAPOLATED_UP_TO and min(n, len(reference.test)) >= 4 * d:
        return {"FD": distance, "FD∞": extrapolated(sets.generated, reference.test, seed=sets.seed)}
    why = f"{d} dimensions are more than {EXTRAPOLATED_UP_TO}" if d > EXTRAPOLATED_UP_TO else f"n is below four times the {d} dimensions"
    return {"FD": dataclasses.replace(distance, notes=(*distance.notes, f"no FD∞: {why}"))}
