"""What fitting a density has in common: checks, a factor of a covariance that always exists, and a report.

A covariance estimated from codes may be singular: a dimension that the decoder ignores is constant, or there are fewer codes than
dimensions. A density must still be proper, so directions without variance get a small one. :func:`covariance_factor` leaves a
covariance alone if it has full rank to working precision, and otherwise raises only the eigenvalues below a floor, to that floor.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from expost.density.base import Codes, Density, NotFittedError, draw_codes

__all__ = ["FitReport", "codes_for", "covariance_factor", "held_out_split", "moments", "require_fitted", "variance_floor"]


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


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum-likelihood mean (d,) and covariance (d, d) of codes (n, d), in float64: Σ = 1/n Σ_i (z_i - μ)(z_i - μ)ᵀ."""
    z = z.double()
    mean = z.mean(0)
    centred = z - mean
    return mean, centred.mT @ centred / len(z)


def variance_floor(variances: Tensor, largest: float) -> float:
    """The largest of 1e-10 of the largest variance, (1e-6 of ``largest``)² and 1e-12: below it, float32 codes say nothing.

    Args:
        variances: (d,), the eigenvalues of a covariance.
        largest: largest absolute value among the codes, whose rounding hides smaller variances.
    """
    return max(1e-10 * float(variances.max()), (1e-6 * largest) ** 2, 1e-12)


def covariance_factor(covariance: Tensor, largest: float) -> Tensor:
    """Lower-triangular L (d, d) with L Lᵀ = Σ, where eigenvalues of Σ below :func:`variance_floor` are first raised to it.

    Args:
        covariance: Σ (d, d), float64, symmetric.
        largest: largest absolute value among the codes.
    """
    values, vectors = torch.linalg.eigh(covariance)
    floor = variance_floor(values, largest)
    if float(values[0]) < floor:
        covariance = (vectors * values.clamp_min(floor)) @ vectors.mT
    return torch.linalg.cholesky(covariance)


def held_out_split(n: int, fraction: float, permutation: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (kept, held out): the last ``fraction`` of a permutation of n rows, at least one row on each side."""
    cut = min(n - 1, max(1, round(n * (1 - fraction))))
    return permutation[:cut], permutation[cut:]
