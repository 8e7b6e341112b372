r"""The aggregate posterior q(z) = 1/N Σ_n q(z | x_n) of an encoder over N data, and which datum a code belongs to.

The responsibility of datum n for a code z is its share of the mixture,

    w_n(z) = q(z | x_n) / Σ_j q(z | x_j).

**The optimal decoder.** With the encoder fixed and a decoder that can be any function, the ELBO of a Bernoulli, cross-entropy or Gaussian
likelihood is largest at the weighted average of the training data

    μ(z) = Σ_n w_n(z) x_n

(Bozkurt et al. 2018, "Can VAEs generate novel examples?", theorem 1), because for fixed z Σ_n q(z | x_n) log p(x_n | m) has its maximum in m there.
How many training data that average is made of, is its perplexity exp(-Σ w log w), or its effective sample size 1/Σ w²: near 1, the best
decoder has memorised the training data. For codes *of* training data, w_n is near 1 trivially: leave the datum out (``exclude``).

**The mismatch.** Samples of the prior are decoded well where q(z) has mass. KL(q(z_k) || N(0, 1)) names the dimension to blame, and the mutual
information I(n; z) = E log q(z | x_n) - log q(z), at most log N, is what part of the rate tells *which* datum it was (Hoffman and Johnson 2016).

Everything rests on :mod:`expost.posterior.kernel`: all pairs of code and datum in chunks, pruned by an error bound, the rest in float64. Results
agree with a plain float64 computation, for any chunk size and order of the data, to 1e-9 (absolute in log q, relative in the weights that are not
negligible); only the order of equal weights is free. No gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from expost.posterior.entropy import mixture_entropy
from expost.posterior.kernel import Block, Kernel, blocks, kernel_of
from expost.results import Result
from expost.seeds import generator
from expost.system.progress import Bar
from expost.tensors import check_finite, unit

__all__ = ["AggregatePosterior", "Responsibilities", "mutual_information", "saturation"]

#: Nats from log N within which the mutual information is called saturated.
SATURATED = 0.5
#: Weights below this add nothing to an average of float64 numbers.
NOTHING = 1e-18
#: Logarithms of weights are cut here: below, numbers are first slow and then zero.
LOWEST = -700.0
#: Numbers summed up at once, which stay in the processor's cache: 2 MB.
CACHED = 1 << 18


@dataclass(frozen=True, eq=False)
class Responsibilities:
    """Of m codes, w_n = q(z | x_n) / Σ_j q(z | x_j).

    Attributes:
        log_prob: log q(z) in nats, (m,) float64.
        entropy: -Σ w log w in nats, (m,) float64, in [0, log N].
        ess: effective sample size 1 / Σ w², (m,) float64, in [1, N].
        indices: n of the largest weights, largest first, (m, top) int64.
        weights: these weights, (m, top) float64.
        average: Σ_n w_n values_n, (m, *event), float32 (float64 for float64 values); None where no values were given.
    """

    log_prob: Tensor
    entropy: Tensor
    ess: Tensor
    indices: Tensor
    weights: Tensor
    average: Tensor | None = None

    @property
    def perplexity(self) -> Tensor:
        """exp(entropy): how many data share the code, (m,) in [1, N]."""
        return self.entropy.exp()

    @property
    def largest(self) -> Tensor:
        """The largest weight, (m,) in [1/N, 1]."""
        return self.weights[:, 0]

    def __len__(self) -> int:
        return len(self.log_prob)


class AggregatePosterior:
    """q(z) = 1/N Σ_n q(z | x_n) (see the top of this file).

    Args:
        q: the posteriors, ``model.posteriors(x)``: Independent(Normal(mean (N, d), std (N, d)), 1), or a MultivariateNormal.
        memory: bytes at most beyond the posteriors, a float32 matrix (N, 2d) made from them once, and results; at least one code is
            compared with all posteriors at a time (44 N bytes).

    Raises:
        ValueError: posteriors that are not Gaussian (a deterministic encoder's have no density), or hold NaN or zero variances.

    >>> q = torch.distributions.Independent(torch.distributions.Normal(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1)), 1)
    >>> found = AggregatePosterior(q).query(torch.tensor([[0.0], [9.0]]), top=1)
    >>> found.perplexity.round(decimals=4).tolist(), found.largest.round(decimals=4).tolist(), found.indices[1].tolist()
    ([2.0, 1.0], [0.5, 1.0], [1])
    """

    def __init__(self, q: Distribution, *, memory: int = 256_000_000) -> None:
        if memory < 1:
            raise ValueError(f"memory is a number of bytes and must be positive, not {memory}")
        self.memory = int(memory)
        self.kernel: Kernel = kernel_of(q)

    @property
    def n(self) -> int:
        """N, the number of posteriors."""
        return self.kernel.n

    @property
    def d(self) -> int:
        """Dimensions of a code."""
        return self.kernel.d

    def query(
        self, z: Tensor, *, values: Tensor | None = None, top: int = 3, exclude: Tensor | None = None, progress: bool | None = None
    ) -> Responsibilities:
        """Responsibilities of all N data for the codes z.

        Args:
            z: (m, d).
            values: (N, *event) to average, the data themselves for the optimal decoder; uint8 images count as x / 255.
            top: how many of the largest weights to return; at most N (N - 1 with ``exclude``) are.
            exclude: (m,) integers: the n to leave out of the mixture for each code, which then is a mean over N - 1 (leave-one-out).
            progress: False for silence, True to be heard off a terminal too; default: see :mod:`expost.system.progress`.

        Raises:
            ValueError: shapes that do not fit, NaN, ``exclude`` with N = 1, codes too far away for float64.
        """
        z, exclude, count = self._checked(z, exclude)
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        if values is not None and len(values) != self.n:
            raise ValueError(f"there are {len(values)} values for {self.n} posteriors: pass the data that were encoded, in their order")
        top, m, average = min(top, count), len(z), None
        log_prob, entropy, ess = (z.new_empty(m) for _ in range(3))
        weights, indices = z.new_empty(m, top), torch.empty(m, top, dtype=torch.int64, device=z.device)
        if values is not None:
            kind = torch.float64 if unit(values[:0]).dtype == torch.float64 else torch.float32
            average = torch.empty(m, *values.shape[1:], dtype=kind, device=z.device)
        for block, i, score, which in self._scores(z, top, exclude, progress):
            peak = _relative(score)
            likely, place = score.topk(top, 1)
            w = score.clamp_(min=LOWEST).exp()
            total = w.sum(1)
            log_prob[i] = peak + total.log() - math.log(count)
            entropy[i] = (total.log() - _dot(w, score) / total).clamp_(0, math.log(count))
            ess[i] = (total.square() / _dot(w, w)).clamp_(1, count)
            weights[i], indices[i] = likely.exp() / total[:, None], place if which is None else which.gather(1, place)
            if average is not None and values is not None:
                torch.div(w, total[:, None], out=score)
                if block is not None:  # its weights are complete
                    rows, scores, every = block
                    average[rows] = _averages(scores, every, values, self.memory).to(average.dtype)
        return Responsibilities(log_prob, entropy, ess, indices, weights, average)

    def log_prob(self, z: Tensor, *, exclude: Tensor | None = None, progress: bool | None = None) -> Tensor:
        """log q(z) in nats, (m,) float64, for z (m, d); with ``exclude`` (m,), of the mixture without that datum. Arguments as for :meth:`query`."""
        z, exclude, count = self._checked(z, exclude)
        out = z.new_empty(len(z))
        for _, i, score, _ in self._scores(z, 1, exclude, progress):
            peak = _relative(score)
            out[i] = peak + score.clamp_(min=LOWEST).exp_().sum(1).log() - math.log(count)
        return out

    def pair_log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """log q(z_i | x_n) with n = index_i, (m,) float64, for z (m, d) and ``index`` (m,)."""
        z, index = self._codes(z), self._index(index, len(z), "index")
        return self.kernel.pairs(z, index)

    def sample(self, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """n codes of q(z), (n, d), and the data they came from, (n,) int64, drawn with replacement; the same on every device."""
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1, not {n}")
        draws = generator("aggregate-posterior", seed)
        index = torch.randint(self.n, (n,), generator=draws)
        noise = torch.randn(n, self.d, generator=draws, dtype=torch.float64)
        index = index.to(self.kernel.device)
        return self.kernel.draw(index, noise), index

    def marginal_log_prob(self, k: int, grid: Tensor) -> Tensor:
        """log q(z_k) = log 1/N Σ_n N(z_k; m_nk, s_nk²) in nats at the points ``grid`` (g,): (g,) float64."""
        if not 0 <= k < self.d:
            raise ValueError(f"dimension {k} does not exist: codes have dimensions 0 to {self.d - 1}")
        if grid.dim() != 1 or not bool(torch.isfinite(grid).all()):
            raise ValueError(f"a grid must be a vector of finite numbers, not of shape {tuple(grid.shape)}: pass torch.linspace(...)")
        mean, std = self.kernel.marginal(k)
        level = -std.log() - 0.5 * math.log(2 * math.pi) - math.log(self.n)
        parts = grid.detach().to(mean).split(max(1, self.memory // (32 * self.n)))
        return torch.cat([torch.logsumexp(level - 0.5 * ((part[:, None] - mean) / std).square(), 1) for part in parts])

    def marginal_kl(self, *, points: int = 1 << 16) -> Tensor:
        """KL(q(z_k) || N(0, 1)) of every dimension k in nats: (d,) float64, by quadrature on the one-dimensional mixtures.

        ∫ q log q is summed on a grid of a quarter of the smallest standard deviation, the rest is in closed form. Up to 4096 data this is right to
        1e-6 nats; above, data whose posterior in this dimension is nearly the same (means within a quarter of a standard deviation, standard
        deviations within 4 %) are merged first, with their common mean and variance, which moves the result by less than 1e-4 nats.

        Args:
            points: of the grid, at most. Where that does not suffice, posteriors narrower than two steps are widened to them, and the KL of such a
                dimension is slightly too small.
        """
        if points < 100:
            raise ValueError(f"a grid needs at least 100 points, not {points}")
        found = []
        for k in range(self.d):
            entropy, second = mixture_entropy(*self.kernel.marginal(k), points=points, memory=self.memory)
            found.append(max(0.0, 0.5 * (second + math.log(2 * math.pi)) - entropy))
        return torch.tensor(found, dtype=torch.float64, device=self.kernel.device)

    def _scores(
        self, z: Tensor, top: int, exclude: Tensor | None, progress: bool | None
    ) -> Iterator[tuple[Block | None, Tensor, Tensor, Tensor | None]]:
        """Pieces of the blocks that stay in the cache: rows, scores (a view of the block's) and n; with the last piece of a block, the block."""
        done = 0
        with Bar(len(z), enabled=progress, what="posteriors") as bar:
            for rows, scores, which in blocks(self.kernel, z, top=top, exclude=exclude, memory=self.memory):
                width = max(1, CACHED // scores.shape[1])
                for start in range(0, len(rows), width):
                    piece = slice(start, start + width)
                    block = (rows, scores, which) if start + width >= len(rows) else None
                    yield block, rows[piece], scores[piece], None if which is None else which[piece]
                done += len(rows)
                bar.update(done)

    def _checked(self, z: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
        """Codes in float64, what is excluded, and how many posteriors remain."""
        z = self._codes(z)
        if exclude is None:
            return z, None, self.n
        if self.n == 1:
            raise ValueError("the only posterior cannot be excluded: q(z) would be empty")
        return z, self._index(exclude, len(z), "exclude"), self.n - 1

    def _codes(self, z: Tensor) -> Tensor:
        if z.dim() != 2 or z.shape[1] != self.d or not z.is_floating_point():
            raise ValueError(f"codes must be a floating-point matrix (m, {self.d}), not {z.dtype} of shape {tuple(z.shape)}")
        check_finite(z, "codes")
        return z.detach().to(self.kernel.device, torch.float64)

    def _index(self, index: Tensor, m: int, what: str) -> Tensor:
        if index.shape != (m,) or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise ValueError(f"{what} must be one integer for each of the {m} codes, not {index.dtype} of shape {tuple(index.shape)}")
        if m and not (int(index.min()) >= 0 and int(index.max()) < self.n):
            raise ValueError(f"{what} must lie between 0 and {self.n - 1}, the numbers of the posteriors")
        return index.to(self.kernel.device, torch.int64)


def mutual_information(
    q: Distribution | AggregatePosterior, *, samples: int = 1, seed: int = 0, memory: int = 256_000_000, progress: bool | None = None
) -> Result:
    """I(n; z) = E_n E_{q(z | x_n)} log q(z | x_n) / q(z) in nats: how much a code tells about which datum it came from, at most log N.

    Hoffman and Johnson 2016, "ELBO surgery: yet another way to carve up the variational evidence lower bound"; q(z) is the exact mixture of all N
    posteriors (minibatch estimates are at most the log of the batch). Estimated from ``samples`` codes of every posterior: a value near zero may
    come out negative. Time grows as samples N².

    Args:
        q: the posteriors of N data, or their :class:`AggregatePosterior`.
        samples: codes per datum.
        seed: of the codes.
        memory: bytes, see :class:`AggregatePosterior` (which, if given, has its own).
        progress: False for silence, True to be heard off a terminal too; default: see :mod:`expost.system.progress`.

    Returns:
        ``value`` with its standard error over data, ``details``: ``log_n``. A note tells when the value is near its ceiling.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    aggregate = q if isinstance(q, AggregatePosterior) else AggregatePosterior(q, memory=memory)
    n, ratios, draws = aggregate.n, [], generator("mutual-information", seed)
    index = torch.arange(n, device=aggregate.kernel.device)
    for _ in range(samples):
        z = aggregate.kernel.draw(index, torch.randn(n, aggregate.d, generator=draws, dtype=torch.float64))
        total = aggregate.log_prob(z, progress=progress)
        ratios.append((aggregate.pair_log_prob(z, index) - total).cpu())
    each = torch.stack(ratios).mean(0)
    error = float(each.std() / math.sqrt(n)) if n > 1 else None
    value, log_n = float(each.mean()), math.log(n)
    context: dict[str, str | int | float] = {"samples": samples, "seed": seed}
    return Result("mutual information I(n; z)", value, error, n, "nats", saturation(value, n), {"log_n": log_n}, context)


def saturation(information: float, n: int) -> tuple[str, ...]:
    """The sentence to add where a mutual information of n data is within :data:`SATURATED` nats of log n."""
    if n < 2 or information <= math.log(n) - SATURATED:
        return ()
    return (
        f"the mutual information is near its ceiling log N = {math.log(n):.2f}: posteriors hardly overlap, so with more images it would grow "
        "and the marginal KL fall; neither is a property of the model alone",
    )


def _relative(score: Tensor) -> Tensor:
    """Subtract the largest of every row in place, and return it."""
    peak = score.amax(1)
    if not bool(torch.isfinite(peak).all()):
        raise ValueError("some codes are so far from all posteriors that log q(z) overflows: check that the encoder did not diverge")
    score.sub_(peak[:, None])
    return peak


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ_k a_ik b_ik without a temporary."""
    return torch.bmm(a[:, None], b[:, :, None])[:, 0, 0]


def _averages(w: Tensor, which: Tensor | None, values: Tensor, memory: int) -> Tensor:
    """Σ_n w_n values_n in float64, (r, *event), of weights (r, k) of the data ``which`` (r, k), or of all in order."""

    def numbers(x: Tensor) -> Tensor:
        x = x.to(w.device)
        return x.double() / 255 if x.dtype == torch.uint8 else x.double()

    flat = values.detach().flatten(1) if values.dim() > 1 else values.detach()[:, None]
    out = torch.zeros(len(w), flat.shape[1], dtype=torch.float64, device=w.device)
    width = max(1, memory // (32 * max(1, flat.shape[1])))
    if which is None:
        for start in range(0, len(flat), width):
            out.addmm_(w[:, start : start + width], numbers(flat[start : start + width]))
    else:
        for row in range(len(w)):
            kept = (w[row] > NOTHING).nonzero()[:, 0]
            for part in kept.split(width):
                out[row] += w[row, part] @ numbers(flat[which[row, part].to(flat.device)])
    return out.reshape(len(w), *values.shape[1:])
