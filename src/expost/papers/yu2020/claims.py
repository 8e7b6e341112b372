"""How the claims E7, E8, E9, E11 and E13 of paper 004 are measured: the tutorial's demonstrations, and the discretised logistic."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from expost.discrete import DiscretizedLogistic
from expost.papers.verdict import Verdict
from expost.papers.yu2020.demonstrations import Demonstration, linear_flow, noisy_channel, rescaling, two_solutions
from expost.results import format_number
from expost.runs.lab import Lab
from expost.seeds import seeded

__all__ = ["e7", "e8", "e9", "e11", "e13"]


def _verdict(demonstration: Demonstration) -> Verdict:
    text = "; ".join(f"{name}: {format_number(value)}" for name, value in demonstration.figures.items())
    return Verdict(text, demonstration.holds, demonstration.figures)


def e7(lab: Lab) -> Verdict:
    return _verdict(rescaling(lab.seed))


def e8(lab: Lab) -> Verdict:
    return _verdict(linear_flow(lab.seed))


def e9(lab: Lab) -> Verdict:
    return _verdict(noisy_channel(lab.seed))


def e13(lab: Lab) -> Verdict:
    return _verdict(two_solutions(lab.seed))


def _unfolded(loc: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Total of the masses without folded ends, as in Kingma et al. 2016: the logistic's mass within the outermost bin edges."""
    low, high = -0.5 / (levels - 1), 1 + 0.5 / (levels - 1)
    return torch.sigmoid((high - loc) / log_scale.exp()) - torch.sigmoid((low - loc) / log_scale.exp())


def e11(lab: Lab) -> Verdict:
    """Sums of 256 masses over locations in and beyond [0, 1] and scales from 1e-4 to 3, and the mass of the location's own bin as s -> 0."""
    levels = 256
    with seeded("e11", lab.seed):
        loc = torch.cat([torch.rand(200, dtype=torch.float64), 3 * torch.randn(56, dtype=torch.float64)])
        inside = torch.rand(200, dtype=torch.float64) - 0.5
    log_scale = torch.linspace(-9.2, 1.1, 12, dtype=torch.float64)
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    at, spread = loc[:, None].expand(-1, 12), log_scale.expand(256, 12)
    masses = DiscretizedLogistic(at, spread, levels, event_dims=0).log_mass(grid[:, None, None]).exp()
    error = float((masses.sum(0) - 1).abs().max())
    least = float(_unfolded(loc[:200, None], log_scale[-1:], levels).min())

    bins = torch.arange(28, 228, dtype=torch.float64)
    centre = (bins + 0.8 * inside) / (levels - 1)  # at least a tenth of a bin from its edges
    own = {}
    for width in (10.0, 1.0, 0.1, 0.01):  # s in bins
        p = DiscretizedLogistic(centre, torch.full_like(centre, width / (levels - 1)).log(), levels, event_dims=0)
        own[f"{width:g}"] = float(p.log_mass(bins / (levels - 1)).exp().min())
    values = list(own.values())
    rises = all(later > earlier for earlier, later in itertools.pairwise(values))
    text = (
        f"sums off by at most {error:.1e} (without folded ends as low as {least:.3f}); least mass of the location's bin "
        f"for s = 10, 1, .1, .01 bins: {', '.join(f'{v:.4f}' for v in values)}"
    )
    return Verdict(
        text, error < 1e-9 and rises and values[-1] > 0.999, {"sum": error, "unfolded": least, **{f"s = {k}": v for k, v in own.items()}}
    )
