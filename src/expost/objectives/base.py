"""An objective is (model, x) -> Loss, in nats per example; it is a frozen dataclass whose fields are its weights.

Every objective can be added to another (``ELBO() + ClassDistance(30)``), changes with the step by wrapping (:mod:`.schedules`), says
which parameters it trains (``players``), and may act after a step (``after_step``: weight clipping).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from expost.autoencoder import Autoencoder
from expost.distributions import check_data
from expost.system.schema import Checked

__all__ = ["Loss", "Objective", "Player", "Sum", "distortion"]


@dataclass(frozen=True)
class Loss:
    """Nats, summed over event dimensions, one entry per example.

    Attributes:
        total: what is minimised, (batch,).
        parts: its terms by name, each (batch,) or scalar (terms of the whole batch, such as an MMD, are scalars); unweighted where
            the weight is a field of the objective.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Player:
    """One side of a training game: the parameters of ``module`` minimise ``loss``. Most objectives have one player."""

    name: str
    module: nn.Module
    loss: Callable[[Autoencoder, Tensor], Loss]


class Objective(Checked, ABC):
    """Abstract: define ``__call__``. Fields of a dataclass are held against their annotations."""

    @abstractmethod
    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        """The loss of each example of x, (batch, *event) floats."""

    def at(self, step: int) -> Objective:
        """The objective at a training step (counted from 0)."""
        return self

    def players(self, model: Autoencoder) -> tuple[Player, ...]:
        """Who trains what."""
        return (Player("model", model, self),)

    def modules(self) -> dict[str, nn.Module]:
        """Networks that the objective owns (a critic); they are trained, moved and saved with the run."""
        return {}

    def after_step(self, model: Autoencoder) -> None:
        """Called after every optimiser step."""
        return

    def __add__(self, other: Objective) -> Sum:
        return Sum((self, other))


@dataclass(frozen=True)
class Sum(Objective):
    """The sum of several objectives; parts keep their names."""

    terms: tuple[Objective, ...]

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        losses = [term(model, x) for term in self.terms]
        total = losses[0].total
        for loss in losses[1:]:
            total = total + loss.total
        return Loss(total, {k: v for loss in losses for k, v in loss.parts.items()})

    def at(self, step: int) -> Objective:
        return Sum(tuple(term.at(step) for term in self.terms))

    def players(self, model: Autoencoder) -> tuple[Player, ...]:
        others = [p for term in self.terms for p in term.players(model) if p.module is not model]
        return (Player("model", model, self), *others)

    def modules(self) -> dict[str, nn.Module]:
        return {name: module for term in self.terms for name, module in term.modules().items()}

    def after_step(self, model: Autoencoder) -> None:
        for term in self.terms:
            term.after_step(model)


def distortion(p: Distribution, x: Tensor) -> Tensor:
    """-log p(x | z) in nats, after :func:`expost.distributions.check_data`."""
    check_data(p, x)
    return -p.log_prob(x)


def gradient(output: Tensor, z: Tensor) -> Tensor:
    """∂ Σ output / ∂ z, itself differentiable."""
    (result,) = torch.autograd.grad(output.sum(), z, create_graph=True)
    return result
