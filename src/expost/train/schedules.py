"""Learning-rate schedules: a factor for each moment of training. All are frozen dataclasses without hidden state.

``factor(progress, epoch)``: progress in [0, 1] is the fraction of all steps done, epoch counts from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from expost.system.schema import Checked, Meta

__all__ = ["Constant", "Cosine", "Halving", "Milestones", "Plateau", "Schedule"]


@dataclass(frozen=True)
class Constant(Checked):
    """Factor 1 throughout."""

    def factor(self, progress: float, epoch: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Halving(Checked):
    """Half the rate every so many epochs (001: 150 on MNIST)."""

    every: Annotated[int, Meta(ge=1)]

    def factor(self, progress: float, epoch: int) -> float:
        return 0.5 ** (epoch // self.every)


@dataclass(frozen=True)
class Milestones(Checked):
    """Multiply by ``factor_each`` at each fraction of the training (004: halved at 60, 70, 80 and 90 %)."""

    at: tuple[Annotated[float, Meta(ge=0, le=1)], ...] = (0.6, 0.7, 0.8, 0.9)
    factor_each: Annotated[float, Meta(gt=0)] = 0.5

    def factor(self, progress: float, epoch: int) -> float:
        return float(self.factor_each ** sum(progress >= fraction for fraction in self.at))


@dataclass(frozen=True)
class Cosine(Checked):
    """Linear warm-up over the first ``warmup`` of training, then half a cosine down to ``final``."""

    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    final: Annotated[float, Meta(ge=0)] = 0.0

    def factor(self, progress: float, epoch: int) -> float:
        if progress < self.warmup:
            return min(1.0, max(progress, 1e-3) / self.warmup)
        rest = (progress - self.warmup) / max(1e-12, 1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))


@dataclass(frozen=True)
class Plateau(Checked):
    """Multiply by ``factor_each`` when the validation loss has not improved for ``patience`` validations (002: 0.5 and 5).

    The loop keeps the count and the current factor; :meth:`after_validation` is the rule.
    """

    patience: Annotated[int, Meta(ge=1)] = 5
    factor_each: Annotated[float, Meta(gt=0)] = 0.5
    floor: Annotated[float, Meta(ge=0)] = 0.0

    def factor(self, progress: float, epoch: int) -> float:
        return 1.0

    def after_validation(self, value: float, state: dict[str, float]) -> dict[str, float]:
        """The next state {best, bad, factor} after a validation loss."""
        best, bad, factor = state.get("best", math.inf), state.get("bad", 0.0), state.get("factor", 1.0)
        if value < best:
            return {"best": value, "bad": 0.0, "factor": factor}
        bad += 1
        if bad >= self.patience:
            return {"best": best, "bad": 0.0, "factor": max(self.floor, factor * self.factor_each)}
        return {"best": best, "bad": bad, "factor": factor}


Schedule = Constant | Halving | Milestones | Cosine | Plateau
