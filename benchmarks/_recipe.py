"""What expost trains in ``train_vs_pythae.py --what quality``: the one place to tune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density.gaussian import StandardNormal
from expost.density.mixture import GMM
from expost.fast.layers import Conv2d, ConvTranspose2d, Linear
from expost.heads import Diagonal, Gaussian
from expost.objectives.base import Objective
from expost.objectives.elbo import ELBO
from expost.optimise import Cosine
from expost.seeds import seeded
from expost.train.settings import Training

LATENT, WIDTH, COMPONENTS = 16, 32, 200

Clock = Callable[[], float]
Recipe = tuple[Autoencoder, Objective, Callable[[Clock], Training], Callable[[Autoencoder, Tensor], Autoencoder]]


@dataclass(frozen=True)
class CosineInTime:
    """Cosine over seconds of training instead of steps, since the number of steps is not known beforehand."""

    clock: Clock
    seconds: float
    warmup: float = 0.02
    final: float = 0.01

    def factor(self, progress: float, epoch: int) -> float:
        return Cosine(self.warmup, self.final).factor(min(1.0, self.clock() / self.seconds), epoch)


def networks() -> tuple[nn.Module, nn.Module]:
    """28 -> 14 -> 7 -> vector -> 7 -> 14 -> 28, with batch normalisation."""
    w = WIDTH
    encoder = nn.Sequential(
        Conv2d(1, w, 4, 2, padding=1), nn.BatchNorm2d(w), nn.ReLU(),
        Conv2d(w, 2 * w, 4, 2, padding=1), nn.BatchNorm2d(2 * w), nn.ReLU(),
        nn.Flatten(), Linear(49 * 2 * w, 512), nn.BatchNorm1d(512), nn.ReLU(),
        Linear(512, Diagonal().size(LATENT)),
    )  # fmt: skip
    decoder = nn.Sequential(
        Linear(LATENT, 512), nn.BatchNorm1d(512), nn.ReLU(),
        Linear(512, 49 * 2 * w), nn.BatchNorm1d(49 * 2 * w), nn.ReLU(), nn.Unflatten(1, (2 * w, 7, 7)),
        ConvTranspose2d(2 * w, w, 4, 2, padding=1), nn.BatchNorm2d(w), nn.ReLU(),
        ConvTranspose2d(w, 1, 4, 2, padding=1),
    )  # fmt: skip
    return encoder, decoder


def recipe(x: Tensor, seconds: float, seed: int) -> Recipe:
    """A VAE with the optimal decoder variance (Rybkin et al. 2021; Dai & Wipf 2019), and a Gaussian mixture fitted to its codes.

    Returns:
        The model, the objective, clock -> how to train for so many seconds, and (trained model, x) -> the model to sample from.
    """
    with seeded("recipe", seed):
        encoder, decoder = networks()
    model = Autoencoder(
        Conditional(encoder, Diagonal(), event_dims=1, condition_dims=3),
        Conditional(decoder, Gaussian("optimal", link=torch.sigmoid), event_dims=3),
        StandardNormal(LATENT),
    )

    def training(clock: Clock) -> Training:
        schedule: Any = CosineInTime(clock, seconds)
        return Training(steps=10**9, minutes=seconds / 60, batch_size=128, lr=2e-3, schedule=schedule, ema=0.999)

    def density(trained: Autoencoder, x: Tensor) -> Autoencoder:
        return trained.with_prior(GMM(LATENT, COMPONENTS).fit(trained.latents(x, at="sample")))

    return model, ELBO(), training, density
