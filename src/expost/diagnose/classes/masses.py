r"""How the prior mass of a latent space is shared between classes, how diverse that is, and how much of it is no class at all.

With ν the distribution of codes (N(0, I), or any density that samples are drawn from) and K_i the codes of class i,

    p_i = ν(K_i) / Σ_j ν(K_j),        ‖p‖² = Σ_i p_i²    collision probability,
    H_α = log(Σ_i p_i^α) / (1 - α)    Rényi entropy, nats;    H_2 = -log ‖p‖²;    H_1 = -Σ p_i log p_i    (Shannon),    H_∞ = -log max p_i.

All lie in [0, log K], H_α falls in α, and all equal log K at uniform masses. exp(H_α) is an effective number of classes.

Masses are Monte Carlo counts. The entropies of counts are biased by about (K - 1)/n (downwards); here the jackknife removes that bias (Zahl
1977; for ‖p‖² it gives exactly the unbiased Σ c_i (c_i - 1) / (n (n - 1))) and gives the standard error, also at uniform masses, where the
first-order error vanishes. A corrected entropy may exceed log K by its error.

*Coverage* at τ is the share of codes whose largest class probability reaches τ; *holes* are the rest. manoj2018 gives no τ: .5 to .99 are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from expost.diagnose.classes.classify import assign
from expost.results import Result, Table

__all__ = ["THRESHOLDS", "ClassMasses", "Coverage", "class_masses", "coverage", "renyi_entropy"]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
#: Codes per class below which masses are called uncertain.
FEW = 30


def renyi_entropy(p: Tensor, alpha: float = 2.0) -> float:
    """H_α of masses p (K,), in nats; α = 1 is Shannon's entropy, α = 2 the collision entropy, α = inf the min-entropy.

    Args:
        p: at least 0, summing to 1 within 1e-6.
        alpha: at least 0.

    >>> round(renyi_entropy(torch.full((10,), 0.1), 2), 6) == round(math.log(10), 6)
    True
    """
    p = checked_masses(p)
    if not alpha >= 0:
        raise ValueError(f"the order of a Rényi entropy is at least 0, not {alpha}")
    p = p[p > 0]
    if alpha == math.inf:
        return -math.log(float(p.max()))
    if alpha == 1:
        return -float((p * p.log()).sum()) + 0.0
    # log Σ p^α as a log-sum-exp, so that large orders do not underflow
    return float(torch.logsumexp(alpha * p.log(), 0)) / (1 - alpha) + 0.0


def checked_masses(p: Tensor) -> Tensor:
    """Masses in float64 on the CPU, summing to one exactly; ``ValueError`` if they are none."""
    p = p.detach().to("cpu", torch.float64)
    if p.dim() != 1 or len(p) < 1 or not bool((p >= 0).all()) or abs(float(p.sum()) - 1) > 1e-6:
        raise ValueError("class masses must be a vector of numbers of at least 0 that sum to 1: divide counts by their sum")
    return p / p.sum()


@dataclass(frozen=True, eq=False)
class ClassMasses:
    """Masses of classes, measured on n codes.

    Attributes:
        p: (K,) float64, of the codes that lie in some class; sums to 1.
        errors: (K,) standard errors of p.
        counts: (K,) int64.
        holes: share of the n codes in no class; ``holes_error`` its standard error.
        n: codes, with those in holes.
        threshold: of the softmax probability, or None for a partition.
        notes: what the reader must know.
    """

    p: Tensor
    errors: Tensor
    counts: Tensor
    holes: float
    holes_error: float
    n: int
    threshold: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """K, with classes that were never seen."""
        return len(self.p)

    @property
    def seen(self) -> int:
        """Number of classes with any mass."""
        return int((self.counts > 0).sum())

    def entropy(self, alpha: float = 2.0) -> Result:
        """H_α in nats, bias-corrected, with its standard error (jackknife); ``details["plug-in"]`` is H_α of the counts as they are."""
        value, error = self._jackknife(lambda p: renyi_entropy(p, alpha))
        name = {1.0: "Shannon entropy", 2.0: "collision entropy", math.inf: "min-entropy"}.get(
            float(alpha), f"Rényi entropy of order {alpha:g}"
        )
        details = {"plug-in": renyi_entropy(self.p, alpha), "log K": math.log(self.classes)}
        return Result(name, value, error, int(self.counts.sum()), "nats", self.notes, details)

    def collision(self) -> Result:
        """‖p‖², unbiased, with its standard error."""
        value, error = self._jackknife(lambda p: float(p.square().sum()))
        return Result("collision probability", value, error, int(self.counts.sum()), notes=self.notes)

    def _jackknife(self, statistic: Callable[[Tensor], float]) -> tuple[float, float]:
        """n T - (n - 1) mean of T without one code, and its error; leaving out any code of a class is the same."""
        n = int(self.counts.sum())
        whole = statistic(self.p)
        left, weights = [], []
        for i in torch.nonzero(self.counts).flatten().tolist():
            counts = self.counts.double()
            counts[i] -= 1
            left.append(statistic(counts / (n - 1)))
            weights.append(float(self.counts[i]))
        values, counts = torch.tensor(left, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
        mean = float((values * counts).sum() / n)
        variance = (n - 1) / n * float(((values - mean).square() * counts).sum())
        return n * whole - (n - 1) * mean, math.sqrt(variance)

    def table(self, title: str = "") -> Table:
        table = Table(("class", "mass", "error", "codes"), title=title or f"Class masses of {self.n} codes")
        for i in range(self.classes):
            table.add(str(i), float(self.p[i]), float(self.errors[i]), int(self.counts[i]))
        table.notes += self.notes
        return table

    def __str__(self) -> str:
        return "\n".join([str(self.table()), *(str(self.entropy(a)) for a in (1, 2)), str(self.collision())])


def class_masses(out: Tensor, *, threshold: float | None = None, classes: int | None = None) -> ClassMasses:
    """Masses of the classes among codes drawn from ν.

    Args:
        out: logits (n, K) or labels (n,), as :func:`~expost.diagnose.classes.classify.outputs` gives them for codes z ~ ν.
        threshold: codes whose largest probability is below it lie in holes; None for a partition.
        classes: K, where ``out`` are labels and the last classes may be empty.

    Raises:
        ValueError: fewer than two codes in classes, labels beyond K.

    >>> class_masses(torch.tensor([0, 0, 1, 1, 1, 2])).p.tolist()
    [0.3333333333333333, 0.5, 0.16666666666666666]
    """
    labels = assign(out, threshold).cpu()
    k = out.shape[1] if out.dim() == 2 else classes or int(labels.max()) + 1
    inside = labels[labels >= 0]
    if len(inside) < 2:
        raise ValueError(f"{len(inside)} of {len(labels)} codes lie in a class, too few for masses: lower the threshold or draw more codes")
    if int(inside.max()) >= k:
        raise ValueError(f"there is a label {int(inside.max())} although labels count from 0 to {k - 1}: raise classes=...")
    counts = torch.bincount(inside, minlength=k)
    p = counts.double() / len(inside)
    holes = 1 - len(inside) / len(labels)
    notes = []
    rare = int(((counts > 0) & (counts < FEW)).sum())
    if rare:
        notes.append(f"{rare} of {k} classes have fewer than {FEW} codes: their masses are rough, draw more codes")
    if k > int((counts > 0).sum()):
        notes.append(f"{k - int((counts > 0).sum())} of {k} classes were never seen among {len(labels)} codes")
    if holes:
        notes.append(f"{100 * holes:.1f} % of the codes lie in no class")
    errors = (p * (1 - p) / len(inside)).sqrt()
    return ClassMasses(p, errors, counts, holes, math.sqrt(holes * (1 - holes) / len(labels)), len(labels), threshold, tuple(notes))


@dataclass(frozen=True, eq=False)
class Coverage:
    """Share of codes that lie in a class, over thresholds of the largest softmax probability.

    Attributes:
        thresholds: T values of τ.
        covered: (T,) share of the codes with max softmax >= τ; ``errors`` (T,) its standard errors. Holes are 1 - covered.
        by_class: (T, K) share of all codes that are covered and of class i; rows sum to ``covered``.
        n: codes.
    """

    thresholds: tuple[float, ...]
    covered: Tensor
    errors: Tensor
    by_class: Tensor
    n: int

    def at(self, threshold: float) -> float:
        """The share covered at one of the thresholds."""
        return float(self.covered[self.thresholds.index(threshold)])

    def table(self, title: str = "") -> Table:
        columns = ("threshold", "covered", "error", "holes", *(f"class {i}" for i in range(self.by_class.shape[1])))
        table = Table(columns, title=title or f"Coverage of {self.n} codes")
        for i, threshold in enumerate(self.thresholds):
            covered = float(self.covered[i])
            table.add(threshold, covered, float(self.errors[i]), 1 - covered, *self.by_class[i].tolist())
        return table

    def __str__(self) -> str:
        return str(self.table())


def coverage(out: Tensor, thresholds: tuple[float, ...] = THRESHOLDS) -> Coverage:
    """Coverage of codes with logits ``out`` (n, K) over ``thresholds``; ``ValueError`` for labels, which have no probabilities.

    >>> coverage(torch.tensor([[5.0, 0.0], [0.5, 0.0]]), (0.5, 0.9)).covered.tolist()
    [1.0, 0.5]
    """
    if not thresholds:
        raise ValueError("coverage needs at least one threshold")
    rows = []
    for threshold in thresholds:
        labels = assign(out, threshold).cpu()
        if out.dim() != 2:
            raise ValueError("coverage needs logits (n, K): labels have no probabilities")
        rows.append(torch.bincount(labels[labels >= 0], minlength=out.shape[1]).double() / len(labels))
    by_class = torch.stack(rows)
    covered = by_class.sum(1)
    errors = (covered * (1 - covered)).clamp_min(0).div(len(out)).sqrt()
    return Coverage(tuple(thresholds), covered, errors, by_class, len(out))
