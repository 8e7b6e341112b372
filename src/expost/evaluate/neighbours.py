"""Nearest neighbours in feature space, exact, and the four scores that count them: precision, recall, density, coverage.

The ball of a point x in a set X has the distance from x to its k-th nearest *other* point of X as radius r_k(x). With generated points g
(N of them) and real points r (M):

| score | definition | test | source |
|---|---|---|---|
| precision | share of g inside the ball of at least one r | d(g, r) ≤ r_k(r) | Kynkäänniemi et al. 2019, "Improved precision and recall metric", eq. 1 |
| recall | share of r inside the ball of at least one g | d(g, r) ≤ r_k(g) | the same |
| density | number of balls of real points that hold g, over k, mean over g | d(g, r) < r_k(r) | Naeem et al. 2020, "Reliable fidelity and diversity metrics", eq. 3 |
| coverage | share of r whose ball holds at least one g | d(g, r) < r_k(r) | the same, eq. 4 |

The tests are those of the papers. Package ``prdc`` uses < for all four, which differs where distances tie with radii only: on continuous data
never, on points repeated more than k times (radius 0) its precision and recall are 0 even for identical sets, and ours are 1.

How they are computed. |x − y|² = |x|² − 2xy + |y|² in float32, a tile at a time, around the common mean and in a unit that makes norms ≤ 1;
a tile of a set against itself serves its rows and its columns. The rounding error of a tile's entry is bounded (Higham 2002, "Accuracy and
stability of numerical algorithms", section 3.1): for |x| = a and a distance ρ it is below c·u·(2a + ρ)², c ≈ d/2, u = 2⁻²⁴. What this bound
cannot decide is computed again as Σ(xᵢ − yᵢ)² in float64. So results are those of float64 arithmetic throughout: they do not depend on
``memory`` or the number of threads at all, nor on the order of rows (except which of several points at equal distance is named).

What is not promised: that a score means something at small n, or between features of different extractors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from expost.evaluate.matrix import feature_matrix
from expost.results import Result

__all__ = ["NeighbourPanel", "Neighbours", "RealNeighbours", "nearest", "neighbour_panel", "pair_distances"]

MEMORY = 256 << 20
#: Below this many points on a side the literature's scores (10 000 or more) are not approached.
FEW = 2048
#: Largest side of a tile, halved for wide features (measured), and the smallest that is worth running.
SIDE, LEAST = 2048, 16
#: Candidates kept beyond k: enough that the error bound nearly always proves them sufficient.
SPARE = 5
#: Columns per group when the smallest of a row are selected: first the groups with the smallest minima, then inside them.
GROUP = 32
#: Products are summed over at most this many dimensions at a time, which keeps the error bound small for images as features.
SPAN = 4096


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest points of each of n queries.

    Attributes:
        distances: (n, k) float64, Euclidean, ascending; 0 exactly for an exact copy.
        indices: (n, k) int64, rows of the points; of equal distances the lower row comes first.
    """

    distances: Tensor
    indices: Tensor

    @property
    def k(self) -> int:
        return self.distances.shape[1]

    def __len__(self) -> int:
        return len(self.distances)

    def rows(self, index: Tensor | slice) -> Neighbours:
        """The neighbours of some of the queries."""
        return Neighbours(self.distances[index], self.indices[index])


def nearest(queries: Tensor, points: Tensor, k: int = 1, *, same: bool = False, memory: int = MEMORY) -> Neighbours:
    """The k nearest ``points`` of each query, by Euclidean distance, exactly.

    Args:
        queries: (n, d) floating, any dtype.
        points: (m, d), on the same device.
        k: neighbours per query; at most m, or m − 1 with ``same``.
        same: the queries *are* the points, and no point is its own neighbour. It is left out by its row, so a duplicate elsewhere is a
            neighbour at distance 0. Takes half the time.
        memory: bytes that tiles and temporaries may take beyond the inputs and O(n k) results.

    Raises:
        ValueError: features that are not finite matrices of one width, k out of range, or ``memory`` too small for a tile.

    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> nearest(x, x, same=True).distances.T
    tensor([[1., 1., 2.]], dtype=torch.float64)
    """
    queries, points = _features(queries, "queries"), points if same else _features(points, "points")
    if same:
        if points is not queries and (points.shape != queries.shape or not torch.equal(points, queries)):
            raise ValueError("same=True means that queries and points are one set, but two different ones were given: pass one set twice")
        points = queries
    return _nearest(queries, points, k, same, memory)


def _nearest(queries: Tensor, points: Tensor, k: int, same: bool, memory: int) -> Neighbours:
    """:func:`nearest` of features that have been checked."""
    frame = _Frame.of(queries, points, memory)
    available = len(points) - same
    if not 1 <= k <= available:
        raise ValueError(f"k = {k} nearest neighbours cannot be found among {available} points: choose 1 <= k <= {available}")
    device = queries.device
    distances = torch.empty(len(queries), k, dtype=torch.float64, device=device)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=device)
    left = torch.arange(len(queries), device=device)
    for dtype in (torch.float32, torch.float64):
        found = _candidates(frame, queries, points, left, min(k + SPARE, available), same, dtype)
        proven = _decide(frame, queries, points, left, found, k, dtype, distances, indices)
        left = left[~proven]
        if len(left) == 0 or k + SPARE >= available:  # all were candidates
            return Neighbours(distances, indices)
    _settle_ties(frame, queries, points, left, k, same, distances, indices)
    return Neighbours(distances, indices)


def pair_distances(a: Tensor, i: Tensor, b: Tensor, j: Tensor, *, memory: int = MEMORY) -> Tensor:
    """√Σ(a_i − b_j)² of pairs of rows: ``i`` and ``j`` (p,) int64 -> (p,) float64. The bits of a pair do not depend on the other pairs."""
    size = max(min(memory // 48, 1 << 20) // a.shape[1], 2)
    out = torch.empty(len(i), dtype=torch.float64, device=a.device)
    for start in range(0, len(i), size):
        part = slice(start, start + size)
        difference = a.index_select(0, i[part]).to(torch.float64)
        difference -= b.index_select(0, j[part])
        squares = difference.square_()
        # One row alone would be summed in an order that depends on the number of threads; two never are.
        out[part] = squares.sum(1) if len(squares) > 1 else squares.expand(2, -1).contiguous().sum(1)[:1]
    return out.sqrt_()


class _Found(NamedTuple):
    """The smallest entries of each row: ``values`` (n, K) ascending, in units of the frame, and their ``columns``."""

    values: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class _Frame:
    """A common origin and unit for two sets, and the tiles of squared distances between them.

    ``unit`` is a power of two, so that it rounds nothing, with |x − centre| · unit ≤ 1 for every row: squares neither overflow nor vanish.
    ``norms`` are these lengths for the rows of the two sets, in float64. Any centre is right; near the mean rounding is least.
    """

    centre: Tensor
    unit: float
    norms: tuple[Tensor, Tensor]
    memory: int

    @classmethod
    def of(cls, a: Tensor, b: Tensor, memory: int) -> _Frame:
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"features of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared: use one extractor for both sets")
        if a.device != b.device:
            raise ValueError(f"one set lies on {a.device} and the other on {b.device}: move both to one device")
        d, work = a.shape[1], torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        least = _tile_bytes(LEAST, d, torch.float64)
        if memory < least:
            raise ValueError(f"memory = {memory} bytes cannot hold a tile of {LEAST} rows of {d} dimensions: allow at least {least}")
        rows = max(min(memory // (32 * d), (1 << 20) // d), 1)
        sets = (a,) if a is b else (a, b)
        centre = torch.zeros(d, dtype=work, device=a.device)
        for x in sets:
            for part in x.split(rows):
                centre += part.to(work).sum(0) / sum(map(len, sets))
        lengths = [torch.cat([torch.linalg.vector_norm(part.to(torch.float64) - centre, dim=1) for part in x.split(rows)]) for x in sets]
        longest = max(float(norms.max()) for norms in lengths)
        if not longest < 1e150:
            raise ValueError("features are too large for their squares to be finite in float64: divide them by a constant")
        most = 126 if work == torch.float32 else 500
        unit = 2.0 ** min(-math.ceil(math.log2(longest)), most) if longest > 0 else 1.0
        return cls(centre, unit, (lengths[0] * unit, lengths[-1] * unit), memory)

    def place(self, rows: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Rows relative to the centre, in units of the frame, rounded to ``dtype``; in the flat buffer ``out`` if there is one."""
        work = torch.promote_types(self.centre.dtype, dtype)
        out = torch.empty_like(rows, dtype=dtype) if out is None else out[: rows.numel()].view(rows.shape)
        if rows.dtype == self.centre.dtype == dtype:  # otherwise ``sub`` would subtract in the lower precision
            return torch.sub(rows, self.centre, out=out).mul_(self.unit)
        return out.copy_((rows.to(work) - self.centre).mul_(self.unit))

    def slack(self, norms: Tensor, radii: Tensor, dtype: torch.dtype) -> Tensor:
        """Bound on the error of a tile's entry whose row has this norm and whose true distance is at most the radius.

        Rounding of the two vectors and of their squared norms, of d products summed in any order, of two additions, and of the threshold
        that the entry is compared with; by the triangle inequality the other vector is no longer than norm + radius. A quarter is added to the bound.
        """
        d, info = len(self.centre), torch.finfo(dtype)
        c = min(d, SPAN) / 2 + d / SPAN + 16
        return 1.25 * c * (info.eps / 2) * (2 * norms + radii).square() + d * info.tiny

    def side(self, dtype: torch.dtype) -> int:
        """Rows of a square tile that fits ``memory``."""
        side = SIDE if len(self.centre) < 1024 else SIDE // 2  # where products dominate, less of the mirrored half is computed twice
        while side > LEAST and _tile_bytes(side, len(self.centre), dtype) > self.memory:
            side = max(side * 7 // 8 // LEAST * LEAST, LEAST)
        return side

    def tile(self, x: Tensor, y: Tensor, x_norms: Tensor, y_norms: Tensor, out: Tensor) -> Tensor:
        """|x_i|² − 2 x_i y_j + |y_j|² of placed rows (p, d) and (q, d) with their norms, written into the flat buffer ``out``."""
        out = out[: len(x) * len(y)].view(len(x), len(y))
        torch.addmm(y_norms.square().to(out.dtype), x[:, :SPAN], y[:, :SPAN].T, alpha=-2, out=out)
        for start in range(SPAN, x.shape[1], SPAN):
            out.addmm_(x[:, start : start + SPAN], y[:, start : start + SPAN].T, alpha=-2)
        return out.add_(x_norms.square().to(out.dtype)[:, None])


def _tile_bytes(side: int, d: int, dtype: torch.dtype) -> int:
    """What a tile of this side needs: two blocks of rows, copies while they are placed, and four matrices."""
    return dtype.itemsize * (4 * side * d + 4 * side * side) + 8 * side * d


@contextmanager
def _full_precision() -> Iterator[None]:
    """Float32 products in float32, whatever the user allows elsewhere (TF32, bfloat16): the error bound rests on it."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _candidates(frame: _Frame, q: Tensor, p: Tensor, rows: Tensor, keep: int, same: bool, dtype: torch.dtype) -> _Found:
    """For the queries in ``rows``, the ``keep`` points that look nearest in arithmetic of ``dtype``."""
    side, everything = frame.side(dtype), len(rows) == len(q)
    symmetric = same and everything
    values = torch.full((len(rows), keep), torch.inf, dtype=dtype, device=q.device)
    columns = torch.zeros(len(rows), keep, dtype=torch.int64, device=q.device)
    tile, mirror = (torch.empty(min(side, len(rows)) * min(side, len(p)), dtype=dtype, device=q.device) for _ in range(2))
    xs, ys = (torch.empty(min(side, n) * q.shape[1], dtype=dtype, device=q.device) for n in (len(rows), len(p)))
    norms = frame.norms[0][rows]

    def merge(at: slice, distances: Tensor, first: int) -> None:
        best = _smallest(distances, keep)
        pool = torch.cat([values[at], best.values], 1)
        kept = pool.topk(keep, 1, largest=False)
        values[at] = kept.values
        columns[at] = torch.cat([columns[at], best.columns + first], 1).gather(1, kept.indices)

    with _full_precision():
        for i in range(0, len(rows), side):
            at, index = slice(i, i + side), rows[i : i + side]
            x = frame.place(q[at] if everything else q[index], dtype, xs)
            for j in range(i if symmetric else 0, len(p), side):
                y = x if symmetric and i == j else frame.place(p[j : j + side], dtype, ys)
                distances = frame.tile(x, y, norms[at], frame.norms[1][j : j + side], tile)
                if same:
                    own = ((index >= j) & (index < j + len(y))).nonzero().squeeze(1)
                    distances[own, index[own] - j] = torch.inf
                merge(at, distances, j)
                if symmetric and i != j:
                    merge(slice(j, j + side), mirror[: distances.numel()].view(len(y), len(x)).copy_(distances.T), i)
    return _Found(values, columns)


def _smallest(x: Tensor, keep: int) -> _Found:
    """The ``keep`` smallest entries of each row (all of them, if the rows are shorter), ascending."""
    n, width = x.shape
    groups = width // GROUP
    if groups < 2 * keep:
        return _Found(*x.topk(min(keep, width), 1, largest=False))
    whole, tail = x[:, : groups * GROUP], x[:, groups * GROUP :]
    chosen = whole.unflatten(1, (groups, GROUP)).amin(2).topk(keep, 1, largest=False, sorted=False).indices
    columns = (chosen[:, :, None] * GROUP + torch.arange(GROUP, device=x.device)).flatten(1)
    inside = torch.cat([x.gather(1, columns), tail], 1)
    best = inside.topk(keep, 1, largest=False)
    columns = torch.cat([columns, torch.arange(groups * GROUP, width, device=x.device).expand(n, -1)], 1)
    return _Found(best.values, columns.gather(1, best.indices))


def _decide(
    frame: _Frame, q: Tensor, p: Tensor, rows: Tensor, found: _Found, k: int, dtype: torch.dtype, distances: Tensor, indices: Tensor
) -> Tensor:
    """Write the k nearest of the candidates into ``distances`` and ``indices``; True where none beyond the candidates can be nearer."""
    norms = frame.norms[0][rows]
    kth = found.values[:, k - 1].double().clamp_(min=0)
    within = found.values <= (kth + 2 * frame.slack(norms, kth.sqrt(), dtype))[:, None]
    i, c = within.nonzero(as_tuple=True)
    exact = torch.full(found.values.shape, torch.inf, dtype=torch.float64, device=q.device)
    exact[i, c] = pair_distances(q, rows[i], p, found.columns[i, c], memory=frame.memory)
    distances[rows], indices[rows] = _first(exact, found.columns, k)
    radius = distances[rows, k - 1] * frame.unit
    return found.values[:, -1].double() > radius.square() + frame.slack(norms, radius, dtype)


def _first(distances: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row, ties by column."""
    columns, order = columns.sort(1)
    distances, by_distance = distances.gather(1, order).sort(dim=1, stable=True)
    return distances[:, :k], columns.gather(1, by_distance)[:, :k]


def _settle_ties(frame: _Frame, q: Tensor, p: Tensor, rows: Tensor, k: int, same: bool, distances: Tensor, indices: Tensor) -> None:
    """Queries with many points at the distance of the k-th: all points that float64 products cannot exclude, compared one by one.

    A query whose k-th neighbour is at distance 0 needs its first k copies only, so a set of copies costs no N² exact distances.
    """
    side, dtype = min(frame.side(torch.float64), 512), torch.float64
    tile = torch.empty(side * side, dtype=dtype, device=q.device)
    for index in rows.split(side):
        x, norms, radius = frame.place(q[index], dtype), frame.norms[0][index], distances[index, k - 1] * frame.unit
        limit = radius.square() + frame.slack(norms, radius, dtype)
        best = torch.full((len(index), k), torch.inf, dtype=dtype, device=q.device)
        named = torch.full((len(index), k), len(p), dtype=torch.int64, device=q.device)
        for j in range(0, len(p), side):
            y = frame.place(p[j : j + side], dtype)
            near = frame.tile(x, y, norms, frame.norms[1][j : j + side], tile) <= limit[:, None]
            if same:
                own = ((index >= j) & (index < j + len(y))).nonzero().squeeze(1)
                near[own, index[own] - j] = False
            rank = near.cumsum(1)
            for start in range(0, int(rank[:, -1].max()), 2 * k):
                i, c = (near & (rank > start) & (rank <= start + 2 * k) & (best[:, -1:] > 0)).nonzero(as_tuple=True)
                exact = torch.full((len(index), 2 * k), torch.inf, dtype=dtype, device=q.device)
                column = torch.full((len(index), 2 * k), len(p), dtype=torch.int64, device=q.device)
                slot = rank[i, c] - start - 1
                exact[i, slot] = pair_distances(q, index[i], p, c + j, memory=frame.memory)
                column[i, slot] = c + j
                best, named = _first(torch.cat([best, exact], 1), torch.cat([named, column], 1), k)
        distances[index], indices[index] = best, named


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
    generated, real = _features(generated, "generated features"), _features(real, "real features")
    most = max(k, k_coverage)
    if min(k, k_coverage) < 1 or len(real) <= most or len(generated) <= k:
        raise ValueError(
            f"k = {k} and k_coverage = {k_coverage} need more than {most} real and {k} generated points, not {len(real)} and {len(generated)}: "
            "pass more points or a smaller k of at least 1"
        )
    frame = _Frame.of(generated, real, memory)
    if real_radii is None:
        real_radii = _nearest(real, real, most, True, memory).distances
    elif real_radii.shape[:1] != real.shape[:1] or real_radii.dim() != 2 or real_radii.shape[1] < most or real_radii.dtype != torch.float64:
        raise ValueError(
            f"real_radii must be float64 distances ({len(real)}, {most} or more), not {real_radii.dtype} of shape {tuple(real_radii.shape)}: "
            "use RealNeighbours.of(real).radii of these very features"
        )
    own_radii = _nearest(generated, generated, k, True, memory).distances[:, k - 1]
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
    return NeighbourPanel(k=k, k_coverage=k_coverage, n=n, errors=errors, notes=_notes(*n), **values)


class _Balls(NamedTuple):
    """Balls around the rows or the columns of a tile: what is surely inside (below ``low``), surely outside (above ``high``), and exactly."""

    low: Tensor
    high: Tensor
    radii: Tensor
    closed: bool

    @classmethod
    def of(cls, frame: _Frame, radii: Tensor, axis: int, *, closed: bool) -> _Balls:
        """Balls of these radii around the points of the first (axis 0) or second set (axis 1)."""
        scaled = radii * frame.unit
        slack = frame.slack(frame.norms[axis], scaled, torch.float32)
        low, high = (scaled.square() - slack).float(), (scaled.square() + slack).float()
        return cls(low.unsqueeze(1 - axis), high.unsqueeze(1 - axis), radii, closed)


def _count(frame: _Frame, generated: Tensor, real: Tensor, balls: tuple[_Balls, _Balls, _Balls]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
            within[g - i, c - j] = ((exact <= radius) if ball.closed else (exact < radius)).float()
        return within

    with _full_precision():
        for i in range(0, len(generated), side):
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
        train: of each training point, the nearest other training point (n_train, 1).
        test_to_train: of each real (test) point, the two nearest training points (n, 2).

    >>> kept = RealNeighbours.of(torch.rand(20, 2), torch.rand(30, 2), k=3)
    >>> RealNeighbours.from_tensors(kept.tensors()).train_nearest.shape
    torch.Size([30])
    """

    radii: Tensor
    train: Neighbours | None = None
    test_to_train: Neighbours | None = None

    @property
    def train_nearest(self) -> Tensor | None:
        """(n_train,) float64: distance of each training point to the nearest other one."""
        return None if self.train is None else self.train.distances[:, 0]

    @classmethod
    def of(cls, real: Tensor, train: Tensor | None = None, *, k: int = 5, memory: int = MEMORY) -> RealNeighbours:
        """Neighbours among the ``real`` (test) features (n, d), and, with ``train`` (n_train, d), those in the training set."""
        radii = nearest(real, real, k, same=True, memory=memory).distances
        if train is None:
            return cls(radii)
        return cls(radii, nearest(train, train, same=True, memory=memory), nearest(real, train, 2, memory=memory))

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for ``expost.files.save_tensors``."""
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


def _features(x: Tensor, what: str) -> Tensor:
    """``x`` if it is a finite floating matrix (n, d) with at least one row."""
    x = feature_matrix(x, what=what)
    if len(x) == 0:
        raise ValueError(f"{what} have no rows: pass at least one")
    return x


def _notes(generated: int, real: int) -> tuple[str, ...]:
    notes = []
    if min(generated, real) < FEW:
        notes.append(f"n = {min(generated, real)} is below {FEW}: compare with values at the same n only")
    if generated != real:
        notes.append(f"{generated} generated and {real} real points: unequal sets shift all four scores, compare at equal n")
    return tuple(notes)
