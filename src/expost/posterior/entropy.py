r"""Entropy of a mixture of many one-dimensional Gaussians, -∫ q log q with q(z) = 1/N Σ_n N(z; m_n, s_n²), by quadrature.

The trapezoidal rule on an even grid of step h converges for a Gaussian as exp(-2π² s²/h²): h = s/4 leaves nothing, and of log q (whose
complex zeros come as near as s to the real axis) about 1e-8. Every Gaussian is added to the grid points within :data:`REACH` of its own
standard deviations only. What makes that expensive are wide Gaussians on a grid made for narrow ones; but those lie close to each other
compared to their width. So above :data:`FEW` of them, Gaussians are first merged in cells of m and log s (:data:`CELL` standard deviations,
:data:`RATIO`) into one with the weight, mean and variance of all. The work then is about range / h per class of widths, whatever N is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["mixture_entropy"]

FEW = 4096
CELL, RATIO = 0.25, 1.04
REACH = 7.5
#: Steps per smallest standard deviation; and the fewest.
FINE, COARSE = 4, 0.5


def mixture_entropy(mean: Tensor, std: Tensor, *, points: int = 1 << 16, memory: int = 256_000_000, few: int = FEW) -> tuple[float, float]:
    """Entropy in nats and second moment E z² of 1/N Σ_n N(m_n, s_n²).

    Args:
        mean: m, (N,).
        std: s, (N,), positive.
        points: of the grid, at most; where they do not suffice for h = s/4, Gaussians narrower than 2h are widened to 2h.
        memory: bytes beyond a few numbers per Gaussian and grid point.
        few: up to this many Gaussians, none are merged.

    >>> entropy, second = mixture_entropy(torch.tensor([3.0]), torch.tensor([0.5]))
    >>> abs(entropy - 0.5 * math.log(2 * math.pi * math.e * 0.25)) < 1e-8, second
    (True, 9.25)
    """
    m, s = mean.double(), std.double()
    weight = torch.full_like(m, 1 / len(m))
    if len(m) > few:
        m, s, weight = _merged(m, s)
    low, high = float((m - REACH * s).min()), float((m + REACH * s).max())
    h = max(float(s.min()) / FINE, (high - low) / points)
    s = s.clamp_min(h / COARSE)
    margin = math.ceil(REACH * float(s.max()) / h) + 1
    low = float(m.min()) - margin * h
    density = torch.zeros(math.ceil((float(m.max()) - low) / h) + margin + 1, dtype=torch.float64, device=m.device)
    s, order = s.sort()
    m, weight = m[order], weight[order]
    start = 0
    while start < len(s):  # Gaussians of similar width at a time: they reach equally many grid points
        stop = int(torch.searchsorted(s, 1.3 * s[start], right=True))
        reach = math.ceil(REACH * float(s[stop - 1]) / h)
        width = max(1, memory // (48 * (2 * reach + 1)))
        steps = torch.arange(-reach, reach + 1, device=m.device)
        for rows in torch.arange(start, stop, device=m.device).split(width):
            cell = ((m[rows] - low) / h).round().long()[:, None] + steps
            height = (weight[rows] / (s[rows] * math.sqrt(2 * math.pi)))[:, None]
            values = ((cell * h + low - m[rows, None]) / s[rows, None]).square_().mul_(-0.5).exp_().mul_(height)
            density += torch.bincount(cell.flatten(), values.flatten(), len(density))
        start = stop
    second = float((weight * (m.square() + s.square())).sum())
    return -h * float(torch.special.xlogy(density, density).sum()), second


def _merged(m: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means, standard deviations and weights of fewer Gaussians with the same first two moments in every cell."""
    step = math.log(RATIO)
    level = (s.log() / step).floor()
    size = CELL * (level * step).exp()
    place = ((m - m.min()) / size).floor()
    level = (level - level.min()).long()
    _, cell = torch.unique(place.long() * (int(level.max()) + 1) + level, return_inverse=True)
    count = torch.bincount(cell).double()
    mean = torch.bincount(cell, m) / count
    variance = torch.bincount(cell, s.square() + (m - mean[cell]).square()) / count
    return mean, variance.sqrt(), count / len(m)
