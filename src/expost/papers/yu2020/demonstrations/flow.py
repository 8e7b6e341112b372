r"""The Sigma-VAE is a flow in the limit (Yu 2020, "A tutorial on VAEs", section on Sigma-VAE and flow models).

Take an invertible f with Jacobian J and, for a small ε,

    p(x | z) = N(f(z), ε² I),    q(z | x) = N(f⁻¹(x), ε² J⁻¹ J⁻ᵀ),    p(z) = N(0, I).

As ε -> 0, -ELBO(x) tends to the flow's loss -log N(f⁻¹(x); 0, I) - log |det J⁻¹|. For an affine f the difference is known at every ε
and is the same for every x: the distortion is n/2 + (n/2) log 2πε², the rate ½ (ε² tr J⁻¹J⁻ᵀ + ‖f⁻¹(x)‖² - n) - n log ε + log |det J|, so

    -ELBO(x) - [flow loss] = ½ ε² tr(J⁻¹ J⁻ᵀ).

With a diagonal q, variances ε² / (JᵀJ)_jj (the best as ε -> 0), there remains ½ [Σ_j log (JᵀJ)_jj - log det JᵀJ], which by Hadamard's
inequality is zero if and only if JᵀJ, hence J⁻¹J⁻ᵀ, is diagonal: the columns of J are orthogonal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.objectives import ELBO
from expost.papers.yu2020.demonstrations.linear import exact_elbo, linear_model
from expost.results import Curve, Demonstration, Series, Table
from expost.seeds import seeded

__all__ = ["diagonal_plateau", "flow_loss", "linear_flow", "sigma_vae"]

DIMS = 4
EPSILONS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3)


def flow_loss(jacobian: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    """-log N(f⁻¹(x); 0, I) - log |det J⁻¹| in nats for f(z) = J z + shift: x (n, D) -> (n,)."""
    z = torch.linalg.solve(jacobian, (x - shift).T).T
    prior = torch.distributions.Normal(torch.zeros_like(shift), torch.ones_like(shift))
    return -prior.log_prob(z).sum(-1) + torch.linalg.slogdet(jacobian).logabsdet


def sigma_vae(jacobian: Tensor, shift: Tensor, epsilon: float, *, diagonal: bool = False) -> Autoencoder:
    """The autoencoder of the top of this file for f(z) = J z + shift, with a full or a diagonal q."""
    inverse = torch.linalg.inv(jacobian)
    if diagonal:
        spread = epsilon * (jacobian.T @ jacobian).diagonal().rsqrt()
    else:
        spread = torch.linalg.cholesky(epsilon**2 * inverse @ inverse.T)
    return linear_model((jacobian, shift), (inverse, -inverse @ shift), spread, epsilon)


def diagonal_plateau(jacobian: Tensor) -> float:
    """½ [Σ_j log (JᵀJ)_jj - log det JᵀJ] in nats: what a diagonal q costs as ε -> 0."""
    gram = jacobian.T @ jacobian
    return float(0.5 * (gram.diagonal().log().sum() - torch.logdet(gram)))


def linear_flow(seed: int = 0) -> Demonstration:
    """-ELBO of the Sigma-VAE against the loss of the flow, for a general affine map and one with orthogonal columns, 64 points each.

    Holds if, for every x and every ε, the gap is ½ ε² tr(J⁻¹J⁻ᵀ) to 1e-9 nats; the sampled -ELBO agrees with the exact one within 4.5
    standard errors; and the diagonal q costs its plateau for the general map and nothing for the orthogonal one.
    """
    with seeded("linear flow", seed):
        stretch = torch.tensor([0.4, 0.8, 1.25, 2.5], dtype=torch.float64)
        left, right = torch.linalg.qr(torch.randn(2, DIMS, DIMS, dtype=torch.float64)).Q
        orthogonal = 2 * left * stretch
        general = left * stretch @ right  # singular values in the same proportion, columns oblique
        shift = torch.randn(DIMS, dtype=torch.float64)
        z = torch.randn(64, DIMS, dtype=torch.float64)
    maps = {"general J": general, "orthogonal columns": orthogonal}

    table = Table(("J", "eps", "gap", "1/2 eps^2 tr", "largest error", "sampled gap", "s.e.", "gap, diagonal q"), title="gaps in nats")
    worst, deviation, diagonal_error = 0.0, 0.0, 0.0
    series = []
    for name, jacobian in maps.items():
        x = z @ jacobian.T + shift  # the flow's own samples
        trace = float(torch.linalg.inv(jacobian).square().sum())
        target, plateau = flow_loss(jacobian, shift, x), diagonal_plateau(jacobian)
        gaps, points, errors, diagonals = [], [], [], []
        for epsilon in EPSILONS:
            model = sigma_vae(jacobian, shift, epsilon)
            with torch.no_grad():
                total = exact_elbo(model, x).total
                diagonal = exact_elbo(sigma_vae(jacobian, shift, epsilon, diagonal=True), x).total - target
                with seeded("linear flow", seed, name, str(epsilon)):
                    sampled = ELBO(samples=2000)(model, x).total - target
            gap, predicted = total - target, 0.5 * epsilon**2 * trace
            error = float((sampled - gap).std() / len(x) ** 0.5)
            worst = max(worst, float((gap - predicted).abs().max()))
            deviation = max(deviation, abs(float((sampled - gap).mean())) / error)
            shrunk = 0.5 * epsilon**2 * float((jacobian.T @ jacobian).diagonal().reciprocal().sum())
            diagonal_error = max(diagonal_error, float((diagonal - plateau - shrunk).abs().max()))
            gaps.append(float(gap.mean()))
            points.append(float(sampled.mean()))
            errors.append(error)
            diagonals.append(float(diagonal.mean()))
            off = float((gap - predicted).abs().max())
            table.add(name, epsilon, gaps[-1], predicted, off, points[-1], error, diagonals[-1])
        axes = ("decoder noise ε", "-ELBO - flow loss (nats)")
        epsilons = list(EPSILONS)
        series.append(Series(f"{name}: full Σ", Curve(epsilons, gaps, *axes)))
        seen = [i for i, value in enumerate(points) if value > 3 * errors[i]]
        series.append(
            Series(
                f"{name}: full Σ, sampled",
                Curve([epsilons[i] for i in seen], [points[i] for i in seen], *axes),
                "points",
                tuple(errors[i] for i in seen),
            )
        )
        series.append(Series(f"{name}: diagonal Σ", Curve(epsilons, diagonals, *axes)))

    cost, none = diagonal_plateau(general), diagonal_plateau(orthogonal)
    holds = worst < 1e-9 and deviation < 4.5 and diagonal_error < 1e-9 and cost > 0.01 and abs(none) < 1e-12
    return Demonstration(
        name="linear-flow",
        title="A Sigma-VAE whose noise vanishes is a flow",
        claim="for an affine decoder f, -ELBO exceeds the flow's loss by exactly half eps^2 tr(J^-1 J^-T) at every x, and a diagonal "
        "posterior covariance suffices if and only if J^-1 J^-T is diagonal",
        table=table,
        series=tuple(series),
        holds=holds,
        figures={
            "largest error of the gap": worst,
            "sampled, standard errors off": deviation,
            "diagonal plateau, general J": cost,
            "diagonal plateau, orthogonal J": none,
        },
        notes=("sampled points below three standard errors are left out of the curves, not out of the table",),
    )
