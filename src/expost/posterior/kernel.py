r"""log q(z | x_n) of queries z against all N Gaussian posteriors: which are needed, fast, and those to full precision.

For diagonal Gaussians N(m_n, diag s_n²), with t = 1/s², the logarithm is linear in (z², z), so that all pairs are one matrix product:

    log q(z | x_n) = b_n + Σ_k (-t_nk/2) z_k² + (t_nk m_nk) z_k,   b_n = -1/2 Σ_k t_nk m_nk² + c_n,   c_n = -Σ_k log s_nk - d/2 log 2π.

Its terms cancel: in float32 the product is off by up to a nat at d = 128, s = 0.01, also on centred means. So it only *selects*:

1. **Bound.** A float32 product of 2d + 1 terms, roundings of its inputs included, is wrong by at most γ Σ|terms|, γ = (2d + 10) 2⁻²⁴
   (Higham 2002, *Accuracy and Stability of Numerical Algorithms*, section 3.1, whatever the order of summation), which is at most
   γ (Σ_k t_nk (z_k² + m_nk²) + |c_n|). That is linear in z² as well: with coefficients raised by γ, one product gives *upper bounds* u_n.
2. **Prune.** The largest u_n of every query are evaluated exactly. A point whose u_n lies more than :data:`NATS` = 40 below the largest exact
   value cannot matter: together they weigh less than N e⁻⁴⁰ (6e4 points: 3e-13). Points are compared in groups of :data:`GROUP` by their
   largest u_n.
3. **Rescore** what is left in float64 as -1/2 Σ_k ((z_k - m_nk)/s_nk)² + c_n, where nothing cancels.

Where more than N / :data:`DENSE` points are left (two latent dimensions, wide posteriors), all N are evaluated in float64: by the product if its
rounding error is below :data:`EXACT`, else from the differences. Full covariances always take the last way, with triangular factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from expost.distributions import describe, deterministic
from expost.tensors import check_finite, full_precision

__all__ = ["Block", "Diagonal", "Full", "Kernel", "blocks", "kernel_of"]

#: Nats below the largest at which a posterior is left out.
NATS = 40.0
#: Posteriors compared at once by their largest bound.
GROUP = 16
#: A query with more than N / DENSE posteriors left (and more than GROUP) is evaluated against all.
DENSE = 32
#: Nats of rounding error that a float64 product may have.
EXACT = 5e-10
#: Queries per product, at most; more where that is fewer than PAIRS pairs.
ROWS, PAIRS = 256, 1 << 22
#: Bytes per pair of query and posterior, while pruning and in float64, with everything that is kept beside.
PRUNING_BYTES, DENSE_BYTES = 12, 32
#: Numbers worked on at once, which stay in the processor's cache: 2 MB.
TILE = 1 << 18
#: Float32 sums beyond this are left to float64.
LARGEST = 1e36

#: rows (r,) of the queries; their log q(z | x_n) (r, k) float64, -inf where there is none; n (r, k), or None for all N in order.
Block = tuple[Tensor, Tensor, Tensor | None]


class Kernel(Protocol):
    """N Gaussian posteriors of d dimensions."""

    n: int
    d: int
    device: torch.device
    prunes: bool

    def pairs(self, z: Tensor, index: Tensor) -> Tensor:
        """log q(z_i | x_index_i), (p,) float64, for z (p, d) float64 and ``index`` (p,)."""

    def dense(self, z: Tensor, memory: int, out: Tensor) -> Tensor:
        """log q(z_i | x_n) for all n: (r, N) float64, written to ``out``."""

    def draw(self, index: Tensor, noise: Tensor) -> Tensor:
        """Codes of q(z | x_index) made from standard normal ``noise`` (p, d): (p, d), of the posteriors' dtype."""

    def marginal(self, k: int) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of z_k, (N,) float64 each."""


def kernel_of(q: Distribution) -> Kernel:
    """The kernel of posteriors of batch shape (N,) and event shape (d,); ``ValueError`` for what is not Gaussian."""
    if deterministic(q):
        raise ValueError(
            "a deterministic encoder has no q(z | x): give the encoder a Constant(scale) head, or pass Independent(Normal(codes, bandwidth), 1)"
        )
    diagonal = isinstance(q, Independent) and isinstance(q.base_dist, Normal)
    if not (diagonal or isinstance(q, MultivariateNormal)):
        raise ValueError(
            f"the aggregate posterior needs Gaussian posteriors, not {describe(q)}: use a Diagonal() or FullCovariance() head, "
            "or pass Independent(Normal(mean, std), 1)"
        )
    if len(q.batch_shape) != 1 or len(q.event_shape) != 1 or not q.batch_shape[0] or not q.event_shape[0]:
        raise ValueError(
            f"posteriors must have batch shape (N,) and event shape (d,), not {tuple(q.batch_shape)} and {tuple(q.event_shape)}: "
            "pass model.posteriors(x)"
        )
    check_finite(q.mean, "posterior means")
    if isinstance(q, MultivariateNormal):
        check_finite(q.scale_tril.flatten(1), "posterior covariance factors")
        return Full(q.loc, q.scale_tril)
    assert isinstance(q, Independent)
    std = q.base_dist.scale  # q.stddev is the root of a square, which costs a digit
    check_finite(std, "posterior standard deviations")
    if not bool((std > 0).all()):
        raise ValueError("some posterior standard deviations are zero: bound the encoder's variances from below, or clamp them")
    return Diagonal(q.mean, std)


class Diagonal:
    """Posteriors N(m_n, diag s_n²).

    Args:
        mean: m, (N, d).
        std: s, (N, d).
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std, self.device = mean.detach(), std.detach(), mean.device
        self.n, self.d = mean.shape
        self.centre = self.mean.mean(0, dtype=torch.float64)
        # c_n; Σ_k t m² of centred means, at most; t_k, at most
        self.constant = torch.empty(self.n, dtype=torch.float64, device=self.device)
        self.reach, self.precision = 0.0, torch.zeros(self.d, dtype=torch.float64, device=self.device)
        for rows in self._slices():
            m, s = self.mean[rows].double() - self.centre, self.std[rows].double()
            self.constant[rows] = -s.log().sum(1) - 0.5 * self.d * math.log(2 * math.pi)
            self.reach = max(self.reach, float(((m / s).square().sum(1) + self.constant[rows].abs()).max()))
            self.precision = torch.maximum(self.precision, s.amin(0).pow(-2))
        self.prunes = self.n > 2 * GROUP and self.reach + float(self.precision.max()) < LARGEST

    def _slices(self, width: int | None = None) -> Iterator[slice]:
        """All points, ``width`` at a time (default: arrays of 2 MB)."""
        width = width or max(1, TILE // self.d)
        return (slice(start, min(start + width, self.n)) for start in range(0, self.n, width))

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """A (M, 2d) and b (M,) float32 whose product with (z², z) is u; M is N rounded up to a multiple of :data:`GROUP`, by points at -inf."""
        size = -(-self.n // GROUP) * GROUP
        gamma = 1.01 * (2 * self.d + 10) * 2.0**-24
        weight = torch.zeros(size, 2 * self.d, dtype=torch.float32, device=self.device)
        bias = torch.full((size,), -math.inf, dtype=torch.float32, device=self.device)
        for rows in self._slices():
            quadratic, linear, constant = self._expansion(rows)
            squares = -2 * (constant - self.constant[rows])  # Σ_k t m²
            weight[rows, : self.d], weight[rows, self.d :] = quadratic * (1 - 2 * gamma), linear
            bias[rows] = (constant + gamma * (squares + self.constant[rows].abs())).float()
        return weight, bias

    def _expansion(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """-t/2 and t m (c, d), b (c,), of centred means in float64."""
        m, t = self.mean[rows].double() - self.centre, self.std[rows].double().pow(-2)
        linear = t * m
        return -0.5 * t, linear, self.constant[rows] - 0.5 * (linear * m).sum(1)

    def pairs(self, z: Tensor, index: Tensor) -> Tensor:
        return self._pairs(z, torch.arange(len(z), device=self.device), index)

    def _pairs(self, z: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """log q(z_rows | x_index)."""
        width = max(1, TILE // self.d)
        parts = [
            (z[r] - self.mean[i].double()).div_(self.std[i].double()).square_().sum(1).mul_(-0.5).add_(self.constant[i])
            for r, i in zip(rows.split(width), index.split(width), strict=True)
        ]
        return torch.cat(parts)

    def dense(self, z: Tensor, memory: int, out: Tensor) -> Tensor:
        centred = z - self.centre
        squares = centred.square()
        terms = float((squares @ self.precision).max()) + self.reach
        if (2 * math.sqrt(2 * self.d) + 4) * 2.0**-53 * terms < EXACT:
            features = torch.cat([squares, centred], 1)
            for rows in self._slices(max(1, min(4096, memory // (64 * self.d)))):
                quadratic, linear, constant = self._expansion(rows)
                torch.addmm(constant, features, torch.cat([quadratic, linear], 1).T, out=out[:, rows])
            return out
        for rows in self._slices(max(1, (1 << 16) // len(z))):
            m, t = self.mean[rows].double().T.contiguous(), self.std[rows].double().reciprocal().T.contiguous()
            total = torch.zeros(len(z), m.shape[1], dtype=torch.float64, device=self.device)
            for k in range(self.d):
                off = torch.sub(z[:, k, None], m[k]).mul_(t[k])
                total.addcmul_(off, off)
            out[:, rows] = total.mul_(-0.5).add_(self.constant[rows])
        return out

    def draw(self, index: Tensor, noise: Tensor) -> Tensor:
        return self.mean[index] + self.std[index] * noise.to(self.mean)

    def marginal(self, k: int) -> tuple[Tensor, Tensor]:
        return self.mean[:, k].double(), self.std[:, k].double()

    def survivors(self, z: Tensor, top: int, exclude: Tensor | None, work: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whatever weighs more than e^-NATS, and the ``top`` most likely: log q (r, k) and n (r, k), padded by -inf; and which queries (r,) have too many.

        Args:
            z: (r, d) float64.
            work: (at least r, M) float32, overwritten.
        """
        weight, bias = self.bounds
        centred = z - self.centre
        squares = centred.square()
        many = ~(squares @ self.precision + self.reach < LARGEST)
        features = torch.cat([squares, centred], 1).masked_fill_(many[:, None], 0).float()
        with full_precision():
            upper = torch.addmm(bias, features, weight.T, out=work[: len(z)])
        if exclude is not None:
            upper[torch.arange(len(z), device=self.device), exclude] = -math.inf
        columns = len(bias) // GROUP  # group j: points j, j + columns, j + 2 columns ...
        groups = upper.view(len(z), GROUP, columns)
        best = groups.amax(1)

        heads = best.topk(min(top, columns), 1).indices
        members = (torch.arange(GROUP, device=self.device)[:, None] * columns + heads[:, None]).flatten(1)  # (r, GROUP heads)
        likely = members.gather(1, upper.gather(1, members).topk(top, 1).indices)
        rows = torch.arange(len(z), device=self.device).repeat_interleave(top)
        exact = self._pairs(z, rows, likely.flatten()).view(-1, top)
        least = torch.minimum(exact.amax(1) - NATS, exact.amin(1)).float()
        least = torch.nextafter(least, torch.full_like(least, -math.inf))

        limit = max(self.n // DENSE, GROUP, top)
        hit = best >= least[:, None]
        many |= hit.sum(1) > limit
        row, column = hit.masked_fill_(many[:, None], False).nonzero(as_tuple=True)
        pair, member = (groups[row, :, column] >= least[row, None]).nonzero(as_tuple=True)
        row, index = row[pair], member * columns + column[pair]
        many |= torch.bincount(row, minlength=len(z)) > limit
        kept = ~many[row]
        row, index = row[kept], index[kept]
        counts = torch.bincount(row, minlength=len(z))
        place = torch.arange(len(row), device=self.device) - (counts.cumsum(0) - counts)[row]
        values = torch.full((len(z), int(counts.max())), -math.inf, dtype=torch.float64, device=self.device)
        which = torch.zeros_like(values, dtype=torch.int64)
        values[row, place], which[row, place] = self._pairs(z, row, index), index
        return values, which, many


class Full:
    """Posteriors N(m_n, L_n L_nᵀ).

    Args:
        mean: m, (N, d).
        tril: L, (N, d, d) lower-triangular.
    """

    prunes = False

    def __init__(self, mean: Tensor, tril: Tensor) -> None:
        self.mean, self.tril, self.device = mean.detach(), tril.detach(), mean.device
        self.n, self.d = mean.shape
        self.constant = -tril.detach().diagonal(dim1=-2, dim2=-1).double().log().sum(-1) - 0.5 * self.d * math.log(2 * math.pi)

    def pairs(self, z: Tensor, index: Tensor) -> Tensor:
        parts = []
        for part, i in zip(*(side.split(max(1, TILE // self.d**2)) for side in (z, index)), strict=True):
            white = torch.linalg.solve_triangular(self.tril[i].double(), (part - self.mean[i].double())[..., None], upper=False)
            parts.append(self.constant[i] - 0.5 * white[..., 0].square().sum(1))
        return torch.cat(parts)

    def dense(self, z: Tensor, memory: int, out: Tensor) -> Tensor:
        centre, eye = self.mean.mean(0, dtype=torch.float64), torch.eye(self.d, dtype=torch.float64, device=self.device)
        width = max(1, TILE // (self.d * min(len(z), ROWS)))
        for start in range(0, self.n, width):
            points = slice(start, start + width)
            inverse = torch.linalg.solve_triangular(self.tril[points].double(), eye, upper=False)
            shift = (inverse @ (self.mean[points].double() - centre)[..., None]).flatten(0, 1)
            for first in range(0, len(z), ROWS):
                rows = slice(first, first + ROWS)
                white = torch.addmm(shift, inverse.flatten(0, 1), (z[rows] - centre).T, beta=-1).view(len(inverse), self.d, -1)
                out[rows, points] = white.square_().sum(1).T.mul_(-0.5).add_(self.constant[points])
        return out

    def draw(self, index: Tensor, noise: Tensor) -> Tensor:
        return self.mean[index] + (self.tril[index] * noise.to(self.mean)[:, None]).sum(-1)

    def marginal(self, k: int) -> tuple[Tensor, Tensor]:
        return self.mean[:, k].double(), self.tril[:, k].double().square().sum(-1).sqrt()


def blocks(kernel: Kernel, z: Tensor, *, top: int, exclude: Tensor | None, memory: int) -> Iterator[Block]:
    """All queries z (m, d) float64, each in one block (see :data:`Block`), in at most about ``memory`` bytes, but at least one query at a time.

    Of every query, the ``top`` most likely posteriors are there, and all within NATS of the most likely one; -inf stands for ``exclude`` (m,).
    """
    device, n = kernel.device, kernel.n
    rows = max(ROWS, PAIRS // n)
    dense_rows = max(1, min(rows, memory // (DENSE_BYTES * n), len(z)))
    rows = max(1, min(rows, memory // (PRUNING_BYTES * (n + GROUP)), len(z)))
    pruning = isinstance(kernel, Diagonal) and kernel.prunes and top <= n // DENSE
    work = (
        torch.empty(rows, len(kernel.bounds[1]), dtype=torch.float32, device=device) if isinstance(kernel, Diagonal) and pruning else None
    )
    room: Tensor | None = None
    for start in range(0, len(z), rows):
        todo = torch.arange(start, min(start + rows, len(z)), device=device)
        if isinstance(kernel, Diagonal) and pruning and work is not None:
            values, which, many = kernel.survivors(z[todo], top, None if exclude is None else exclude[todo], work)
            if not bool(many.all()):
                yield todo[~many], values[~many], which[~many]
            pruning = float(many.double().mean()) < 0.75  # else the first look costs more than it saves
            todo = todo[many]
        for part in todo.split(dense_rows):
            if len(part):
                if room is None:  # once: new memory costs more than what is done with it
                    room = torch.empty(dense_rows, n, dtype=torch.float64, device=device)
                found = kernel.dense(z[part], memory, room[: len(part)])
                if exclude is not None:
                    found[torch.arange(len(part), device=device), exclude[part]] = -math.inf
                yield part, found, None
