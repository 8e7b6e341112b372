"""Heads: the last step of a conditional, features -> Distribution.

A network does not know what its outputs mean; a head does. ``head.size(n)`` says how many channels the network must produce for an
event of n channels (n latent dimensions, or n colours), and ``head(features, event_dims)`` splits them along the channel dimension,
the first of the event's.

| head | distribution | parameters of its own |
|---|---|---|
| :class:`Diagonal` | N(μ, diag σ²) | - |
| :class:`FullCovariance` | N(μ, L Lᵀ) | - |
| :class:`Constant` | N(μ, s² I), s fixed | - |
| :class:`Dirac` | δ(z - μ) | - |
| :class:`Bernoulli` | Bernoulli, x in {0, 1} | - |
| :class:`CrossEntropy` | cross-entropy of grey levels, unnormalised | - |
| :class:`Gaussian` | N(μ, γ I), γ fixed, shared and learned, optimal, or one per pixel | log σ |
| :class:`Logistic` | discretised logistic on stored values | log s if shared |
| :class:`LogisticMixture` | mixture of discretised logistics on stored values | starting point of every component |
| :class:`BinnedGaussian` | discretised Gaussian on stored values | log σ if shared |
| :class:`BetaBinomial` | beta-binomial on stored values | - |

The last four give a mass to each of ``levels`` values k / (levels - 1), 256 for 8-bit images: the likelihoods of lossless compression.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributions as D

from expost import discrete
from expost import distributions as ours

__all__ = [
    "Bernoulli",
    "BetaBinomial",
    "BinnedGaussian",
    "Constant",
    "CrossEntropy",
    "Diagonal",
    "Dirac",
    "FullCovariance",
    "Gaussian",
    "Head",
    "Logistic",
    "LogisticMixture",
    "exp",
    "exp_tanh",
    "half_exp",
    "softplus",
]


def exp(raw: Tensor) -> Tensor:
    """σ = e^raw: the network gives log σ (bozkurt2018)."""
    return raw.exp()


def half_exp(raw: Tensor) -> Tensor:
    """σ = e^(raw / 2): the network gives log σ², the commonest choice (manoj2018, yu2020)."""
    return (0.5 * raw).exp()


def softplus(raw: Tensor) -> Tensor:
    """σ = 10⁻⁶ + log(1 + e^raw) (dai2019's neutral network)."""
    return F.softplus(raw) + 1e-6


def exp_tanh(raw: Tensor) -> Tensor:
    """σ = e^(5 tanh raw): log σ kept within ±5 (ghosh2020's code)."""
    return (5 * torch.tanh(raw)).exp()


def identity(raw: Tensor) -> Tensor:
    """The link of an unbounded mean."""
    return raw


class Head(nn.Module):
    """features (*batch, size(n), *rest) -> Distribution of event shape (n, *rest). Abstract: define ``forward`` (and ``size``)."""

    def size(self, channels: int) -> int:
        """How many channels the network must produce for an event of ``channels`` channels."""
        return channels

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        raise NotImplementedError


def _halves(features: Tensor, event_dims: int) -> tuple[Tensor, Tensor]:
    channels = features.shape[-event_dims]
    if channels % 2:
        raise ValueError(
            f"this head needs an even number of channels (mean and scale), not {channels}: build the network with head.size(n)"
        )
    first, second = features.chunk(2, dim=-event_dims)
    return first, second


class Diagonal(Head):
    """N(μ, diag σ²): the usual VAE encoder. The network gives μ and a raw scale; ``scale`` maps the raw scale to σ."""

    def __init__(self, scale: Callable[[Tensor], Tensor] = half_exp) -> None:
        super().__init__()
        self.scale = scale

    def size(self, channels: int) -> int:
        return 2 * channels

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        mean, raw = _halves(features, event_dims)
        return D.Independent(D.Normal(mean, self.scale(raw), validate_args=False), event_dims, validate_args=False)


class FullCovariance(Head):
    """N(μ, L Lᵀ) on vectors: the encoder of the Sigma-VAE (yu2020). The network gives μ (n), log diag L (n) and the lower triangle (n(n-1)/2)."""

    def size(self, channels: int) -> int:
        return 2 * channels + channels * (channels - 1) // 2

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        if event_dims != 1:
            raise ValueError("FullCovariance is for vectors: use Diagonal() or Gaussian() for images")
        outputs = features.shape[-1]
        n = (math.isqrt(9 + 8 * outputs) - 3) // 2
        if self.size(n) != outputs:
            raise ValueError(f"{outputs} outputs fit no full covariance: build the network with head.size(n)")
        mean, log_diagonal, below = features.split([n, n, outputs - 2 * n], dim=-1)
        rows, columns = torch.tril_indices(n, n, -1, device=features.device)
        diagonal = torch.diag_embed(log_diagonal.exp())
        triangle = torch.zeros_like(diagonal)
        triangle[..., rows, columns] = below
        return D.MultivariateNormal(mean, scale_tril=diagonal + triangle, validate_args=False)


class Constant(Head):
    """N(μ, s² I) with a fixed s: the constant-variance VAE (ghosh2020; s = 0.7 there)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"the constant scale must be positive, not {scale}: use Dirac() for a deterministic encoder")
        self.scale = float(scale)

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        return D.Independent(
            D.Normal(features, torch.full_like(features, self.scale), validate_args=False), event_dims, validate_args=False
        )

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


class Dirac(Head):
    """δ(z - μ): a deterministic encoder (AE, RAE, WAE)."""

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        return ours.Dirac(features, event_dims)


class Bernoulli(Head):
    """Independent Bernoulli pixels, x in {0, 1}; features are logits. Grey levels are refused by the objectives: use :class:`CrossEntropy`."""

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        return D.Independent(D.Bernoulli(logits=features, validate_args=False), event_dims, validate_args=False)


class CrossEntropy(Head):
    """Binary cross-entropy of grey levels; features are logits. Unnormalised, see :class:`expost.distributions.CrossEntropy`."""

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        return ours.CrossEntropy(features, event_dims)


class Gaussian(Head):
    r"""N(link(features), γ I).

    Args:
        scale: a number: σ = √γ fixed. ``"shared"``: one learned log σ, starting at 0 (dai2019). ``"optimal"``: γ is the mean squared error
            of the batch while training (closed form of dai2019 and yu2020), and its running mean, set by :meth:`track`, in evaluation.
            ``"pixel"``: the network gives log σ for every pixel too (yu2020).
        link: maps features to the mean, e.g. ``torch.sigmoid`` for images in [0, 1].
        momentum: weight of the newest batch in the running mean of ``"optimal"``; the first 1/momentum batches count equally.

    ``head.variance`` is γ (for ``"pixel"`` it raises). Papers disagree on which of σ and γ is called γ: here γ is the variance.
    """

    def __init__(
        self,
        scale: float | Literal["shared", "optimal", "pixel"] = 1.0,
        link: Callable[[Tensor], Tensor] = identity,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if isinstance(scale, str) and scale not in ("shared", "optimal", "pixel"):
            raise ValueError(f'scale must be a positive number, "shared", "optimal" or "pixel", not "{scale}"')
        if not isinstance(scale, str) and not scale > 0:
            raise ValueError(f"the fixed scale must be positive, not {scale}")
        self.kind = scale if isinstance(scale, str) else "fixed"
        self.link, self.momentum = link, momentum
        start = torch.tensor(0.0 if isinstance(scale, str) else math.log(scale))
        if self.kind == "shared":
            self.log_scale = nn.Parameter(start)
        elif self.kind != "pixel":
            self.register_buffer("log_scale", start)
        if self.kind == "optimal":
            self.tracked: Tensor
            self.register_buffer("tracked", torch.tensor(0))
        self._used: ours.IsotropicGaussian | None = None

    def size(self, channels: int) -> int:
        return 2 * channels if self.kind == "pixel" else channels

    @property
    def variance(self) -> Tensor:
        """γ = σ², a scalar tensor."""
        if self.kind == "pixel":
            raise ValueError('a Gaussian head with scale="pixel" has one variance per pixel: ask the distribution for .variance')
        return (2 * self.log_scale).exp()

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        if self.kind == "pixel":
            mean, raw = _halves(features, event_dims)
            return D.Independent(D.Normal(self.link(mean), exp(raw), validate_args=False), event_dims, validate_args=False)
        optimal = self.kind == "optimal" and self.training
        distribution = ours.IsotropicGaussian(self.link(features), self.log_scale, event_dims, optimal=optimal)
        if optimal:
            self._used = distribution
        return distribution

    def track(self) -> None:
        """Move the running γ towards the one used in the last training step; ``fit`` calls it after every step."""
        used, self._used = self._used, None
        if used is not None and hasattr(used, "last_variance"):
            with torch.no_grad():
                self.tracked += 1
                weight = (1 / self.tracked.to(self.log_scale)).clamp_min(self.momentum)
                self.log_scale.copy_(0.5 * torch.lerp(self.variance, used.last_variance.to(self.log_scale), weight).log())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_used": None}  # a copy of the head takes no computation graph along

    def extra_repr(self) -> str:
        return f"scale={self.kind!r}" if self.kind != "fixed" else f"scale={float(self.log_scale.exp()):g}"


class _Binned(Head):
    """Location and scale in bins; ``scale`` is ``"pixel"`` (from the network) or ``"shared"`` (one learned scalar, Kingma et al. 2016).

    Features 0 mean: location 1/2, scale e^-2. The log scale is kept above -8 (a tenth of an 8-bit level).
    """

    family: Callable[..., discrete.Discretized]

    def __init__(self, scale: Literal["pixel", "shared"] = "pixel", levels: int = 256) -> None:
        super().__init__()
        if scale not in ("pixel", "shared"):
            raise ValueError(f'scale must be "pixel" or "shared", not {scale!r}')
        self.kind, self.levels = scale, levels
        if scale == "shared":
            self.log_scale = nn.Parameter(torch.tensor(0.0))

    def size(self, channels: int) -> int:
        return 2 * channels if self.kind == "pixel" else channels

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        location, raw = _halves(features, event_dims) if self.kind == "pixel" else (features, self.log_scale)
        return type(self).family(0.5 + 0.5 * location, (raw - 2).clamp_min(-8.0), self.levels, event_dims)

    def extra_repr(self) -> str:
        return f"scale={self.kind!r}, levels={self.levels}"


class Logistic(_Binned):
    """Discretised logistic with folded ends, see :class:`expost.discrete.DiscretizedLogistic`."""

    family = discrete.DiscretizedLogistic


class BinnedGaussian(_Binned):
    """Discretised Gaussian with folded ends, see :class:`expost.discrete.DiscretizedGaussian`."""

    family = discrete.DiscretizedGaussian


class LogisticMixture(Head):
    """Mixture of discretised logistics for every pixel, see :class:`expost.discrete.DiscretizedLogisticMixture`.

    Features 0 mean: components spread evenly over [0, 1], of equal weight; these starting points are learned too.

    Args:
        components: logistics per pixel.
        levels: number of stored values.
    """

    def __init__(self, components: int = 5, levels: int = 256) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"a mixture needs at least one component, not {components}")
        self.components, self.levels = components, levels
        start = torch.zeros(3, components)  # logit, location, log scale
        start[1] = torch.linspace(-1, 1, components) if components > 1 else 0.0
        self.start = nn.Parameter(start)

    def size(self, channels: int) -> int:
        return 3 * self.components * channels

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        axis = features.dim() - event_dims
        split = features.unflatten(axis, (3, self.components, -1))  # (*batch, 3, components, *event)
        start = self.start.reshape(3, self.components, *[1] * event_dims)
        logits, location, raw = (split + start).unbind(axis)
        return discrete.DiscretizedLogisticMixture(logits, 0.5 + 0.5 * location, (raw - 2).clamp_min(-8.0), self.levels, event_dims)

    def extra_repr(self) -> str:
        return f"components={self.components}, levels={self.levels}"


class BetaBinomial(Head):
    """Beta-binomial pixels, see :class:`expost.discrete.BetaBinomial`; features are log α and log β, kept within ±8."""

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.levels = levels

    def size(self, channels: int) -> int:
        return 2 * channels

    def forward(self, features: Tensor, event_dims: int = 1) -> D.Distribution:
        alpha, beta = _halves(features, event_dims)
        return discrete.BetaBinomial(8 * torch.tanh(alpha / 8), 8 * torch.tanh(beta / 8), self.levels, event_dims)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"
