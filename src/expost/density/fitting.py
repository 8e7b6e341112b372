"""What fitting a density has in common: checks, a factor of a covariance that always exists, and a report.

A covariance estimated from codes may be singular: a dimension that the decoder ignores is constant, units are tied or duplicated, or there are
fewer codes than dimensions. A density must still be proper, so directions without variance get a small one: :meth:`Moments.factor` raises the
eigenvalues below a floor, and only those, to that floor. The floor is relative to the codes, dimension by dimension: codes of 1e-30 or 1e30,
or of 1e-8 and 1e8 side by side, are treated alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from expost.density.base import Codes, Density, NotFittedError, draw_codes
from expost.seeds import permutation

__all__ = [
    "WIDEST",
    "FitReport",
    "Moments",
    "codes_for",
    "drawn_in",
    "held_out_split",
    "lower",
    "require_fitted",
    "spreads",
    "variance_floor",
]

#: The smallest deviation: its inverse still is a float32.
TINY = 1e-35
#: Deviations from the median beyond which a code is an outlier, and codes of which median and deviation are taken.
FAR, QUANTILE_ROWS = 30.0, 10_000
#: Largest standardised code that a network is trained on.
WIDEST = 1e3


@dataclass(frozen=True)
class FitReport:
    """How a fit went. Log-likelihoods are means in nats per code.

    Attributes:
        log_likelihood: of the codes fitted to.
        held_out: of the codes given as ``held_out``, or that the fit itself set aside; None if there were none.
        iterations: of the last stage, on all codes.
        converged: whether the tolerance was met within the iterations allowed.
        note: what a reader should know, e.g. that it did not converge; empty if nothing.
    """

    log_likelihood: float
    held_out: float | None = None
    iterations: int | None = None
    converged: bool = True
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def require_fitted(density: Density) -> None:
    """Raise :class:`NotFittedError` with the remedy unless the buffer ``fitted`` is set."""
    if not bool(density.fitted):
        name = type(density).__name__
        raise NotFittedError(f"this {name} has not been fitted: call .fit(z) on codes z of shape (n, d), or load a fitted one")


def codes_for(density: Density, d: int, z: Codes, *, seed: int, least: int = 2) -> Tensor:
    """Checked codes (n, d) on the density's device; raises ``ValueError`` if they are of another dimension or fewer than ``least``."""
    z = draw_codes(z, seed=seed)
    name = type(density).__name__
    if not z.is_floating_point():
        raise ValueError(f"codes must be floating-point numbers, not {z.dtype}: convert them with .float()")
    if z.shape[1] != d:
        raise ValueError(f"this {name} is for codes of dimension {d}, but these have {z.shape[1]}: build {name}({z.shape[1]}, ...)")
    if len(z) < least:
        raise ValueError(f"this {name} needs at least {least} codes, not {len(z)}: encode more data or fit a simpler density")
    return z.to(density.fitted.device)  # type: ignore[arg-type]


def drawn_in(z: Tensor) -> Tensor:
    """Codes (n, d), outliers drawn in to :data:`FAR` deviations from the median, dimension by dimension: to take scales from, never to fit to.

    The deviation is half of what lies between the quantiles .16 and .84: a single broken code does not change it. Where these are equal (a sparse
    dimension is mostly one value) nothing is called an outlier. ``z`` itself where there are none.
    """
    some = z[permutation(len(z), "outliers")[:QUANTILE_ROWS].to(z.device)].double()
    low, median, high = (some.kthvalue(max(1, round(share * len(some))), 0).values for share in (0.16, 0.5, 0.84))
    reach = torch.where(high > low, FAR * (high - low) / 2, torch.inf)
    near = torch.clamp(z.double(), median - reach, median + reach)
    return z if bool((near == z).all()) else near.to(z.dtype)


def spreads(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation (ML) and a mask "varies" of every dimension of codes (n, d), in float64, each (d,).

    A dimension varies if its deviation is more than float32 (or the codes' own type) resolves beside its largest value; the deviation of the
    others is a floor: the largest of 1e-6 of their value, 1e-5 of the smallest deviation of those that vary, and, if none does, 1e-6.
    """
    rows, largest = z.double(), z.abs().amax(0).double()
    mean = rows.mean(0)
    std = (rows - mean).square().mean(0).sqrt()
    varies = (std > _resolution(z) * largest) & (std > TINY)
    least = 1e-5 * float(std[varies].min()) if varies.any() else 1e-6 * (float(largest.max()) or 1.0)
    return mean, torch.where(varies, std, (1e-6 * largest).clamp_min(max(least, TINY))), varies


def _resolution(z: Tensor) -> float:
    """Relative spacing of numbers, at best that of float32, in which densities are kept."""
    return float(max(torch.finfo(z.dtype).eps, torch.finfo(torch.float32).eps))


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of codes in float64, each dimension in a unit of its own, so that no range of scales is lost to round-off.

    Attributes:
        mean: (d,), in the codes' units.
        unit: (d,) powers of two, equal for dimensions whose deviations are within 2^10 of the largest one.
        covariance: (d, d) of (z - mean) / unit (ML), with zeros for dimensions that do not vary (:func:`spreads`). Variances include that of
            rounding, (resolution · largest value / 2)², which counts where tied dimensions lie far from 0 only.
    """

    mean: Tensor
    unit: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, z: Tensor) -> Moments:
        mean, std, varies = spreads(z)
        top = std[varies].max() if varies.any() else std.max()
        coarse = top.log2().round() - 10 * ((top / std).log2() / 10).floor()
        unit = torch.exp2(torch.where(varies, coarse, (1e5 * std).log2().round()))  # 1e-5 of it is the floor of deviations
        centred = torch.where(varies, (z.double() - mean) / unit, 0.0)
        rounding = torch.where(varies, _resolution(z) * z.abs().amax(0).double() / (2 * unit), 0.0)
        return cls(mean, unit, centred.mT @ centred / len(z) + rounding.square().diag())

    def factor(self) -> Tensor:
        """Lower-triangular L (d, d), L Lᵀ the covariance in the codes' units, eigenvalues below :func:`variance_floor` raised to it."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return lower(self.unit[:, None] * vectors * values.clamp_min(variance_floor(values)).sqrt())


def variance_floor(variances: Tensor) -> float:
    """1e-10 of the largest of variances (d,): below it, float32 codes say nothing. 1e-10 if all are zero."""
    return 1e-10 * (float(variances.max()) or 1.0)


def lower(root: Tensor) -> Tensor:
    """The lower-triangular L (*, d, d) of positive diagonal with L Lᵀ = R Rᵀ for any root R (*, d, d) of a covariance: no second factorisation."""
    triangle = torch.linalg.qr(root.mT, mode="r").R
    return (triangle * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None]).mT


def held_out_split(n: int, fraction: float, permutation: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (kept, held out): the last ``fraction`` of a permutation of n rows, at least one row on each side."""
    cut = min(n - 1, max(1, round(n * (1 - fraction))))
    return permutation[:cut], permutation[cut:]
