r"""Distributions of stored values: x in {0, 1/(L-1), ..., 1}, L levels (256 for 8-bit images), each with a probability mass.

A density on [0, 1] is not a code length; a mass is: -log2 p(x) bits is what a lossless coder needs (and :mod:`expost.codec` reaches).
With k = (L - 1) x in {0, ..., L - 1}, a continuous distribution with cumulative function F on the scale of k gives the mass of a bin,

    p(k) = F(k + 1/2) - F(k - 1/2),   p(0) = F(1/2),   p(L-1) = 1 - F(L - 3/2):

the tails are folded into the end bins, so that the masses sum to one (Kingma et al. 2016 and Yu 2020 do not fold; Salimans et al. 2017 do).

* :class:`DiscretizedLogistic`: F a logistic, log p(k) = log σ(a) + log σ(-b) + log(1 - e^-(a-b)), exact where σ(a) - σ(b) would cancel.
* :class:`DiscretizedLogisticMixture`: several of them with weights (Salimans et al. 2017, without their links between colours).
* :class:`DiscretizedGaussian`: F normal (Ho, Jain, Abbeel 2020).
* :class:`BetaBinomial`: L - 1 trials whose probability is Beta(α, β) (Townsend, Bird, Barber 2019).

Every class answers ``log_prob`` (summed over the event), ``log_mass`` (element by element), ``pmf`` (all levels at once), ``mean``,
``mode``, ``variance`` and ``sample``. Values off the grid raise a ``ValueError`` in :func:`check_levels`.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, constraints

from expost.tensors import sum_event

__all__ = ["BetaBinomial", "Discretized", "DiscretizedGaussian", "DiscretizedLogistic", "DiscretizedLogisticMixture", "check_levels"]


class Discretized(Distribution):
    """A distribution over L levels k / (L - 1), independent over the event's elements. Abstract: define ``cumulative`` or ``log_mass``.

    Args:
        shape: (*batch, *event).
        levels: L, at least 2.
        event_dims: how many trailing dimensions form the event.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(self, shape: torch.Size, levels: int = 256, event_dims: int = 1) -> None:
        if levels < 2:
            raise ValueError(f"a discrete distribution needs at least two levels, not {levels}")
        self.levels, self._event_dims = levels, event_dims
        cut = len(shape) - event_dims
        super().__init__(shape[:cut], shape[cut:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.unit_interval, self._event_dims)

    def log_mass(self, value: Tensor) -> Tensor:
        """log p of each element, (*batch, *event), nats."""
        raise NotImplementedError

    def cumulative(self, edges: Tensor) -> Tensor:
        """P(k < edge) for edges (n, 1, ..., 1) on the scale of k: (n, *batch, *event). Used by :meth:`pmf`."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        return sum_event(self.log_mass(value), self._event_dims)

    def pmf(self) -> Tensor:
        """Masses of all levels, (*batch, *event, L); non-negative, summing to one up to rounding."""
        shape = self._batch_shape + self._event_shape
        edges = torch.arange(self.levels - 1, dtype=self._like.dtype, device=self._like.device) + 0.5
        inner = self.cumulative(edges.reshape(-1, *[1] * len(shape)))
        below = torch.cat([torch.zeros_like(inner[:1]), inner])
        above = torch.cat([inner, torch.ones_like(inner[:1])])
        return (above - below).clamp_min(0).movedim(0, -1)

    def rows(self, start: int, stop: int) -> Self:
        """The distribution of the rows start ... stop - 1 of the first batch dimension: what a coder tabulates at once."""
        part = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.dim() == self._like.dim():
                setattr(part, name, value[start:stop])
        part._batch_shape = torch.Size((stop - start, *self._batch_shape[1:]))
        return part

    @property
    def _like(self) -> Tensor:
        """A tensor of the parameters' dtype and device."""
        raise NotImplementedError

    def _grid(self) -> Tensor:
        return torch.arange(self.levels, dtype=self._like.dtype, device=self._like.device) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        return self.pmf() @ self._grid()

    @property
    def variance(self) -> Tensor:
        pmf, grid = self.pmf(), self._grid()
        return (pmf @ grid.square() - (pmf @ grid).square()).clamp_min(0)

    @property
    def mode(self) -> Tensor:
        return self.pmf().argmax(-1).to(self._like.dtype) / (self.levels - 1)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            pmf = self.pmf()
            flat = pmf.reshape(-1, self.levels)
            drawn = torch.multinomial(flat, max(1, math.prod(shape)), replacement=True)
            return drawn.T.reshape(*shape, *pmf.shape[:-1]).to(self._like.dtype) / (self.levels - 1)


class _LocationScale(Discretized):
    """One location and one scale for every element."""

    def __init__(self, loc: Tensor, log_scale: Tensor, levels: int = 256, event_dims: int = 1) -> None:
        self.loc, self.log_scale = loc, log_scale
        super().__init__(torch.broadcast_shapes(loc.shape, log_scale.shape), levels, event_dims)

    @property
    def _like(self) -> Tensor:
        return self.loc


def _logistic_log_mass(k: Tensor, levels: int, loc: Tensor, log_scale: Tensor) -> Tensor:
    """log mass of bin k of a logistic with ``loc`` on the scale of k and log of its scale there; all broadcastable."""
    inverse = torch.exp(-log_scale)
    centred = (k - loc) * inverse
    half = 0.5 * inverse
    upper, lower = centred + half, centred - half
    # log(1 - e^-w), w = 1 / s: exact for wide and for narrow bins
    width = inverse.clamp(1e-6, 80.0)
    inside = torch.where(width < 0.7, torch.log(-torch.expm1(-width)), torch.log1p(-torch.exp(-width)))
    first, last = k <= 0, k >= levels - 1
    log_upper = torch.where(last, 0.0, -F.softplus(-upper))  # the last bin reaches to infinity
    log_lower = torch.where(first, 0.0, -F.softplus(lower))
    return log_upper + log_lower + torch.where(first | last, 0.0, inside)


class DiscretizedLogistic(_LocationScale):
    """A logistic with mean ``loc`` (on the scale of x, [0, 1]) and scale s = e^log_scale (same scale), in bins of 1 / (L - 1).

    Args:
        loc: (*batch, *event).
        log_scale: log s, broadcastable to loc. The standard deviation is s π / √3.
        levels: L.
        event_dims: how many trailing dimensions form the event.
    """

    def _scaled(self) -> tuple[Tensor, Tensor]:
        return self.loc * (self.levels - 1), self.log_scale + math.log(self.levels - 1)

    def log_mass(self, value: Tensor) -> Tensor:
        return _logistic_log_mass(value * (self.levels - 1), self.levels, *self._scaled())

    def cumulative(self, edges: Tensor) -> Tensor:
        loc, log_scale = self._scaled()
        return torch.sigmoid((edges - loc) * torch.exp(-log_scale)).expand(len(edges), *self._batch_shape, *self._event_shape)


class DiscretizedLogisticMixture(Discretized):
    """Σ_c w_c DiscretizedLogistic(loc_c, s_c) for every element by itself.

    Args:
        logits: unnormalised log weights, (*batch, components, *event).
        loc: means on the scale of x, (*batch, components, *event).
        log_scale: log scales, (*batch, components, *event).
    """

    def __init__(self, logits: Tensor, loc: Tensor, log_scale: Tensor, levels: int = 256, event_dims: int = 1) -> None:
        self.logits, self.loc, self.log_scale = logits, loc, log_scale
        self._axis = -event_dims - 1
        cut = loc.dim() + self._axis
        super().__init__(loc.shape[:cut] + loc.shape[cut + 1 :], levels, event_dims)

    @property
    def _like(self) -> Tensor:
        return self.loc

    def log_mass(self, value: Tensor) -> Tensor:
        scale = self.levels - 1
        k = (value * scale).unsqueeze(self._axis)
        each = _logistic_log_mass(k, self.levels, self.loc * scale, self.log_scale + math.log(scale))
        return torch.logsumexp(each + torch.log_softmax(self.logits, self._axis), self._axis)

    def cumulative(self, edges: Tensor) -> Tensor:
        scale = self.levels - 1
        weights, inverse = torch.softmax(self.logits, self._axis), torch.exp(-self.log_scale) / scale
        total = torch.zeros((), dtype=self.loc.dtype, device=self.loc.device)
        for c in range(self.loc.shape[self._axis]):
            weight, loc, slope = (t.select(self._axis, c) for t in (weights, self.loc, inverse))
            total = total + weight * torch.sigmoid((edges - loc * scale) * slope)
        return total


class DiscretizedGaussian(_LocationScale):
    """A Gaussian with mean ``loc`` and standard deviation e^log_scale (both on the scale of x), in bins of 1 / (L - 1)."""

    def log_mass(self, value: Tensor) -> Tensor:
        scale = self.levels - 1
        k, inverse = value * scale, (torch.exp(-self.log_scale) / scale).clamp_max(1e4)
        # work in the left tail, where log Φ is exact: mirror values above the mean
        distance = -(k - self.loc * scale).abs()
        upper, lower = (distance + 0.5) * inverse, (distance - 0.5) * inverse
        mirrored = k > self.loc * scale
        first, last = k <= 0, k >= scale
        open_above = torch.where(mirrored, first, last)  # the bin's inner end, after mirroring
        open_below = torch.where(mirrored, last, first)
        log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        gap = (log_upper - log_lower).clamp_min(1e-12)
        inside = torch.where(gap < 0.7, torch.log(-torch.expm1(-gap)), torch.log1p(-torch.exp(-gap)))
        mass = torch.where(open_below, log_upper, log_upper + inside)
        return torch.where(open_above, torch.special.log_ndtr(-lower), mass)

    def cumulative(self, edges: Tensor) -> Tensor:
        scale = self.levels - 1
        result = torch.special.ndtr((edges - self.loc * scale) * (torch.exp(-self.log_scale) / scale))
        return result.expand(len(edges), *self._batch_shape, *self._event_shape)


class BetaBinomial(Discretized):
    """k ~ Binomial(L - 1, p), p ~ Beta(α, β): p(k) = C(L-1, k) B(k + α, L - 1 - k + β) / B(α, β).

    Args:
        log_alpha, log_beta: (*batch, *event).
    """

    def __init__(self, log_alpha: Tensor, log_beta: Tensor, levels: int = 256, event_dims: int = 1) -> None:
        self.log_alpha, self.log_beta = log_alpha, log_beta
        super().__init__(torch.broadcast_shapes(log_alpha.shape, log_beta.shape), levels, event_dims)

    @property
    def _like(self) -> Tensor:
        return self.log_alpha

    def log_mass(self, value: Tensor) -> Tensor:
        n = self.levels - 1
        k = value.double() * n  # sums of log Γ cancel: float32 would lose 1e-4 nats per element
        a, b = self.log_alpha.double().exp(), self.log_beta.double().exp()
        choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        return (choose + _log_beta(k + a, n - k + b) - _log_beta(a, b)).to(self._like.dtype)

    def pmf(self) -> Tensor:
        shape = self._batch_shape + self._event_shape
        masses = self.log_mass(self._grid().reshape(-1, *[1] * len(shape))).exp()
        return masses.expand(self.levels, *shape).movedim(0, -1)

    @property
    def mean(self) -> Tensor:
        a, b = self.log_alpha.exp(), self.log_beta.exp()
        return (a / (a + b)).expand(self._batch_shape + self._event_shape)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def check_levels(p: Any, x: Tensor) -> None:
    """``ValueError`` unless every value is one of the distribution's levels (to 1e-4 of a level)."""
    k = x * (p.levels - 1)
    if x.numel() and (float(x.min()) < 0 or float(x.max()) > 1 or bool(((k - k.round()).abs() > 1e-2).any())):
        raise ValueError(
            f"a discretised head of {p.levels} levels needs stored values k / {p.levels - 1}, 0 <= k < {p.levels}: give uint8 images, "
            "or use a Gaussian() head for continuous data"
        )
