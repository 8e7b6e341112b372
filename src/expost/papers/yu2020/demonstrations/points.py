r"""z is not a parameter (Yu 2020): two solutions with the same -ELBO, one of which tells nothing through z and one everything.

Data from p_gt = N(μ, σ² I) in n dimensions, entropy H = (n/2) log 2πeσ². With p(z) = N(0, I) on n dimensions,

* A: q(z | x) = p(z), p(x | z) = N(μ, σ² I). The decoder ignores z; -ELBO = H, all of it distortion.
* B: q(z | x) = N((x - μ)/σ, ε² I), p(x | z) = N(σz + μ, σ²ε² I). z is a copy of x; rate and distortion diverge with opposite signs
  as ε -> 0, and E[-ELBO] = H + n ε²/2.

A point estimate of z ("z is a parameter of x") would call B perfect and A a failure; as densities on x they are equally good.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.objectives import ELBO
from expost.papers.yu2020.demonstrations.linear import cubature, exact_elbo, linear_model
from expost.results import Curve, Demonstration, Series, Table
from expost.seeds import seeded

__all__ = ["copying_solution", "ignoring_solution", "two_solutions"]

DIMS, SIGMA = 3, 0.4
EPSILONS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3)


def ignoring_solution(mu: Tensor, sigma: float) -> Autoencoder:
    """A: the posterior is the prior, the decoder ignores z."""
    zero = torch.zeros(len(mu), len(mu), dtype=torch.float64)
    return linear_model((zero, mu), (zero, torch.zeros_like(mu)), torch.ones_like(mu), sigma)


def copying_solution(mu: Tensor, sigma: float, epsilon: float) -> Autoencoder:
    """B: z is x whitened, with noise ε."""
    eye = torch.eye(len(mu), dtype=torch.float64)
    return linear_model((sigma * eye, mu), (eye / sigma, -mu / sigma), torch.full_like(mu, epsilon), sigma * epsilon)


def two_solutions(seed: int = 0) -> Demonstration:
    """-ELBO of solutions A and B, in expectation over the data (exact, -ELBO being a quadratic in x too) and on 4000 samples.

    Holds if A reaches H, and B reaches H + n ε²/2, to 1e-9 nats, and every sampled value is within 4.5 standard errors.
    """
    with seeded("two solutions", seed):
        mu = torch.randn(DIMS, dtype=torch.float64)
        drawn = mu + SIGMA * torch.randn(4000, DIMS, dtype=torch.float64)
    entropy = 0.5 * DIMS * math.log(2 * math.pi * math.e * SIGMA**2)
    population = cubature(mu, SIGMA * torch.eye(DIMS, dtype=torch.float64))  # as good as all of p_gt for a quadratic

    table = Table(
        ("solution", "eps", "-ELBO", "-ELBO - H", "n eps^2 / 2", "distortion", "rate", "sampled -ELBO", "s.e."),
        title=f"H = {entropy:.6f} nats",
    )
    totals, distortions, rates, points, errors = [], [], [], [], []
    worst = {"A": 0.0, "B": 0.0}
    deviation = 0.0
    for epsilon in (None, *EPSILONS):
        name = "A" if epsilon is None else "B"
        model = ignoring_solution(mu, SIGMA) if epsilon is None else copying_solution(mu, SIGMA, epsilon)
        with torch.no_grad(), seeded("two solutions", seed, str(epsilon)):
            exact, sampled = exact_elbo(model, population), ELBO()(model, drawn).total
        total, miss, rate = (float(v.mean()) for v in (exact.total, exact.parts["distortion"], exact.parts["rate"]))
        above = 0.5 * DIMS * epsilon**2 if epsilon is not None else 0.0
        mean, error = float(sampled.mean()), float(sampled.std() / len(sampled) ** 0.5)
        worst[name] = max(worst[name], abs(total - entropy - above))
        deviation = max(deviation, abs(mean - total) / error)
        table.add(name, epsilon, total, total - entropy, above, miss, rate, mean, error)
        if epsilon is not None:
            totals.append(total)
            distortions.append(miss)
            rates.append(rate)
            points.append(mean)
            errors.append(error)

    axes, epsilons = ("posterior noise ε of solution B", "nats per example"), list(EPSILONS)
    flat = [entropy] * len(epsilons)
    return Demonstration(
        name="two-solutions",
        title="z is not a parameter: two solutions with one -ELBO",
        claim="a decoder that ignores z and one that copies x through z both reach -ELBO = H, the entropy of the data, the second within "
        "n eps^2 / 2 nats",
        table=table,
        series=(
            Series("A: -ELBO = H, rate 0", Curve(epsilons, flat, *axes)),
            Series("B: -ELBO", Curve(epsilons, totals, *axes)),
            Series("B: -ELBO, sampled", Curve(epsilons, points, *axes), "points", tuple(errors)),
            Series("B: distortion", Curve(epsilons, distortions, *axes)),
            Series("B: rate", Curve(epsilons, rates, *axes)),
        ),
        holds=max(worst.values()) < 1e-9 and deviation < 4.5,
        figures={
            "H": entropy,
            "largest error of A": worst["A"],
            "largest error of B": worst["B"],
            "B above H at the smallest eps": totals[-1] - entropy,
            "sampled, standard errors off": deviation,
        },
        notes=("distortion is a differential quantity and may be negative: B trades it against the rate, nat for nat",),
    )
