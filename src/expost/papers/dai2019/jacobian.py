r"""The encoder's variances predicted from the decoder's Jacobian.

If the decoder is linear around a code, f(z + δ) ≈ f(z) + J δ, the posterior is Gaussian with precision P = I + JᵀJ/γ, so the best encoder has

    Σ_z = (I + JᵀJ/γ)⁻¹                                                       (Dai & Wipf 2019, supplement, eq. 73),

γ the decoder's variance. A *diagonal* encoder cannot have it: the diagonal Gaussian nearest to it in KL(q || p) has σ_j² = 1/P_jj, that is

    λ_j = 1 / (1 + S_j/γ),    S_j = (JᵀJ)_jj,

whether or not JᵀJ is diagonal. P_jj⁻¹ ≤ (P⁻¹)_jj, with equality for all j exactly where JᵀJ is diagonal. Both predictions are given, and the mean
|cosine| between columns of J says how diagonal JᵀJ is. Both are exact for a linear decoder. For a curved one the best λ_j needs S_j averaged
over q(z | x) (Gauss-Newton), ``at="sample"``; at the mean code S_j is eq. 73's.

J comes from forward-mode differentiation (one pass per latent direction, κ of them), in evaluation mode, where rows of a batch are independent.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from expost.autoencoder import Autoencoder, evaluating
from expost.diagnose.codes.variances import posterior_variances
from expost.distributions import point
from expost.papers.dai2019.variance import decoder_variance
from expost.results import Result, Table
from expost.seeds import seeded
from expost.system.progress import Bar
from expost.tensors import takes_data, unit

__all__ = ["JacobianIdentity", "decoder_gram", "decoder_jacobian", "jacobian_identity"]

FEW = 10


def decoder_jacobian(model: Autoencoder, z: Tensor, *, chunk: int = 64) -> Tensor:
    """J = ∂f/∂z of the decoder's mean at one code: (D, κ), D the number of pixels times channels.

    Args:
        z: code (κ,).
        chunk: latent directions differentiated at once; changes the result by round-off (10⁻⁶ relative) only.
    """
    if z.dim() != 1:
        raise ValueError(f"one code (d,) is needed, not a tensor of shape {tuple(z.shape)}: pass z[0]")
    if chunk < 1:
        raise ValueError(f"at least one direction at a time, not {chunk}")
    z = z.detach().to(model.device)

    def mean(codes: Tensor) -> Tensor:
        return point(model.decode(codes)).flatten(1)

    with evaluating(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)  # torch's own first forward-mode call
        columns = [torch.func.jvp(mean, (z.expand(len(e), -1).contiguous(),), (e,))[1] for e in torch.eye(len(z)).to(z).split(chunk)]
    return torch.cat(columns).T.detach()


def decoder_gram(model: Autoencoder, z: Tensor, *, chunk: int = 64) -> Tensor:
    """JᵀJ at each of the codes z (n, κ): (n, κ, κ) float64. Memory: one Jacobian at a time."""
    grams = []
    with Bar(len(z), what="Jacobians", after=1.0) as bar:
        for code in bar.over(z):
            jacobian = decoder_jacobian(model, code, chunk=chunk).double()
            grams.append((jacobian.T @ jacobian).cpu())
    return torch.stack(grams)


@dataclass(frozen=True, eq=False)
class JacobianIdentity:
    """λ of the encoder beside what the decoder's Jacobian predicts.

    Attributes:
        encoder: (n, κ), λ_j(x_i): by coordinate; by rank, ascending, for a full covariance.
        predicted: (n, κ), 1 / (1 + S_j/γ); for a full covariance the eigenvalues of (I + JᵀJ/γ)⁻¹.
        full: (n, κ), the diagonal of (I + JᵀJ/γ)⁻¹ (for a full covariance the same as ``predicted``).
        difference: median over i, j of |log λ - log predicted|; error: standard deviation of the per-datum medians / √n.
        full_difference: the same against ``full``.
        bias: median of log λ - log predicted; positive where the encoder is wider than predicted.
        cosine: mean |cosine| between different columns of J; 0 where JᵀJ is diagonal.
        gamma: γ used.
        notes: what the reader must know.
    """

    encoder: Tensor
    predicted: Tensor
    full: Tensor
    difference: Result
    full_difference: Result
    bias: float
    cosine: float
    gamma: float
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        table = Table(("quantity", "value"), title="Encoder variances and the decoder's Jacobian")
        table.add("median |log λ - log 1/(1 + S/γ)|", self.difference.value)
        table.add("median log λ - log 1/(1 + S/γ)", self.bias)
        table.add("median |log λ - log diagonal of (I + JᵀJ/γ)⁻¹|", self.full_difference.value)
        table.add("mean |cosine| between columns of J", self.cosine)
        table.add("γ", self.gamma)
        table.notes.extend(self.notes)
        return table


@takes_data("x")
def jacobian_identity(
    model: Autoencoder,
    x: Tensor,
    *,
    gamma: float | None = None,
    at: Literal["mean", "sample"] = "mean",
    draws: int = 4,
    chunk: int = 64,
    seed: int = 0,
) -> JacobianIdentity:
    """Compare the encoder's λ_j(x_i) with 1 / (1 + S_j/γ) from the decoder's Jacobian (Dai & Wipf 2019, supplement, eq. 73).

    Args:
        model: an autoencoder with a Gaussian encoder.
        x: data (n, *event); κ decoder passes each.
        gamma: decoder variance; None: the model's own.
        at: JᵀJ at the mean code, or averaged over ``draws`` codes from q(z | x).
        draws: codes per datum where ``at="sample"``.
        chunk: latent directions at once.
        seed: of the codes.

    Raises:
        ValueError: a deterministic encoder, a decoder without one variance, fewer than two data.
    """
    if at not in ("mean", "sample"):
        raise ValueError(f'at must be "mean" or "sample", not {at!r}')
    if len(x) < 2 or draws < 1:
        raise ValueError(f"at least 2 data and 1 draw are needed, not {len(x)} and {draws}")
    variance = decoder_variance(model) if gamma is None else float(gamma)
    if not variance > 0:
        raise ValueError(f"gamma must be positive, not {gamma}")
    with evaluating(model):
        q: Distribution = model.encode(unit(x.to(model.device)))
        encoder = posterior_variances(q).double().cpu()
        with seeded("jacobian identity", seed):
            codes = q.mean[None] if at == "mean" else q.sample((draws,))
    gram = torch.stack([decoder_gram(model, z, chunk=chunk) for z in codes]).mean(0)
    kappa = gram.shape[-1]
    precision = torch.eye(kappa, dtype=torch.float64) + gram / variance
    inverse = torch.linalg.inv(precision)
    if isinstance(q, MultivariateNormal):
        predicted = full = (1 / torch.linalg.eigvalsh(precision)).flip(-1)
    else:
        predicted, full = 1 / precision.diagonal(dim1=-2, dim2=-1), inverse.diagonal(dim1=-2, dim2=-1)
    apart = encoder.clamp_min(1e-300).log() - predicted.log()
    notes = () if len(x) >= FEW else (f"n = {len(x)} is below {FEW}: the error is rough",)
    context: dict[str, str | int | float] = {"at": at, "seed": seed, "gamma": variance, **({"draws": draws} if at == "sample" else {})}
    return JacobianIdentity(
        encoder, predicted, full,
        _median("median |log λ - log 1/(1 + S/γ)|", apart, notes, context),
        _median("median |log λ - log diag (I + JᵀJ/γ)⁻¹|", encoder.clamp_min(1e-300).log() - full.log(), notes, context),
        float(apart.median()), _cosine(gram), variance, notes,
    )  # fmt: skip


def _median(name: str, apart: Tensor, notes: tuple[str, ...], context: dict[str, str | int | float]) -> Result:
    each = apart.abs().median(1).values
    return Result(name, float(apart.abs().median()), float(each.std()) / len(each) ** 0.5, len(each), notes=notes, context=context)


def _cosine(gram: Tensor) -> float:
    """Mean |cosine| between different columns, columns of length 0 left out."""
    length = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    scale = length[..., :, None] * length[..., None, :]
    valid = scale > 0
    valid = valid & ~torch.eye(gram.shape[-1], dtype=torch.bool)
    return float((gram.abs() / scale.where(valid, torch.ones_like(scale)))[valid].mean()) if bool(valid.any()) else 0.0
