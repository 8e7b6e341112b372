r"""Synthetic manifolds, on which the theory of Gaussian VAEs with a small decoder variance can be checked (Dai & Wipf 2019).

**r < d.** Data on an r-dimensional manifold in R^d, κ ≥ r latent dimensions, decoder variance γ. At the optimum r encoder variances are small and
κ - r are 1, and -ELBO per example falls without bound as γ does, (d - r)/2 · log γ + O(1) (in the paper, for twice this cost, d - r): the
d - r directions off the manifold are fitted exactly. For linear data this is exact. With eigenvalues λ_i of their covariance (r of them
positive), live dimensions λ_i > γ, the optimum of linear VAEs is that of probabilistic PCA (Lucas et al. 2019),

    -ELBO = ½ Σ_i [log 2πc_i + λ_i/c_i],  c_i = λ_i for live i, else γ;      encoder variances γ/λ_i for live i, else 1,

and its slope in log γ is (d - r)/2 for any γ below the r positive λ_i. :func:`optimal_linear_vae` is that model.

**r = d.** Nothing is fitted exactly, -ELBO is bounded below by the data's entropy, and no slope draws γ to 0 (for linear data the optimum is
*equal* for all γ below the smallest λ_i). A learned γ then rests where the networks' capacity and the training's noise leave it, which is not a
property of the data: on two Gaussians of variance .0625 it rested at .05 at a rate of 1e-2, at .008 at 3e-3 after three times the steps, and
the paper's Theorem 1 lets it go to 0 as networks grow. It may also rest at the data's variance because nothing is encoded at all (a ring of eight
Gaussians does that). :func:`learned_variance` watches it at a constant learning rate, since a decaying one would stop γ by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expost import heads
from expost.autoencoder import Autoencoder, evaluating
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.diagnose.codes.variances import encoder_variances
from expost.objectives import ELBO
from expost.optimise import minimise
from expost.results import Curve, Result, Series, Table
from expost.seeds import generator, seeded
from expost.system.progress import Bar

__all__ = [
    "LearnedVariance",
    "ManifoldCheck",
    "gaussian_ring",
    "learned_variance",
    "linear_cost",
    "manifold_check",
    "manifold_data",
    "optimal_linear_vae",
]

GAMMAS = (0.1, 0.05, 0.02, 0.01)
Model = Literal["closed form", "linear", "mlp"]


def manifold_data(n: int, dims: int, rank: int, *, curved: float = 0.0, seed: int = 0) -> Tensor:
    """n points of an r-dimensional manifold in R^d, float64 (n, dims): x = [t, curved · sin(2 t R)] Q.

    t ~ N(0, I_r), whitened so that their sample covariance is exactly I; R a rotation of R^r; Q has orthonormal rows. ``curved=0`` gives a
    linear subspace with ``rank`` covariance eigenvalues 1; else the manifold is the smooth graph of a function, of the same dimension.

    Raises:
        ValueError: rank outside 1 ... dims, fewer than rank + 1 points, or 2 · rank > dims for a curved manifold.
    """
    needed = 2 * rank if curved else rank
    if rank < 1 or needed > dims or n <= rank:
        raise ValueError(f"rank {rank} needs at least {max(1, needed)} dimensions and {rank + 1} points, not {dims} and {n}")
    g = generator("manifold", seed)
    t = torch.randn(n, rank, generator=g, dtype=torch.float64)
    t = t - t.mean(0)
    t = t @ torch.linalg.inv(torch.linalg.cholesky(t.T @ t / n)).T
    turn = torch.linalg.qr(torch.randn(rank, rank, generator=g, dtype=torch.float64)).Q
    frame = torch.linalg.qr(torch.randn(dims, dims, generator=g, dtype=torch.float64)).Q
    points = torch.cat([t, curved * torch.sin(2 * t @ turn)], 1) if curved else t
    return points @ frame[: points.shape[1]]


def gaussian_ring(n: int, components: int = 2, spread: float = 0.25, *, seed: int = 0) -> Tensor:
    """n points of a mixture of Gaussians N(m_k, spread² I), m_k evenly on the unit circle, (n, 2) float64: data with r = d = 2.

    With the two components of the default a small VAE encodes them; with eight it encodes nothing.
    """
    g = generator("ring", seed)
    angle = 2 * math.pi * torch.randint(components, (n,), generator=g).double() / components
    return torch.stack([angle.cos(), angle.sin()], 1) + spread * torch.randn(n, 2, generator=g, dtype=torch.float64)


def _eigen(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, eigenvalues (descending, ML covariance) and eigenvectors (columns) of data (n, d)."""
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"data must be a matrix (n, d) of at least 2 rows, not of shape {tuple(x.shape)}")
    mean = x.double().mean(0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    return mean, values.flip(0).clamp_min(0), vectors.flip(1)


def linear_cost(x: Tensor, latent: int, gamma: float) -> float:
    """The least mean -ELBO of a linear VAE with decoder variance γ on data (n, d), nats per example: the formula at the top of this file.

    >>> round(linear_cost(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 1, 1.0), 6) == round(math.log(2 * math.pi) + 0.5, 6)
    True
    """
    _, values, _ = _eigen(x)
    live = (torch.arange(len(values)) < latent) & (values > gamma)
    c = torch.where(live, values, torch.full_like(values, gamma))
    return float(0.5 * ((2 * math.pi * c).log() + values / c).sum())


def optimal_linear_vae(x: Tensor, latent: int, gamma: float) -> Autoencoder:
    """The linear VAE that reaches :func:`linear_cost`: float64, diagonal encoder, N(0, I) prior, γ fixed.

    Raises ``ValueError`` for a γ that is not positive or no latent dimensions.
    """
    if latent < 1 or not gamma > 0:
        raise ValueError(f"latent must be at least 1 and gamma positive, not {latent} and {gamma}")
    mean, values, vectors = _eigen(x)
    dims, used = len(values), min(latent, len(values))
    gain = (values[:used] - gamma).clamp_min(0)
    loading = torch.zeros(dims, latent, dtype=torch.float64)
    loading[:, :used] = vectors[:, :used] * gain.sqrt()
    variance = 1 / (1 + loading.square().sum(0) / gamma)
    head, gaussian = heads.Diagonal(), heads.Gaussian(math.sqrt(gamma)).double()
    encoder, decoder = nn.Linear(dims, 2 * latent).double(), nn.Linear(latent, dims).double()
    with torch.no_grad():
        to_code = variance[:, None] * loading.T / gamma
        encoder.weight.copy_(torch.cat([to_code, torch.zeros_like(to_code)]))
        encoder.bias.copy_(torch.cat([-to_code @ mean, variance.log()]))
        decoder.weight.copy_(loading)
        decoder.bias.copy_(mean)
        gaussian.log_scale.fill_(0.5 * math.log(gamma))
    return Autoencoder(Conditional(encoder, head), Conditional(decoder, gaussian), StandardNormal(latent).double())


def _network(n_in: int, n_out: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(n_in, n_out)
    return nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, n_out))


def _fresh(dims: int, latent: int, hidden: int, scale: float | Literal["shared"], seed: int) -> Autoencoder:
    head, gaussian = heads.Diagonal(), heads.Gaussian(scale)
    with seeded("manifold model", seed):
        encoder, decoder = _network(dims, head.size(latent), hidden), _network(latent, dims, hidden)
    return Autoencoder(Conditional(encoder, head), Conditional(decoder, gaussian), StandardNormal(latent))


@dataclass(frozen=True, eq=False)
class ManifoldCheck:
    """What a VAE on data of known dimension found.

    Attributes:
        kind: ``closed form`` (optimal linear VAE), ``linear`` or ``mlp`` (trained).
        dims, rank, latent: d, r and κ.
        medians: median encoder variances at the smallest γ, ascending, (κ,).
        small: how many of them are below ½; r in theory.
        unused: largest |median - 1| among the others; None if there are none.
        gammas: decoder variances, descending.
        costs: mean -ELBO at each, nats per example.
        slope: of the cost in log γ, by least squares; error of the fit, None for two γ.
        expected: (d - r)/2.
    """

    kind: str
    dims: int
    rank: int
    latent: int
    medians: tuple[float, ...]
    small: int
    unused: float | None
    gammas: tuple[float, ...]
    costs: tuple[float, ...]
    slope: Result
    expected: float

    def series(self) -> Series:
        return Series(self.kind, Curve([math.log(g) for g in self.gammas], list(self.costs), "log γ", "-ELBO (nats per example)"), "points")

    def table(self) -> Table:
        table = Table(("gamma", "-ELBO"), title=f"{self.kind}: rank {self.rank} in {self.dims} dimensions, {self.latent} latent")
        for gamma, cost in zip(self.gammas, self.costs, strict=True):
            table.add(gamma, cost)
        table.notes.append(f"{self.small} small encoder variances; slope in log γ {self.slope.value:.3f}, in theory {self.expected:g}")
        return table


def manifold_check(
    x: Tensor,
    rank: int,
    latent: int,
    *,
    kind: Model = "closed form",
    gammas: Sequence[float] = GAMMAS,
    steps: int = 1500,
    lr: float = 1e-2,
    hidden: int = 64,
    seed: int = 0,
) -> ManifoldCheck:
    """Encoder variances at a small γ, and the slope of -ELBO in log γ, of a VAE on data of known dimension.

    Dai & Wipf 2019, Theorems 1 and 2 and the discussion of d - r. A trained model starts at the largest γ and goes on from there to each smaller one,
    with ``steps`` steps each; its cost is estimated with 64 codes per example.

    Args:
        x: data (n, d).
        rank: r, their dimension, used for ``expected`` only.
        latent: κ.
        kind: the optimum of linear VAEs in closed form; or train a linear one, or one with two hidden layers each way.
        gammas: at least two decoder variances.
        steps, lr, hidden: of the training (batches of 256, cosine).
        seed: of weights, batches and codes.
    """
    values = sorted({float(g) for g in gammas}, reverse=True)
    if len(values) < 2 or values[-1] <= 0:
        raise ValueError(f"a slope needs at least 2 different positive variances, not {list(gammas)}")
    if kind not in ("closed form", "linear", "mlp"):
        raise ValueError(f'kind must be "closed form", "linear" or "mlp", not {kind!r}')
    costs: list[float] = []
    if kind == "closed form":
        model, data = optimal_linear_vae(x, latent, values[-1]), x.double()
        costs = [linear_cost(x, latent, g) for g in values]
    else:
        data = x.float()
        model = _fresh(x.shape[1], latent, hidden if kind == "mlp" else 0, math.sqrt(values[0]), seed)
        gaussian = model.decoder.head
        assert isinstance(gaussian, heads.Gaussian)
        with Bar(len(values), what="variances", after=1.0) as bar:
            for stage, gamma in bar.over(enumerate(values)):
                gaussian.log_scale.fill_(0.5 * math.log(gamma))
                _train(model, data, steps, lr, seed + stage, decay=True)
                with evaluating(model), seeded("manifold cost", seed):
                    costs.append(float(ELBO(samples=64)(model, data).total.double().mean()))
    found = encoder_variances(model, data)
    medians = sorted(found.medians)
    rest = medians[found.live :]
    return ManifoldCheck(
        kind, x.shape[1], rank, latent, tuple(medians), found.live, max(abs(m - 1) for m in rest) if rest else None,
        tuple(values), tuple(costs), _slope([math.log(g) for g in values], costs), (x.shape[1] - rank) / 2,
    )  # fmt: skip


def _train(
    model: Autoencoder,
    x: Tensor,
    steps: int,
    lr: float,
    seed: int,
    *,
    decay: bool,
    codes: int = 4,
    watch: list[tuple[int, float]] | None = None,
) -> None:
    objective, head = ELBO(samples=codes), model.decoder.head
    assert isinstance(head, heads.Gaussian)
    every = max(1, steps // 60)

    def record(step: int, loss: float) -> None:
        if watch is not None and ((step + 1) % every == 0 or step + 1 == steps):
            watch.append((step + 1, float(head.variance.detach())))

    minimise(
        lambda batch: objective(model, batch).total.mean(),
        [p for p in model.parameters() if p.requires_grad],
        data=x,
        batch_size=min(256, len(x)),
        steps=steps,
        lr=lr,
        lr_schedule=(lambda t: 0.5 * (1 + math.cos(math.pi * t))) if decay else None,
        seed=seed,
        progress=record,
    )


def _slope(x: Sequence[float], y: Sequence[float]) -> Result:
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    centred = a - a.mean()
    slope = float((centred * b).sum() / centred.square().sum())
    left = b - b.mean() - slope * centred
    error = float((left.square().sum() / (len(x) - 2) / centred.square().sum()).sqrt()) if len(x) > 2 else None
    return Result("slope of -ELBO in log γ", slope, error, len(x), unit="nats")


@dataclass(frozen=True, eq=False)
class LearnedVariance:
    """A learned γ through a training at a constant rate.

    Attributes:
        curve: log γ against steps.
        gamma: at the end.
        fall: of log γ over the second half of the steps, each end the mean of a tenth of the record; near 0 where γ levelled off.
        model: the trained autoencoder.
    """

    curve: Curve
    gamma: float
    fall: float
    model: Autoencoder


def learned_variance(x: Tensor, latent: int, *, steps: int = 4000, lr: float = 1e-2, hidden: int = 32, seed: int = 0) -> LearnedVariance:
    """Train a VAE with two hidden layers each way and a learned scalar γ on data (n, d), and record log γ.

    Args:
        x: data (n, d).
        latent: κ.
        steps, lr, hidden: of the training (batches of 256, one code each, constant rate).
        seed: of weights, batches and codes.
    """
    if steps < 100:
        raise ValueError(f"whether γ levels off cannot be seen in {steps} steps: use at least 100")
    model, seen = _fresh(x.shape[1], latent, hidden, "shared", seed), list[tuple[int, float]]()
    _train(model, x.float(), steps, lr, seed, decay=False, codes=1, watch=seen)
    logs = [math.log(g) for _, g in seen]
    tenth, middle = max(1, len(logs) // 10), len(logs) // 2
    start, end = logs[middle - tenth // 2 :][:tenth], logs[-tenth:]
    fall = sum(start) / len(start) - sum(end) / len(end)
    return LearnedVariance(Curve([float(s) for s, _ in seen], logs, "iterations", "log γ"), seen[-1][1], fall, model)
