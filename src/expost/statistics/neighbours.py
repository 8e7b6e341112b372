"""Nearest neighbours, exact, in tiles under a memory bound.

|x − y|² = |x|² − 2xy + |y|² in float32, a tile at a time, around the common mean and in a unit that makes norms ≤ 1;
a tile of a set against itself serves its rows and its columns. The rounding error of a tile's entry is bounded (Higham 2002, "Accuracy and
stability of numerical algorithms", section 3.1): for |x| = a and a distance ρ it is below c·u·(2a + ρ)², c ≈ d/2, u = 2⁻²⁴. What this bound
cannot decide is computed again as Σ(xᵢ − yᵢ)² in float64. So results are those of float64 arithmetic throughout: they do not depend on
``memory`` or the number of threads at all, nor on the order of rows (except which of several points at equal distance is named).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from expost.system.hashes import distinct, row_keys
from expost.system.progress import Bar
from expost.tensors import feature_matrix, full_precision, in_range, shifted

__all__ = ["MEMORY", "Frame", "Neighbours", "nearest", "pair_distances", "search", "searchable"]

MEMORY = 256 << 20
#: Largest side of a tile, halved for wide features (measured), and the smallest that is worth running.
SIDE, LEAST = 2048, 16
#: Candidates kept beyond k: enough that the error bound nearly always proves them sufficient.
SPARE = 12
#: Columns per group when the smallest of a row are selected: first the groups with the smallest minima, then inside them.
GROUP = 32
#: Products are summed over at most this many dimensions at a time, which keeps the error bound small for images as features.
SPAN = 4096
#: Numbers of a buffer of exact differences: few enough for a processor's cache (30 000 pairs of images of 64x64 RGB: 1.0 s, with 2¹⁶ 1.3 s, with 2²⁰ 2.4 s).
CACHED = 1 << 18


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


def nearest(
    queries: Tensor, points: Tensor, k: int = 1, *, same: bool = False, different: bool = False, memory: int = MEMORY
) -> Neighbours:
    """The k nearest ``points`` of each query, by Euclidean distance, exactly.

    Args:
        queries: (n, d) floating, any dtype.
        points: (m, d), on the same device.
        k: neighbours per query; at most m, or m − 1 with ``same``.
        same: the queries *are* the points, and no point is its own neighbour. It is left out by its row, so a duplicate elsewhere is a
            neighbour at distance 0. Takes half the time.
        different: points that are equal count as one, named by its first row: repeating points changes nothing. With ``same``, no copy of a
            query is its neighbour either.
        memory: bytes that tiles and temporaries may take beyond the inputs and O(n k) results.

    Raises:
        ValueError: features that are not finite matrices of one width, k out of range, or ``memory`` too small for a tile.

    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> nearest(x, x, same=True).distances.T
    tensor([[1., 1., 2.]], dtype=torch.float64)
    """
    queries, points = searchable(queries, "queries"), points if same else searchable(points, "points")
    if same:
        if points is not queries and (points.shape != queries.shape or not torch.equal(points, queries)):
            raise ValueError("same=True means that queries and points are one set, but two different ones were given: pass one set twice")
        points = queries
    if different:
        first, which = (part.to(points.device) for part in distinct(row_keys(points)))
        if k > 0 and len(first) < min(k + same, len(points)):
            raise ValueError(
                f"only {len(first)} of {len(points)} points are different, {k} nearest ones need {k + same}: pass more of them"
            )
        if len(first) < len(points):
            found = (
                search(points[first], points[first], k, True, memory).rows(which)
                if same
                else search(queries, points[first], k, False, memory)
            )
            return Neighbours(found.distances, first[found.indices])
    return search(queries, points, k, same, memory)


def search(queries: Tensor, points: Tensor, k: int, same: bool, memory: int) -> Neighbours:
    """:func:`nearest` of features that have been checked."""
    e, (queries, points) = in_range(queries, points)
    frame = Frame.of(queries, points, memory)
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
            break
    else:
        _settle_ties(frame, queries, points, left, k, same, distances, indices)
    return Neighbours(shifted(distances, e), indices)


def pair_distances(a: Tensor, i: Tensor, b: Tensor, j: Tensor, *, memory: int = MEMORY) -> Tensor:
    """√Σ(a_i − b_j)² of pairs of rows: ``i`` and ``j`` (p,) int64 -> (p,) float64. The bits of a pair do not depend on the other pairs."""
    size = max(min(memory // 48, CACHED) // a.shape[1], 2)
    out = torch.empty(len(i), dtype=torch.float64, device=a.device)
    rows = [torch.empty(min(size, len(i)), a.shape[1], dtype=x.dtype, device=a.device) for x in (a, b, out, out)]
    for start in range(0, len(i), size):
        part = slice(start, start + size)
        first, second, difference, subtracted = (buffer[: len(i[part])] for buffer in rows)
        difference.copy_(torch.index_select(a, 0, i[part], out=first))
        subtracted.copy_(torch.index_select(b, 0, j[part], out=second))
        squares = difference.sub_(subtracted).square_()
        # One row alone would be summed in an order that depends on the number of threads; two never are.
        out[part] = squares.sum(1) if len(squares) > 1 else squares.expand(2, -1).contiguous().sum(1)[:1]
    return out.sqrt_()


class _Found(NamedTuple):
    """The smallest entries of each row: ``values`` (n, K) ascending, in units of the frame, and their ``columns``."""

    values: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class Frame:
    """A common origin and unit for two sets, and the tiles of squared distances between them.

    ``unit`` is a power of two, so that it rounds nothing, with |x − centre| · unit ≤ 1 for every row: squares neither overflow nor vanish.
    ``norms`` are these lengths for the rows of the two sets, in float64. Any centre is right; near the mean rounding is least.
    """

    centre: Tensor
    unit: float
    norms: tuple[Tensor, Tensor]
    memory: int

    @classmethod
    def of(cls, a: Tensor, b: Tensor, memory: int) -> Frame:
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


def _candidates(frame: Frame, q: Tensor, p: Tensor, rows: Tensor, keep: int, same: bool, dtype: torch.dtype) -> _Found:
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

    with full_precision(), Bar(len(rows), what="neighbours", after=1.0) as bar:
        for i in range(0, len(rows), side):
            bar.update(i)
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
    frame: Frame, q: Tensor, p: Tensor, rows: Tensor, found: _Found, k: int, dtype: torch.dtype, distances: Tensor, indices: Tensor
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


def _settle_ties(frame: Frame, q: Tensor, p: Tensor, rows: Tensor, k: int, same: bool, distances: Tensor, indices: Tensor) -> None:
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


def searchable(x: Tensor, what: str) -> Tensor:
    """``x`` if it is a finite floating matrix (n, d) with at least one row."""
    x = feature_matrix(x, what=what)
    if len(x) == 0:
        raise ValueError(f"{what} have no rows: pass at least one")
    return x
