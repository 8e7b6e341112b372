r"""One Gaussian with full covariance: the simplest ex-post density (column "N" of Ghosh et al. 2020, From Variational to Deterministic
Autoencoders, table 1), and what a mixture has to beat.

N(0, I): the prior of the classical VAE, and the density nobody has to fit.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from expost.density.base import Codes, Density, register
from expost.density.fitting import FitReport, Moments, codes_for, require_fitted

__all__ = ["FullGaussian", "StandardNormal"]


class FullGaussian(Density):
    r"""p(z) = N(z; μ, Σ) at the maximum-likelihood μ = mean, Σ = 1/n Σ_i (z_i - μ)(z_i - μ)ᵀ.

    Codes that do not span their space (constant or tied dimensions, fewer codes than dimensions) still give a proper density: eigenvalues of Σ
    below a floor, 1e-10 of the largest, are raised to it (:class:`~expost.density.fitting.Moments`); otherwise Σ is exact.

    Args:
        d: dimension of the codes.

    >>> z = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 2.0]])
    >>> FullGaussian(2).fit(z)().mean
    tensor([2., 2.])
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        if d < 1:
            raise ValueError(f"the dimension of the codes must be at least 1, not {d}")
        self.d = d
        self.mean: Tensor
        self.scale_tril: Tensor
        self.fitted: Tensor
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale_tril", torch.eye(d))
        self.register_buffer("fitted", torch.tensor(False))
        self.report: FitReport | None = None

    def forward(self) -> MultivariateNormal:
        require_fitted(self)
        return MultivariateNormal(self.mean, scale_tril=self.scale_tril, validate_args=False)

    def fit(self, z: Codes, *, seed: int = 0) -> Self:
        z = codes_for(self, self.d, z, seed=seed)
        moments = Moments.of(z)
        self.mean.copy_(moments.mean)
        self.scale_tril.copy_(moments.factor())
        self.fitted.fill_(True)
        self.report = FitReport(float(self().log_prob(z.to(self.mean.dtype)).mean()))
        return self

    def extra_repr(self) -> str:
        return f"d={self.d}"

    @property
    def spec(self) -> str:
        return "gaussian"


class StandardNormal(Density):
    """p(z) = N(z; 0, I).

    Args:
        d: dimension of the codes.

    >>> StandardNormal(3)().event_shape
    torch.Size([3])
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        if d < 1:
            raise ValueError(f"the dimension of the codes must be at least 1, not {d}")
        self.d = d
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(d), persistent=False)  # carries device and dtype; not worth saving

    def forward(self) -> Independent:
        return Independent(Normal(self.mean, torch.ones_like(self.mean), validate_args=False), 1, validate_args=False)

    def extra_repr(self) -> str:
        return f"d={self.d}"

    @property
    def spec(self) -> str:
        return "normal"


register("normal", StandardNormal)
register("gaussian", FullGaussian)
