r"""The class radius: how far a code is from the nearest code of another class (Manoj 2018).

For z in class i, with K_j = {z : class of z is j},

    r(z) = inf { ‖z - z'‖₂ : z' ∈ ∪_{j≠i} K_j },        class radius = E r(z), z ~ ν given that z lies in some class.

Codes in holes are no other class. Nothing is known of c∘g but its answers, so every estimator here ends in a code z' that was *seen* to be of another
class and returns ‖z - z'‖: an upper bound of r(z), never less than r(z) but by rounding. Lower is better; estimates of the same z may be
joined by :func:`smallest`.

* :func:`segment_radius`: other classes are looked for among random codes, and the segment to each is halved (the author's
  ``gradient_free_radius``). Needs labels only. In d dimensions a random direction misses the nearest boundary, so it is loose;
* ``attack_radius`` and ``refined_radius`` (``radius_attack.py``) follow the gradient of the logits;
* ``grid_radius`` (``radius_grid.py``) is exact to a grid step, in two dimensions.

Halving keeps a bracket [a, b] of the segment z + t (z' - z) with the class of z (or a hole) at a and another class at b, until it is shorter
than ``tolerance``. Codes are rounded to the type of z: with float32 codes the last digits of 1e-7 mean nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from expost.diagnose.classes.classify import Classify, assign, outputs, prior_codes
from expost.results import Result, Table
from expost.seeds import generator
from expost.system.progress import Bar
from expost.tensors import batches

__all__ = ["ClassRadius", "Located", "halved", "locate", "segment_radius", "smallest"]

#: Length of the last bracket of a segment.
TOLERANCE = 1e-7
#: Codes below which a mean radius is called rough.
FEW = 100


@dataclass(frozen=True, eq=False)
class ClassRadius:
    """Upper bounds of r(z) for n codes.

    Attributes:
        method: how they were found.
        radii: (n,) float64, infinite where no other class was found.
        labels: (n,) class of each code.
        nearest: (n, d) the code of another class that was found; NaN where there is none.
        tolerance: how far ``radii`` may be above the best of the method's search: bracket length, or grid step.
        holes: share of the codes given that lie in no class; they are left out above.
        weights: (n,) prior weights of grid nodes, summing to one; None for samples.
        notes: what the reader must know.
    """

    method: str
    radii: Tensor
    labels: Tensor
    nearest: Tensor
    tolerance: float
    holes: float = 0.0
    weights: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        return len(self.radii)

    @property
    def found(self) -> Tensor:
        """(n,) whether another class was found."""
        return torch.isfinite(self.radii)

    @property
    def missing(self) -> float:
        """Share of the codes for which no other class was found; the mean leaves them out, and is no upper bound then."""
        return 1 - float(self.found.double().mean())

    @property
    def mean(self) -> float:
        if self.weights is None:
            return float(self.radii[self.found].mean())
        weights = self.weights[self.found]
        return float((self.radii[self.found] * weights).sum() / weights.sum())

    @property
    def error(self) -> float | None:
        """Standard error of the mean over codes; None for a grid, whose error is ``tolerance``."""
        inside = self.radii[self.found]
        return None if self.weights is not None or len(inside) < 2 else float(inside.std() / math.sqrt(len(inside)))

    @property
    def median(self) -> float:
        inside, order = self.radii[self.found].sort()
        if self.weights is None:
            return float(inside.quantile(0.5))
        below = self.weights[self.found][order].cumsum(0)
        return float(inside[int(torch.searchsorted(below, below[-1] / 2))])

    def result(self) -> Result:
        """The mean with its error, and the median in ``details``."""
        details = {"median": self.median, "missing": self.missing, "holes": self.holes, "tolerance": self.tolerance}
        return Result(f"class radius, {self.method}", self.mean, self.error, self.n, notes=self.notes, details=details)

    def by_class(self, title: str = "") -> Table:
        """Mean radius of the codes of each class."""
        table = Table(("class", "codes", "mean radius", "smallest"), title=title or f"Class radius by class, {self.method}")
        for label in self.labels.unique().tolist():
            chosen = (self.labels == label) & self.found
            if bool(chosen.any()):
                weights = None if self.weights is None else self.weights[chosen]
                mean = self.radii[chosen].mean() if weights is None else (self.radii[chosen] * weights).sum() / weights.sum()
                table.add(str(label), int(chosen.sum()), float(mean), float(self.radii[chosen].min()))
        return table

    def __str__(self) -> str:
        return f"{self.result()}\n  median {self.median:.4g}, no other class found for {100 * self.missing:.2f} %"


@dataclass(frozen=True, eq=False)
class Located:
    """Codes that lie in a class: z (n, d), labels (n,), outputs of the classification (n, K) or (n,), share of the codes that lie in none."""

    z: Tensor
    labels: Tensor
    out: Tensor
    holes: float


def locate(classify: Classify, z: Tensor, threshold: float | None) -> Located:
    """The codes of z (n, d) that lie in some class."""
    out = outputs(classify, z)
    labels = assign(out, threshold)
    kept = labels >= 0
    if not bool(kept.any()):
        raise ValueError(f"none of {len(z)} codes lies in a class at threshold {threshold}: lower it, or pass None for a partition")
    return Located(z[kept], labels[kept], out[kept], 1 - float(kept.double().mean()))


def measured(method: str, where: Located, nearest: Tensor, tolerance: float) -> ClassRadius:
    """Radii from the nearest codes found; ``ValueError`` if there are none."""
    radii = (nearest.double() - where.z.double()).norm(dim=1)
    radii = torch.where(radii.isnan(), math.inf, radii).cpu()
    found = int(torch.isfinite(radii).sum())
    if found == 0:
        raise ValueError(
            f"no code of another class was found from {len(radii)} codes: is there only one class? Look at the class masses, draw a larger pool, "
            "or search from a wider density"
        )
    notes = []
    if len(radii) < FEW:
        notes.append(f"{len(radii)} codes are fewer than {FEW}: the mean is rough")
    if found < len(radii):
        share = 100 * (1 - found / len(radii))
        notes.append(f"no other class was found from {share:.2f} % of the codes; the mean is over the others and may be too low")
    if where.holes:
        notes.append(f"{100 * where.holes:.1f} % of the codes lie in no class and are left out")
    return ClassRadius(method, radii, where.labels.cpu(), nearest.cpu(), tolerance, where.holes, notes=tuple(notes))


def smallest(*estimates: ClassRadius) -> ClassRadius:
    """The smallest radius of several estimates for the same codes: an upper bound that is at least as good as each.

    ``ValueError`` if they are of different codes, or of a grid.
    """
    if not estimates:
        raise ValueError("give at least one estimate")
    best = estimates[0]
    for other in estimates[1:]:
        if other.n != best.n or not torch.equal(other.labels, best.labels) or other.weights is not None or best.weights is not None:
            raise ValueError("estimates can be joined only if they are of the same codes at the same threshold: pass the same z to each")
        less = other.radii < best.radii
        best = replace(
            best,
            radii=torch.where(less, other.radii, best.radii),
            nearest=torch.where(less[:, None], other.nearest.to(best.nearest), best.nearest),
            tolerance=max(best.tolerance, other.tolerance),
            notes=other.notes if other.missing < best.missing else best.notes,
        )
    return replace(best, method="smallest of " + ", ".join(e.method for e in estimates)) if len(estimates) > 1 else best


def halved(
    classify: Classify, z: Tensor, own: Tensor, far: Tensor, *, threshold: float | None = None, tolerance: float = TOLERANCE
) -> Tensor:
    """On each segment from z (n, d) to ``far`` (n, d), which is not of class ``own`` (n,), a code of another class found by halving: (n, d).

    The boundary found lies within ``tolerance`` of it towards z; it is the nearest one if the segment crosses only one.
    """
    start, direction = z.double(), far.double() - z.double()
    length = direction.norm(dim=1)
    low, high, found = torch.zeros_like(length), torch.ones_like(length), far.clone()
    while True:
        active = torch.nonzero((high - low) * length > tolerance).flatten()
        middle = 0.5 * (low[active] + high[active])
        inside = (low[active] < middle) & (middle < high[active])
        active, middle = active[inside], middle[inside]
        if not len(active):
            return found
        points = (start[active] + middle[:, None] * direction[active]).to(z.dtype)
        other = is_other(classify, points, own[active], threshold)
        high[active[other]], found[active[other]] = middle[other], points[other]
        low[active[~other]] = middle[~other]


def is_other(classify: Classify, z: Tensor, own: Tensor, threshold: float | None) -> Tensor:
    """(n,) whether codes z lie in a class, and in another one than ``own``."""
    if not len(z):
        return torch.zeros(0, dtype=torch.bool, device=z.device)
    labels = assign(outputs(classify, z), threshold)
    return (labels >= 0) & (labels != own)


def segment_radius(
    classify: Classify,
    z: Tensor,
    *,
    repeats: int = 20,
    pool: int | Tensor = 4096,
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
    chunk: int = 1024,
    seed: int = 0,
) -> ClassRadius:
    """Random search (the author's ``gradient_free_radius``): draw z' ~ ν until its class differs, halve the segment; the nearest of ``repeats``.

    z' are drawn from a common pool of classified codes, which is the same as drawing until the class differs. A direction whose bracket lies beyond
    another's is dropped: it cannot win, so the result is that of halving all of them.

    Args:
        classify: z (n, d) -> logits (n, K) or labels (n,).
        z: codes (n, d) to measure at, from the density that the mean is meant for.
        repeats: directions per code.
        pool: codes z' (m, d), or how many to draw from N(0, I).
        threshold: of the softmax probability, below which a code lies in no class; None for a partition.
        tolerance: length of the last bracket.
        chunk: codes searched together; results agree to rounding of ``classify`` for any.
        seed: of pool and draws.

    Raises:
        ValueError: only one class among pool and codes, no code in a class, ``repeats`` below 1.

    >>> half = segment_radius(lambda z: z[:, :1] * torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5, 0.0], [-2.0, 1.0]]), repeats=500)
    >>> bool((half.radii >= torch.tensor([0.5, 2.0])).all() and (half.radii < torch.tensor([0.505, 2.02])).all())
    True
    """
    if repeats < 1:
        raise ValueError(f"the search needs at least one direction per code, not {repeats}")
    where = locate(classify, z, threshold)
    others = prior_codes(pool, z.shape[1], seed=seed).to(z) if isinstance(pool, int) else pool.to(z)
    pool_labels = assign(outputs(classify, others), threshold)
    draws = torch.rand(len(where.z), repeats, generator=generator("segments", seed), dtype=torch.float64).to(z.device)
    chosen = torch.full((len(where.z), repeats), -1, dtype=torch.int64, device=z.device)
    for label in where.labels.unique().tolist():
        rows = where.labels == label
        candidates = torch.nonzero((pool_labels >= 0) & (pool_labels != label)).flatten()
        if len(candidates):
            chosen[rows] = candidates[(draws[rows] * len(candidates)).long()]
    nearest = torch.full_like(where.z, math.nan)
    found = torch.nonzero(chosen[:, 0] >= 0).flatten()
    with Bar(len(found), what="segments", after=1.0) as bar:
        for rows in bar.over(batches(found, chunk), len):
            nearest[rows] = _race(classify, where.z[rows], where.labels[rows], others[chosen[rows]], threshold, tolerance)
    return measured(f"segments, {repeats} directions", where, nearest, tolerance)


def _race(classify: Classify, z: Tensor, own: Tensor, far: Tensor, threshold: float | None, tolerance: float) -> Tensor:
    """Halve the segments from z (n, d) to far (n, R, d) together; the nearest code of another class, (n, d)."""
    start, direction = z.double()[:, None], far.double() - z.double()[:, None]
    length = direction.norm(dim=2)
    low, high, found = torch.zeros_like(length), length.clone(), far.clone()
    unit = direction / length.clamp_min(1e-300)[..., None]
    while True:
        racing = (low < high.amin(1, keepdim=True)) & (high - low > tolerance)
        middle = 0.5 * (low + high)
        rows, columns = torch.nonzero(racing & (low < middle) & (middle < high), as_tuple=True)
        if not len(rows):
            break
        at = middle[rows, columns]
        points = (start[rows, 0] + at[:, None] * unit[rows, columns]).to(z.dtype)
        other = is_other(classify, points, own[rows], threshold)
        high[rows[other], columns[other]], found[rows[other], columns[other]] = at[other], points[other]
        low[rows[~other], columns[~other]] = at[~other]
    return found[torch.arange(len(z), device=z.device), high.argmin(1)]
