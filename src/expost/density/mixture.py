r"""Mixtures of Gaussians: p(z) = Σ_k w_k N(z; μ_k, Σ_k), the ex-post density of Ghosh et al. 2020 (From Variational to Deterministic
Autoencoders, section 4: ten components, full covariance).

:class:`GaussianMixture` is the distribution; :class:`GMM` is the density that learns it, by expectation-maximisation (:mod:`.em`).
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from expost.density.base import Codes, Density, register
from expost.density.fitting import FitReport, codes_for, require_fitted
from expost.seeds import seed_from
from expost.system.progress import Bar

__all__ = ["GMM", "GaussianMixture"]

#: Elements of the largest temporary in ``log_prob``: small enough to stay in a processor's cache.
_CHUNK = 1 << 19

_LOG_2PI = math.log(2 * math.pi)


class GaussianMixture(Distribution):
    r"""Σ_k w_k N(z; μ_k, Σ_k) over vectors, of empty batch shape.

    The same as torch's ``MixtureSameFamily`` of ``MultivariateNormal`` (or of independent ``Normal``), but log_prob never holds the
    differences of all points to all components at once, and multiplies by inverse factors instead of solving for every point.

    Args:
        log_weights: log w_k, (K,).
        means: μ_k, (K, d).
        scale: lower-triangular factors of Σ_k, (K, d, d), or standard deviations, (K, d).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, log_weights: Tensor, means: Tensor, scale: Tensor) -> None:
        self.log_weights, self.means, self.scale = log_weights, means, scale
        self._inverse: Tensor | None = None
        super().__init__(torch.Size(), means.shape[-1:], validate_args=False)

    @property
    def full(self) -> bool:
        return self.scale.dim() == 3

    @property
    def weights(self) -> Tensor:
        """w_k, (K,)."""
        return self.log_weights.exp()

    @property
    def covariances(self) -> Tensor:
        """Σ_k, (K, d, d)."""
        return self.scale @ self.scale.mT if self.full else torch.diag_embed(self.scale.square())

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def variance(self) -> Tensor:
        within = self.scale.square().sum(-1) if self.full else self.scale.square()
        return self.weights @ (within + (self.means - self.mean).square())

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            k = torch.multinomial(self.weights, shape.numel(), replacement=True)
            noise = torch.randn(shape.numel(), self.means.shape[1], dtype=self.means.dtype, device=self.means.device)
            if not self.full:
                return (self.means[k] + self.scale[k] * noise).reshape(shape + self.event_shape)
            z = torch.empty_like(noise)
            for j in range(len(self.means)):  # one matrix product per component, rather than one small matrix per sample
                rows = (k == j).nonzero()[:, 0]
                z[rows] = self.means[j] + noise[rows] @ self.scale[j].mT
            return z.reshape(shape + self.event_shape)

    def component_log_probs(self, z: Tensor) -> Tensor:
        """log w_k + log N(z; μ_k, Σ_k): (*batch, d) -> (*batch, K). A softmax over the last dimension gives the responsibilities."""
        if z.shape[-1:] != self.event_shape:
            raise ValueError(f"expected codes of dimension {self.event_shape[0]}, got shape {tuple(z.shape)}")
        components, d = self.means.shape
        flat = z.reshape(-1, d).to(self.means.dtype)
        if self.full:
            if self._inverse is None:
                eye = torch.eye(d, dtype=self.scale.dtype, device=self.scale.device)
                # Rows of the factor over their diagonal have no unit: dimensions of 1e-30 and 1e30 side by side do not overflow.
                unit = self.scale.diagonal(dim1=-2, dim2=-1)
                inverse = torch.linalg.solve_triangular(self.scale / unit[..., None], eye.expand_as(self.scale), upper=False)
                self._inverse = (inverse / unit[..., None, :]).mT.contiguous()
            log_det = self.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            log_det = self.scale.log().sum(-1)
        constant = self.log_weights - log_det - 0.5 * d * _LOG_2PI
        rows = max(1, _CHUNK // (components * d))
        with Bar(len(flat), what="mixture", after=1.0) as bar:
            parts = [constant - 0.5 * self._distances(part).mT for part in bar.over(flat.split(rows), len)] or [
                flat.new_empty(0, components)
            ]
        return torch.cat(parts).reshape(*z.shape[:-1], components)

    def _distances(self, z: Tensor) -> Tensor:
        """Squared Mahalanobis distances, (n, d) -> (K, n)."""
        difference = z - self.means[:, None]
        y = torch.bmm(difference, self._inverse) if self._inverse is not None else difference / self.scale[:, None]
        return y.square().sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.logsumexp(self.component_log_probs(value), -1)


class GMM(Density):
    r"""p(z) = Σ_k w_k N(z; μ_k, Σ_k), fitted by expectation-maximisation (Dempster, Laird, Rubin 1977; scikit-learn's implementation).

    Several starts compete on a small subsample, and the best of them (by likelihood of other codes) is continued on all codes. Σ_k has ``reg`` times the covariance of all codes added, so that the result
    does not depend on the units of the codes; a direction in which codes are constant gets the floor of :class:`FullGaussian`.

    Args:
        d: dimension of the codes.
        components: K.
        covariance: "full", or "diagonal" for Σ_k diagonal.
        restarts: starts that compete on the subsample.
        tol: EM stops when an iteration gains less than this, in nats per code.
        max_iter: most iterations on all codes; when they are used up, ``report.note`` says so.
        reg: see above.

    >>> z = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> GMM(2, 3).fit(z)().sample((4,)).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        d: int,
        components: int = 10,
        covariance: Literal["full", "diagonal"] = "full",
        restarts: int = 8,
        tol: float = 1e-3,
        max_iter: int = 100,
        reg: float = 1e-6,
    ) -> None:
        super().__init__()
        if d < 1 or components < 1 or restarts < 1 or max_iter < 1:
            raise ValueError("d, components, restarts and max_iter of a GMM must be at least 1")
        if covariance not in ("full", "diagonal"):
            raise ValueError(f'covariance must be "full" or "diagonal", not {covariance!r}')
        if not reg >= 0 or not tol >= 0:
            raise ValueError(f"reg and tol must not be negative, but they are {reg} and {tol}")
        self.d, self.components, self.covariance = d, components, covariance
        self.restarts, self.tol, self.max_iter, self.reg = restarts, tol, max_iter, reg
        self.log_weights: Tensor
        self.means: Tensor
        self.scale: Tensor
        self.fitted: Tensor
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, d))
        self.register_buffer("scale", torch.eye(d).repeat(components, 1, 1) if covariance == "full" else torch.ones(components, d))
        self.register_buffer("fitted", torch.tensor(False))
        self.report: FitReport | None = None

    def forward(self) -> GaussianMixture:
        require_fitted(self)
        return GaussianMixture(self.log_weights, self.means, self.scale)

    def fit(self, z: Codes, *, seed: int = 0, held_out: Tensor | None = None) -> Self:
        """Fit to codes.

        Args:
            held_out: other codes (m, d) whose mean log-likelihood goes into ``report.held_out``; they do not influence the fit.
        """
        from expost.density.em import expectation_maximisation

        z = codes_for(self, self.d, z, seed=seed, least=self.components + 1)
        weights, means, scale, run = expectation_maximisation(
            z,
            self.components,
            full=self.covariance == "full",
            restarts=self.restarts,
            tol=self.tol,
            max_iter=self.max_iter,
            reg=self.reg,
            seed=seed_from("gmm", seed) % 2**31,
        )
        self.log_weights.copy_(weights.clamp_min(torch.finfo(torch.float32).tiny).log())
        self.means.copy_(means)
        self.scale.copy_(scale)
        self.fitted.fill_(True)
        p = self()
        other = None if held_out is None else float(p.log_prob(codes_for(self, self.d, held_out, seed=seed)).mean())
        note = "" if run.converged else f"EM did not converge within {self.max_iter} iterations: raise max_iter or tol"
        self.report = FitReport(float(p.log_prob(z).mean()), other, run.iterations, run.converged, note)
        return self

    def extra_repr(self) -> str:
        return f"d={self.d}, components={self.components}, covariance={self.covariance!r}"

    @property
    def spec(self) -> str:
        return f"gmm:{self.components}" + ("" if self.covariance == "full" else f":{self.covariance}")


def _named(d: int, components: str = "10", covariance: str = "full") -> GMM:
    return GMM(d, int(components), covariance)  # type: ignore[arg-type]


register("gmm:10 or gmm:10:diagonal", _named)
