"""The plane models of yu2020 on the lab's runs: grid likelihoods, density maps and latent maps; and tables 1 and 2 built from them."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.data import toy
from expost.papers.published import published
from expost.papers.yu2020.plane_maps import GridLikelihood, colours, density_map, grid_likelihood, latent_map
from expost.results import Table
from expost.runs.lab import Lab

__all__ = ["DENSITIES", "TARGET", "PlaneTable", "likelihoods", "plane_table", "reached"]

DENSITIES = {"8gaussians": "8 Gaussians", "checkerboard": "Checkerboard", "2spirals": "2 Spirals"}
"""Data set -> its name in the paper."""

NODES = {"smoke": 64, "cpu": 512, "paper": 1024}
"""Grid nodes per side. The entropies at 512 differ from those at 1024 by less than 1e-3 bits."""

PICTURE = {"smoke": 32, "cpu": 256, "paper": 512}
"""Pixels per side of the density maps."""

SAMPLES = {"smoke": (1, 10), "cpu": (1, 10, 250), "paper": (1, 10, 250)}

TARGET = 0.05
"""Bits: a measured NLL at most this much above the published one reproduces it."""


def reached(measured: float, printed: float) -> bool:
    """Whether an NLL reproduces the printed one, or is better."""
    return measured <= printed + TARGET


class _Kept(TypedDict):
    """What is kept of a grid likelihood."""

    entropy: float
    nll: dict[str, float]


def likelihoods(lab: Lab, recipe: str, name: str) -> GridLikelihood:
    """NLL(k) of the recipe's model of a density; measured once."""
    run = lab.run(recipe, source=name)
    nodes, samples = NODES[lab.budget], SAMPLES[lab.budget]

    def make() -> _Kept:
        lab.say(f"grid likelihood of {recipe} on {name}, {nodes} x {nodes} nodes, {max(samples)} samples")
        measured = grid_likelihood(run.model, name, samples=samples, nodes=nodes, seed=lab.seed, progress=lab.progress)
        return {"entropy": measured.entropy, "nll": {str(k): v for k, v in measured.nll.items()}}

    saved = lab.remember(run, "grid-likelihood", make, nodes, samples, kind=_Kept)
    return GridLikelihood(name, nodes, saved["entropy"], {int(k): v for k, v in saved["nll"].items()})


def dark_mass(lab: Lab, recipe: str, name: str) -> float:
    """Prior mass of the codes that decode to where no data are."""
    return latent_map(lab.run(recipe, source=name).model, name).dark


@dataclass(frozen=True)
class PlaneTable:
    """A table, pictures by row and column ((H, W) in [0, 1] or RGB (3, H, W)), and whether every row reproduces the paper's."""

    table: Table
    pictures: dict[str, dict[str, Tensor]]
    reproduced: bool


def plane_table(lab: Lab, number: int) -> PlaneTable:
    """Table 1 (VAE) or 2 (IWAE) of yu2020: entropy, bound and NLL, measured and published, with the maps behind them."""
    recipe, bound, k = (("yu2020/vae", "-ELBO", 1), ("yu2020/iwae", "Loss (10-sample NLL)", 10))[number - 1]
    paper = f"Table {number}"
    most = max(SAMPLES[lab.budget])
    label = bound if k == 1 else f"loss({k})"
    columns = ("density", "H", "published H", label, f"published {label}", f"NLL({most})", "published NLL", "apart", "dark", "verdict")
    table = Table(columns, title=f"yu2020, {paper}: {recipe}, {lab.budget} budget, seed {lab.seed} (bits)")
    pictures: dict[str, dict[str, Tensor]] = {}
    reproduced = True
    for name, printed in DENSITIES.items():
        measured = likelihoods(lab, recipe, name)
        model = lab.run(recipe, source=name).model
        latent = latent_map(model, name)
        nll, target = measured.nll[most], published("yu2020", paper, printed, "NLL (250 importance samples)")
        ordered = measured.entropy - 0.005 <= nll <= measured.nll[1]
        good = ordered and reached(nll, target)
        reproduced = reproduced and good
        verdict = "reproduced" if good else "H <= NLL <= -ELBO is broken" if not ordered else f"worse by {nll - target:.3f}"
        table.add(
            printed, measured.entropy, published("yu2020", paper, printed, "H"), measured.nll[k], published("yu2020", paper, printed, bound),
            nll, target, nll - target, latent.dark, verdict,
        )  # fmt: skip
        pictures[printed] = _pictures(model, name, latent.hue, latent.value, PICTURE[lab.budget])
    table.notes += [
        f"grid of {NODES[lab.budget]} x {NODES[lab.budget]} nodes; NLL(k) uses k importance samples per node and is not renormalised",
        f"reproduced: H <= NLL <= -ELBO, and NLL at most {TARGET} bits above the published one (below it is better: H is the limit)",
        "dark: share of prior samples that decode to where the true density is below 1 % of its largest",
    ]
    return PlaneTable(table, pictures, reproduced)


def _pictures(model: Autoencoder, name: str, hue: Tensor, value: Tensor, nodes: int) -> dict[str, Tensor]:
    truth = toy.density(name, nodes)
    learned = density_map(model, nodes=nodes)
    top = float(truth.max())
    true_hue, true_value = colours(name)
    return {
        "true density": (truth / top).float().flip(0),
        "model's density": (learned.nan_to_num() / top).clamp(0, 1).float().flip(0),
        "colours of the truth": _rgb(true_hue[::4, ::4], true_value[::4, ::4]).flip(1),
        "what codes decode to": _rgb(hue, value).flip(1),
    }


def _rgb(hue: Tensor, value: Tensor) -> Tensor:
    """Hue and value, saturation one, as (3, H, W)."""
    wheel = torch.tensor([colorsys.hsv_to_rgb(i / 360, 0.85, 1.0) for i in range(361)])
    return (wheel[(hue * 360).round().long()] * value[..., None]).permute(2, 0, 1)
