r"""Does the decoder memorise? (Bozkurt, Esmaeili, Brooks, Dy, van de Meent 2018, "Can VAEs generate novel examples?")

For a fixed encoder and an exponential-family likelihood with unlimited capacity, the best decoder is known (Theorem 1): its mean at z is the
average of the *training data*, weighted by how likely each is to have produced z,

    μ*(z) = Σ_n w_n(z) x_n,    w_n(z) = q(z | x_n) / Σ_j q(z | x_j).

Where posteriors hardly overlap, one weight is 1 and μ* is the nearest training image: a decoder that comes close to it has memorised. So for
data that the model has not seen, compare how far the reconstruction x̂ is from the input x and from the weighted average μ*: a decoder that
generalises lands near x, one that memorises near μ*. Distances are those of the likelihood: the cross-entropy for data in [0, 1]
(Bernoulli, CrossEntropy decoders), the squared error otherwise, summed over the event.

A cross-entropy with grey targets has a floor, the entropy of its target, and μ* is softer than x where perplexity exceeds 1. The excess over
the floor, KL(target || x̂), is therefore given beside it. z is the posterior mean throughout, as in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder, evaluating
from expost.distributions import CrossEntropy, base_of, binary, check_data
from expost.posterior.aggregate import AggregatePosterior, Responsibilities
from expost.results import Result, Table
from expost.tensors import batches, takes_data, unit

__all__ = ["LatentMap", "OptimalDecoder", "aggregate_of", "distance", "floor", "latent_map", "optimal_decoder"]

#: Log-arguments are kept this far from 0, as in the authors' code (float32 epsilon).
EPSILON = 2.0**-23


def distance(target: Tensor, output: Tensor, kind: str = "cross-entropy") -> Tensor:
    """(n,) distance of outputs (n, *event) from targets: ``cross-entropy`` Σ -[t log o + (1 - t) log(1 - o)] in nats, or ``squared`` ‖t - o‖²."""
    t, o = target.double().flatten(1), output.double().flatten(1)
    if kind == "squared":
        return (t - o).square().sum(1)
    o = o.clamp(EPSILON, 1 - EPSILON)
    return -(t * o.log() + (1 - t) * torch.log1p(-o)).sum(1)


def floor(target: Tensor, kind: str = "cross-entropy") -> Tensor:
    """(n,) smallest possible distance from targets: their entropy, or 0 for the squared error."""
    t = target.double().flatten(1)
    if kind == "squared":
        return torch.zeros(len(t), dtype=torch.float64, device=t.device)
    return -(torch.xlogy(t, t) + torch.xlogy(1 - t, 1 - t)).sum(1)


@dataclass(frozen=True, eq=False)
class OptimalDecoder:
    """Inputs, their reconstructions and what the optimal decoder would give, m images each.

    Attributes:
        inputs, reconstructions, averages: (m, *event); averages are μ*.
        weights: entropy, perplexity, effective sample size, largest weights and their training indices, log q(z).
        to_input, to_average: (m,) distance of the target x, or μ*, from x̂.
        floor_input, floor_average: (m,) smallest possible values of these.
        kind: ``cross-entropy`` (nats) or ``squared``.
        n_train: N, number of training data behind the weights.
    """

    inputs: Tensor
    reconstructions: Tensor
    averages: Tensor
    weights: Responsibilities
    to_input: Tensor
    to_average: Tensor
    floor_input: Tensor
    floor_average: Tensor
    kind: str
    n_train: int

    @property
    def closer_to_input(self) -> Result:
        """Share of images whose reconstruction is closer to the input than to the weighted average of training data."""
        return _share("closer to the input than to the optimal decoder", self.to_input < self.to_average, self)

    def certain(self, below: float = 1.2) -> Result:
        """Share of images whose weights have a perplexity below ``below``: one training image explains the code."""
        return _share(f"perplexity below {below:g}", self.weights.perplexity < below, self)

    @property
    def gap(self) -> Result:
        """Mean of distance to input minus distance to weighted average: positive where the decoder behaves like the optimal one."""
        difference = self.to_input - self.to_average
        error = float(difference.std() / math.sqrt(len(difference))) if len(difference) > 1 else None
        return Result("distance to input - distance to average", float(difference.mean()), error, len(difference), self.unit)

    @property
    def unit(self) -> str:
        return "nats" if self.kind == "cross-entropy" else ""

    def table(self, title: str = "") -> Table:
        table = Table(("quantity", "mean", "median"), title=title)
        for name, value in (
            ("distance of x̂ from the input", self.to_input),
            ("distance of x̂ from the weighted average", self.to_average),
            ("the same above its floor, input", self.to_input - self.floor_input),
            ("the same above its floor, average", self.to_average - self.floor_average),
            ("perplexity of the weights", self.weights.perplexity),
            ("effective sample size", self.weights.ess),
            ("largest weight", self.weights.largest),
        ):
            table.add(name, float(value.double().mean()), float(value.double().median()))
        share, certain = self.closer_to_input, self.certain()
        table.notes += [
            f"{self.kind}, summed over the event; {len(self.inputs)} images against {self.n_train} training images",
            f"closer to the input: {share.value:.3f} ± {share.error or 0:.3f}; perplexity below 1.2: {certain.value:.3f}",
        ]
        return table


def _share(name: str, mask: Tensor, of: OptimalDecoder) -> Result:
    p, n = float(mask.double().mean()), len(mask)
    notes = ("fewer than 50 images: the share is rough",) if n < 50 else ()
    return Result(name, p, math.sqrt(p * (1 - p) / n), n, "", notes)


def aggregate_of(model: Autoencoder, train: Tensor, *, batch_size: int = 500, memory: int = 256_000_000) -> AggregatePosterior:
    """q(z) of a model over its training data (N, *event); ``ValueError`` for a deterministic encoder, which has no q(z | x)."""
    return AggregatePosterior(model.posteriors(train, batch_size=batch_size), memory=memory)


def kind_of(model: Autoencoder, z: Tensor) -> str:
    """The distance that belongs to a model's likelihood."""
    with evaluating(model):
        p = model.decode(z[:1])
    return "cross-entropy" if binary(p) or isinstance(base_of(p), CrossEntropy) else "squared"


@takes_data("train", "x", "exclude")
def optimal_decoder(
    model: Autoencoder,
    train: Tensor,
    x: Tensor,
    *,
    top: int = 3,
    exclude: Tensor | None = None,
    aggregate: AggregatePosterior | None = None,
    batch_size: int = 500,
    memory: int = 256_000_000,
) -> OptimalDecoder:
    """Reconstructions of x beside what the optimal decoder of this encoder would give (see the top of this file).

    Args:
        model: with Gaussian posteriors.
        train: (N, *event), the data that the model was trained on, uint8 or floats.
        x: (m, *event), what is reconstructed: data that the model has not seen.
        top: how many of the largest weights to keep with their indices.
        exclude: (m,) training index to leave out for each x: where x are training data, their own weight would be 1.
        aggregate: q(z) of the training data, if it is at hand.
        memory: bytes for blocks of weights.

    Raises:
        ValueError: a deterministic encoder; shapes of train and x differ.
    """
    if train.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"training data of shape {tuple(train.shape[1:])} and data of shape {tuple(x.shape[1:])}: give the same kind of data"
        )
    aggregate = aggregate or aggregate_of(model, train, batch_size=batch_size, memory=memory)
    z = model.latents(x, at="mean", batch_size=batch_size)
    with evaluating(model):
        check_data(model.decode(z[:1]), unit(x[:1].to(z.device)))
    weights = aggregate.query(z, values=train.to(z.device), top=top, exclude=exclude)
    assert weights.average is not None
    outputs, kind = model.decode_points(z, batch_size=batch_size), kind_of(model, z)
    columns: dict[str, list[Tensor]] = {"to_input": [], "to_average": [], "floor_input": [], "floor_average": []}
    for images, means, decoded in zip(*(batches(t, batch_size) for t in (x, weights.average, outputs)), strict=True):
        target, average = unit(images.to(decoded.device)), means.clamp(0, 1) if kind == "cross-entropy" else means
        columns["to_input"].append(distance(target, decoded, kind))
        columns["to_average"].append(distance(average, decoded, kind))
        columns["floor_input"].append(floor(target, kind))
        columns["floor_average"].append(floor(average, kind))
    return OptimalDecoder(
        unit(x).cpu(),
        outputs.cpu(),
        weights.average.float().cpu(),
        weights,
        **{name: torch.cat(parts).cpu() for name, parts in columns.items()},
        kind=kind,
        n_train=len(train),
    )


@dataclass(frozen=True, eq=False)
class LatentMap:
    """A plane of codes, seen by the optimal decoder.

    Attributes:
        bound: the square is [-bound, bound]².
        largest: (points, points) max_n w_n(z); rows are z₂ from the top (bound) down, columns z₁.
        log_aggregate: (points, points) log q(z), nats.
        nearest: (points, points) index of the training image with the largest weight.
        means, stds: (N, 2) of the training posteriors.
    """

    bound: float
    largest: Tensor
    log_aggregate: Tensor
    nearest: Tensor
    means: Tensor
    stds: Tensor

    def certain_share(self, above: float = 0.9) -> float:
        """Share of the plane with a largest weight above ``above``, weighted by the prior N(0, I) restricted to the square."""
        axis = torch.linspace(-self.bound, self.bound, len(self.largest), dtype=torch.float64)
        prior = torch.exp(-0.5 * axis.square())
        prior = prior[:, None] * prior
        return float((prior * (self.largest > above)).sum() / prior.sum())


@takes_data("train")
def latent_map(model: Autoencoder, train: Tensor, *, bound: float = 5.0, points: int = 600, memory: int = 256_000_000) -> LatentMap:
    """Largest optimal-decoder weight and q(z) over [-bound, bound]², for a model with two latent dimensions (Figure 3 of bozkurt2018)."""
    q = model.posteriors(train)
    if q.mean.shape[1] != 2:
        raise ValueError(f"a latent map needs two latent dimensions, not {q.mean.shape[1]}: train with --set latent=2")
    axis = torch.linspace(-bound, bound, points, device=q.mean.device)
    z = torch.stack([axis[None].expand(points, points), axis.flip(0)[:, None].expand(points, points)], -1).reshape(-1, 2)
    found = AggregatePosterior(q, memory=memory).query(z, top=1)
    square = (points, points)
    return LatentMap(
        bound,
        found.largest.reshape(square).cpu(),
        found.log_prob.reshape(square).cpu(),
        found.indices[:, 0].reshape(square).cpu(),
        q.mean.cpu(),
        q.stddev.cpu(),
    )
