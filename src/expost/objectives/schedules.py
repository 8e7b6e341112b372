"""Objectives that change with the step, by wrapping: ``Annealed(ELBO(), "beta", steps=1000)``."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any

from torch import Tensor, nn

from expost.autoencoder import Autoencoder
from expost.objectives.base import Loss, Objective, Player
from expost.system.schema import Meta

__all__ = ["Annealed"]


@dataclass(frozen=True)
class Annealed(Objective):
    """One weight of an objective grows linearly from ``start`` (a fraction) to its full value over the first ``steps`` steps.

    KL warm-up is ``Annealed(ELBO(), "beta", steps=1000)``.
    """

    objective: Objective
    field: str
    steps: Annotated[int, Meta(ge=1)]
    start: Annotated[float, Meta(ge=0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        names: list[str] = [f.name for f in fields(self.objective)] if is_dataclass(self.objective) else []
        if self.field not in names:
            raise ValueError(f'{type(self.objective).__name__} has no weight "{self.field}": it has {", ".join(names)}')

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        return self.objective(model, x)

    def at(self, step: int) -> Objective:
        inner: Any = self.objective.at(step)
        factor = self.start + (1 - self.start) * min(1.0, step / self.steps)
        return replace(inner, **{self.field: factor * getattr(inner, self.field)})

    def players(self, model: Autoencoder) -> tuple[Player, ...]:
        return self.objective.players(model)

    def modules(self) -> dict[str, nn.Module]:
        return self.objective.modules()

    def after_step(self, model: Autoencoder) -> None:
        self.objective.after_step(model)
