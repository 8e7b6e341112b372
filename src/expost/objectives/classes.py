r"""manoj2018: bring classes closer with the ω regulariser, and keep the encoder Lipschitz by clipping its weights.

ω(x₁, x₂) = ‖f(x₁) - f(x₂)‖² / ‖x₁ - x₂‖², f = the encoder. The slides add λ Σ_{i<=b/2} ω(x_i, x_{i+b/2}) to the batch-summed loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.objectives.base import Loss, Objective, Player
from expost.system.schema import Meta

__all__ = ["ClassDistance", "Clipped"]


@dataclass(frozen=True)
class ClassDistance(Objective):
    r"""weight · ω, as a term to add: ``ELBO() + ClassDistance(30)``.

    Args:
        weight: λ (30 on the slides), in nats per *batch*, as on the slides; each example bears 1/b of it.
        ratio: ``"pairs"`` (slides): sum of the ratios of the b/2 pairs, on posterior means. ``"batch"`` (author's code): ratio of the batch
            means mse(z₁, z₂) / mse(x₁, x₂), on sampled codes.
    """

    weight: Annotated[float, Meta(ge=0)] = 30.0
    ratio: Literal["pairs", "batch"] = "pairs"

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        half = len(x) // 2
        if half < 1:
            raise ValueError("ClassDistance compares pairs: the batch needs at least 2 examples")
        q = model.encode(x)
        z = q.mean if self.ratio == "pairs" else q.rsample()
        codes = (z[:half] - z[half : 2 * half]).square().flatten(1)
        images = (x[:half] - x[half : 2 * half]).square().flatten(1)
        if self.ratio == "pairs":
            omega = (codes.sum(1) / images.sum(1).clamp_min(1e-12)).sum()
        else:
            omega = codes.mean() / images.mean().clamp_min(1e-12)
        each = (self.weight / len(x)) * omega
        return Loss(each.expand(len(x)), {"omega": omega})


@dataclass(frozen=True)
class Clipped(Objective):
    """Clip every parameter of the encoder to [-bound, bound] after each step (manoj2018: 0.3; also its normalisation scales, as the author does)."""

    objective: Objective
    bound: Annotated[float, Meta(gt=0)] = 0.3

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        return self.objective(model, x)

    def at(self, step: int) -> Objective:
        return Clipped(self.objective.at(step), self.bound)

    def players(self, model: Autoencoder) -> tuple[Player, ...]:
        return self.objective.players(model)

    def modules(self) -> dict[str, torch.nn.Module]:
        return self.objective.modules()

    def after_step(self, model: Autoencoder) -> None:
        self.objective.after_step(model)
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                parameter.clamp_(-self.bound, self.bound)
