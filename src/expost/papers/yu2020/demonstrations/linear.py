r"""Linear-Gaussian autoencoders, on which every expectation is exact.

    q(z | x) = N(A x + a, S),    p(x | z) = N(W z + b, σ² I),    p(z) = N(0, I).

The log-likelihood is then a quadratic in z, and the mean of a quadratic over N(m, L Lᵀ) in d dimensions is its plain average over the 2d
points m ± √d L e_i (the third-degree cubature rule: mean and covariance of the points are m and L Lᵀ). So -ELBO needs no samples and no
second set of formulas: the model's own ``encode`` and ``decode`` are evaluated at these points (:func:`exact_elbo`), and closed forms
derived on paper can be checked against it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.divergences import kl
from expost.objectives import Loss
from expost.objectives.base import distortion

__all__ = ["cubature", "exact_elbo", "linear_model"]


def linear_model(decoder: tuple[Tensor, Tensor], encoder: tuple[Tensor, Tensor], spread: Tensor, sigma: float) -> Autoencoder:
    """The autoencoder of the top of this file, in float64.

    Args:
        decoder: W (D, d) and b (D,).
        encoder: A (d, D) and a (d,).
        spread: standard deviations (d,) of a diagonal q, or a lower triangle L (d, d) of a full one, S = L Lᵀ.
        sigma: σ of the decoder, fixed.
    """
    d, dims = encoder[0].shape
    full = spread.dim() == 2
    head: heads.Head = heads.FullCovariance() if full else heads.Diagonal()
    rows, columns = torch.tril_indices(d, d, -1)
    tail = torch.cat([spread.diagonal().log(), spread[rows, columns]]) if full else 2 * spread.log()
    to_code, to_data = nn.Linear(dims, head.size(d)).double(), nn.Linear(d, dims).double()
    gaussian = heads.Gaussian(sigma).double()
    with torch.no_grad():
        to_code.weight.zero_()
        to_code.weight[:d].copy_(encoder[0])
        to_code.bias.copy_(torch.cat([encoder[1], tail]))
        to_data.weight.copy_(decoder[0])
        to_data.bias.copy_(decoder[1])
        gaussian.log_scale.fill_(math.log(sigma))  # the constructor rounds to float32
    return Autoencoder(Conditional(to_code, head), Conditional(to_data, gaussian), StandardNormal(d).double())


def cubature(mean: Tensor, root: Tensor) -> Tensor:
    """2d points whose average is E of any quadratic under N(mean, root rootᵀ): (2d, *batch, d) for mean (*batch, d), root (*batch, d, d).

    >>> points = cubature(torch.zeros(1), torch.full((1, 1), 3.0))
    >>> points.square().mean().item()
    9.0
    """
    columns = math.sqrt(mean.shape[-1]) * root.movedim(-1, 0)
    return torch.cat([mean + columns, mean - columns])


def _root(q: Distribution) -> Tensor:
    return q.scale_tril if isinstance(q, MultivariateNormal) else torch.diag_embed(q.stddev)


def exact_elbo(model: Autoencoder, x: Tensor) -> Loss:
    """-ELBO of x (n, D) in nats, exact for a decoder that is affine in z with a constant variance, and a Gaussian q.

    Distortion is E_q[-log p(x | z)] over the cubature points of q, rate is KL(q || p(z)).
    """
    q = model.encode(x)
    miss = distortion(model.decode(cubature(q.mean, _root(q))), x).mean(0)
    rate = kl(q, model.latent())
    return Loss(miss + rate, {"distortion": miss, "rate": rate})
