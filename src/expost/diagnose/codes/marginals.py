r"""Which dimension is to blame? KL(q(z_u) || p(z_u)) of the marginals of the aggregate posterior, one dimension at a time.

For a factorised p the whole mismatch splits exactly,

    KL(q(z) || p(z))  =  Σ_u KL(q(z_u) || p(z_u))  +  KL(q(z) || Π_u q(z_u)),

into what the marginals get wrong and the dependence between dimensions (Hoffman and Johnson 2016, "ELBO surgery"). A large KL of one dimension is
cured by any ex-post density; dependence needs one with correlations or several components.

Where posteriors are Gaussian and p is N(0, I), q(z_u) is a one-dimensional mixture, known exactly, and its KL is a quadrature
(:meth:`expost.posterior.aggregate.AggregatePosterior.marginal_kl`). Otherwise codes are all there is: :func:`marginal_divergence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal

from expost.autoencoder import Autoencoder, evaluating
from expost.density import GaussianMixture, StandardNormal
from expost.density.base import Density
from expost.distributions import base_of, describe, deterministic
from expost.posterior.aggregate import AggregatePosterior
from expost.results import Result, Table
from expost.seeds import seeded
from expost.tensors import check_finite, takes_data, unit

__all__ = ["BLAME", "Marginals", "marginal_density", "marginal_divergence", "marginals"]

#: Nats below which a dimension is not blamed.
BLAME = 0.05
#: Draws from a density that has no closed form to compare with.
DRAWS = 20_000


@dataclass(frozen=True, eq=False)
class Marginals:
    """KL(q(z_u) || p(z_u)) in nats for u < d.

    Attributes:
        kl: (d,) float64; infinite for a dimension whose codes have no density (a constant).
        error: standard errors (d,); None where q(z_u) is known exactly.
        mean, variance: of q(z_u), (d,) float64.
        reference: what p is.
        method: how it was computed.
        n: images.
        notes: sentences that the reader must know.
    """

    kl: Tensor
    error: Tensor | None
    mean: Tensor
    variance: Tensor
    reference: str
    method: str
    n: int
    notes: tuple[str, ...] = ()

    @property
    def guilty(self) -> tuple[int, ...]:
        """The fewest dimensions that carry half of Σ_u KL, largest first, of those above 0.05 nat; all infinite ones."""
        order = self.kl.argsort(descending=True, stable=True).tolist()
        infinite = tuple(u for u in order if math.isinf(self.kl[u]))
        if infinite:
            return infinite
        total, sofar, named = float(self.kl.clamp_min(0).sum()), 0.0, []
        for u in order:
            if sofar >= 0.5 * total or float(self.kl[u]) < BLAME:
                break
            named.append(u)
            sofar += float(self.kl[u])
        return tuple(named)

    def results(self) -> dict[str, Result]:
        """``marginal_kl``, the sum over dimensions, and ``marginal_kl_largest``, that of the worst, which its details name."""
        error = None if self.error is None else float(self.error.square().sum().sqrt())
        worst = int(self.kl.argmax())
        context: dict[str, str | int | float] = {"reference": self.reference, "method": self.method, "d": len(self.kl)}
        details = {"unit": float(worst), "mean": float(self.mean[worst]), "variance": float(self.variance[worst])}
        return {
            "marginal_kl": Result("marginal_kl", float(self.kl.sum()), error, self.n, "nats", self.notes, context=context),
            "marginal_kl_largest": Result(
                "marginal_kl_largest", float(self.kl[worst]), None if self.error is None else float(self.error[worst]), self.n, "nats",
                details=details, context=context,
            ),
        }  # fmt: skip

    def table(self, title: str = "") -> Table:
        """One row per dimension, the worst first."""
        table = Table(("unit", "marginal KL", "error", "mean", "variance"), title=title)
        for u in self.kl.argsort(descending=True, stable=True).tolist():
            table.add(
                u, float(self.kl[u]), None if self.error is None else float(self.error[u]), float(self.mean[u]), float(self.variance[u])
            )
        blamed = (
            f"half of it in {len(self.guilty)} of {len(self.kl)}: {', '.join(map(str, self.guilty))}" if self.guilty else "none stands out"
        )
        table.notes += [
            f"KL(q(z_u) || p(z_u)) in nats, p is {self.reference}, {self.method}, n = {self.n}; sum {float(self.kl.sum()):.3g}, {blamed}",
            *self.notes,
        ]
        return table

    def __str__(self) -> str:
        return str(self.table("marginals of q(z)"))

    def to_json(self) -> dict[str, Any]:
        return {k: v.tolist() if isinstance(v, Tensor) else list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()}


@takes_data("x")
def marginals(
    model: Autoencoder,
    x: Tensor,
    *,
    density: Density | None = None,
    at: Literal["sample", "mean"] = "sample",
    seed: int = 0,
    memory: int = 256 << 20,
) -> Marginals:
    """KL of every marginal of q(z) over the images ``x`` to the model's prior, or to another density.

    Args:
        model: any autoencoder with codes (d,).
        x: (n, *event), uint8 or floats, n at least 20.
        density: p; default, the model's prior.
        at: whether codes are samples of q(z | x), or posterior means, which is what a density fitted to means is to be compared with.
        seed: of codes z ~ q(z | x) and of draws from p, where they are needed.
        memory: bytes beyond the posteriors.

    Raises:
        ValueError: neither prior nor density, too few images, NaN.
    """
    check_finite(x, "data")
    p = density if density is not None else model.prior
    if p is None:
        raise ValueError("this model has no prior to compare its codes with: pass density=FullGaussian(d).fit(model.latents(x, at='mean'))")
    with evaluating(model):
        exact = not deterministic(model.encode(unit(x[:1].to(model.device))))
    reference = "N(0, I)" if isinstance(p, StandardNormal) else type(p).__name__
    if exact and at == "sample" and isinstance(p, StandardNormal):
        try:
            q = model.posteriors(x)
            kl = AggregatePosterior(q, memory=memory).marginal_kl().cpu()
        except (TypeError, ValueError):  # posteriors that are not Gaussian: their codes then
            pass
        else:
            mean = q.mean.double()
            variance = mean.var(0, correction=0) + q.variance.double().mean(0)
            return Marginals(kl, None, mean.mean(0).cpu(), variance.cpu(), reference, "exact mixture", len(x))
    z = model.latents(x, at=at, seed=seed).double()
    with seeded("marginals", seed), torch.no_grad():
        target = p()
        known = marginal_density(target) is not None
        kl, error = marginal_divergence(z, target if known else target.sample(torch.Size((DRAWS,))).to(z))
    notes = [] if known else [f"against {DRAWS} draws from the density: too low where codes lie beyond all of them"]
    notes += ["from codes: for equal distributions the estimate is about +0.01 per dimension at n = 2000, more with fewer"]
    constant = [u for u in range(z.shape[1]) if math.isinf(kl[u])]
    if constant:
        notes.append(f"units {', '.join(map(str, constant))} take one value for many images: they have no density, and the KL is infinite")
    method = "nearest neighbours in one dimension"
    return Marginals(kl, error, z.mean(0).cpu(), z.var(0, correction=0).cpu(), reference, method, len(x), tuple(notes))


def marginal_divergence(a: Tensor, b: Tensor | Distribution | None = None) -> tuple[Tensor, Tensor]:
    r"""KL(q(z_u) || p(z_u)) of every dimension from codes, and its standard error: two (d,) float64, nats.

    log densities at every code by the distance ρ to its k-th neighbour in one dimension, log q̂ = ψ(k) - log 2ρ(n - 1), k = √n (Kozachenko and
    Leonenko 1987; two samples: Wang, Kulkarni, Verdú 2009). For equal distributions the bias is about 0.01 at n = 2000: far tails are smoothed.
    A dimension with more than k equal values has no density: its KL is infinite.

    Args:
        a: codes (n, d), n at least 20.
        b: a density whose marginals are known (:func:`marginal_density`); None for N(0, I). Or codes (m, d) to compare with: then the result is too
            low for codes that lie beyond them.

    >>> z = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[:, None]
    >>> kl, error = marginal_divergence(torch.distributions.Normal(0.0, 1.0).icdf(z))
    >>> abs(float(kl)) < 0.02
    True
    """
    check_finite(a, "codes")
    if len(a) < 20 or (isinstance(b, Tensor) and len(b) < 20):
        raise ValueError("marginals need at least 20 codes on each side: pass more data")
    p = StandardNormal(a.shape[1])() if b is None else b
    known = None if isinstance(p, Tensor) else marginal_density(p)
    if known is None and not isinstance(p, Tensor):
        raise ValueError(f"the marginals of {describe(p)} are not known: pass draws from it, b=density().sample((20000,))")
    k = math.isqrt(len(a))
    values = []
    for u in range(a.shape[1]):
        x = a[:, u].double().sort().values
        # the point itself is one of k + 1 neighbours
        own = math.log(len(a) - 1) + (2 * _radius(x, x, k + 1)).log() - torch.special.digamma(torch.tensor(float(k)))
        if known is not None:
            other = known(u, x)
        elif isinstance(p, Tensor):
            m = math.isqrt(len(p))
            y = p[:, u].to(x).sort().values
            other = torch.special.digamma(torch.tensor(float(m))) - math.log(len(p)) - (2 * _radius(x, y, m)).log()
        values.append(-own - other)
    ratios = torch.stack(values, 1).cpu()
    mean = ratios.mean(0)
    mean = torch.where(mean.isnan(), math.inf, mean)  # a point mass on both sides
    return mean, torch.where(mean.isinf(), math.nan, ratios.std(0) / math.sqrt(len(a)))


def marginal_density(p: Distribution) -> Callable[[int, Tensor], Tensor] | None:
    """(u, points) -> log p(z_u) for a Gaussian or a mixture of them; None for others."""
    base = base_of(p)
    if isinstance(base, Normal | MultivariateNormal):
        return lambda u, x: Normal(base.mean[u].to(x), base.stddev[u].to(x), validate_args=False).log_prob(x)
    if isinstance(base, GaussianMixture):
        variances = torch.diagonal(base.covariances, dim1=-2, dim2=-1)

        def mixture(u: int, x: Tensor) -> Tensor:
            parts = Normal(base.means[:, u].to(x), variances[:, u].sqrt().to(x), validate_args=False)
            return torch.logsumexp(base.log_weights.to(x) + parts.log_prob(x[:, None]), 1)

        return mixture
    return None


def _radius(x: Tensor, y: Tensor, k: int) -> Tensor:
    """Distance of every x to its k-th nearest y; both sorted, one-dimensional. The k nearest are neighbours in the order of y."""
    position = torch.searchsorted(y, x)
    start = (position[:, None] - k + torch.arange(k + 1, device=x.device)).clamp_(0, len(y) - k)
    return torch.maximum(x[:, None] - y[start], y[start + k - 1] - x[:, None]).amin(1)
