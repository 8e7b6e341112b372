r"""ghosh2020's two-stage variant ("2sVAE"): a second VAE on the *means* of the codes, sampled without noise.

It differs from the two-stage VAE of dai2019 (:class:`expost.train.second_stage.SecondStage`) in four ways that matter: the inputs are posterior means, and
standardised; the loss is a mean squared error with a KL weight β₂, no likelihood with a learned γ; nothing joins input and last layer; and a
sample is the decoder's mean, so that it defines no density of codes. ghosh2020's table passes even its reconstructions through both stages
(:meth:`MeanStage.joined`), which is why its "Rec." is worse than the VAE's. dai2019 should not be judged by this row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density.base import Codes, Density
from expost.density.fitting import WIDEST, codes_for, drawn_in, held_out_split, require_fitted, spreads
from expost.density.gaussian import StandardNormal
from expost.distributions import point
from expost.objectives.elbo import ELBO
from expost.optimise import Plateau
from expost.seeds import permutation, seeded
from expost.train.fit import fit
from expost.train.second_stage import CPU
from expost.train.settings import Training

__all__ = ["PAPER", "MeanStage", "short_training"]

#: ghosh2020's training of the second stage; a tenth of the codes is held out for the plateau.
PAPER = Training(epochs=100, batch_size=64, lr=1e-4, schedule=Plateau(patience=3, factor_each=0.5))


def short_training(d: int) -> Training:
    """A short training for two cores. With many dimensions it needs the paper's rate.

    At 1e-3 the KL term switches codes off before they carry anything: on 128 dimensions (CIFAR-10) held-out standardised codes came back with a
    squared error of .57 per dimension after 4000 steps, at 1e-4 with .10. On 16 dimensions (MNIST) both rates reach the same error, and 1e-3
    the better samples.
    """
    return CPU if d <= 32 else dataclasses.replace(CPU, lr=1e-4)


class MeanStage(Density):
    """Codes as s · mean(decoder(u)) + m, u ~ N(0, I), with a VAE trained on standardised means.

    Args:
        d: dimension of the codes, and of u.
        beta: weight of the KL term where the distortion is |z - ẑ|² (ghosh2020's β₂ times d: its code averages the square over dimensions).
        width: units of the two hidden layers each way; the paper's is 1024.
        training: how :meth:`fit` trains it; default: :func:`short_training`.
        seed: of the weights.
    """

    def __init__(self, d: int, beta: float, width: int = 1024, training: Training | None = None, *, seed: int = 0) -> None:
        super().__init__()
        from expost.nets import mlp

        if not beta >= 0:
            raise ValueError(f"the weight of the KL term must not be negative, not {beta}")
        self.d, self.beta, self.training_settings = d, beta, short_training(d) if training is None else training
        encoder, decoder = heads.Diagonal(heads.exp_tanh), heads.Gaussian(0.5**0.5)  # γ = ½: the distortion is |z - ẑ|² + const
        with seeded("MeanStage", seed):
            self.model = Autoencoder(
                Conditional(mlp([d, width, width, encoder.size(d)]), encoder),
                Conditional(mlp([d, width, width, decoder.size(d)]), decoder),
                StandardNormal(d),
            )
        self._start = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.mean: Tensor
        self.scale: Tensor
        self.fitted: Tensor
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, z: Codes, *, seed: int = 0) -> Self:
        """Train on codes (n, d); given posteriors, on their means."""
        codes = codes_for(self, self.d, z.mean if isinstance(z, Distribution) else z, seed=seed).to(self.mean.dtype)
        device = codes.device
        near = drawn_in(codes)
        _, std, varies = spreads(near)
        unit = torch.exp2(std.log2().round()).to(codes)  # a power of two, so that squares stay within float32 and nothing is rounded
        mean = (near / unit).mean(0) * unit
        scale = torch.where(varies, (near / unit).std(0) * unit, std.to(codes))
        rows = ((codes - mean) / scale).clamp(-WIDEST, WIDEST)
        settings, val = self.training_settings, None
        if isinstance(settings.schedule, Plateau) or settings.best:
            kept, held_out = held_out_split(len(rows), 0.1, permutation(len(rows), "MeanStage", seed))
            val, rows = rows[held_out.to(device)], rows[kept.to(device)]
        self.model.load_state_dict(self._start)
        history = fit(self.model, ELBO(self.beta), rows, val=val, training=settings, seed=seed, device=device, what="second stage")
        if history.failed:
            raise ValueError(f"the second stage could not be fitted: {history.stopped}")
        self.model.eval()
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.fitted.fill_(True)
        return self

    def forward(self) -> Distribution:
        require_fitted(self)
        return _Pushed(self)

    def codes(self, u: Tensor) -> Tensor:
        """u (*batch, d) -> codes z (*batch, d)."""
        return point(self.model.decode(u)) * self.scale + self.mean

    def joined(self, model: Autoencoder) -> Autoencoder:
        """``model`` with this stage inside: an autoencoder with codes u, encoder x -> mean z -> q(u | z), decoder u -> z -> p(x | z)."""
        require_fitted(self)
        encoder = Conditional(_Inward(model.encoder, self), self.model.encoder.head, 1, model.encoder.condition_dims)
        decoder = Conditional(_Outward(self, model.decoder), model.decoder.head, model.decoder.event_dims, 1)
        return Autoencoder(encoder, decoder, self.model.prior).eval()


class _Inward(nn.Module):
    def __init__(self, encoder: Conditional, stage: MeanStage) -> None:
        super().__init__()
        self.encoder, self.stage = encoder, stage

    def forward(self, x: Tensor) -> Tensor:
        z = point(self.encoder(x))
        features: Tensor = self.stage.model.encoder.net((z - self.stage.mean) / self.stage.scale)
        return features


class _Outward(nn.Module):
    def __init__(self, stage: MeanStage, decoder: Conditional) -> None:
        super().__init__()
        self.stage, self.decoder = stage, decoder

    def forward(self, u: Tensor) -> Tensor:
        features: Tensor = self.decoder.net(self.stage.codes(u))
        return features


class _Pushed(Distribution):
    """Samples only: the image of N(0, I) under a map has no density that could be evaluated."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(self, stage: MeanStage) -> None:
        self.stage = stage
        super().__init__(torch.Size(), torch.Size((stage.d,)), validate_args=False)

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.stage.codes(self.stage.model.latent().sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        raise ValueError(
            "a mean-stage samples without noise and has no log density: use stage (dai2019's), gaussian, gmm or flow for likelihoods"
        )
