"""Does the generator repeat its training data? Four statistics of nearest neighbours, always read beside controls.

With d(x, T) the distance from x to the nearest point of the training set T:

| statistic | definition | copies | fresh data | source |
|---|---|---|---|---|
| AuthPct | share of g with d(g, t*) > d(t*, T∖t*), t* the point nearest to g | 0 % | 50 to 70 % | Alaa et al. 2022, "How faithful is your synthetic data?" |
| C_T | do generated points lie closer to T than test points do? Mann-Whitney Z, by cells | ≪ 0 | within ± 3 | Meehan et al. 2020, "A non-parametric test to detect data-copying" |
| NN ratio | share of g whose nearest training point is 3 times closer than the second | 100 % | near 0 | Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize" |
| copy distance | median d(g, T) over median d(test point, T) | 0 | 1 | Ghosh et al. 2020, nearest neighbours of samples |

What is not promised: none of them separates memorising from underfitting or from a shrunken set of modes by itself (Stein et al. 2023,
"Exposing flaws of generative model evaluation metrics", section 5). A blurred sample is far from every training image and looks authentic,
a sample near the mean of the data is near everything. So :func:`memorisation_panel` prints each statistic for the generated set between
two known answers: test data, which copy nothing, and training points themselves, which do nothing else.

T is a set: a training image that occurs twice counts once, in all four. Otherwise its copy would be the neighbour at distance 0 that every sample
is far from, and a generator of copies would pass for authentic.

Neighbours are exact (:mod:`expost.evaluate.metrics.neighbours`), a copy lies at distance 0, and results depend neither on memory nor on threads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expost.evaluate.metrics.frechet import FeatureStats
from expost.evaluate.metrics.neighbours import RealNeighbours
from expost.evaluate.metrics.registry import Compared, metric
from expost.results import Result, Table
from expost.seeds import permutation
from expost.statistics.kmeans import lloyd
from expost.statistics.neighbours import MEMORY, Neighbours, nearest
from expost.statistics.samples import feature_matrix
from expost.system.hashes import distinct, row_keys
from expost.tensors import in_range, shifted

__all__ = [
    "MemorisationPanel",
    "authenticity",
    "cells_of",
    "copy_distance",
    "data_copying",
    "memorisation_panel",
    "nearest_neighbour_ratio",
]

#: A cell counts if it holds more than this many generated points (tau = 20/m, as in the code of Jiralerspong et al. 2023) and test points.
CELL = 20
#: Training points from which cells are found.
ROWS = 10_000
FEW = 1000


def authenticity(
    generated: Tensor,
    train: Tensor,
    *,
    nearest_train: Neighbours | None = None,
    train_nearest: Tensor | None = None,
    memory: int = MEMORY,
) -> Result:
    """AuthPct: percentage of generated points farther from their nearest training point t* than t* is from its own nearest other one.

    Alaa et al. 2022, section 3.3. (The reference code looks d(t*, T∖t*) up under the row of g instead of t*; here it is that of t*.)

    Args:
        generated: (n, d) features; train: (N, d) features, N ≥ 2.
        nearest_train: ``nearest(generated, train, k, different=True)`` for any k, if known.
        train_nearest: (N,) float64 distance of each training point to the nearest different one (``RealNeighbours.train_nearest``), if known.

    >>> train = torch.tensor([[0.0], [1.0], [3.0]])
    >>> float(authenticity(torch.tensor([[0.0], [1.5], [5.5], [-2.0]]), train))
    50.0
    """
    first = _known(nearest_train, generated, train, 1, memory)
    if train_nearest is None:
        train_nearest = nearest(train, train, same=True, different=True, memory=memory).distances[:, 0]
    elif train_nearest.shape != (len(train),):
        raise ValueError(f"train_nearest must hold one distance per training point ({len(train)}), not shape {tuple(train_nearest.shape)}")
    share, error = _share(first.distances[:, 0] > train_nearest[first.indices[:, 0]])
    return Result("AuthPct", 100 * share, 100 * error, len(generated), "%", _few(len(generated)))


def nearest_neighbour_ratio(
    generated: Tensor, train: Tensor, *, threshold: float = 1 / 3, nearest_train: Neighbours | None = None, memory: int = MEMORY
) -> Result:
    """Percentage of generated points with d₁/d₂ < ``threshold``, d₁ ≤ d₂ the distances to the two nearest different training points (Yoon et al. 2023).

    An exact copy has ratio 0. Details: mean and median ratio, and the percentage of exact copies.

    >>> float(nearest_neighbour_ratio(torch.tensor([[0.1], [0.5]]), torch.tensor([[0.0], [1.0]])))
    50.0
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold on d1/d2 must lie in (0, 1], not {threshold}")
    two = _known(nearest_train, generated, train, 2, memory)
    d1, d2 = two.distances[:, 0], two.distances[:, 1]
    ratio = torch.where(d1 > 0, d1 / d2, torch.zeros_like(d1))
    share, error = _share(ratio < threshold)
    details = {
        "mean ratio": float(ratio.mean()),
        "median ratio": _median(ratio)[0],
        "exact copies %": 100 * float((d1 == 0).double().mean()),
    }
    name = f"NN ratio < {threshold:.3g}"
    return Result(name, 100 * share, 100 * error, len(generated), "%", _few(len(generated)), details, {"threshold": threshold})


def copy_distance(
    generated: Tensor,
    test: Tensor,
    train: Tensor,
    *,
    nearest_train: Neighbours | None = None,
    test_nearest: Neighbours | None = None,
    memory: int = MEMORY,
) -> Result:
    """Median distance of generated points to their nearest training point, in units of the same median for test points.

    0 for copies, 1 for fresh data, above 1 for points off the data. The error is that of two independent medians. Details: both medians and
    the 5 % quantile of the generated distances in the same unit (the closest samples).

    >>> train, test = torch.tensor([[0.0], [10.0]]), torch.tensor([[2.0], [8.0]])
    >>> float(copy_distance(torch.tensor([[1.0], [9.0]]), test, train))
    0.5
    """
    ours = _known(nearest_train, generated, train, 1, memory).distances[:, 0]
    theirs = _known(test_nearest, test, train, 1, memory).distances[:, 0]
    (a, error_a), (b, error_b) = _median(ours), _median(theirs)
    if b == 0:
        raise ValueError(
            "half of the test points or more are copies of training points, so there is no distance to compare with: split again"
        )
    details = {"median to train": a, "median of test to train": b, "5 % quantile": float(ours.quantile(0.05)) / b}
    error = math.hypot(error_a / b, a / b * (error_b / b))
    return Result("copy distance", a / b, error, len(generated), "", _few(min(len(generated), len(test))), details, {"test": len(test)})


def cells_of(train: Tensor, cells: int = 3, *, seed: int = 0, memory: int = MEMORY) -> Tensor:
    """Centres (cells, d) float64 of k-means cells of the training set (:func:`expost.statistics.kmeans.lloyd`).

    Found on at most :data:`ROWS` random training points: the test of :func:`data_copying` is valid for any partition.
    Cells depend on the seed and on the order of rows; there are fewer where the points have fewer distinct values.
    """
    if not 1 <= cells <= len(train):
        raise ValueError(f"{len(train)} training points cannot be split into {cells} cells: choose 1 <= cells <= {len(train)}")
    train = _different(train)
    rows = max(ROWS, cells)
    some = train if rows >= len(train) else train[permutation(len(train), "cells", seed)[:rows].to(train.device)]
    labels = lloyd(some, cells, seed=seed, memory=memory // 2).labels[0].to(train.device)
    sums = torch.zeros(cells, train.shape[1], dtype=torch.float64, device=train.device)
    for part, label in zip(some.split(_rows(some, memory)), labels.split(_rows(some, memory)), strict=True):
        sums.index_add_(0, label, part.double())
    counts = torch.bincount(labels, minlength=cells)
    return sums[counts > 0] / counts[counts > 0, None]


def data_copying(
    generated: Tensor,
    test: Tensor,
    train: Tensor,
    *,
    cells: int = 3,
    pca: int | None = None,
    seed: int = 0,
    centres: Tensor | None = None,
    nearest_train: Neighbours | None = None,
    test_nearest: Neighbours | None = None,
    memory: int = MEMORY,
) -> Result:
    """C_T = Σ_π P(π) Z_π / Σ_π P(π), the data-copying statistic of Meehan et al. 2020 (section 4.2).

    In each cell π, U counts the pairs (generated, test) whose generated point is farther from the training set (half for ties), and
    Z_π = (U − (mn − 1)/2) / σ, σ² = mn/12 · ((m + n + 1) − Σ(t³ − t)/((m + n)(m + n − 1))) with t the sizes of groups of equal distances.
    P(π) is the share of test points in π. Z ≪ 0 means copying, ≫ 0 underfitting; under equality each Z_π is standard normal.

    Two things differ from the authors' code, both on purpose: distances are to the whole training set, as in the paper's definition (the
    code takes those training points that share the cell), and a cell with few test points is left out too (there it stays).

    Args:
        generated, test, train: (m, d), (n, d), (N, d) features.
        cells: k-means cells of the training set; 3 in Stein et al. 2023.
        pca: project everything on this many principal axes of the training set first (64 in Stein et al. 2023); None for none.
        seed: of the cells.
        centres: (cells, d) of the cells, if known: ``cells_of(train, ...)``.
        nearest_train, test_nearest: neighbours of generated and of test points in ``train``, if known; not together with ``pca``, which changes them.

    Returns:
        The result; its error is √Σ P(π)² / Σ P(π), the deviation under equality. Details: ``Z``, ``P``, ``generated`` and ``test`` per cell.
        Cells without more than 20 points of each kind are left out and named in the notes; ValueError if none remains.

    >>> g = torch.Generator().manual_seed(0)
    >>> train, test = torch.randn(500, 4, generator=g), torch.randn(200, 4, generator=g)
    >>> float(data_copying(train[:200], test, train)) < -10
    True
    """
    if pca is not None:
        if nearest_train is not None or test_nearest is not None or centres is not None:
            raise ValueError("neighbours and cells of the full features do not hold after pca: leave them out, or leave pca out")
        generated, test, train = _project(pca, generated, test, _different(train), memory=memory)
    e, (generated, test, train) = in_range(generated, test, train)
    gaps = [
        _known(known, queries, train, 1, memory).distances[:, 0] for known, queries in ((nearest_train, generated), (test_nearest, test))
    ]
    centres = cells_of(train, cells, seed=seed, memory=memory) if centres is None else shifted(centres, -e)
    labels = [_cell(x, centres, memory) for x in (generated, test)]
    notes = [*_few(min(len(generated), len(test)))]
    details: dict[str, float] = {}
    weights: list[float] = []
    scores: list[float] = []
    for cell in range(len(centres)):
        a, b = (gap[label == cell] for gap, label in zip(gaps, labels, strict=True))
        details |= {f"generated {cell}": float(len(a)), f"test {cell}": float(len(b)), f"P {cell}": len(b) / len(test)}
        if min(len(a), len(b)) <= CELL:
            notes.append(f"cell {cell} with {len(a)} generated and {len(b)} test points is left out: it needs more than {CELL} of each")
            continue
        details[f"Z {cell}"] = _mann_whitney(a, b)
        scores.append(details[f"Z {cell}"])
        weights.append(len(b) / len(test))
    if not weights:
        raise ValueError(
            f"no cell holds more than {CELL} generated and {CELL} test points: pass more points or fewer cells than {len(centres)}"
        )
    value = sum(w * z for w, z in zip(weights, scores, strict=True)) / sum(weights)
    error = sum(w * w for w in weights) ** 0.5 / sum(weights)
    context = {"seed": seed, "cells": len(centres), "pca": pca or 0, "test": len(test)}
    return Result("C_T", value, error, len(generated), "", tuple(notes), details, context)


@dataclass(frozen=True)
class MemorisationPanel:
    """The four statistics for the generated set and, below it, for sets with a known answer: name -> statistic -> result.

    Attributes:
        rows: ``generated``, then the caller's controls, ``test`` (as if generated) and ``training copies``; the statistics of a row are
            ``authenticity`` (AuthPct), ``C_T``, ``NN ratio`` and ``copy distance``.
        n: generated, test and training points.
        notes: how the controls were made.
    """

    rows: Mapping[str, Mapping[str, Result]]
    n: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    def results(self) -> dict[str, Result]:
        """The row of the generated set."""
        return dict(self.rows["generated"])

    def table(self, title: str = "Memorisation") -> Table:
        names = list(self.rows["generated"])
        table = Table(("set", *names), title=title, notes=list(self.notes))
        for name, row in self.rows.items():
            table.add(name, *(row[statistic].value for statistic in names))
        return table

    def __str__(self) -> str:
        return str(self.table())


def memorisation_panel(
    generated: Tensor,
    test: Tensor,
    train: Tensor,
    *,
    controls: Mapping[str, Tensor] | None = None,
    known: RealNeighbours | None = None,
    cells: int = 3,
    pca: int | None = None,
    seed: int = 0,
    memory: int = MEMORY,
) -> MemorisationPanel:
    """AuthPct, C_T, NN ratio and copy distance of the generated set beside those of controls, with one pass per pair of sets.

    Args:
        generated, test, train: (m, d), (n, d), (N, d) features of one extractor.
        controls: further sets by name, treated as if generated (training images with noise, another model ...).
        known: ``RealNeighbours.of(test, train)``, if computed before.
        cells, pca, seed: of C_T, see :func:`data_copying`; ``seed`` also splits the test set and draws the training copies.

    Two controls are always there. ``test``: test points as if generated; for C_T and the copy distance one random half of them against the
    other. ``training copies``: min(m, N) training points.
    """
    controls = controls or {}
    if reserved := {"generated", "test", "training copies"} & set(controls):
        raise ValueError(f"a control cannot be called {reserved.pop()!r}, which is a row of its own: choose another name")
    if known is None or known.train is None or known.test_to_train is None:
        train_self = nearest(train, train, same=True, different=True, memory=memory)
        of_test = nearest(test, train, 2, different=True, memory=memory)
    else:
        train_self, of_test = known.train, known.test_to_train
    of_test = _known(of_test, test, train, 2, memory)
    _known(train_self, train, train, 1, memory)
    centres = None if pca is not None else cells_of(train, cells, seed=seed, memory=memory)

    def row(x: Tensor, of_x: Neighbours, part: slice | Tensor, against: slice | Tensor) -> dict[str, Result]:
        """All four of ``x``; those that compare with test data use the points ``part`` of it and the test points ``against``."""
        y, of_y = test[against], of_test.rows(against)
        near = of_x.rows(part)
        given: dict[str, Any] = {} if pca is not None else {"centres": centres, "nearest_train": near, "test_nearest": of_y}
        return {
            "authenticity": authenticity(x, train, nearest_train=of_x, train_nearest=train_self.distances[:, 0], memory=memory),
            "C_T": data_copying(x[part], y, train, cells=cells, pca=pca, seed=seed, memory=memory, **given),
            "NN ratio": nearest_neighbour_ratio(x, train, nearest_train=of_x, memory=memory),
            "copy distance": copy_distance(x[part], y, train, nearest_train=near, test_nearest=of_y, memory=memory),
        }

    everything = slice(None)
    rows = {
        name: row(x, nearest(x, train, 2, different=True, memory=memory), everything, everything)
        for name, x in {"generated": generated, **controls}.items()
    }
    order = permutation(len(test), "memorisation", seed).to(test.device)
    rows["test"] = row(test, of_test, order[: len(test) // 2], order[len(test) // 2 :])
    picked = permutation(len(train), "copies", seed)[: len(generated)].to(train.device)
    second = train_self.rows(picked)
    copies = Neighbours(
        torch.cat([torch.zeros_like(second.distances[:, :1]), second.distances[:, :1]], 1),
        torch.cat([picked[:, None], second.indices[:, :1]], 1),
    )
    rows["training copies"] = row(train[picked], copies, everything, everything)
    notes = (
        "authenticity (AuthPct) and NN ratio in %; C_T: << 0 copying, >> 0 underfitting; copy distance: 1 = as far from training data as test data",
        f"test: for C_T and copy distance, {len(test) // 2} test points against the other {len(test) - len(test) // 2}",
        "no statistic here tells memorising from underfitting by itself: read the generated row between the others",
    )
    return MemorisationPanel(rows, (len(generated), len(test), len(train)), notes)


def _known(known: Neighbours | None, queries: Tensor, train: Tensor, k: int, memory: int) -> Neighbours:
    """These neighbours, if they can be those of ``queries`` in ``train``; computed if there are none."""
    if known is None:
        return nearest(queries, train, k, different=k > 1, memory=memory)
    if len(known) != len(queries) or known.k < k or int(known.indices.max()) >= len(train):
        raise ValueError(
            f"precomputed neighbours ({len(known)} queries, k = {known.k}) are not those of {len(queries)} points among {len(train)} training "
            f"points with k >= {k}: compute them from these very features"
        )
    return known


def _mann_whitney(a: Tensor, b: Tensor) -> float:
    """Z of the Mann-Whitney U of ``a`` over ``b`` with ties and continuity correction as one-sided against "a is smaller"; 0 if all tie."""
    m, n = len(a), len(b)
    ordered = b.sort().values
    u = float((torch.searchsorted(ordered, a) + torch.searchsorted(ordered, a, right=True)).double().sum()) / 2
    t = torch.cat([a, b]).unique(return_counts=True)[1].double()
    variance = m * n / 12 * ((m + n + 1) - float((t**3 - t).sum()) / ((m + n) * (m + n - 1)))
    return (u - (m * n - 1) / 2) / variance**0.5 if variance > 1e-9 else 0.0


def _different(train: Tensor) -> Tensor:
    """The training points without their repetitions."""
    train = feature_matrix(train, what="training features")
    first, _ = distinct(row_keys(train))
    return train if len(first) == len(train) else train[first.to(train.device)]


def _rows(x: Tensor, memory: int) -> int:
    return max(memory // (32 * x.shape[1]), 1)


def _cell(x: Tensor, centres: Tensor, memory: int) -> Tensor:
    """The nearest centre of each row, the first of equals, by direct differences in float64: (n,) int64."""
    rows = (part.double() for part in x.split(_rows(x, memory)))
    return torch.cat([torch.stack([(part - centre).square_().sum(1) for centre in centres]).argmin(0) for part in rows])


def _project(pca: int, *sets: Tensor, memory: int) -> list[Tensor]:
    """All sets on the first ``pca`` principal axes of the last one, in float64."""
    _, sets = in_range(*sets)  # the statistic that follows knows no unit
    stats = FeatureStats.from_features(sets[-1])
    if not 1 <= pca <= min(stats.dim, stats.n - 1):
        raise ValueError(f"{stats.n} training points of {stats.dim} dimensions have no {pca} principal axes: choose a smaller pca, or None")
    axes = torch.linalg.eigh(stats.covariance).eigenvectors[:, -pca:].to(sets[-1].device)
    mean = stats.mean.to(sets[-1].device)
    return [torch.cat([(part.double() - mean) @ axes for part in x.split(_rows(x, memory))]) for x in sets]


def _share(hits: Tensor) -> tuple[float, float]:
    """A share and its binomial standard error."""
    p = float(hits.double().mean())
    return p, (p * (1 - p) / len(hits)) ** 0.5


def _median(x: Tensor) -> tuple[float, float]:
    """The median and its standard error: half the distance between the order statistics one deviation of a binomial count away."""
    ordered, n = x.sort().values, len(x)
    reach = n**0.5 / 2
    low, high = ordered[max(int(n / 2 - reach), 0)], ordered[min(math.ceil(n / 2 + reach), n - 1)]
    return float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2), float(high - low) / 2


def _few(n: int) -> tuple[str, ...]:
    return (f"n = {n} is below {FEW}: compare with values at the same n only",) if n < FEW else ()


@metric("memorisation", "AuthPct", "C_T", "NN ratio", "copy distance", copying=True)
def _memorisation(sets: Compared) -> dict[str, Result]:
    """Those that these sets allow; why one is missing is a note of AuthPct, which always exists."""
    assert sets.train is not None
    generated, train, reference, memory = sets.generated, sets.train, sets.reference, sets.memory
    real, test = reference.neighbours, reference.test
    near = nearest(generated, train, 2, different=True, memory=memory)
    both: dict[str, Any] = {"nearest_train": near, "test_nearest": real.test_to_train, "memory": memory}
    found = {"AuthPct": authenticity(generated, train, nearest_train=near, train_nearest=real.train_nearest, memory=memory)}
    ways: dict[str, Callable[[], Result]] = {
        "C_T": lambda: data_copying(generated, test, train, seed=sets.seed, centres=reference.cells(sets.seed), **both),
        "NN ratio": lambda: nearest_neighbour_ratio(generated, train, nearest_train=near, memory=memory),
        "copy distance": lambda: copy_distance(generated, test, train, **both),
    }
    if sets.seen:
        del ways["C_T"], ways["copy distance"]
    missing = []
    for name, way in ways.items():
        try:
            found[name] = way()
        except ValueError as error:  # a collapsed generator fills no cell, a test set of copies has no scale
            missing.append(f"no {name}: {error}")
    found["AuthPct"] = dataclasses.replace(found["AuthPct"], notes=(*found["AuthPct"].notes, *missing))
    return found
