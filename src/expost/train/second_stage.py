r"""The second stage: an autoencoder fitted to codes, used as their density (Dai & Wipf 2019).

A VAE whose decoder variance has become small fills a manifold, but with a q(z) that is not the prior. A second VAE on the codes
z ~ q(z | x), which do fill their space, has no such obstacle: sampling is u ~ N(0, I), z ~ p(z | u) *with* its noise, x = decoder(z).

It stands above objectives and training because it is itself trained: ``model.with_prior(SecondStage.mlp(d).fit(model.posteriors(x)))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density.base import Codes, Density, NotFittedError, draw_codes
from expost.density.gaussian import StandardNormal
from expost.distributions import Marginal
from expost.fast.layers import Linear
from expost.nets.mlp import mlp
from expost.nets.shapes import glorot
from expost.objectives.elbo import ELBO
from expost.optimise import Cosine
from expost.train.fit import fit
from expost.train.settings import Training

__all__ = ["CPU", "PAPER", "SecondStage", "SkipToEnd"]

#: dai2019's training on MNIST (its code: 800 epochs, rate halved every 300); about two hours on two cores.
PAPER = Training(epochs=800, batch_size=64, lr=1e-4)
#: A short training for two cores: the learned γ gets a larger rate of its own, since Adam moves a scalar by at most about lr a step.
CPU = Training(steps=4000, batch_size=250, lr=1e-3, head_lr=1e-2, schedule=Cosine(), ema=0.999)


class SkipToEnd(nn.Module):
    """x (B, inputs) -> (B, out): last([x, hidden(x)]), the second stage's net."""

    def __init__(self, inputs: int, out: int, hidden: Sequence[int]) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("the second stage needs at least one hidden layer: hidden=(1024, 1024, 1024) is the paper's")
        self.hidden = nn.Sequential(mlp([inputs, *hidden]), nn.ReLU())
        self.last = Linear(inputs + hidden[-1], out)
        glorot(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat((x, self.hidden(x)), -1))


class SecondStage(Density):
    """An autoencoder as the density of another one's codes.

    Args:
        model: an autoencoder on vectors (d,), with a prior and a normalised decoder head.
        training: how :meth:`fit` trains it.
        samples: importance samples in ``log_prob``, which is a lower bound.
    """

    def __init__(self, model: Autoencoder, training: Training = CPU, samples: int = 64) -> None:
        super().__init__()
        self.model, self.training_settings, self.samples = model, training, samples
        self._start = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.fitted: Tensor
        self.register_buffer("fitted", torch.tensor(False))

    @classmethod
    def mlp(cls, d: int, width: int = 1024, training: Training = CPU, *, seed: int = 0) -> SecondStage:
        """dai2019's networks: three hidden layers each way, the input joined to the last one (skip), linear outputs, learned scalar γ."""
        from expost.seeds import seeded

        encoder_head, decoder_head = heads.Diagonal(heads.exp), heads.Gaussian("shared")
        with seeded("SecondStage", seed):
            model = Autoencoder(
                Conditional(SkipToEnd(d, encoder_head.size(d), (width,) * 3), encoder_head),
                Conditional(SkipToEnd(d, decoder_head.size(d), (width,) * 3), decoder_head),
                StandardNormal(d),
            )
        return cls(model, training)

    def forward(self) -> Distribution:
        if not bool(self.fitted):
            raise NotFittedError("this SecondStage has not been fitted: call .fit(model.posteriors(x))")
        latent = self.model.latent()
        return Marginal(self.model, self.samples, latent.event_shape)

    def fit(self, z: Codes, *, seed: int = 0) -> Self:
        """Train on codes; given posteriors q(z | x_i), fresh codes are drawn from them every epoch, as the paper does."""
        drawn = draw_codes(z, seed=seed).double()
        mean, std = float(drawn.mean(0).abs().max()), float(drawn.std(0).square().mean().sqrt())
        if not (1e-3 < std < 1e3 and mean < 1e4):
            raise ValueError(
                f"the second stage trains on codes as they are, and these have a standard deviation of {std:.2g} around means of up to {mean:.2g}: "
                "bring them to about 1 and 0 first, or fit a gaussian, gmm or flow, which take any scale"
            )
        weight = next(self.model.parameters())
        device = weight.device
        if isinstance(z, Tensor):
            z = z.to(weight.dtype)
        self.model.load_state_dict(self._start)  # a second fit replaces the first
        history = fit(self.model, ELBO(), z, training=self.training_settings, seed=seed, device=device, what="second stage")
        if history.failed:
            raise ValueError(f"the second stage could not be fitted: {history.stopped}")
        self.model.eval()
        self.fitted.fill_(True)
        return self
