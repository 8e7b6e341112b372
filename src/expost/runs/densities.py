"""Densities of a run by name: those of :mod:`expost.density.spec`, and those that are themselves autoencoders, trained as the experiment says."""

from __future__ import annotations

from typing import Literal

from expost import density
from expost.density.base import Density
from expost.runs.discovery import add_density, forms, stages
from expost.runs.experiment import Experiment
from expost.train.second_stage import SecondStage

__all__ = ["as_prior", "fitted_at", "fresh_density"]


def fresh_density(spec: str, experiment: Experiment, seed: int) -> Density:
    """The unfitted density of a spec; ``ValueError`` names the choices."""
    spec, _, at = spec.partition("@")
    if at not in ("", "mean", "sample"):
        raise ValueError(f'cannot read "@{at}": a density is fitted to posterior means (no suffix), or to samples with "{spec}@sample"')
    name, _, argument = spec.partition(":")
    if name in stages():
        try:
            return stages()[name].build(experiment, seed, argument)
        except ValueError:
            raise ValueError(f'cannot read the density "{spec}": write {stages()[name].form}') from None
    return density.parse(spec, experiment.latent, forms())


def _second_stage(experiment: Experiment, seed: int, argument: str) -> Density:
    if argument:
        raise ValueError
    return SecondStage.mlp(experiment.latent, experiment.stage_width, experiment.stage, seed=seed)


add_density("stage", "stage", _second_stage)


def fitted_at(spec: str) -> Literal["sample", "mean"]:
    """What codes a density stands for: densities are fitted to posterior means, unless the spec says ``@sample``; priors and second stages are not."""
    return "sample" if spec in ("prior", "stage") or spec.endswith("@sample") else "mean"


def as_prior(spec: str) -> str:
    """The density to use as p(z) in a likelihood: fitted to samples of q(z | x), because a density of the means knows nothing of their noise."""
    return spec if spec in ("prior", "stage") or "@" in spec else f"{spec}@sample"
