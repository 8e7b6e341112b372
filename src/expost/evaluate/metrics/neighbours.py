"""Nearest neighbours in feature space, exact, and the four scores that count them: precision, recall, density, coverage.

The ball of a point x in a set X has the distance from x to its k-th nearest *other* point of X as radius r_k(x). With generated points g
(N of them) and real points r (M):

| score | definition | test | source |
|---|---|---|---|
| precision | share of g inside the ball of at least one r | d(g, r) ≤ r_k(r) | Kynkäänniemi et al. 2019, "Improved precision and recall metric", eq. 1 |
| recall | share of r inside the ball of at least one g | d(g, r) ≤ r_k(g) | the same |
| density | number of balls of real points that hold g, over k, mean over g | d(g, r) < r_k(r), or d(g, r) = 0 | Naeem et al. 2020, "Reliable fidelity and diversity metrics", eq. 3 |
| coverage | share of r whose ball holds at least one g | d(g, r) < r_k(r), or d(g, r) = 0 | the same, eq. 4 |

The tests are those of the papers, but that a ball always holds copies of its centre: a point with k copies has radius 0, and without them the
density and coverage of a perfect set would be 0. Package ``prdc`` uses < for all four, which differs where distances tie with radii only: on
continuous data never, on points repeated more than k times all its scores are 0 even for identical sets. How many balls have radius 0 is said.

How distances are computed and decided is told in :mod:`expost.statistics.neighbours`.

What is not promised: that a score means something at small n, or between features of different extractors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from expost.evaluate.metrics.registry import Compared, metric
from expost.results import Result
from expost.statistics.neighbours import MEMORY, Frame, Neighbours, nearest, pair_distances, search, searchable
from expost.system.progress import Bar
from expost.tensors import full_precision, in_range, shifted

__all__ = ["NeighbourPanel", "RealNeighbours", "neighbour_panel"]

#: Below this many points on a side the literature's scores (10 000 or more) are not approached.
FEW = 2048


@dataclass(frozen=True)
class NeighbourPanel:
    """Precision, recall, density and coverage of one set of generated features against one of real features.

    Attributes:
        precision, recall, coverage: shares in [0, 1]; density: ≥ 0, near 1 for a perfect generator, without upper bound.
        k: neighbours that make the radii of precision and recall; k_coverage: of density and coverage.
        n: generated and real points.
        errors: standard error of each score over the points it averages, the balls being given: binomial, for density by its spread.
        notes: sentences on small or unequal n; empty when there is nothing to warn of.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    k_coverage: int
    n: tuple[int, int]
    errors: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def results(self) -> dict[str, Result]:
        """The four scores as results, by name."""
        return {
            name: Result(
                name,
                getattr(self, name),
                self.errors[name],
                self.n[1] if name in ("recall", "coverage") else self.n[0],
                notes=self.notes,
                context={"k": self.k if name in ("precision", "recall") else self.k_coverage, "generated": self.n[0], "real": self.n[1]},
            )
            for name in ("precision", "recall", "density", "coverage")
        }

    def __str__(self) -> str:
        return "\n".join(str(result) for result in self.results().values())


def neighbour_panel(
    generated: Tensor, real: Tensor, *, k: int = 3, k_coverage: int = 5, real_radii: Tensor | None = None, memory: int = MEMORY
) -> NeighbourPanel:
    """Improved precision and recall and density and coverage, as defined at the top of this file, in one pass over (generated, real).

    Equal to ``prdc.compute_prdc(real, generated, k)`` in float64 for k = k_coverage wherever no distance ties with a radius.

    Args:
        generated: features (n, d) of generated data.
        real: features (m, d) of real data, on the same device.
        k: for precision and recall; 3 in Kynkäänniemi et al. 2019.
        k_coverage: for density and coverage; 5 in Naeem et al. 2020.
        real_radii: (m, K) distances of each real point to its K ≥ max(k, k_coverage) nearest others, if known: ``RealNeighbours.radii``.
        memory: bytes beyond the inputs and O(n + m) results; no effect on the scores.

    Raises:
        ValueError: features that are not finite matrices of one width, too few points for k, or radii of another set.

    >>> real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> panel = neighbour_panel(torch.tensor([[0.1], [0.2], [0.3]]) + 0.2, real, k=1, k_coverage=1)
    >>> panel.precision, panel.recall, panel.coverage
    (1.0, 0.0, 0.5)
    """
    generated, real = searchable(generated, "generated features"), searchable(real, "real features")
    most = max(k, k_coverage)
    if min(k, k_coverage) < 1 or len(real) <= most or len(generated) <= k:
        raise ValueError(
            f"k = {k} and k_coverage = {k_coverage} need more than {most} real and {k} generated points, not {len(real)} and {len(generated)}: "
            "pass more points or a smaller k of at least 1"
        )
    e, (generated, real) = in_range(generated, real)
    frame = Frame.of(generated, real, memory)
    if real_radii is None:
        real_radii = search(real, real, most, True, memory).distances
    elif real_radii.shape[:1] != real.shape[:1] or real_radii.dim() != 2 or real_radii.shape[1] < most or real_radii.dtype != torch.float64:
        raise ValueError(
            f"real_radii must be float64 distances ({len(real)}, {most} or more), not {real_radii.dtype} of shape {tuple(real_radii.shape)}: "
            "use RealNeighbours.of(real).radii of these very features"
        )
    else:
        real_radii = shifted(real_radii, -e)
    own_radii = search(generated, generated, k, True, memory).distances[:, k - 1]
    balls = (
        _Balls.of(frame, real_radii[:, k - 1].to(real.device), 1, closed=True),
        _Balls.of(frame, real_radii[:, k_coverage - 1].to(real.device), 1, closed=False),
        _Balls.of(frame, own_radii, 0, closed=True),
    )
    held, covered, recalled, counts = _count(frame, generated, real, balls)

    def share(hits: Tensor) -> tuple[float, float]:
        p = float(hits.double().mean())
        return p, (p * (1 - p) / len(hits)) ** 0.5

    scores = {"precision": share(held), "recall": share(recalled), "coverage": share(covered)}
    spread = float(counts.double().std()) / k_coverage
    scores["density"] = int(counts.sum()) / (len(counts) * k_coverage), spread / len(counts) ** 0.5
    values, errors = ({name: score[part] for name, score in scores.items()} for part in (0, 1))
    n = (len(generated), len(real))
    notes = _notes(*n)
    for radii, neighbours, which in ((real_radii[:, k_coverage - 1], k_coverage, "real"), (own_radii, k, "generated")):
        if copies := int((radii == 0).sum()):
            notes += (
                f"{copies} of {len(radii)} {which} images have {neighbours} or more copies: their balls have radius 0 and hold copies only",
            )
    return NeighbourPanel(k=k, k_coverage=k_coverage, n=n, errors=errors, notes=notes, **values)


class _Balls(NamedTuple):
    """Balls around the rows or the columns of a tile: what is surely inside (below ``low``), surely outside (above ``high``), and exactly."""

    low: Tensor
    high: Tensor
    radii: Tensor
    closed: bool

    @classmethod
    def of(cls, frame: Frame, radii: Tensor, axis: int, *, closed: bool) -> _Balls:
        """Balls of these radii around the points of the first (axis 0) or second set (axis 1)."""
        scaled = radii * frame.unit
        slack = frame.slack(frame.norms[axis], scaled, torch.float32)
        low, high = (scaled.square() - slack).float(), (scaled.square() + slack).float()
        return cls(low.unsqueeze(1 - axis), high.unsqueeze(1 - axis), radii, closed)


def _count(frame: Frame, generated: Tensor, real: Tensor, balls: tuple[_Balls, _Balls, _Balls]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which generated points are held, which real points are covered and recalled, and in how many balls each generated point lies."""
    side, device = frame.side(torch.float32), real.device
    held, covered, recalled, counts = (torch.zeros(n, device=device) for n in (len(generated), len(real), len(real), len(generated)))
    counts = counts.to(torch.int64)
    tile, inside, near = (torch.empty(min(side, len(generated)) * min(side, len(real)), device=device) for _ in range(3))
    xs, ys = (torch.empty(min(side, n) * real.shape[1], device=device) for n in (len(generated), len(real)))

    def decide(ball: _Balls, distances: Tensor, i: int, j: int) -> Tensor:
        """1.0 where the generated point of this row and the real point of this column lie within the ball, else 0.0."""
        rows, columns = distances.shape
        within, unsure = (buffer[: rows * columns].view(rows, columns) for buffer in (inside, near))
        by_column = ball.low.shape[0] == 1
        low, high = (t[:, j : j + columns] if by_column else t[i : i + rows] for t in (ball.low, ball.high))
        torch.lt(distances, low, out=within)
        torch.le(distances, high, out=unsure).sub_(within)
        for r in (unsure.amax(1) > 0).nonzero().squeeze(1).split(max(len(unsure) // 8, 1)):
            g, c = unsure[r].nonzero(as_tuple=True)
            g, c = r[g] + i, c + j
            exact = pair_distances(generated, g, real, c, memory=frame.memory)
            radius = ball.radii[c] if by_column else ball.radii[g]
            within[g - i, c - j] = ((exact <= radius) if ball.closed else (exact < radius) | (exact == 0)).float()
        return within

    with full_precision(), Bar(len(generated), what="balls", after=1.0) as bar:
        for i in range(0, len(generated), side):
            bar.update(i)
            rows = slice(i, i + side)
            x = frame.place(generated[rows], torch.float32, xs)
            for j in range(0, len(real), side):
                columns = slice(j, j + side)
                y = frame.place(real[columns], torch.float32, ys)
                distances = frame.tile(x, y, frame.norms[0][rows], frame.norms[1][columns], tile)
                held[rows] = torch.maximum(held[rows], decide(balls[0], distances, i, j).amax(1))
                within = decide(balls[1], distances, i, j)
                counts[rows] += within.sum(1).to(torch.int64)
                covered[columns] = torch.maximum(covered[columns], within.amax(0))
                recalled[columns] = torch.maximum(recalled[columns], decide(balls[2], distances, i, j).amax(0))
    return held, covered, recalled, counts


@dataclass(frozen=True, eq=False)
class RealNeighbours:
    """What the neighbour scores need of the real data alone: computed once, kept on disk by the caller.

    Attributes:
        radii: (n, k) float64, distances of each real (test) point to its k nearest others.
        train: of each training point, the nearest different training point (n_train, 1).
        test_to_train: of each real (test) point, the two nearest different training points (n, 2).

    >>> kept = RealNeighbours.of(torch.rand(20, 2), torch.rand(30, 2), k=3)
    >>> RealNeighbours.from_tensors(kept.tensors()).train_nearest.shape
    torch.Size([30])
    """

    radii: Tensor
    train: Neighbours | None = None
    test_to_train: Neighbours | None = None

    @property
    def train_nearest(self) -> Tensor | None:
        """(n_train,) float64: distance of each training point to the nearest different one."""
        return None if self.train is None else self.train.distances[:, 0]

    @classmethod
    def of(cls, real: Tensor, train: Tensor | None = None, *, k: int = 5, memory: int = MEMORY) -> RealNeighbours:
        """Neighbours among the ``real`` (test) features (n, d), and, with ``train`` (n_train, d), those in the training set."""
        radii = nearest(real, real, k, same=True, memory=memory).distances
        if train is None:
            return cls(radii)
        own = nearest(train, train, same=True, different=True, memory=memory)
        return cls(radii, own, nearest(real, train, 2, different=True, memory=memory))

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for ``expost.system.files.save_tensors``."""
        out = {"radii": self.radii}
        for name in ("train", "test_to_train"):
            if (neighbours := getattr(self, name)) is not None:
                out |= {f"{name}.distances": neighbours.distances, f"{name}.indices": neighbours.indices}
        return {name: tensor.contiguous() for name, tensor in out.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RealNeighbours:
        """The inverse of :meth:`tensors`; ``ValueError`` if these are others."""
        names = {"radii"}, {"radii", *(f"{name}.{part}" for name in ("train", "test_to_train") for part in ("distances", "indices"))}
        if set(tensors) not in names:
            raise ValueError(f"tensors named {sorted(tensors)} are not those of RealNeighbours: compute them again with RealNeighbours.of")
        if len(tensors) == 1:
            return cls(tensors["radii"])
        train, test = (Neighbours(tensors[f"{name}.distances"], tensors[f"{name}.indices"]) for name in ("train", "test_to_train"))
        return cls(tensors["radii"], train, test)


def _notes(generated: int, real: int) -> tuple[str, ...]:
    notes = []
    if min(generated, real) < FEW:
        notes.append(f"n = {min(generated, real)} is below {FEW}: compare with values at the same n only")
    if generated != real:
        notes.append(f"{generated} generated and {real} real points: unequal sets shift all four scores, compare at equal n")
    return tuple(notes)


@metric("neighbours", "precision", "recall", "density", "coverage")
def _panel(sets: Compared) -> dict[str, Result]:
    return neighbour_panel(sets.generated, sets.test, real_radii=sets.reference.neighbours.radii, memory=sets.memory).results()
