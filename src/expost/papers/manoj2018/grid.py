r"""Class radius against number of modes on the 2D-Grid (manoj2018's thesis, Figure 3.1, there with GANs): Gaussians at the points of a square lattice.

M = k² modes of variance .0025 lie at even lattice points (spacing 2), here divided by the lattice's standard deviation. A VAE with two latent dimensions
and the data's own noise as decoder variance is trained on them, seconds per model. The class of a code is the lattice point nearest to its decoded
mean, so the latent plane is partitioned, and E r is exact up to the step of a grid.

A sample is *of high quality* within 3 standard deviations of a lattice point, and a mode is *captured* if some of 20 000 samples of it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from expost import heads, nets
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.diagnose.classes.bounds import isoperimetric_bound
from expost.diagnose.classes.classify import LatentClasses, prior_codes
from expost.diagnose.classes.grid import class_grid, grid_radius
from expost.objectives import ELBO
from expost.optimise import Cosine
from expost.papers.published import published
from expost.runs.experiment import BudgetName
from expost.seeds import generator, seeded
from expost.train.fit import fit
from expost.train.settings import Training

__all__ = ["PRINTED", "GridModel", "grid_models", "lattice", "lattice_model", "lattice_points"]

SPACING, SD = 2.0, 0.05
#: Within this many standard deviations a sample is of high quality.
NEAR = 3.0
SIDES = {"smoke": (2, 3, 4), "cpu": (2, 3, 4, 5, 6, 7, 9), "paper": (2, 3, 4, 5, 6, 7, 8, 9)}
STEPS = {"smoke": 150, "cpu": 1_500, "paper": 20_000}
NODES = {"smoke": 101, "cpu": 401, "paper": 1_001}
POINTS, SAMPLES = 10_000, 20_000

SUPPORTS = (9, 10, 11, 34, 48, 63, 68, 81)
PRINTED = tuple(
    (m, published("manoj2018-thesis", "Figure 3.1", f"2D-Grid GAN, measured support {m}", "measured class radius")) for m in SUPPORTS
)
"""(captured modes, class radius) of the thesis's GANs."""


@dataclass(frozen=True)
class GridModel:
    """One trained model.

    Attributes:
        modes: M of the data.
        captured: modes with a sample of high quality.
        quality: share of the samples of high quality.
        radius: E r, exact up to ``step`` √2.
        isoperimetric: bound (A) of the latent masses.
        largest: the largest of them.
    """

    modes: int
    captured: int
    quality: float
    radius: float
    step: float
    isoperimetric: float
    largest: float


def lattice(side: int) -> tuple[Tensor, float]:
    """The side² even lattice points around 0 in units of their standard deviation per axis, (side², 2), and that of the modes in these units."""
    axis = SPACING * torch.arange(side) - (side - 1) * SPACING / 2
    scale = SPACING * math.sqrt((side * side - 1) / 12)
    return torch.cartesian_prod(axis, axis) / scale, SD / scale


def lattice_points(side: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n points of the mixture (n, 2), and the mode of each."""
    modes, sd = lattice(side)
    g = generator("2d-grid", side, seed)
    which = torch.randint(len(modes), (n,), generator=g)
    return modes[which] + sd * torch.randn(n, 2, generator=g), which


def lattice_model(side: int, budget: BudgetName, seed: int = 0) -> Autoencoder:
    """A VAE with two latent dimensions, trained on the mixture."""
    x, _ = lattice_points(side, POINTS, seed)
    _, sd = lattice(side)
    with seeded("2d-grid model", side, seed):
        encoder, decoder = heads.Diagonal(), heads.Gaussian(sd)
        model = Autoencoder(
            Conditional(nets.mlp([2, 64, 64, 64, encoder.size(2)]), encoder),
            Conditional(nets.mlp([2, 64, 64, 64, decoder.size(2)]), decoder),
            StandardNormal(2),
        )
    training = Training(steps=STEPS[budget], batch_size=256, lr=4e-3, schedule=Cosine())
    fit(model, ELBO(), x, training=training, seed=seed, device="cpu", progress=False)
    return model


@cache
def grid_models(budget: BudgetName, seed: int = 0) -> tuple[GridModel, ...]:
    """One model per number of modes, in increasing order; trained once per process."""
    return tuple(_measured(side, budget, seed) for side in SIDES[budget])


def _measured(side: int, budget: BudgetName, seed: int) -> GridModel:
    model = lattice_model(side, budget, seed)
    modes, sd = lattice(side)
    classify = LatentClasses(model, lambda x: -torch.cdist(x, modes).square() / (2 * sd * sd), batch_size=8192)
    grid = class_grid(classify, nodes=NODES[budget])
    radius, masses = grid_radius(grid), grid.masses()
    samples = model.decode_points(prior_codes(SAMPLES, 2, seed=seed), batch_size=8192)
    distance, nearest = torch.cdist(samples, modes).min(1)
    good = distance < NEAR * sd
    captured = len(nearest[good].unique())
    return GridModel(
        len(modes), captured, float(good.double().mean()), radius.mean, grid.step, isoperimetric_bound(masses), float(masses.max())
    )
