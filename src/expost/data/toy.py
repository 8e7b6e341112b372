"""The three plane densities of the VAE tutorial (Yu 2020), on the square [-1/2, 1/2]^2: samplers and the same densities on a grid.

* ``8gaussians``: x = (4 u + n/2) / 1.414 / 8 with u one of 8 unit vectors at multiples of 45 degrees and n ~ N(0, I): centres at
  radius 0.353607, standard deviation 0.0442008 (1.414 is the tutorial's constant, not the square root of two).
* ``checkerboard``: uniform on 8 of the 16 cells of side 1/4, those where column + row is even.
* ``2spirals``: x = s (-t cos t, t sin t) / 24 + n / 80 with t = 3 pi sqrt(U), U ~ U[0, 1), s = +-1, n ~ N(0, I).

The grid has 1024 x 1024 nodes -1/2 + k/1024, k = 0 ... 1023 (left edges of cells). On it the density is normalised to sum one, and
the entropy in bits is measured against the uniform density of the square:

    H = - sum_k p_k log2 p_k - log2(number of nodes),

which is -1.916776, -1.0000 and -2.3358 bits (Yu 2020, table 1: -1.92, -1, -2.34): a model whose negative log-likelihood reaches H has learned the density exactly.
Not promised: what falls outside the square (0.03 % of the first) is cut from the grid, but not from the samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expost.seeds import Key, generator

__all__ = ["TOYS", "density", "entropy_bits", "grid", "sample"]

#: The names, with the number of components (Gaussians, occupied cells, arms): the labels of :func:`sample`.
TOYS = {"8gaussians": 8, "checkerboard": 8, "2spirals": 2}

_SCALE = 1.414 * 8
_ANGLES = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
_ARM = 10_000  # points per arm of the grid's spirals


def sample(name: str, n: int, *keys: Key) -> tuple[Tensor, Tensor]:
    """n points (n, 2) float32 and the component each came from, (n,) int64; a function of the keys alone.

    Example:
        >>> x, component = sample("checkerboard", 5, 0)
        >>> x.shape, x.dtype, float(x.abs().max()) <= 0.5
        (torch.Size([5, 2]), torch.float32, True)
    """
    _known(name)
    if n < 1:
        raise ValueError(f"cannot draw {n} points: ask for at least 1")
    rng = generator("toy", name, *keys)
    u = torch.rand(n, 2, generator=rng, dtype=torch.float64)
    component = torch.randint(TOYS[name], (n,), generator=rng)
    noise = torch.randn(n, 2, generator=rng, dtype=torch.float64)
    if name == "8gaussians":
        x = (4 * _centres()[component] + noise / 2) / _SCALE
    elif name == "checkerboard":  # component = 2 column + (upper of the column's two cells)
        column, upper = component // 2, component % 2
        x = (torch.stack([column, 2 * upper + column % 2], 1) + u) / 4 - 0.5
    else:
        t = u[:, 0].sqrt() * (3 * math.pi)
        x = (1 - 2 * component)[:, None] * torch.stack([-t * t.cos(), t * t.sin()], 1) / 24 + noise / 80
    return x.to(torch.float32), component


def grid(nodes: int = 1024) -> Tensor:
    """Coordinates of the grid, (nodes, nodes, 2) float64: ``grid()[row, column] = (x1, x2)``, x1 grows with the column, x2 with the row."""
    axis = _axis(nodes)
    x2, x1 = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x1, x2], -1)


def density(name: str, nodes: int = 1024) -> Tensor:
    """The density at the nodes of :func:`grid`, normalised to sum one: (nodes, nodes) float64, ``[row, column]`` as there."""
    _known(name)
    axis = _axis(nodes)
    if name == "8gaussians":
        scale = 0.5 / _SCALE
        columns, rows = (torch.exp(-0.5 * ((axis - centre[:, None]) / scale) ** 2) for centre in (4 * _centres() / _SCALE).T)
        p = rows.T @ columns  # a sum of products: each component factorises
    elif name == "checkerboard":
        cell = ((axis + 0.5) * 4).floor().long()
        p = ((cell[:, None] + cell[None, :]) % 2 == 0).to(torch.float64)
    else:
        p = _spirals(axis)
    return p / p.sum()


def entropy_bits(p: Tensor | str) -> float:
    """H = -sum p log2 p - log2(nodes^2) in bits, of a normalised grid density or of a toy by name (0 for the uniform density).

    Example:
        >>> round(entropy_bits("checkerboard"), 6)
        -1.0
    """
    p = density(p) if isinstance(p, str) else p
    return float(-(p * (p + 1e-20).log2()).sum()) - math.log2(p.numel())


def _known(name: str) -> None:
    if name not in TOYS:
        raise ValueError(f"{name!r} is none of the toy densities: choose one of {', '.join(TOYS)}")


def _axis(nodes: int) -> Tensor:
    if nodes < 2:
        raise ValueError(f"a grid needs at least 2 nodes a side, not {nodes}")
    return torch.arange(nodes, dtype=torch.float64) / nodes - 0.5


def _centres() -> Tensor:
    return torch.stack([_ANGLES.cos(), _ANGLES.sin()], 1)


def _spirals(axis: Tensor) -> Tensor:
    """10 000 points along each arm, at t = 3 pi sqrt(i / 10 000), each a Gaussian of standard deviation 1/80 on a window of 100 x 100 cells.

    The sheet says a window of +-50 cells; of the readings tried, offsets -50 ... 49 from the point's cell (3.9 standard deviations) give the
    published H = -2.3358 bits, symmetric +-50 gives -2.3356 and no window -2.3347: the entropy chose the window, it does not confirm it.
    Gaussian and window factorise over the coordinates, so the sum over points is a product of two matrices.
    """
    nodes, window = len(axis), 50 / 1024
    t = (torch.arange(_ARM, dtype=torch.float64) / _ARM).sqrt() * (3 * math.pi)
    arm = torch.stack([-t * t.cos(), t * t.sin()], 1) / 24
    p = axis.new_zeros(nodes, nodes)
    for points in torch.cat([arm, -arm]).split(250):  # neighbours on the arm: few rows and columns are touched
        factors, spans = [], []
        for x in points.T:
            cell = ((x + 0.5) * nodes).floor()[:, None] / nodes - 0.5
            near = torch.nonzero((axis >= cell.min() - window) & (axis < cell.max() + window)).flatten()
            span = slice(int(near[0]), int(near[-1]) + 1)
            inside = (axis[span] >= cell - window) & (axis[span] < cell + window)  # exact: all are multiples of 1/nodes
            factors.append(torch.exp(-0.5 * ((axis[span] - x[:, None]) * 80) ** 2) * inside)
            spans.append(span)
        p[spans[1], spans[0]] += factors[1].T @ factors[0]
    return p
