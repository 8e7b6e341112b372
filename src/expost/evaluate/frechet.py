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

from dataclasses import dataclass

import torch
from torch import Tensor

from expost.tensors import check_finite

__all__ = ["FeatureStats", "FrechetDistance", "frechet_distance"]

#: Below this many rows the literature's scores (10 000 or 50 000 rows) are not approached; the sentence is recorded in the result.
FEW = 2048
CHUNK = 4096
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """Number, mean and scatter of feature vectors, enough for a Fréchet distance.

    ``update`` and ``merge`` return new statistics by the pairwise formula of Chan, Golub and LeVeque (1983): every chunk is centred at its
    own mean before it is squared, so nothing cancels when the mean is large against the spread.

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
        """Statistics of the rows of ``features`` (n, d); memory beyond the input is one chunk in float64 and d² numbers."""
        return cls.empty(_matrix(features).shape[1]).update(features)

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
        stats = self
        for chunk in _matrix(features, dim=self.dim).split(CHUNK):
            rows = chunk.to("cpu", torch.float64)
            if len(rows):
                mean = rows.mean(0)
                centred = rows - mean
                stats = stats.merge(FeatureStats(len(rows), mean, centred.T @ centred))
        return stats

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
        ValueError: NaN or infinite features, different dimensions, or fewer than two rows.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> float(frechet_distance(x, x + 3))
    9.0
    """
    sides = (_checked(a, "first"), _checked(b, "second"))
    (n_a, n_b), (dim, dim_b) = (_size(side) for side in sides), (_dim(side) for side in sides)
    if dim != dim_b:
        raise ValueError(f"features of {dim} and of {dim_b} dimensions cannot be compared: use one extractor for both sets")

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
    mean_term = float((mean_a - mean_b).square().sum())
    covariance_term = max(traces - 2 * float(singular.sum()), 0.0)
    notes = _notes(min(n_a, n_b), dim)
    return FrechetDistance(mean_term + covariance_term, mean_term, covariance_term, (n_a, n_b), dim, rank, method, notes)


def _by_cholesky(a: Tensor, b: Tensor) -> Tensor | None:
    """Singular values of R₁ᵀR₂ from the eigenvalues of LᵀS₂L, or None where a covariance is singular to working precision."""
    (lower, info_a), (other, info_b) = torch.linalg.cholesky_ex(a), torch.linalg.cholesky_ex(b)
    for factor, info in ((lower, info_a), (other, info_b)):
        pivots = factor.diagonal().square()
        if int(info) != 0 or not bool(pivots.min() > pivots.max() * len(a) * EPS):  # a unit that never fires, say
            return None
    return torch.linalg.eigvalsh(lower.T @ b @ lower).clamp(min=0).sqrt()


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


def _matrix(features: Tensor, dim: int | None = None, what: str = "features") -> Tensor:
    """``features`` if they are a finite floating matrix (n, d)."""
    if features.dim() != 2 or features.shape[1] == 0 or not features.is_floating_point():
        raise ValueError(
            f"{what} must be a floating-point matrix (n, d), not {features.dtype} of shape {tuple(features.shape)}: pass one row per image"
        )
    if dim is not None and features.shape[1] != dim:
        raise ValueError(f"features of {features.shape[1]} dimensions cannot join statistics of {dim}: use one extractor for both")
    check_finite(features, what)
    return features.detach()


def _checked(side: Tensor | FeatureStats, which: str) -> Tensor | FeatureStats:
    if isinstance(side, Tensor):
        side = _matrix(side, what=f"features of the {which} set")
    elif not (torch.isfinite(side.mean).all() and torch.isfinite(side.scatter).all()):
        raise ValueError(f"the statistics of the {which} set hold NaN or infinity: recompute them from finite features")
    if _size(side) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 feature vectors on each side, not {_size(side)}: pass more data")
    return side


def _size(side: Tensor | FeatureStats) -> int:
    return len(side) if isinstance(side, Tensor) else side.n


def _dim(side: Tensor | FeatureStats) -> int:
    return side.shape[1] if isinstance(side, Tensor) else side.dim
