r"""The evidence lower bound and its importance-weighted form.

ELBO: log p(x) >= E_q[log p(x | z)] - KL(q(z | x) || p(z)) (Kingma & Welling 2014). With a weight β on the second term it is the β-VAE
(Higgins et al. 2017); a decoder variance γ does the same job (β = 2γ up to a constant), but learns itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.distributions import Marginal, deterministic
from expost.divergences import kl, kl_per_dimension
from expost.objectives.base import Loss, Objective, distortion
from expost.system.schema import Meta

__all__ = ["ELBO", "IWAE"]


@dataclass(frozen=True)
class ELBO(Objective):
    r"""distortion + β · rate, distortion = E_q[-log p(x | z)], rate = KL(q(z | x) || p(z)).

    Args:
        beta: weight of the rate.
        free_bits: α in *bits* per latent dimension and example: each dimension's KL counts as at least α ln 2 nats (yu2020's code;
            Kingma et al. 2016). Needs a closed-form KL per dimension.
        samples: z per example in the expectation (k of ghosh2020's Figure 3).
    """

    beta: Annotated[float, Meta(ge=0)] = 1.0
    free_bits: Annotated[float, Meta(ge=0)] = 0.0
    samples: Annotated[int, Meta(ge=1)] = 1

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        q = model.encode(x)
        if deterministic(q):
            raise ValueError("a deterministic encoder has no ELBO: use RAE(...), or give the encoder a Constant(scale) head")
        z = q.rsample((self.samples,)) if self.samples > 1 else q.rsample()
        miss = distortion(model.decode(z), x)
        if self.samples > 1:
            miss = miss.mean(0)
        prior = model.latent()
        rate = kl(q, prior, z)
        charged = rate
        if self.free_bits > 0:
            charged = kl_per_dimension(q, prior).clamp_min(self.free_bits * math.log(2)).sum(-1)
        return Loss(miss + self.beta * charged, {"distortion": miss, "rate": rate})


@dataclass(frozen=True)
class IWAE(Objective):
    r"""-log 1/K Σ_k p(x, z_k) / q(z_k | x), z_k ~ q(z | x) (Burda, Grosse, Salakhutdinov 2016), reparameterised gradient.

    Args:
        samples: K; K = 1 is the single-sample ELBO.
    """

    samples: Annotated[int, Meta(ge=1)] = 10

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        log_weights = Marginal(model, self.samples).log_weights(x, self.samples)
        total = math.log(self.samples) - torch.logsumexp(log_weights, 0)
        return Loss(total, {"bound": total, "elbo": log_weights.mean(0)})
