r"""The VampPrior: p(z) = 1/K Σ_k q(z | u_k), a mixture of the encoder's own posteriors at K learned pseudo-inputs
(Tomczak & Welling 2018, VAE with a VampPrior, eq. 9).

It is learned with the autoencoder, so it cannot be fitted to codes, and it needs the encoder. The encoder is *referred to*, not owned:
it is registered once, as ``Autoencoder.encoder``, so that parameters are counted and saved once. To load such a model, build it in the
same way (``Autoencoder(encoder, decoder, VampPrior(encoder, ...))``) and load the state into the whole; ``copy.deepcopy`` of the whole
gives a prior that refers to the copied encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, MultivariateNormal, Normal

from expost.density.base import Codes, Density
from expost.density.mixture import GaussianMixture
from expost.distributions import deterministic
from expost.seeds import generator, permutation
from expost.tensors import check_finite, unit

__all__ = ["VampPrior"]


class VampPrior(Density):
    """p(z) = 1/K Σ_k q(z | u_k).

    Args:
        encoder: x (K, *shape) -> q(z | x) of batch shape (K,): the encoder of the autoencoder that this is the prior of.
        pseudo_inputs: K.
        shape: of one input x.
        bounds: range that pseudo-inputs are clamped to, as the paper does for images: (0, 1); None leaves them free.

    Pseudo-inputs start as noise around 1/2; :meth:`from_data` starts them at data, which trains better.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Distribution],
        pseudo_inputs: int = 500,
        shape: tuple[int, ...] | torch.Size = (),
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if pseudo_inputs < 1:
            raise ValueError(f"at least one pseudo-input is needed, not {pseudo_inputs}")
        if not shape:
            raise ValueError("give the shape of one input, e.g. VampPrior(encoder, 500, (1, 28, 28))")
        self._encoder = (encoder,)  # in a tuple, nn.Module does not see it
        self.pseudo_inputs, self.shape, self.bounds = pseudo_inputs, tuple(shape), bounds
        noise = torch.randn(pseudo_inputs, *self.shape, generator=generator("VampPrior"), dtype=torch.float32)
        self.inputs = nn.Parameter((0.5 + 0.05 * noise).to(torch.get_default_dtype()))

    @property
    def encoder(self) -> Callable[[Tensor], Distribution]:
        """q(z | x), owned by the autoencoder."""
        return self._encoder[0]

    def posteriors(self) -> Distribution:
        """q(z | u_k), of batch shape (K,)."""
        u = self.inputs if self.bounds is None else self.inputs.clamp(*self.bounds)
        q = self.encoder(u)
        if deterministic(q):
            raise ValueError("a VampPrior needs an encoder with a density: give it a Diagonal() or Constant(scale) head instead of Dirac()")
        return q

    def forward(self) -> Distribution:
        q = self.posteriors()
        weights = torch.zeros(self.pseudo_inputs, device=self.inputs.device, dtype=self.inputs.dtype)
        if isinstance(q, MultivariateNormal):
            return GaussianMixture(torch.log_softmax(weights, 0), q.mean, q.scale_tril)
        if isinstance(q, Independent) and isinstance(q.base_dist, Normal) and len(q.event_shape) == 1:
            return GaussianMixture(torch.log_softmax(weights, 0), q.mean, q.stddev)
        return MixtureSameFamily(Categorical(logits=weights, validate_args=False), q, validate_args=False)

    def from_data(self, x: Tensor, *, seed: int = 0) -> Self:
        """Start the pseudo-inputs at examples drawn from stored data x (n, *shape), with replacement if there are fewer than K."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"pseudo-inputs have shape {self.shape}, but the data {tuple(x.shape[1:])}: build VampPrior with the data's shape"
            )
        if len(x) == 0:
            raise ValueError("pseudo-inputs cannot start from an empty data set: pass at least one example")
        rows = permutation(len(x), "VampPrior", seed)
        rows = rows.repeat(-(-self.pseudo_inputs // len(x)))[: self.pseudo_inputs]
        chosen = unit(x[rows.to(x.device)])
        check_finite(chosen, "data for pseudo-inputs")
        with torch.no_grad():
            self.inputs.copy_(chosen)
        return self

    def fit(self, z: Codes, *, seed: int = 0) -> Self:
        raise ValueError("a VampPrior learns with its autoencoder: train it as the model's prior, or fit a GMM to codes instead")

    def extra_repr(self) -> str:
        return f"pseudo_inputs={self.pseudo_inputs}, shape={self.shape}, bounds={self.bounds}"
