r"""Models of the plane densities of yu2020: negative log-likelihood on the grid, density map, latent colour map, dark-pixel mass.

    NLL(k) = -Σ_x p(x) log2 (p_k(x) / N) - log2 N,   N = nodes² grid nodes x, p normalised to sum one,

with p_k(x) the k-sample importance estimate of the model's density at the node, not renormalised (Yu 2020). NLL(1) is the one-sample
-ELBO; NLL(k) falls with k towards -Σ p log2 of the model's own density, which is at least the entropy H (:func:`expost.data.toy.entropy_bits`).
Nodes whose p is below 1e-9 of the largest are left out: they carry less than 1e-4 of the mass together.

The latent map shows what every code decodes to: node z of a grid on [-2, 2]², decoder mean, and there the colour of the true density: hue for
the component, value for the density. A dark pixel (value below 0.01) is a code that decodes to where no data are; their mass under the
prior, normalised on the grid, is the share of samples that miss the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder, evaluating
from expost.data import toy
from expost.distributions import point
from expost.evaluate.likelihood.importance import importance_bound
from expost.tensors import batches

__all__ = ["GridLikelihood", "LatentMap", "density_map", "grid_likelihood", "latent_map"]

_BATCH, _CHUNK = 2048, 1  # rows that keep a dense block in the cache
DARK = 0.01


@dataclass(frozen=True)
class GridLikelihood:
    """Attributes: ``entropy`` H of the density on this grid and ``nll`` {k: NLL(k)}, in bits; ``nodes`` per side."""

    name: str
    nodes: int
    entropy: float
    nll: dict[int, float]


def grid_likelihood(
    model: Autoencoder,
    name: str,
    *,
    samples: tuple[int, ...] = (1, 10, 250),
    nodes: int = 1024,
    seed: int = 0,
    progress: bool | None = None,
) -> GridLikelihood:
    """NLL(k) of a model of points on the grid of a plane density, for several k at once (nested samples).

    Args:
        name: ``8gaussians``, ``checkerboard`` or ``2spirals``.
        nodes: per side; fewer are faster, and the entropy is that of the same grid.
    """
    p = toy.density(name, nodes)
    entropy = toy.entropy_bits(p)
    rows = (p.flatten() > 1e-9 * p.max()).nonzero()[:, 0]
    weights = p.flatten()[rows]
    x = toy.grid(nodes).reshape(-1, 2)[rows].to(next(model.parameters()).dtype)
    bound = importance_bound(model, x, samples=max(samples), marks=samples, batch_size=_BATCH, chunk=_CHUNK, seed=seed, progress=progress)
    weights = weights / weights.sum()
    nll = {k: -float(weights @ bound.marks[k]) / math.log(2) for k in sorted(samples)}
    return GridLikelihood(name, nodes, entropy, nll)


def density_map(model: Autoencoder, *, samples: int = 50, nodes: int = 128, seed: int = 0) -> Tensor:
    """p_k(x) of the model on the grid of the square, (nodes, nodes) float64, ``[row, column]`` as :func:`expost.data.toy.grid`; per node, i.e.
    the density divided by nodes²."""
    x = toy.grid(nodes).reshape(-1, 2).to(next(model.parameters()).dtype)
    bound = importance_bound(model, x, samples=samples, batch_size=_BATCH, chunk=_CHUNK, seed=seed, progress=False)
    return (bound.log_prob.exp() / nodes**2).reshape(nodes, nodes)


@dataclass(frozen=True)
class LatentMap:
    """Attributes: ``hue`` and ``value`` in [0, 1], (nodes, nodes), of what each code decodes to; ``dark`` the prior mass of dark codes."""

    hue: Tensor
    value: Tensor
    dark: float


def colours(name: str, nodes: int = 1024) -> tuple[Tensor, Tensor]:
    """Hue (component, or place on the arm) and value (density over its largest) at the nodes of the grid, both (nodes, nodes) float32."""
    value = toy.density(name, nodes)
    x = toy.grid(nodes)
    x1, x2 = x[..., 0], x[..., 1]
    if name == "8gaussians":
        hue = (torch.atan2(x2, x1) / (math.pi / 4)).round().remainder(8) / 8
    elif name == "checkerboard":
        column, row = ((x1 + 0.5) * 4).floor(), ((x2 + 0.5) * 4).floor()
        hue = (2 * column + (row / 2).floor()).remainder(8) / 8
    else:
        radius = x.norm(dim=-1) * 24 / (3 * math.pi)  # t / 3π along an arm
        angle = torch.atan2(x2, x1)
        # the point -t (cos t, -sin t) s has angle π - t for s = 1, -t for s = -1: the nearer arm
        t = 3 * math.pi * radius
        first = torch.cos(angle - (math.pi - t)) >= torch.cos(angle + t)
        hue = (0.5 * radius.clamp(0, 1) + torch.where(first, 0.0, 0.5)).clamp(0, 1)
    return hue.float(), (value / value.max()).float()


def latent_map(model: Autoencoder, name: str, *, nodes: int = 512, reach: float = 2.0) -> LatentMap:
    """The latent map of a model with two-dimensional codes, on [-reach, reach]²; pixels of the truth are looked up on 1024 x 1024."""
    axis = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes * 2 * reach - reach
    second, first = torch.meshgrid(axis, axis, indexing="ij")
    z = torch.stack([first, second], -1).reshape(-1, 2).to(next(model.parameters()).dtype)
    with evaluating(model):
        x = torch.cat([point(model.decode(part)) for part in batches(z, 8192)]).double()
        mass = torch.softmax(torch.cat([model.latent().log_prob(part) for part in batches(z, 8192)]).double(), 0)
    hue, value = colours(name)
    column, row = ((x + 0.5) * 1024).floor().clamp(0, 1023).long().unbind(1)
    inside = ((x >= -0.5) & (x < 0.5)).all(1)
    hues, values = hue[row, column], torch.where(inside, value[row, column], 0.0)
    dark = float(mass[values < DARK].sum())
    return LatentMap(hues.reshape(nodes, nodes), values.reshape(nodes, nodes), dark)
