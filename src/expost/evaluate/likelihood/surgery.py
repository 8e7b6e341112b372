r"""What the rate of a VAE is spent on: ELBO surgery (Hoffman and Johnson 2016, "ELBO surgery: yet another way to carve up the variational
evidence lower bound").

With the aggregate posterior q(z) = 1/N Σ_n q(z | x_n) over a data set of N images, the mean rate splits exactly:

    1/N Σ_n KL(q(z | x_n) || p(z))  =  I_q(n; z)  +  KL(q(z) || p(z))

I_q = E log q(z | x_n) / q(z) is how many nats a code tells about *which* image it came from, at most log N. The marginal KL is the mismatch
that an ex-post density removes: sampling from p(z) decodes codes that the decoder has not seen, sampling from q(z) does not.

All three are means over z ~ q(z | x_n) of the same log ratios, so the identity holds to rounding. q(z) is the exact mixture over all N
given images (minibatch estimates are capped at log of the batch and can go negative), from :mod:`expost.posterior.aggregate`: all N² pairs of code and
posterior in chunks of bounded memory, in float64 where it matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from expost.autoencoder import Autoencoder, _concatenate, evaluating
from expost.distributions import check_data, describe, normalised
from expost.divergences import has_closed_form, kl
from expost.evaluate.likelihood.importance import log_likelihood, log_prior_of, posterior, prepare, standard_error, stored
from expost.posterior.aggregate import AggregatePosterior, saturation
from expost.results import Result, Table
from expost.seeds import seeded
from expost.system.schema import check_counts
from expost.tensors import batches, takes_data

__all__ = ["Surgery", "aggregate_log_prob", "elbo_surgery"]

#: Rows decoded at once.
ROWS = 500


@dataclass(frozen=True, eq=False)
class Surgery:
    """The ELBO of a data set in parts, nats per image; ``rate = mutual_information + marginal_kl``.

    Attributes:
        rate: mean log q(z | x_n) - log p(z).
        mutual_information: I_q(n; z) = mean log q(z | x_n) - log q(z), at most ``log_n`` in expectation.
        marginal_kl: KL(q(z) || p(z)) = mean log q(z) - log p(z).
        distortion: mean -log p(x_n | z).
        elbo: -distortion - rate.
        log_n: log N.
        errors: standard error of each of these over images, by name.
        rate_exact: mean KL(q(z | x_n) || p(z)) in closed form where there is one; ``rate`` is its estimate from the same codes.
        n: N; ``samples``: codes per image; ``seed``: of the codes.
        notes: sentences that the reader must know.
    """

    rate: float
    mutual_information: float
    marginal_kl: float
    distortion: float
    elbo: float
    log_n: float
    errors: dict[str, float | None]
    rate_exact: float | None
    n: int
    samples: int
    seed: int
    notes: tuple[str, ...] = ()

    def result(self, name: str) -> Result:
        """One part by its attribute's name, e.g. ``mutual_information``."""
        return Result(name, getattr(self, name), self.errors.get(name), self.n, "nats", self.notes)

    def table(self, title: str = "") -> Table:
        table = Table(("part", "nats per image", "error"), title=title)
        table.add("ELBO", self.elbo, self.errors["elbo"])
        table.add("distortion", self.distortion, self.errors["distortion"])
        table.add("rate = I + KL(q(z) || p(z))", self.rate, self.errors["rate"])
        table.add("I(n; z), index-code mutual information", self.mutual_information, self.errors["mutual_information"])
        table.add("KL(q(z) || p(z)), marginal KL", self.marginal_kl, self.errors["marginal_kl"])
        table.add("log N", self.log_n, None)
        if self.rate_exact is not None:
            table.add("rate in closed form", self.rate_exact, None)
        table.notes += [
            f"N = {self.n} images, {self.samples} code(s) each, seed {self.seed}; estimated from these codes: what is near zero may come out negative",
            *self.notes,
        ]
        return table

    def __str__(self) -> str:
        return str(self.table("ELBO surgery"))

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "errors": dict(self.errors), "notes": list(self.notes)}


@takes_data("x")
def elbo_surgery(
    model: Autoencoder, x: Tensor, *, samples: int = 1, batch_size: int = 500, seed: int = 0, progress: bool | None = None
) -> Surgery:
    """Rate, mutual information and marginal KL of a data set, against its exact aggregate posterior (see the top of this file).

    Args:
        model: with a prior and Gaussian posteriors (diagonal or full covariance).
        x: (N, *event), uint8 or floats; both the images and the aggregate. Time grows as N².
        samples: codes per image.
        batch_size: images encoded together.

    Raises:
        ValueError: no prior, a deterministic encoder, posteriors that are not Gaussian, NaN.
    """
    check_counts(samples=samples, batch_size=batch_size)
    prior, notes = prepare(model, x)
    with evaluating(model):
        try:
            q = _concatenate([posterior(model, stored(model, part)) for part in batches(x, batch_size)])
        except TypeError as error:
            raise ValueError("the surgery needs Gaussian posteriors: give the encoder a Diagonal() or FullCovariance() head") from error
        with seeded("surgery", seed):
            z = q.sample((samples,))
            log_prior = log_prior_of(prior, z).double().cpu()
        exact = float(kl(q, prior).double().mean()) if has_closed_form(q, prior) else None
        mixture, codes = AggregatePosterior(q), z.flatten(0, 1)
        own = mixture.pair_log_prob(codes, torch.arange(len(x)).repeat(samples)).reshape(log_prior.shape).cpu()
        aggregate = mixture.log_prob(codes, progress=progress).reshape(log_prior.shape).cpu()
        parts = []
        for start in range(0, len(x), ROWS):
            images = stored(model, x[start : start + ROWS])
            decoded = [model.decode(codes) for codes in z[:, start : start + ROWS]]
            check_data(decoded[0], images)
            parts.append(torch.stack([-log_likelihood(p, images) for p in decoded]).double().cpu())
        if not normalised(decoded[0]):
            notes += (f"{describe(decoded[0])} is not a likelihood: distortion and ELBO are a loss, not a bound of log p(x)",)
    distortion = torch.cat(parts, 1)
    values = {
        "rate": own - log_prior,
        "mutual_information": own - aggregate,
        "marginal_kl": aggregate - log_prior,
        "distortion": distortion,
        "elbo": log_prior - own - distortion,
    }
    means = {name: float(value.mean()) for name, value in values.items()}
    errors = {name: standard_error(value.mean(0)) for name, value in values.items()}
    log_n = math.log(len(x))
    if not all(math.isfinite(v) for v in means.values()):
        raise ValueError("a part of the ELBO is not finite: check the data's range and that the training did not diverge")
    notes += saturation(means["mutual_information"], len(x))
    return Surgery(**means, log_n=log_n, errors=errors, rate_exact=exact, n=len(x), samples=samples, seed=seed, notes=notes)


def aggregate_log_prob(q: Distribution, z: Tensor, *, memory: int = 256_000_000) -> Tensor:
    """log q(z) = log 1/N Σ_n q(z | x_n) in nats, (m,) float64, for codes z (m, d) and Gaussian posteriors of batch shape (N,).

    Short for ``AggregatePosterior(q, memory=memory).log_prob(z)``.

    >>> from torch.distributions import Independent, Normal
    >>> q = Independent(Normal(torch.tensor([[0.0], [0.0]]), torch.ones(2, 1)), 1)
    >>> round(float(aggregate_log_prob(q, torch.zeros(1, 1))), 4) == round(-0.5 * math.log(2 * math.pi), 4)
    True
    """
    return AggregatePosterior(q, memory=memory).log_prob(z)
