r"""Bits-back coding, level by level: what is pushed and popped for one batch.

To push a value v under p(v) = ∫ p(v | z) p(z) dz: pop z from q(z | v), push v under p(v | z), push z under p(z). The net length is
log q(z | v) - log p(v | z) - log p(z), whose mean is the -ELBO. Where p(z) is an autoencoder, pushing z is the same three steps (the
order of Bit-Swap: Kingma, Abbeel, Ho 2019); where it is a mixture of Gaussians, its component c is such a latent too: pop c from
p(c | z), push z under N_c, push c under the weights. Popping is every step undone, in reverse.

Only the first ``n`` rows of a batch are coded; networks always see the whole batch, padded with zeros (in pieces where its activations
would fill memory). What popping holds grows only as the stack gives bits for it, so a file that announces more than it contains ends in
:class:`~expost.codec.stack.Shortage` before it costs memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, MultivariateNormal

from expost.codec.networks import GRID, Level, gaussian_parameters, mixture_of
from expost.codec.stack import Outside, Shortage, Stack
from expost.density.base import Density
from expost.discrete import Discretized
from expost.distributions import base_of

__all__ = ["Coder"]

_ROWS = 16  # images whose tables of masses are held at once
_MANY = 2**20  # latents


@dataclass
class Coder:
    """Pushes and pops batches of integer values.

    Args:
        levels: outermost first.
        prior: of the innermost latents.
        steps: bin width of every level's latents.
        batch: most rows of a block.
        span: latents lie in -span ... span bins.
        symbols: number of pixel values.
    """

    levels: list[Level]
    prior: Density
    steps: list[float]
    batch: int
    span: int
    symbols: int = 256
    popped: int = 0  # bits that the outermost posterior took in the last push

    def __post_init__(self) -> None:
        self._mixture = mixture_of(self.prior)
        self._rows = min(self.batch, *(level.rows for level in self.levels))  # that networks see
        self._latents = sum(int(torch.Size(level.latent_shape).numel()) for level in self.levels)

    def push(self, stack: Stack, x: Tensor) -> None:
        """x (n, *event), integers 0 ... L - 1, n at most ``batch``."""
        self._push_level(stack, 0, x)

    def pop(self, stack: Stack, n: int) -> Tensor:
        """The last n values pushed, (n, *event)."""
        if n * self._latents > max(_MANY, stack.bits):  # every latent takes some bits off the stack
            raise Shortage
        return self._pop_level(stack, 0, n)

    # -- levels -----------------------------------------------------------------------------------------------------------------------

    def _push_level(self, stack: Stack, depth: int, value: Tensor) -> None:
        if depth == len(self.levels):
            self._push_prior(stack, value)
            return
        n, before = len(value), stack.bits
        k = self._pop_posterior(stack, depth, *self._encode(depth, value))
        if depth == 0:
            self.popped = before - stack.bits
        if int(k.abs().max()) > self.span:
            raise Outside(
                f"a latent lies {float(k.abs().max()) * self.steps[depth]:.3g} from the origin, outside the coder's span: give a larger span"
            )
        for rows in reversed(self._pieces(n)):
            self._push_likelihood(stack, depth, self._decode(depth, k[rows]), value[rows])
        self._push_level(stack, depth + 1, k)

    def _pop_level(self, stack: Stack, depth: int, n: int) -> Tensor:
        if depth == len(self.levels):
            return self._pop_prior(stack, n)
        k = self._pop_level(stack, depth + 1, n)
        value = torch.cat([self._pop_likelihood(stack, depth, self._decode(depth, k[rows]), len(k[rows])) for rows in self._pieces(n)])
        self._push_posterior(stack, depth, *self._encode(depth, value), k)
        return value

    def _pieces(self, n: int) -> list[slice]:
        """Rows 0 ... n - 1, as many at once as networks see."""
        return [slice(start, min(n, start + self._rows)) for start in range(0, n, self._rows)]

    def _encode(self, depth: int, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (n, *latent) of q(z | value), and scale (n, *latent) or factor (n, d, d)."""
        found = []
        for rows in self._pieces(len(value)):
            part = self._real(depth, value[rows])
            q = self.levels[depth].encoder(self._padded(part))
            whole = isinstance(q, MultivariateNormal)
            mean, scale = (q.loc, q.scale_tril) if whole else gaussian_parameters(base_of(q))
            found.append((mean[: len(part)], scale[: len(part)]))
        means, scales = zip(*found, strict=True)
        return torch.cat(means), torch.cat(scales)

    def _decode(self, depth: int, k: Tensor) -> Distribution:
        return self.levels[depth].decoder(self._padded(k.double() * self.steps[depth]))

    def _real(self, depth: int, value: Tensor) -> Tensor:
        """What a network sees for integers of this depth: pixels in [0, 1], latents in their units."""
        return value.double() / (self.symbols - 1) if depth == 0 else value.double() * self.steps[depth - 1]

    def _padded(self, value: Tensor) -> Tensor:
        missing = self._rows - len(value)
        return torch.cat([value, value.new_zeros(missing, *value.shape[1:])]) if missing else value

    # -- posteriors -------------------------------------------------------------------------------------------------------------------

    def _pop_posterior(self, stack: Stack, depth: int, mean: Tensor, scale: Tensor) -> Tensor:
        step = self.steps[depth]
        if scale.dim() > mean.dim():
            k = torch.zeros(mean.shape, dtype=torch.int64)
            chain = _Chain(mean, scale)
            for i in range(k.shape[1]):
                k[:, i] = stack.pop_window(chain.mean() / step, chain.scale() / step)
                chain.observe(k[:, i].double() * step)
            return k
        return stack.pop_window(mean.reshape(-1) / step, scale.reshape(-1) / step).reshape(mean.shape)

    def _push_posterior(self, stack: Stack, depth: int, mean: Tensor, scale: Tensor, k: Tensor) -> None:
        step = self.steps[depth]
        if scale.dim() > mean.dim():
            for i, centre, width in reversed(_Chain(mean, scale).replay(k, step)):
                stack.push_window(k[:, i], centre, width)
            return
        stack.push_window(k.reshape(-1), mean.reshape(-1) / step, scale.reshape(-1) / step)

    # -- likelihoods ------------------------------------------------------------------------------------------------------------------

    def _push_likelihood(self, stack: Stack, depth: int, p: Distribution, value: Tensor) -> None:
        n = len(value)
        base = base_of(p)
        if isinstance(base, Bernoulli):
            stack.push_bits(value.reshape(-1), base.probs[:n].reshape(-1))
        elif isinstance(base, Discretized):
            masses = _tables(base, n)
            for rows in reversed(range(0, n, _ROWS)):
                stack.push_table(value[rows : rows + _ROWS].reshape(-1), masses(rows))
        else:
            mean, scale = gaussian_parameters(base)
            step = self.steps[depth - 1]
            stack.push_gaussian(value.reshape(-1), mean[:n].reshape(-1) / step, scale[:n].reshape(-1) / step, self.span)

    def _pop_likelihood(self, stack: Stack, depth: int, p: Distribution, n: int) -> Tensor:
        base = base_of(p)
        shape = (n, *self.levels[depth].value_shape)
        if isinstance(base, Bernoulli):
            return stack.pop_bits(base.probs[:n].reshape(-1)).reshape(shape)
        if isinstance(base, Discretized):
            masses = _tables(base, n)
            return torch.cat([stack.pop_table(masses(rows)) for rows in range(0, n, _ROWS)]).reshape(shape)
        mean, scale = gaussian_parameters(base)
        step = self.steps[depth - 1]
        return stack.pop_gaussian(mean[:n].reshape(-1) / step, scale[:n].reshape(-1) / step, self.span).reshape(shape)

    # -- the innermost prior ----------------------------------------------------------------------------------------------------------

    def _push_prior(self, stack: Stack, k: Tensor) -> None:
        step = self.steps[-1]
        if self._mixture is None:
            mean, scale = _standard(k.numel(), step)
            stack.push_gaussian(k.reshape(-1), mean, scale, self.span)
            return
        several, pieces = len(self._mixture.means) > 1, self._pieces(len(k))
        c = torch.zeros(len(k), dtype=torch.int64)
        if several:
            c = torch.cat([stack.pop_table(self._responsibilities(k[rows])) for rows in pieces])
        for i, mean, scale in reversed(self._component(c).replay(k, step)):
            stack.push_gaussian(k[:, i], mean, scale, self.span)
        for rows in reversed(pieces if several else []):
            stack.push_table(c[rows], self._weights(len(c[rows])))

    def _pop_prior(self, stack: Stack, n: int) -> Tensor:
        shape, step = (n, *self.levels[-1].latent_shape), self.steps[-1]
        if self._mixture is None:
            mean, scale = _standard(n * int(torch.Size(shape[1:]).numel()), step)
            return stack.pop_gaussian(mean, scale, self.span).reshape(shape)
        several, pieces = len(self._mixture.means) > 1, self._pieces(n)
        c = torch.zeros(n, dtype=torch.int64)
        if several:
            c = torch.cat([stack.pop_table(self._weights(len(c[rows]))) for rows in pieces])
        chain = self._component(c)
        k = torch.zeros(shape, dtype=torch.int64)
        for i in range(shape[1]):
            k[:, i] = stack.pop_gaussian(chain.mean() / step, chain.scale() / step, self.span)
            chain.observe(k[:, i].double() * step)
        for rows in reversed(pieces if several else []):
            stack.push_table(c[rows], self._responsibilities(k[rows]))
        return k

    def _responsibilities(self, k: Tensor) -> Tensor:
        assert self._mixture is not None
        z = self._padded(k.double() * self.steps[-1])
        logits = (self._mixture.component_log_probs(z)[: len(k)] * GRID).round() / GRID
        return torch.softmax(logits, -1)

    def _weights(self, n: int) -> Tensor:
        assert self._mixture is not None
        return self._mixture.weights.expand(n, -1).contiguous()

    def _component(self, c: Tensor) -> _Chain:
        mixture = self._mixture
        assert mixture is not None
        return _Chain(mixture.means[c], mixture.scale if mixture.full else torch.diag_embed(mixture.scale), c)


class _Chain:
    """N(μ, L Lᵀ) one coordinate after the other: mean and scale of z_i given the coordinates observed so far, rows in parallel.

    Args:
        mean: (n, d).
        factor: L of each row (n, d, d), or of each of K components (K, d, d) where ``which`` (n,) says the component of each row.
    """

    def __init__(self, mean: Tensor, factor: Tensor, which: Tensor | None = None) -> None:
        self._mean, self._factor = mean, factor
        self._which = slice(None) if which is None else which
        self._noise = torch.zeros_like(mean)
        self._next = 0

    def mean(self) -> Tensor:
        i = self._next
        total = self._mean[:, i].clone()
        for j in range(i):  # one product at a time: the same order of additions for any number of rows
            total += self._factor[self._which, i, j] * self._noise[:, j]
        self._current = (total * GRID).round() / GRID
        return self._current

    def scale(self) -> Tensor:
        return self._factor[self._which, self._next, self._next]

    def observe(self, z: Tensor) -> None:
        """The value of the coordinate whose :meth:`mean` was asked for last."""
        self._noise[:, self._next] = (z - self._current) / self.scale()
        self._next += 1

    def replay(self, k: Tensor, step: float) -> list[tuple[int, Tensor, Tensor]]:
        """Coordinate, mean and scale in bins, of all coordinates of known values k (n, d), in the order in which they are popped."""
        seen = []
        for i in range(k.shape[1]):
            seen.append((i, self.mean() / step, self.scale() / step))
            self.observe(k[:, i].double() * step)
        return seen


def _standard(n: int, step: float) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, dtype=torch.float64), torch.full((n,), 1 / step, dtype=torch.float64)


def _tables(p: Discretized, n: int) -> Callable[[int], Tensor]:
    """Masses (pixels, L) of the images from a row on, a few at a time."""
    return lambda start: p.rows(start, min(n, start + _ROWS)).pmf().reshape(-1, p.levels).contiguous()
