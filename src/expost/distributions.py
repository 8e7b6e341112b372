"""Distributions that torch does not have.

* :class:`Dirac`: a point; what a deterministic encoder returns.
* :class:`CrossEntropy`: the binary cross-entropy of grey levels. *Not a likelihood*: exp(log_prob) does not integrate to one.
* :class:`IsotropicGaussian`: N(mean, σ² I) with one σ; its variance may follow the error of the batch (the "optimal" variance).
* :class:`Marginal`: p(x) = ∫ p(x | z) p(z) dz of an autoencoder; sampling is exact, ``log_prob`` a lower bound in expectation.

Every distribution here and every torch distribution answers the same four questions through :func:`point`, :func:`normalised`,
``log_prob`` and ``rsample`` / ``sample``.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, constraints

from expost.discrete import Discretized, check_levels
from expost.tensors import sum_event

__all__ = ["CrossEntropy", "Dirac", "IsotropicGaussian", "Marginal", "deterministic", "normalised", "point"]


class Dirac(Distribution):
    """δ(z - loc): all mass at one point, the code of a deterministic encoder.

    It has samples and a mean but no density: ``log_prob`` raises, because 0 or infinity is never what the caller wants.

    Args:
        loc: the point, (*batch, *event).
        event_dims: how many trailing dimensions form the event.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, loc: Tensor, event_dims: int = 1) -> None:
        self.loc = loc
        cut = loc.dim() - event_dims
        super().__init__(loc.shape[:cut], loc.shape[cut:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.loc)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        return self.loc.expand(torch.Size(sample_shape) + self.loc.shape)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        raise ValueError(
            "a Dirac (deterministic encoder) has no density: use RAE(...) or WAE(...), or give the encoder a Constant(scale) head"
        )


class CrossEntropy(Distribution):
    r"""Binary cross-entropy of grey levels x in [0, 1]: log_prob(x) = Σ x log p + (1 - x) log(1 - p), p = sigmoid(logits).

    For x in {0, 1} this is the Bernoulli log-likelihood. For x in between it is *unnormalised*: likelihoods and bits/dim refuse it.
    The floor of the loss is the entropy of x, not 0. Used by papers bozkurt2018 and manoj2018, and in dai2019's "cross-entropy" row.

    Args:
        logits: (*batch, *event).
        event_dims: how many trailing dimensions form the event.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False
    normalised = False

    def __init__(self, logits: Tensor, event_dims: int = 1) -> None:
        self.logits, self._event_dims = logits, event_dims
        cut = logits.dim() - event_dims
        super().__init__(logits.shape[:cut], logits.shape[cut:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.unit_interval, self._event_dims)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    @property
    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    @property
    def variance(self) -> Tensor:
        p = self.mean
        return p * (1 - p)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(torch.Size(sample_shape) + self.logits.shape))

    def log_prob(self, value: Tensor) -> Tensor:
        logits, value = torch.broadcast_tensors(self.logits, value)
        return -sum_event(F.binary_cross_entropy_with_logits(logits, value, reduction="none"), self._event_dims)


class IsotropicGaussian(Distribution):
    r"""N(loc, γ I): log_prob(x) = -‖x - loc‖² / 2γ - (D/2) log 2πγ, with one variance γ for all dimensions.

    With ``optimal=True`` the variance is the mean squared error of the values that ``log_prob`` is asked about (γ* = MSE, the maximiser
    of the likelihood in γ; Dai & Wipf 2019, Yu 2020). The gradient with respect to ``loc`` is then that of (D/2) log MSE: at the
    optimum the derivative through γ vanishes, so γ is held constant.

    Args:
        loc: mean, (*batch, *event).
        log_scale: log σ = ½ log γ, a scalar tensor.
        event_dims: how many trailing dimensions form the event.
        optimal: set γ from the data in ``log_prob``; ``last_variance`` then tells which γ was used.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, event_dims: int = 1, *, optimal: bool = False) -> None:
        self.loc, self.log_scale, self.optimal = loc, log_scale, optimal
        self._event_dims = event_dims
        cut = loc.dim() - event_dims
        super().__init__(loc.shape[:cut], loc.shape[cut:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self._event_dims)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def scale(self) -> Tensor:
        """σ, a scalar."""
        return self.log_scale.exp()

    @property
    def variance(self) -> Tensor:
        return (2 * self.log_scale).exp().expand(self.loc.shape)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.loc.shape
        return self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def log_prob(self, value: Tensor) -> Tensor:
        squared = (value - self.loc).square()
        dims = math.prod(self.event_shape)
        log_scale = self.log_scale
        if self.optimal:
            self.last_variance = squared.detach().mean().clamp_min(1e-12)
            log_scale = 0.5 * self.last_variance.log()
        return -0.5 * sum_event(squared, self._event_dims) * torch.exp(-2 * log_scale) - dims * (log_scale + 0.5 * math.log(2 * math.pi))


class LatentModel(Protocol):
    """What :class:`Marginal` needs of an autoencoder."""

    def encode(self, x: Tensor) -> Distribution: ...

    def decode(self, z: Tensor) -> Distribution: ...

    def latent(self) -> Distribution: ...


class Marginal(Distribution):
    r"""p(x) = ∫ p(x | z) p(z) dz.

    ``sample`` is exact (ancestral). ``log_prob(x)`` is the importance-weighted bound log 1/K Σ_k p(x, z_k) / q(z_k | x), z_k ~ q(z | x)
    (Burda, Grosse, Salakhutdinov 2016, eq. 8): a lower bound of log p(x) in expectation, non-decreasing in K, equal to the ELBO for
    K = 1, exact where q(z | x) is the posterior.

    Args:
        model: the autoencoder.
        samples: K.
        event_shape: shape of x, where known (else the empty shape is reported).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(self, model: LatentModel, samples: int = 16, event_shape: torch.Size | tuple[int, ...] = ()) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}")
        self.model, self.samples = model, samples
        super().__init__(torch.Size(), torch.Size(event_shape), validate_args=False)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        with torch.no_grad():
            return self.model.decode(self.model.latent().sample(torch.Size(sample_shape))).sample()

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x | z_k) + log p(z_k) - log q(z_k | x): (samples, *batch)."""
        q = self.model.encode(x)
        if isinstance(q, Dirac):
            raise ValueError(
                "a deterministic encoder has no importance-weighted bound: give the encoder a Constant(scale) or Diagonal() head"
            )
        z = q.rsample((samples,)) if q.has_rsample else q.sample((samples,))
        p = self.model.decode(z)
        check_data(p, x)
        if not normalised(p):
            raise ValueError(f"{describe(p)} is not a normalised likelihood: use a Bernoulli, Gaussian or discretised head for log p(x)")
        return p.log_prob(x) + self.model.latent().log_prob(z) - q.log_prob(z)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.logsumexp(self.log_weights(value, self.samples), 0) - math.log(self.samples)


def base_of(distribution: Distribution) -> Distribution:
    """The distribution inside ``Independent`` wrappers."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def describe(distribution: Distribution) -> str:
    return type(base_of(distribution)).__name__


def point(distribution: Distribution) -> Tensor:
    """The one value shown for a distribution: its mean, or its mode if it is categorical.

    For Bernoulli pixels the mean is shown (the grey level), as every paper does.
    """
    if isinstance(base_of(distribution), Categorical):
        return distribution.mode
    return distribution.mean


def normalised(distribution: Distribution) -> bool:
    """Whether exp(log_prob) integrates to one; false for :class:`CrossEntropy` on grey levels and for a :class:`Dirac`."""
    base: Any = base_of(distribution)
    return bool(getattr(base, "normalised", True)) and not isinstance(base, Dirac)


def check_data(p: Distribution, x: Tensor) -> None:
    """``ValueError`` for silent mistakes: grey levels under a Bernoulli, values between the levels of a discrete head, data whose shape would merely broadcast to the event."""
    if binary(p) and not bool(((x == 0) | (x == 1)).all()):
        raise ValueError(
            "a Bernoulli head needs pixels that are exactly 0 or 1: binarise the images, or use a CrossEntropy() head for grey levels"
        )
    if isinstance(p, Discretized):
        check_levels(p, x)
    if p.event_shape and p.event_shape != x.shape[x.dim() - len(p.event_shape) :]:
        raise ValueError(
            f"the decoder makes {tuple(p.event_shape)} and the data is {tuple(x.shape[1:])}: build the networks for the data's shape"
        )


def deterministic(distribution: Distribution) -> bool:
    """Whether the distribution is a single point."""
    return isinstance(base_of(distribution), Dirac)


def binary(distribution: Distribution) -> bool:
    """Whether values must be exactly 0 or 1."""
    return isinstance(base_of(distribution), Bernoulli)
