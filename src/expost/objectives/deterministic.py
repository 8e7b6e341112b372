r"""Objectives of autoencoders whose encoder is deterministic: AE, RAE (ghosh2020) and WAE-MMD.

The decoder's Gaussian head fixes the unit: with variance γ = ½ the distortion is ‖x - x̂‖² plus a constant. The weights of ghosh2020's code
belong to losses that are *means* over the D pixels and d latents; ``expost.papers.ghosh2020.models`` converts them, visibly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from expost.autoencoder import Autoencoder
from expost.distributions import point
from expost.divergences import mmd
from expost.objectives.base import Loss, Objective, distortion, gradient
from expost.system.schema import Checked, Meta
from expost.tensors import sum_event

__all__ = ["RAE", "WAE", "DecoderL2", "GradientPenalty", "Penalty"]

#: (model, z, p(x | z)) -> nats, (batch,) or scalar.
Penalty = Callable[[Autoencoder, Tensor, Distribution], Tensor]


@dataclass(frozen=True)
class DecoderL2(Checked):
    """weight · Σ w² over the kernels of the decoder's layers of the given types; no biases, no normalisation layers (RAE-L2).

    A decoder without any two-dimensional convolution (a perceptron, for which kernels of convolutions were meant) and without layers of these types
    is penalised on all its linear layers.
    """

    weight: Annotated[float, Meta(ge=0)]
    layers: tuple[type[nn.Module], ...] = (nn.ConvTranspose2d, nn.Conv2d, nn.Linear)

    def __call__(self, model: Autoencoder, z: Tensor, p: Distribution) -> Tensor:
        modules = list(model.decoder.net.modules())
        kernels: list[Any] = [m.weight for m in modules if isinstance(m, self.layers)]
        if not any(isinstance(m, (nn.ConvTranspose2d, nn.Conv2d)) for m in modules):  # a perceptron, for points: its own kernels
            kernels = kernels or [m.weight for m in modules if isinstance(m, nn.Linear)]
        if not kernels:
            raise ValueError(f"the decoder has no layer of the types {[t.__name__ for t in self.layers]} to penalise: pass layers=(...)")
        return self.weight * torch.stack([w.square().sum() for w in kernels]).sum()


@dataclass(frozen=True)
class GradientPenalty(Checked):
    r"""Penalise the decoder's gradient with respect to the code (RAE-GP); the two readings differ.

    * ``form="energy"`` (the released code): mean_j (∂/∂z_j Σ_pixels D(z)²)², the gradient of ‖D(z)‖², (2 Jᵀ D(z))².
    * ``form="jacobian"`` (the paper): ‖J‖²_F, J = ∂D/∂z, by Hutchinson's estimate E_v ‖Jᵀ v‖², v ~ N(0, I), one v per example.

    Returned per example, (batch,).
    """

    weight: Annotated[float, Meta(ge=0)]
    form: Literal["energy", "jacobian"] = "energy"

    def __call__(self, model: Autoencoder, z: Tensor, p: Distribution) -> Tensor:
        if not z.requires_grad:
            return z.new_zeros(len(z))
        output = point(p)
        if self.form == "energy":
            return self.weight * gradient(output.square(), z).square().mean(-1)
        probe = torch.randn_like(output)
        return self.weight * gradient(output * probe, z).square().sum(-1)


@dataclass(frozen=True)
class RAE(Objective):
    r"""-log p(x | z) + β · ½‖z‖² + penalty, z = mean of q(z | x) (Ghosh et al. 2020, eq. 7); β = 0 without penalty is the plain AE.

    Under an encoder with a scale (``Constant``) a sample is used, which turns this into the constant-variance VAE's loss up to a constant.
    """

    beta: Annotated[float, Meta(ge=0)] = 0.0
    penalty: Penalty | None = None

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        q = model.encode(x)
        z = q.rsample()
        p = model.decode(z)
        miss = distortion(p, x)
        embedding = 0.5 * sum_event(q.mean.square(), len(q.event_shape))
        total = miss + self.beta * embedding
        parts = {"distortion": miss, "embedding": embedding}
        if self.penalty is not None:
            parts["penalty"] = self.penalty(model, z, p)
            total = total + parts["penalty"]
        return Loss(total, parts)


@dataclass(frozen=True)
class WAE(Objective):
    r"""-log p(x | z) + weight · MMD²(codes, prior samples) (Tolstikhin et al. 2018), multi-scale inverse multiquadratic kernel.

    The MMD belongs to the batch: it needs a batch of at least two, can be negative, and one prior sample is drawn per example.

    Args:
        weight: λ, nats per example.
        kernel: statistic (a, b) -> scalar; :func:`expost.divergences.mmd`.
        input_noise: std of Gaussian noise added to the input, clipped at one std (ghosh2020's CelebA runs: 0.01; else 0).
    """

    weight: Annotated[float, Meta(ge=0)] = 10.0
    kernel: Callable[[Tensor, Tensor], Tensor] = mmd
    input_noise: Annotated[float, Meta(ge=0)] = 0.0

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        seen = x
        if self.input_noise > 0:
            seen = x + (self.input_noise * torch.randn_like(x)).clamp(-self.input_noise, self.input_noise)
        z = model.encode(seen).rsample()
        miss = distortion(model.decode(z), x)
        gap = self.kernel(z, model.latent().sample((len(z),)))
        return Loss(miss + self.weight * gap, {"distortion": miss, "mmd": gap})
