r"""Why more importance samples tighten the bound: the mean of a logarithm against the logarithm of a mean (Yu 2020, on IWAE).

A decoder gives p = 1 to x with probability 0.9 and p = 2⁻¹⁰ with probability 0.1 (over z). One sample at a time costs
E[-log2 p] = +1 bit; the true code length is -log2 E p = 0.1518 bits. (The paper prints both with the opposite sign.) With k samples,

    B_k = E[-log2 1/k Σ p_i] = Σ_j Binomial(j; k, 0.9) · -log2 [(j + (k - j) 2⁻¹⁰) / k],

which is enumerated here, falls with k from the first number to the second, and for large k lies Var p / (2 k ln 2 (E p)²) above it.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from expost.results import Curve, Demonstration, Series, Table
from expost.seeds import seeded

__all__ = ["estimates", "importance_sampling"]

HIT, SMALL = 0.9, 2.0**-10
SAMPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024)


def estimates(k: int) -> tuple[Tensor, Tensor]:
    """Values (k + 1,) in bits of the k-sample estimate -log2 1/k Σ p_i, from j = k hits down to none, and their probabilities."""
    j = torch.arange(k, -1, -1, dtype=torch.float64)
    log_choose = math.lgamma(k + 1) - torch.lgamma(j + 1) - torch.lgamma(k - j + 1)
    log_mass = log_choose + j * math.log(HIT) + (k - j) * math.log1p(-HIT)
    return 0.0 - torch.log2((j + (k - j) * SMALL) / k), log_mass.exp()


def importance_sampling(seed: int = 0) -> Demonstration:
    """The distribution of the k-sample estimate, enumerated, with 20 000 simulated estimates beside it.

    Holds if the one-sample mean is 1 bit to 1e-12, the limit is 0.1518 bits to 5e-5, the mean falls with every k and stays above the
    limit, the bias at the largest k is the predicted one to 5 %, and every simulation is within 4.5 standard errors.
    """
    mean_p = HIT + (1 - HIT) * SMALL
    limit = -math.log2(mean_p)
    variance = HIT * (1 - HIT) * (1 - SMALL) ** 2
    table = Table(("k", "mean", "bias", "predicted bias", "std", "5 %", "95 %", "simulated", "s.e."), title=f"bits; limit {limit:.6f}")
    means, spreads, points, errors = [], [], [], []
    deviation = 0.0
    for k in SAMPLES:
        values, masses = estimates(k)
        mean = float((values * masses).sum())
        spread = math.sqrt(float(((values - mean).square() * masses).sum()))
        quantiles = [float(values[int((masses.cumsum(0) >= q).nonzero()[0])]) for q in (0.05, 0.95)]
        with seeded("importance", seed, k):
            hits = torch.distributions.Binomial(k, torch.tensor(HIT, dtype=torch.float64)).sample((20_000,))
        simulated = float(-torch.log2((hits + (k - hits) * SMALL) / k).mean())
        error = spread / math.sqrt(20_000)
        deviation = max(deviation, abs(simulated - mean) / error)
        table.add(k, mean, mean - limit, variance / (2 * k * math.log(2) * mean_p**2), spread, *quantiles, simulated, error)
        means.append(mean)
        spreads.append(spread)
        points.append(simulated)
        errors.append(error)

    falls = all(later < earlier for earlier, later in itertools.pairwise(means)) and means[-1] > limit
    bias, predicted = table.rows[-1][2], table.rows[-1][3]
    ks = [float(k) for k in SAMPLES]
    axes = ("importance samples k", "estimated -log2 p(x) (bits)")
    return Demonstration(
        name="importance-sampling",
        title="The mean of a logarithm against the logarithm of a mean",
        claim="one importance sample costs E[-log2 p] = 1 bit where the truth is -log2 E p = 0.1518 bits, and the mean of the k-sample "
        "estimate falls to the truth as k grows",
        table=table,
        series=(
            Series("mean, enumerated", Curve(ks, means, *axes)),
            Series("mean, simulated", Curve(ks, points, *axes), "points", tuple(errors)),
            Series("-log2 E p", Curve(ks, [limit] * len(ks), *axes)),
            Series("bias, enumerated", Curve(ks, [m - limit for m in means], axes[0], "bias and spread of the estimate (bits)")),
            Series(
                "Var p / (2 k ln 2 (E p)²)",
                Curve(ks, list(table.column("predicted bias")), axes[0], "bias and spread of the estimate (bits)"),
            ),
            Series("standard deviation, enumerated", Curve(ks, spreads, axes[0], "bias and spread of the estimate (bits)")),
        ),
        holds=abs(means[0] - 1) < 1e-12 and abs(limit - 0.1518) < 5e-5 and falls and abs(bias / predicted - 1) < 0.05 and deviation < 4.5,
        figures={
            "one sample (bits)": means[0],
            "limit (bits)": limit,
            "bias at k = 1024 (bits)": bias,
            "predicted bias there (bits)": predicted,
            "simulated, standard errors off": deviation,
        },
        notes=("the paper prints both numbers with the opposite sign",),
    )
