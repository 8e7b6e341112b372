"""N(0, I): the prior of the classical VAE, and the density nobody has to fit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from expost.density.base import Density

__all__ = ["StandardNormal"]


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
