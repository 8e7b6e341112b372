r"""How the classes lie among the codes of real data (Manoj 2018): distances between centroids, spreads, and what of the prior the codes reach.

For codes z_n (posterior means of labelled data), m_i the mean code of class i and m that of all:

    raw distance       mean over pairs i < j of ‖m_i - m_j‖
    rms norm           √(1/N Σ ‖z_n‖²)
    relative distance  raw distance / rms norm: unchanged when the whole latent space is rescaled
    total variance     1/N Σ ‖z_n - m‖²   = within (‖z_n - m_i‖², own class) + between (‖m_i - m‖², weighted by size)

A regulariser that only shrinks the latent space lowers the raw distance and the total variance, and leaves the relative distance as it is.

*Reach* is the share of prior samples that have a code within ε of them, where ε is the distance within which 95 % of prior samples have
one of N *other prior samples*: .95 if codes are distributed as the prior, less where the prior has mass that no code is near to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expost.diagnose.classes.classify import prior_codes
from expost.results import Result, Table
from expost.seeds import permutation
from expost.tensors import check_finite

__all__ = ["ClassCodes", "class_codes", "prior_reach"]

#: Parts that the jackknife leaves out, one at a time.
FOLDS = 20
#: Codes per class below which centroids are called rough.
FEW = 30
REACHED = 0.95


@dataclass(frozen=True, eq=False)
class ClassCodes:
    """Where classes lie. Every quantity is a :class:`~expost.results.Result` with its standard error (jackknife over twenty parts).

    Attributes:
        raw_distance, relative_distance, rms_norm, total_variance, within, between: see the top of this file.
        centroids: (K, d), NaN for a class without codes.
        spreads: (K,) root mean square distance of a class's codes to its centroid.
        counts: (K,) codes per class.
        notes: what the reader must know.
    """

    raw_distance: Result
    relative_distance: Result
    rms_norm: Result
    total_variance: Result
    within: Result
    between: Result
    centroids: Tensor
    spreads: Tensor
    counts: Tensor
    notes: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[Result, ...]:
        return self.raw_distance, self.relative_distance, self.rms_norm, self.total_variance, self.within, self.between

    def table(self, title: str = "Classes among codes") -> Table:
        table = Table(("quantity", "value", "error"), title=title)
        for result in self.results:
            table.add(result.name, result.value, result.error)
        table.notes += self.notes
        return table

    def __str__(self) -> str:
        return str(self.table())


NAMES = (
    "distance between class centroids",
    "the same over the rms norm",
    "rms norm",
    "total variance",
    "variance within classes",
    "variance between classes",
)


def class_codes(codes: Tensor, labels: Tensor, *, seed: int = 0) -> ClassCodes:
    """Centroid distances and variances of labelled codes.

    Args:
        codes: (n, d), e.g. ``model.latents(x, at="mean")``.
        labels: (n,) integers 0 ... K - 1.
        seed: of the parts of the jackknife.

    Raises:
        ValueError: fewer than two classes, shapes that do not fit, NaN.

    >>> found = class_codes(torch.tensor([[0.0, 1.0], [0.0, -1.0], [3.0, 1.0], [3.0, -1.0]]), torch.tensor([0, 0, 1, 1]))
    >>> found.raw_distance.value, found.within.value, found.between.value
    (3.0, 1.0, 2.25)
    """
    if codes.dim() != 2 or labels.shape != (len(codes),) or labels.is_floating_point():
        raise ValueError(
            f"give codes (n, d) and one integer label each, not {tuple(codes.shape)} and {labels.dtype} of shape {tuple(labels.shape)}"
        )
    check_finite(codes, "codes")
    z, labels = codes.detach().to("cpu", torch.float64), labels.cpu().long()
    if len(z) == 0 or int(labels.min()) < 0 or len(labels.unique()) < 2:
        raise ValueError("distances between classes need codes of at least two classes, labelled from 0: pass data of more classes")
    k = int(labels.max()) + 1
    counts = torch.bincount(labels, minlength=k)
    folds = min(FOLDS, len(z))
    part = permutation(len(z), "class codes", seed) % folds
    whole = _moments(z, labels, k)
    values = _quantities(*whole)
    left = []
    for fold in range(folds):
        out = part == fold
        n, sums, squares = _moments(z[out], labels[out], k)
        left.append(_quantities(whole[0] - n, whole[1] - sums, whole[2] - squares))
    spread = torch.stack(left)
    errors = ((folds - 1) / folds * (spread - spread.mean(0)).square().sum(0)).sqrt()
    rare = int(((counts > 0) & (counts < FEW)).sum())
    notes = (f"{rare} of {k} classes have fewer than {FEW} codes: their centroids are rough",) if rare else ()
    results = [Result(name, float(v), float(e), len(z), notes=notes) for name, v, e in zip(NAMES, values, errors, strict=True)]
    n, sums, squares = whole
    centroids = sums / n[:, None]
    spreads = (squares / n - centroids.square().sum(1)).clamp_min(0).sqrt()
    raw, relative, norm, variance, within, between = results
    return ClassCodes(raw, relative, norm, variance, within, between, centroids, spreads, counts, notes)


def _moments(z: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Number, sum and sum of squared norms of each class's codes."""
    n = torch.bincount(labels, minlength=k).double()
    sums = torch.zeros(k, z.shape[1], dtype=torch.float64).index_add_(0, labels, z)
    squares = torch.zeros(k, dtype=torch.float64).index_add_(0, labels, z.square().sum(1))
    return n, sums, squares


def _quantities(n: Tensor, sums: Tensor, squares: Tensor) -> Tensor:
    """The values of :data:`NAMES`, (6,)."""
    present = n > 0
    total = n.sum()
    centroids, shares, mean = sums[present] / n[present, None], n[present] / total, sums.sum(0) / total
    raw = torch.nn.functional.pdist(centroids).mean()
    norm = (squares.sum() / total).sqrt()
    between = (shares * (centroids - mean).square().sum(1)).sum()
    variance = squares.sum() / total - mean.square().sum()
    return torch.stack([raw, raw / norm, norm, variance, variance - between, between])


def prior_reach(codes: Tensor, *, n: int = 5_000, seed: int = 0, memory: int = 256_000_000) -> Result:
    """Share of prior samples N(0, I) near a code; .95 if the codes are distributed as the prior (see the top of this file).

    Args:
        codes: (N, d); at most ``n`` of them are used.
        n: prior samples that are asked, and largest number of codes.
        seed: of prior samples and choice of codes.
        memory: bytes for distances held at once.

    ``details["epsilon"]`` is the distance that counts as near.
    """
    if codes.dim() != 2 or len(codes) < 2:
        raise ValueError(f"codes must be a matrix (N, d) of at least 2 rows, not of shape {tuple(codes.shape)}")
    check_finite(codes, "codes")
    z = codes.detach().to("cpu", torch.float32)
    z = z[permutation(len(z), "reach", seed)[:n]]
    d = z.shape[1]
    asked, other = prior_codes(n, d, seed=seed), prior_codes(len(z), d, seed=seed + 1)
    usual = _nearest(asked, other, memory)
    epsilon = float(usual.quantile(REACHED))
    share = float((_nearest(asked, z, memory) <= epsilon).double().mean())
    return Result(
        "prior mass near codes", share, math.sqrt(share * (1 - share) / n), n, details={"epsilon": epsilon, "codes": float(len(z))}
    )


def _nearest(a: Tensor, b: Tensor, memory: int) -> Tensor:
    """Distance from every row of a to the nearest row of b."""
    rows = max(1, memory // (8 * len(b)))
    return torch.cat([torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").amin(1) for part in a.split(rows)])
