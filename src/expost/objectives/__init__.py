"""Objectives: (model, x) -> Loss, in nats per example."""

from expost.objectives.adversarial import Adversarial
from expost.objectives.base import Loss, Objective, Player, Sum
from expost.objectives.classes import ClassDistance, Clipped
from expost.objectives.deterministic import RAE, WAE, DecoderL2, GradientPenalty
from expost.objectives.elbo import ELBO, IWAE
from expost.objectives.noise import Binarised, Dequantised
from expost.objectives.schedules import Annealed

__all__ = [
    "ELBO",
    "IWAE",
    "RAE",
    "WAE",
    "Adversarial",
    "Annealed",
    "Binarised",
    "ClassDistance",
    "Clipped",
    "DecoderL2",
    "Dequantised",
    "GradientPenalty",
    "Loss",
    "Objective",
    "Player",
    "Sum",
]
