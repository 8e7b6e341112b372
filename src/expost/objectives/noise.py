"""Objectives on data that are drawn anew at every step: uniform dequantisation, stochastic binarisation.

Both wrap an objective: ``Dequantised(ELBO())``, ``Binarised(ELBO())``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expost.autoencoder import Autoencoder
from expost.objectives.base import Loss, Objective, Player
from expost.seeds import seeded
from expost.tensors import batches, unit

__all__ = ["Binarised", "Dequantised", "binarised", "dequantised"]

#: Images of which floats are held at a time.
ROWS = 1000


@dataclass(frozen=True)
class _Wrapped(Objective):
    """An objective on changed data. Abstract: define ``change``."""

    objective: Objective

    def change(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        return self.objective(model, self.change(x))

    def at(self, step: int) -> Objective:
        return type(self)(self.objective.at(step))

    def players(self, model: Autoencoder) -> tuple[Player, ...]:
        (_, *others) = self.objective.players(model)
        return (Player("model", model, self), *others)

    def modules(self) -> dict[str, nn.Module]:
        return self.objective.modules()

    def after_step(self, model: Autoencoder) -> None:
        self.objective.after_step(model)


@dataclass(frozen=True)
class Dequantised(_Wrapped):
    """The objective on (255 x + u) / 256, u ~ U[0, 1)^D, for 8-bit images x in [0, 1].

    A density of such data bounds the mass of the bytes: E[-log2 p(x + u)] + 8 D >= -log2 P(bytes) (Theis, van den Oord, Bethge 2016). It
    lets continuous heads be compared in bits/dim; the discretised heads need no noise and give the bound without the gap.
    """

    def change(self, x: Tensor) -> Tensor:
        return _with_noise(x)


@dataclass(frozen=True)
class Binarised(_Wrapped):
    """The objective on Bernoulli(x), drawn anew at every step (Salakhutdinov & Murray 2008): grey levels in [0, 1] as probabilities of one.

    Values that are 0 or 1 stay as they are, so data that were binarised before are not changed.
    """

    def change(self, x: Tensor) -> Tensor:
        return torch.bernoulli(x)


def binarised(x: Tensor, seed: int) -> Tensor:
    """Stored images drawn once as Bernoulli(x), uint8 0 and 255: the binary test set that belongs to :class:`Binarised`."""
    with seeded("binarise", seed):
        return torch.cat([(torch.bernoulli(unit(part)) * 255).to(torch.uint8) for part in batches(x, ROWS)])  # no float copy of all of it


def dequantised(x: Tensor, seed: int) -> Tensor:
    """Stored 8-bit images with uniform noise drawn once, (byte + u) / 256: the test set that belongs to :class:`Dequantised`."""
    with seeded("dequantise", seed):
        return _with_noise(unit(x))


def _with_noise(x: Tensor) -> Tensor:
    return (255 * x + torch.rand_like(x)) / 256
