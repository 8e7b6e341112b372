r"""How far a code can be from another class, given only how the prior mass is shared (Manoj 2018).

r(z) is the distance from a code of class i to the nearest code of any other class; the *class radius* is its mean under ν = N(0, I) in R^d.
For every partition of R^d into classes of masses p_i the Gaussian isoperimetric inequality bounds it, whatever d:

    (A)  E r <= Σ_i [p_i Φ⁻¹(p_i) + φ(Φ⁻¹(p_i))],          with equality for two half-spaces,

since among all sets of mass p_i a half-space has the most mass far from its boundary. (A) is convex in p, so it is smallest at equal masses. If moreover every p_i <= 1/5 (so K >= 5),

    (B)  E r <= log(4π H_2) / √(2 H_2),       H_2 = -log Σ p_i²   (or any H_α with α >= 2, which is smaller and so gives a looser bound).

(B) falls in H_2 where log(4π H_2) > 2, i.e. for Σ p_i² < .555. It says that a diverse latent space (large H_2) has classes close to each
other; read backwards, a measured radius is an upper bound on H_2, and a one-sided test only. (B) is about three times (A): look at (A) too.

Not promised: with holes, E r is conditioned on codes in classes and neither bound is a theorem. Estimates of r in ``radius.py`` are upper bounds
of r, so on a partition an estimate above (A) shows an estimator that has not converged (or a sampling error), never a broken theorem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expost.diagnose.classes.masses import ClassMasses, checked_masses, renyi_entropy
from expost.results import Result, Table

__all__ = [
    "LARGEST_MASS", "RadiusBounds", "entropy_bound", "half_space_radius", "isoperimetric_bound", "radius_bounds", "sector_radius", "theorem_bound",
]  # fmt: skip

#: The theorem's assumption: p_i <= 1/5.
LARGEST_MASS = 0.2
#: Entropy (nats) from which (B) falls: log(4π H) = 2; and its largest value, reached there.
TURN = math.e**2 / (4 * math.pi)
HIGHEST = 2 / math.sqrt(2 * TURN)


def isoperimetric_bound(p: Tensor) -> float:
    """(A) = Σ_i [p_i Φ⁻¹(p_i) + φ(Φ⁻¹(p_i))] for masses p (K,); 0 for an empty class, infinite if one class has everything.

    >>> round(isoperimetric_bound(torch.tensor([0.5, 0.5])), 6)
    0.797885
    """
    p = checked_masses(p)
    p = p[p > 0]
    if len(p) == 1:
        return math.inf  # no other class: r is not bounded
    quantile = torch.special.ndtri(p)
    density = torch.exp(-0.5 * quantile.square()) / math.sqrt(2 * math.pi)
    return float((p * quantile + density).sum())


def theorem_bound(entropy: float) -> float:
    """(B) = log(4π H) / √(2H) for H = H_2, or H_α with α >= 2, in nats.

    ``ValueError`` below H = .588 (collision probability .555), where (B) is no bound: the theorem needs p_i <= 1/5, so H_2 >= log 5 = 1.609.

    >>> round(theorem_bound(math.log(10)), 6)
    1.568085
    """
    if not entropy >= TURN:
        raise ValueError(
            f"an entropy of {entropy:.4g} nats is below {TURN:.3f}, where the theorem says nothing: it assumes that no class has more than a fifth"
        )
    return math.log(4 * math.pi * entropy) / math.sqrt(2 * entropy)


def entropy_bound(radius: float) -> float:
    """The largest H_2 (nats) that a class radius allows: the inverse of (B), to 1e-12 relative.

    A latent space with a larger H_2 would have a smaller radius. A bound above log K tells nothing. ``ValueError`` for a radius that is not
    positive, or above 1.844, which no latent space under the theorem's assumptions has.

    >>> round(math.exp(entropy_bound(1.568085)), 3)
    10.0
    """
    if not 0 < radius <= HIGHEST:
        raise ValueError(
            f"a class radius of {radius:.4g} is outside (0, {HIGHEST:.3f}], where (B) can be inverted: some class has more than a fifth of the mass"
        )
    low, high = TURN, 2 * TURN
    while theorem_bound(high) > radius:
        low, high = high, 2 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (middle, high) if theorem_bound(middle) > radius else (low, middle)
    return high


def half_space_radius(mass: float = 0.5) -> float:
    """E r of two half-spaces of masses ``mass`` and 1 - ``mass``: E|t - x| = 2 φ(t) + t (2 Φ(t) - 1), t = Φ⁻¹(mass); .797885 for halves."""
    if not 0 < mass < 1:
        raise ValueError(f"the mass of a half-space lies between 0 and 1, not at {mass}")
    t = float(torch.special.ndtri(torch.tensor(mass, dtype=torch.float64)))
    return 2 * math.exp(-0.5 * t * t) / math.sqrt(2 * math.pi) + t * (2 * mass - 1)


def sector_radius(classes: int) -> float:
    """E r of K equal angular sectors of the plane: √(π/2) (1 - cos(π/K)) / (π/K), K >= 2.

    >>> [round(sector_radius(k), 5) for k in (5, 10, 20)]
    [0.38096, 0.19526, 0.09823]
    """
    if classes < 2:
        raise ValueError(f"a plane has at least two sectors, not {classes}")
    half = math.pi / classes
    return math.sqrt(math.pi / 2) * (1 - math.cos(half)) / half


@dataclass(frozen=True, eq=False)
class RadiusBounds:
    """Both bounds of a class radius.

    Attributes:
        isoperimetric: (A), with its standard error where masses were measured.
        theorem: (B) of ``entropy``; None where that is below .588 nats and (B) is not defined. A bound only if ``applies``.
        entropy: H_α used for (B), nats; ``alpha`` its order.
        largest: max p_i.
        classes: number of classes with any mass.
        assumptions: which assumptions of (B) or of both do not hold, in sentences.
    """

    isoperimetric: Result
    theorem: float | None
    entropy: float
    alpha: float
    largest: float
    classes: int
    assumptions: tuple[str, ...] = ()

    @property
    def applies(self) -> bool:
        """Whether (B) is a theorem for these masses: no class above a fifth, no holes."""
        return not self.assumptions

    def table(self, title: str = "Bounds of the class radius") -> Table:
        table = Table(("bound", "value", "error"), title=title)
        table.add("(A) isoperimetric", self.isoperimetric.value, self.isoperimetric.error)
        table.add(f"(B) theorem, H_{self.alpha:g} = {self.entropy:.4g} nats", self.theorem, None)
        table.notes += self.assumptions
        return table

    def __str__(self) -> str:
        return str(self.table())


def radius_bounds(masses: ClassMasses | Tensor, *, alpha: float = 2.0) -> RadiusBounds:
    """(A) and (B) of measured masses, or of a vector p (K,).

    (A)'s standard error is that of n counts to first order, √(Var_p g_i / n) with its slopes g_i = p_i / φ(Φ⁻¹(p_i)); it vanishes at equal masses. (B) takes the masses as they are: the plug-in entropy is biased downwards, so
    the bound errs upwards.

    Raises:
        ValueError: ``alpha`` below 2.

    >>> radius_bounds(torch.full((5,), 0.2)).applies, radius_bounds(torch.tensor([0.4, 0.3, 0.3])).applies
    (True, False)
    """
    if not alpha >= 2:
        raise ValueError(f"the theorem holds for Rényi entropies of order 2 or more, not {alpha}")
    p = checked_masses(masses.p if isinstance(masses, ClassMasses) else masses)
    entropy, largest, seen = renyi_entropy(p, alpha), float(p.max()), int((p > 0).sum())
    assumptions = []
    if largest > LARGEST_MASS * (1 + 1e-6):
        assumptions.append(f"the largest class has {largest:.3f} of the mass and (B) assumes at most {LARGEST_MASS}: rely on (A)")
    if isinstance(masses, ClassMasses) and masses.holes:
        assumptions.append(f"{100 * masses.holes:.1f} % of the codes lie in no class: the bounds assume that classes fill the space")
    error, n = None, None
    if isinstance(masses, ClassMasses):
        n = int(masses.counts.sum())
        inside = p[p > 0]
        slope = inside / (torch.exp(-0.5 * torch.special.ndtri(inside).square()) / math.sqrt(2 * math.pi))
        variance = float((inside * slope.square()).sum() - (inside * slope).sum().square())
        error = math.sqrt(max(0.0, variance) / n) if seen > 1 else None
    a = Result("isoperimetric bound", isoperimetric_bound(p), error, n, notes=tuple(assumptions))
    b = theorem_bound(entropy) if entropy >= TURN else None
    return RadiusBounds(a, b, entropy, alpha, largest, seen, tuple(assumptions))
