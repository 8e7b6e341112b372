r"""How many units would a linear VAE keep? (Lucas, Tucker, Grosse, Norouzi 2019, "Don't blame the ELBO! A linear VAE perspective on posterior
collapse".)

For p(x | z) = N(Wz + μ, γI), q(z | x) = N(V(x - μ), S) with diagonal S and p(z) = N(0, I), the ELBO has the global maximum of probabilistic PCA
(Tipping and Bishop 1999): with the eigenvalues λ_1 ≥ λ_2 ≥ ... of the data's covariance (1/n) and their directions U,

    W_u = U_u √(λ_u - γ),    S_u = γ / λ_u        for λ_u > γ,
    W_u = 0,                 S_u = 1              for λ_u ≤ γ: the unit collapses to the prior.

So a unit is worth its KL only if the data vary along it by more than the decoder's noise. A model that keeps fewer units than this lost them in
training; one for which no eigenvalue exceeds γ had to lose them, and a smaller or learned γ is the remedy. With a weight β on the KL, γ acts
as βγ. A nonlinear decoder may need fewer units (a curve spans many directions) or use more; the count is a yardstick, not a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expost import heads
from expost.autoencoder import Autoencoder, evaluating
from expost.distributions import deterministic
from expost.results import Result, Table
from expost.seeds import permutation
from expost.tensors import check_finite, takes_data, unit

__all__ = ["MEMORY", "LinearUnits", "linear_units", "spectrum"]

MEMORY = 256 << 20
#: Images whose reconstruction error stands for γ where the head has none.
IMAGES = 2000


def spectrum(x: Tensor, *, memory: int = MEMORY) -> Tensor:
    """Eigenvalues of the covariance of data, Σ (x_i - x̄)(x_i - x̄)ᵀ / n: the min(n, D) that may differ from zero, descending, float64 on the CPU.

    From the D x D covariance, or for n < D from the n x n Gram matrix, which has the same; blocks of data are added up in float64.

    Args:
        x: (n, *event), uint8 (scaled to [0, 1]) or floats; D numbers each.
        memory: bytes for the matrix, its decomposition and the blocks; at least 32 min(n, D)².

    Raises:
        ValueError: fewer than two rows, NaN, or ``memory`` too small.

    >>> spectrum(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    tensor([2.0000, 0.5000], dtype=torch.float64)
    """
    if len(x) < 2:
        raise ValueError(f"a covariance needs at least two rows, not {len(x)}: pass more data")
    check_finite(x, "data")
    n, dims = len(x), x[0].numel()
    side = min(n, dims)
    if memory < 32 * side**2:
        raise ValueError(
            f"the eigenvalues of {n} rows of {dims} numbers need {32 * side**2} bytes, memory allows {memory}: "
            f"raise it, or pass at most {math.isqrt(memory // 32)} rows"
        )
    rows = max(1, min(memory // 4 // (24 * dims), 4096))

    def block(part: Tensor) -> Tensor:
        return unit(part).flatten(1).double()

    mean = sum((block(part).sum(0) for part in x.split(rows)), torch.zeros(dims, dtype=torch.float64, device=x.device)) / n
    matrix = torch.zeros(side, side, dtype=torch.float64, device=x.device)
    if n >= dims:
        for part in x.split(rows):
            centred = block(part) - mean
            matrix.addmm_(centred.T, centred)
    else:
        for i in range(0, n, rows):
            first = block(x[i : i + rows]) - mean
            for j in range(0, i + 1, rows):
                products = first @ (first if i == j else (block(x[j : j + rows]) - mean)).T
                matrix[i : i + rows, j : j + rows] = products
                matrix[j : j + rows, i : i + rows] = products.T
    return torch.linalg.eigvalsh(matrix.div_(n)).flip(0).clamp_min(0).cpu()


@dataclass(frozen=True, eq=False)
class LinearUnits:
    """What a linear VAE of d units would do with the data.

    Attributes:
        eigenvalues: of the data's covariance, descending, float64.
        gamma: variance of the decoder per dimension of x, γ (times β).
        source: where γ comes from.
        d: units of the model.
        n: rows the eigenvalues come from; ``dims``: D.
        notes: sentences that the reader must know.
    """

    eigenvalues: Tensor
    gamma: float
    source: str
    d: int
    n: int
    dims: int
    notes: tuple[str, ...] = ()

    @property
    def above(self) -> int:
        """Eigenvalues above γ."""
        return int((self.eigenvalues > self.gamma).sum())

    @property
    def kept(self) -> int:
        """Units that a linear VAE with d of them keeps: min(d, eigenvalues above γ)."""
        return min(self.d, self.above)

    @property
    def posterior_variances(self) -> Tensor:
        """Predicted Var q[z_u | x] of the d units, ascending: γ / λ_u, at most 1. (d,) float64."""
        padded = torch.cat([self.eigenvalues[: self.d], torch.zeros(max(0, self.d - len(self.eigenvalues)), dtype=torch.float64)])
        return torch.where(padded > self.gamma, self.gamma / padded, 1.0)

    @property
    def optimal_gamma(self) -> float:
        """γ that a linear VAE of d units would learn: the mean of the other D - d eigenvalues (Tipping and Bishop 1999, eq. 8)."""
        return float(self.eigenvalues[self.d :].sum() / (self.dims - self.d)) if self.dims > self.d else 0.0

    @property
    def rate(self) -> float:
        """KL that this linear VAE pays, ½ Σ log λ_u / γ over the kept units, nats per image."""
        return float(0.5 * (self.eigenvalues[: self.kept] / self.gamma).log().sum())

    def results(self) -> dict[str, Result]:
        """``predicted_units``, with γ, the largest eigenvalue and the other numbers in its details."""
        details = {
            "gamma": self.gamma,
            "above": float(self.above),
            "largest": float(self.eigenvalues[0]),
            "optimal_gamma": self.optimal_gamma,
            "rate": self.rate,
        }
        result = Result("predicted_units", float(self.kept), n=self.n, unit=f"of {self.d}", notes=self.notes, details=details)
        return {"predicted_units": result}

    def table(self, title: str = "", rows: int = 64) -> Table:
        """One row for each of the d units, and for eigenvalues above γ beyond them, at most ``rows``."""
        table = Table(("component", "eigenvalue", "eigenvalue / γ", "predicted q variance", "kept"), title=title)
        for u in range(min(max(self.d, self.above), len(self.eigenvalues), rows)):
            value = float(self.eigenvalues[u])
            has_unit = u < self.d
            table.add(
                u, value, value / self.gamma, min(1.0, self.gamma / max(value, 1e-300)) if has_unit else None, has_unit and u < self.kept
            )
        table.notes += [
            f"γ = {self.gamma:.4g} ({self.source}): {self.above} of {len(self.eigenvalues)} eigenvalues are larger, so a linear VAE "
            f"keeps {self.kept} of {self.d} units and pays {self.rate:.1f} nats for them; learning γ it would end at {self.optimal_gamma:.4g}",
            *self.notes,
        ]
        return table

    def __str__(self) -> str:
        return str(self.table("what a linear VAE would keep"))

    def to_json(self) -> dict[str, Any]:
        return {
            "eigenvalues": self.eigenvalues.tolist(),
            "gamma": self.gamma,
            "source": self.source,
            "d": self.d,
            "n": self.n,
            "dims": self.dims,
            "kept": self.kept,
            "notes": list(self.notes),
        }


@takes_data("x")
def linear_units(
    model: Autoencoder, x: Tensor, *, gamma: float | None = None, beta: float = 1.0, seed: int = 0, memory: int = MEMORY
) -> LinearUnits:
    """The linear VAE's prediction for a model and its data (see the top of this file).

    Args:
        model: any autoencoder with codes (d,).
        x: (n, *event), uint8 or floats, the training data.
        gamma: the decoder's variance; default, that of a ``Gaussian`` head (fixed, shared or optimal). Other heads, and Gaussian heads of
            deterministic encoders, have none that was trained: there it is the closed-form optimum, the mean squared error per pixel of codes
            drawn from q(z | x) for 2000 images.
        beta: weight of the KL in training, which multiplies a γ of the head.
        seed: of these images and codes.
        memory: as for :func:`spectrum`.

    Raises:
        ValueError: γ or β not positive, and what :func:`spectrum` raises.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}: it is the weight of the KL in training")
    if gamma is not None and not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be a positive variance, not {gamma}")
    eigenvalues = spectrum(x, memory=memory)
    notes: list[str] = []
    with evaluating(model):
        q = model.encode(unit(x[:1].to(model.device)))
    head = model.decoder.head
    if gamma is not None:
        source = "given"
    elif isinstance(head, heads.Gaussian) and head.kind != "pixel" and not deterministic(q):
        gamma, source = beta * float(head.variance.detach()), f"the decoder's, {head.kind}" + (f", times β = {beta:g}" if beta != 1 else "")
        if head.kind == "fixed" and beta == 1:
            notes.append("γ is fixed: if the KL had a weight β in training, pass beta=, since γ then acts as βγ")
    else:
        gamma, source = _squared_error(model, x, seed), "mean squared error per pixel, since the decoder has no trained γ"
        if deterministic(q):
            notes.append("a deterministic encoder pays no KL: the count says how many directions stand above its reconstruction error")
    if len(x) <= x[0].numel():
        notes.append(f"{len(x)} rows of {x[0].numel()} numbers: the largest eigenvalues come out too large, the smallest too small")
    return LinearUnits(eigenvalues, gamma, source, q.mean.shape[-1], len(x), x[0].numel(), tuple(notes))


def _squared_error(model: Autoencoder, x: Tensor, seed: int) -> float:
    """Mean squared error per pixel of x against the decoder's mean at z ~ q(z | x)."""
    chosen = x[permutation(len(x), "linear", seed)[:IMAGES].to(x.device)]
    z = model.latents(chosen, at="sample", seed=seed)
    total = 0.0
    with evaluating(model):
        for images, codes in zip(chosen.split(500), z.split(500), strict=True):
            total += float((unit(images.to(model.device)) - model.decode(codes).mean).square().double().sum())
    return max(total / chosen.numel(), torch.finfo(torch.float32).tiny)
