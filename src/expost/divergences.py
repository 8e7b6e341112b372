r"""KL(q || p), in one function, and the maximum mean discrepancy.

``kl(q, p, z)`` takes the closed form where torch or this file has one; otherwise it is estimated from the given samples z ~ q as
mean_k [log q(z_k) - log p(z_k)], which is unbiased but may be negative for one z.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal, kl_divergence

from expost.distributions import base_of, deterministic

__all__ = ["has_closed_form", "kl", "kl_per_dimension", "mmd", "multi_scale_imq"]

_REMEDY = "a deterministic encoder has no ELBO: use RAE(...), or give the encoder a Constant(scale) head"


def _factors(distribution: Distribution) -> Normal | None:
    """The Normal inside Independent(Normal, 1) on vectors, else None."""
    base = base_of(distribution)
    return base if isinstance(base, Normal) and len(distribution.event_shape) >= 1 else None


def has_closed_form(q: Distribution, p: Distribution) -> bool:
    """Whether :func:`kl` needs no samples for this pair."""
    try:
        return _closed_form(q, p) is not None
    except NotImplementedError:
        return False


def _closed_form(q: Distribution, p: Distribution) -> Tensor | None:
    a, b = _factors(q), _factors(p)
    if a is not None and b is not None:
        return kl_per_dimension(q, p).flatten(-len(q.event_shape)).sum(-1)
    if isinstance(q, MultivariateNormal) and b is not None:
        return _full_against_factorised(q, b)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _full_against_factorised(q: MultivariateNormal, p: Normal) -> Tensor:
    """½ [tr(S⁻² L Lᵀ) + ‖S⁻¹(μ - m)‖² - d] - log det L + log det S, for q = N(μ, L Lᵀ) and p = N(m, S²), S diagonal."""
    quadratic = (q.scale_tril / p.scale[..., :, None]).square().sum((-2, -1)) + ((q.loc - p.loc) / p.scale).square().sum(-1)
    log_det = q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - p.scale.log().sum(-1)
    return 0.5 * (quadratic - q.event_shape[0]) - log_det


def kl_per_dimension(q: Distribution, p: Distribution) -> Tensor:
    """KL of each coordinate of two diagonal Gaussians, in nats: (*batch, *event).

    Raises ``ValueError`` where q or p does not factorise over coordinates.
    """
    a, b = _factors(q), _factors(p)
    if a is None or b is None:
        raise ValueError(
            f"KL per dimension needs factorised Gaussians, not {type(base_of(q)).__name__} against {type(base_of(p)).__name__}: "
            "use a Diagonal() encoder with a StandardNormal prior, or free_bits=0"
        )
    ratio = (a.scale / b.scale).square()
    return 0.5 * (ratio + ((a.loc - b.loc) / b.scale).square() - 1 - ratio.log())


def kl(q: Distribution, p: Distribution, z: Tensor | None = None) -> Tensor:
    r"""KL(q || p) in nats, (*batch,).

    Args:
        q: posterior, batch shape (*batch,).
        p: prior, empty or broadcastable batch shape.
        z: samples from q, (*batch, *event) or (k, *batch, *event), used only where no closed form exists.
    """
    if deterministic(q):
        raise ValueError(_REMEDY)
    exact = _closed_form(q, p)
    if exact is not None:
        return exact
    if z is None:
        raise ValueError(f"KL of {type(base_of(q)).__name__} to {type(base_of(p)).__name__} has no closed form: pass samples z ~ q")
    estimate = q.log_prob(z) - p.log_prob(z)
    extra = estimate.dim() - len(q.batch_shape)
    return estimate.flatten(0, extra - 1).mean(0) if extra > 0 else estimate


def multi_scale_imq(squared: Tensor, dims: int, prior_variance: float = 1.0) -> Tensor:
    r"""Inverse multiquadratics summed over seven scales: Σ_s C_s / (C_s + ‖a - b‖²), C_s = 2 d s σ_p².

    s in {.1, .2, .5, 1, 2, 5, 10}; d = ``dims`` latent dimensions (Tolstikhin et al. 2018, WAE-MMD; their code).

    Args:
        squared: squared distances, any shape.
    """
    total = torch.zeros_like(squared)
    for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        c = 2.0 * dims * prior_variance * scale
        total = total + c / (c + squared)
    return total


def mmd(a: Tensor, b: Tensor) -> Tensor:
    r"""Squared maximum mean discrepancy with :func:`multi_scale_imq`: a scalar that can be negative.

    1/(n(n-1)) Σ_{i≠j} k(a_i, a_j) + 1/(m(m-1)) Σ_{i≠j} k(b_i, b_j) - 2/(nm) Σ_{ij} k(a_i, b_j).

    Args:
        a, b: (n, d) and (m, d), n and m at least 2.
    """
    (n, d), m = a.shape, len(b)
    if n < 2 or m < 2:
        raise ValueError("MMD needs at least two points on each side: use a larger batch")
    within = []
    for x, count in ((a, n), (b, m)):
        gram = multi_scale_imq(_squared_distances(x, x), d)
        within.append((gram.sum() - gram.diagonal().sum()) / (count * (count - 1)))
    return within[0] + within[1] - 2 * multi_scale_imq(_squared_distances(a, b), d).mean()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(-1)[:, None] + b.square().sum(-1)[None] - 2 * a @ b.mT).clamp_min(0)
