"""Precision and recall of one distribution with respect to another, as a curve.

Q (generated) has precision α and recall β with respect to P (real) if P = βμ + (1 − β)ν_P and Q = αμ + (1 − α)ν_Q for some distributions
μ, ν_P, ν_Q: a share β of the real distribution and a share α of the generated one are alike (Sajjadi et al. 2018, "Assessing generative
models via precision and recall", definition 1). For histograms p and q over K cells, all attainable pairs lie below the curve (eq. 5, 6)

    α(λ) = Σ_k min(λ p_k, q_k),    β(λ) = α(λ) / λ = Σ_k min(p_k, q_k / λ),    λ = tan θ, 0 < θ < π/2.

The cells are clusters of both sets of features together (K = 20), and the curves are averages over ten clusterings. Two numbers stand for a
curve: the largest F_β = (1 + β²) α(λ)β(λ) / (β²α(λ) + β(λ)) with weight 8 on recall (**F₈**), and with weight 8 on precision (**F₁⸝₈**).
F₈ low: the generator misses part of the data. F₁⸝₈ low: it makes what is not in the data.

Arguments are (generated, real), as everywhere here. The authors' code has this order too, but their README calls it the other way round,
which exchanges the two numbers; published values may be exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from torch import Tensor

from expost.evaluate.metrics.registry import Compared, metric
from expost.results import Result
from expost.seeds import permutation
from expost.statistics.kmeans import lloyd_
from expost.statistics.samples import canonical_order, feature_pair
from expost.tensors import in_range

__all__ = ["PRD", "f_beta", "prd", "prd_from_histograms"]

EPS = 1e-10
#: Below this many rows a set, twenty cells hold too few rows for shares to mean much.
FEW = 1000


@dataclass(frozen=True, eq=False)
class PRD:
    """A precision-recall curve of a generated set.

    Attributes:
        precision: (angles,) float64: α(tan θ), from θ near 0 (α = 0) to θ near π/2; the average over clusterings.
        recall: (angles,) float64: β, likewise.
        f8: largest F₈ of the averaged curves: recall. ``error`` is the standard error of clustering alone, over runs; ``details``: ``mean``
            and ``std`` over runs of the single curves' values.
        f1_8: largest F₁⸝₈: precision.
        n: rows of each set.
        notes: sentences on what was done to the sets, and on small n.
    """

    precision: Tensor
    recall: Tensor
    f8: Result
    f1_8: Result
    n: int
    notes: tuple[str, ...] = ()

    def results(self) -> dict[str, Result]:
        return {"f8": self.f8, "f1_8": self.f1_8}

    def __str__(self) -> str:
        return "\n".join(
            [f"recall {self.f8.value:.4f} (F8), precision {self.f1_8.value:.4f} (F1/8), n = {self.n}"]
            + [f"  note: {note}" for note in self.notes]
        )


def prd(
    generated: Tensor,
    real: Tensor,
    *,
    clusters: int = 20,
    runs: int = 10,
    angles: int = 1001,
    seed: int = 0,
    engine: Literal["lloyd", "sklearn"] = "lloyd",
    balance: Literal["require", "subsample"] = "require",
    memory: int = 256 * 2**20,
) -> PRD:
    """Precision and recall for distributions (Sajjadi et al. 2018, algorithm 1 over clusters of the features).

    Args:
        generated: features (n, d), any floating dtype.
        real: features (n, d) of the same extractor. Cells are clusters of both sets, so equal numbers are required.
        clusters: K.
        runs: clusterings averaged over.
        angles: points of the curve, at least 3.
        seed: of the clusterings, and of the subsample.
        engine: ``lloyd``: all runs at once (:mod:`expost.statistics.kmeans`), each at least as good a clustering as the authors'; shuffling a
            set changes nothing, bit for bit. ``sklearn``: the authors' MiniBatchKMeans in float64 with ``numpy.random.RandomState(seed)``:
            what their code returns after ``numpy.random.seed(seed)`` with the same scikit-learn; depends on the order of rows.
        balance: ``subsample`` draws from the larger set as many rows as the smaller has, instead of refusing.
        memory: bytes for products (``lloyd``) beyond the inputs and one float32 copy of both sets; ``sklearn`` makes a float64 copy.

    Raises:
        ValueError: features that are no finite matrices of one width, unequal numbers, fewer rows than clusters, options out of range.

    >>> generator = torch.Generator().manual_seed(0)
    >>> real = torch.cat([torch.randn(500, 4, generator=generator) - 8, torch.randn(500, 4, generator=generator) + 8])
    >>> half = torch.randn(1000, 4, generator=generator) + 8  # one of two modes: precise, but misses half
    >>> found = prd(half, real)
    >>> bool(found.f1_8.value > 0.9), bool(found.f8.value < 0.6)
    (True, True)
    """
    generated, real = in_range(*feature_pair(generated, real), single=True)[1]  # cells have no unit
    notes: tuple[str, ...] = ()
    n = min(len(generated), len(real))
    if len(generated) != len(real):
        sizes = f"{len(generated)} generated and {len(real)} real rows"
        if balance != "subsample":
            raise ValueError(f"{sizes} would weigh the two sets differently in the clusters: pass equal numbers, or balance='subsample'")
        notes += (f"{n} rows of each set were drawn from {sizes}",)
        generated, real = _drawn(generated, n, seed), _drawn(real, n, seed)
    if not 1 <= clusters <= 2 * n or runs < 1:
        raise ValueError(f"{runs} clusterings of 2 x {n} rows into {clusters} clusters cannot be made: pass more rows, or other numbers")
    if n < FEW:
        notes += (
            f"n = {n} is below {FEW}: with {clusters} clusters the shares are noisy, and two samples of one distribution fall short of 1",
        )

    clusterings = (
        _lloyd(generated, real, clusters, runs, seed, memory) if engine == "lloyd" else _sklearn(generated, real, clusters, runs, seed)
    )
    curves = []
    for labels in clusterings:
        counts = torch.stack([torch.bincount(part, minlength=clusters) for part in labels.cpu().split(n)]).double() / n
        curves.append(prd_from_histograms(counts[0], counts[1], angles))
    precision, recall = (torch.stack(part) for part in zip(*curves, strict=True))
    context = {"clusters": clusters, "runs": runs, "angles": angles, "seed": seed, "engine": engine}
    mean = precision.mean(0).clamp(0, 1), recall.mean(0).clamp(0, 1)
    scores = []
    for name, beta in (("PRD F8 (recall)", 8.0), ("PRD F1/8 (precision)", 1 / 8)):
        single = torch.stack([f_beta(p, r, beta).max() for p, r in zip(precision, recall, strict=True)])
        std = float(single.std()) if runs > 1 else None
        details = {"mean": float(single.mean())} | ({"std": std} if std is not None else {})
        error = std / runs**0.5 if std is not None else None
        scores.append(Result(name, float(f_beta(*mean, beta).max()), error, n, notes=notes, details=details, context=context))
    return PRD(*mean, scores[0], scores[1], n, notes)


def prd_from_histograms(generated: Tensor, real: Tensor, angles: int = 1001) -> tuple[Tensor, Tensor]:
    """Precision α and recall β, each (angles,) float64, of one histogram (K,) with respect to another (eq. 5 and 6).

    Both are shares that sum to 1; θ runs evenly from 1e-10 to π/2 − 1e-10. ``ValueError`` where they are not.

    >>> precision, recall = prd_from_histograms(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), 3)
    >>> round(float(precision.max()), 6), round(float(recall.max()), 6)
    (1.0, 0.5)
    """
    if generated.shape != real.shape or generated.dim() != 1 or len(real) == 0:
        raise ValueError(f"histograms must share one shape (K,), not {tuple(generated.shape)} and {tuple(real.shape)}: use the same cells")
    if not 3 <= angles <= 1_000_000:
        raise ValueError(f"a curve has between 3 and 1000000 angles, not {angles}")
    q, p = generated.double(), real.double()
    for side, which in ((q, "generated"), (p, "real")):
        if not bool((side >= 0).all()) or abs(float(side.sum()) - 1) > 1e-4:
            raise ValueError(
                f"the {which} histogram must hold shares that are not negative and sum to 1, not to {float(side.sum()):.6g}: divide it"
            )
    slopes = torch.linspace(EPS, pi / 2 - EPS, angles, dtype=torch.float64, device=p.device).tan()
    precision = torch.minimum(p * slopes[:, None], q).sum(1)
    recall = precision / slopes
    top = float(torch.maximum(precision, recall).max())
    if top > 1.001:
        raise ValueError(f"a share of {top:.4f} came out above 1: the histograms do not sum to 1")
    return precision.clamp(0, 1), recall.clamp(0, 1)


def f_beta(precision: Tensor, recall: Tensor, beta: float) -> Tensor:
    """F_β = (1 + β²) αr / (β²α + r + 1e-10) elementwise: recall r weighs β times as much as precision α.

    Both in [0, 1], β > 0, else ``ValueError``.
    """
    for side, which in ((precision, "precision"), (recall, "recall")):
        if not bool(((side >= 0) & (side <= 1)).all()):
            raise ValueError(f"{which} must lie in [0, 1]: clip round-off, and divide histograms by their sum")
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
    return (1 + beta**2) * (precision * recall) / (beta**2 * precision + recall + EPS)


def _drawn(features: Tensor, n: int, seed: int) -> Tensor:
    return (
        features
        if len(features) == n
        else features[canonical_order(features)[permutation(len(features), "prd", seed)[:n]].to(features.device)]
    )


def _lloyd(generated: Tensor, real: Tensor, clusters: int, runs: int, seed: int, memory: int) -> Tensor:
    """Labels (runs, 2n) of both sets, each in canonical order: only how many rows of each fall into a cluster matters."""
    n = len(generated)
    x = torch.empty(2 * n, generated.shape[1], dtype=torch.float32, device=generated.device)
    x[:n], x[n:] = generated[canonical_order(generated).to(x.device)], real[canonical_order(real).to(x.device)]
    return lloyd_(x, clusters, restarts=runs, seed=seed, memory=memory).labels


def _sklearn(generated: Tensor, real: Tensor, clusters: int, runs: int, seed: int) -> Iterator[Tensor]:
    import numpy as np
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    x = torch.cat([generated.double(), real.double()]).cpu().numpy()
    state = np.random.RandomState(seed)
    for _ in range(runs):
        with threadpool_limits(1, user_api="openmp"):  # partial sums in one order
            yield torch.from_numpy(MiniBatchKMeans(n_clusters=clusters, n_init=10, random_state=state).fit(x).labels_).long()


@metric("prd", "F8", "F1/8")
def _curves(sets: Compared) -> dict[str, Result]:
    curve = prd(sets.generated, sets.test, seed=sets.seed, balance="subsample", memory=sets.memory)
    return {"F8": curve.f8, "F1/8": curve.f1_8}
