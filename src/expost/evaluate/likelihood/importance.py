r"""How probable are held-out data under an autoencoder? The importance-weighted bound, streamed.

    log p_k(x) = log 1/k Σ_i w_i,   w_i = p(x | z_i) p(z_i) / q(z_i | x),   z_i ~ q(z | x)

(Burda, Grosse, Salakhutdinov 2016, "Importance weighted autoencoders", eq. 8). The mean of the weights is unbiased for p(x), so its
logarithm is a lower bound of log p(x) in expectation, non-decreasing in k, and equal to the single-sample ELBO for k = 1. How loose it
still is shows in two numbers: its growth from k/4 to k/2 to k, and the effective sample size (Σ w)² / Σ w², which near 1 says that one
sample carries the estimate and the bound may be far too low.

Each batch is encoded once; samples come in blocks of :data:`BLOCK`, are decoded a few at a time, and only (max, Σ w, Σ w²) is kept, in
float64. Memory therefore does not depend on k, and neither the chunk nor k changes the numbers already drawn: a block's noise depends on
the seed, the batch's first image and the block alone.

If the prior is itself an autoencoder, its log p(z) is such a bound with fewer samples. exp of it is unbiased for p(z), hence the weights
stay unbiased for p(x) and the result stays a lower bound, a looser one.

bits/dim = -log p(x) / (D ln 2). This is a code length only if p(x) is a probability *mass* of the stored values (Bernoulli on {0, 1},
discretised heads on 8-bit levels). A Gaussian on pixels in [0, 1] gives a *density*, which may exceed one; for data that were uniformly
dequantised, (byte + u) / 256, it bounds the code length after adding log2 256 = 8 bits/dim (Theis, van den Oord, Bethge 2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution

from expost.autoencoder import Autoencoder, evaluating
from expost.distributions import IsotropicGaussian, Marginal, base_of, check_data, describe, deterministic, normalised, point
from expost.evaluate.likelihood.streaming import BLOCK, Running, blocks, chunks, cut
from expost.results import Result, Table
from expost.seeds import seeded
from expost.system.progress import Bar
from expost.system.schema import Meta, check_counts, check_value
from expost.tensors import as_data, check_finite, sum_event, takes_data

__all__ = ["Likelihood", "importance_bound", "log_likelihood"]

#: Rows of codes times inner samples of a prior that is itself an autoencoder, evaluated at once.
INNER_ROWS = 4096
#: Below this median effective sample size a note is made.
FEW = 5.0


@dataclass(frozen=True, eq=False)
class Likelihood:
    """log p_k(x) of each image, with what is needed to judge it.

    Attributes:
        log_prob: log p_k(x), (n,) float64 on the CPU, nats per image.
        effective: (Σ w)² / Σ w², between 1 and k, (n,) float64.
        elbo: mean log weight, (n,) float64: the ELBO with all k samples.
        samples: k.
        marks: log p_j(x) of each image for every j asked for (default k/4, k/2, k), {j: (n,) float64}.
        dims: numbers per image, D.
        mass: whether p(x | z) is a probability mass (code length) rather than a density.
        dequantised: whether the data were 8-bit values with uniform noise, (byte + u) / 256: bits/dim then are those of the bytes.
        seed: of the noise.
        notes: sentences that the reader must know.
    """

    log_prob: Tensor
    effective: Tensor
    elbo: Tensor
    samples: int
    marks: dict[int, Tensor]
    dims: int
    mass: bool
    seed: int
    notes: tuple[str, ...] = ()
    dequantised: bool = False

    @property
    def n(self) -> int:
        return len(self.log_prob)

    @property
    def growth(self) -> dict[int, float]:
        """Mean log p_j over images for every j in :attr:`marks`."""
        return {j: float(values.mean()) for j, values in self.marks.items()}

    @property
    def mean(self) -> float:
        """Mean log p_k(x) over images, nats."""
        return float(self.log_prob.mean())

    @property
    def error(self) -> float | None:
        """Standard error of :attr:`mean` over images; None for a single one."""
        return standard_error(self.log_prob)

    @property
    def nll(self) -> Result:
        """-log p_k(x) in nats per image, an upper bound of the negative log-likelihood in expectation."""
        details = {f"-log p_{k}": -v for k, v in self.growth.items()}
        details |= {"negative ELBO": -float(self.elbo.mean()), "median effective samples": float(self.effective.median())}
        return Result(f"NLL[importance {self.samples}]", -self.mean, self.error, self.n, "nats", self.notes, details)

    @property
    def bits_per_dim(self) -> Result:
        """-log2 p_k(x) / D, with the conversion in its notes."""
        return bits_per_dim(self.nll, self.dims, self.mass, self.dequantised)

    def table(self, title: str = "") -> Table:
        table = Table(("what", "value", "error", "unit"), title=title)
        bits = self.bits_per_dim
        table.add(f"NLL, k = {self.samples}", -self.mean, self.error, "nats")
        for k, value in list(self.growth.items())[:-1]:
            table.add(f"NLL, k = {k}", -value, None, "nats")
        table.add(f"negative ELBO, mean of {self.samples} samples", -float(self.elbo.mean()), standard_error(self.elbo), "nats")
        table.add("bits/dim of the bytes" if self.dequantised and not self.mass else "bits/dim", bits.value, bits.error, "bits/dim")
        table.add("effective samples, median", float(self.effective.median()), None, f"of {self.samples}")
        table.notes += [f"n = {self.n} images, seed {self.seed}", *bits.notes]
        return table

    def __str__(self) -> str:
        return str(self.table("Importance-weighted bound of log p(x)"))

    def to_json(self) -> dict[str, Any]:
        return {
            "nll": self.nll.to_json(),
            "bits_per_dim": self.bits_per_dim.to_json(),
            "samples": self.samples,
            "growth": {str(k): v for k, v in self.growth.items()},
            "seed": self.seed,
        }


@takes_data("x")
def importance_bound(
    model: Autoencoder,
    x: Tensor,
    *,
    samples: int = 1000,
    batch_size: int = 100,
    chunk: int | None = None,
    marks: tuple[int, ...] | None = None,
    seed: int = 0,
    dequantised: bool = False,
    progress: bool | None = None,
) -> Likelihood:
    r"""The importance-weighted bound log p_k(x) of every image (see the top of this file).

    Args:
        model: an autoencoder with a prior, an encoder with a density and a normalised head; any prior, also another autoencoder.
        x: (n, *event), uint8 (scaled to [0, 1]) or floats.
        samples: k.
        batch_size: images encoded together; the noise of an image depends on it.
        chunk: samples per image decoded together, at most :data:`BLOCK`; None chooses by memory. Changes results by rounding only.
        marks: further numbers of samples, at most k, at which the bound is kept; default k/4 and k/2.
        seed: same seed, same batch size, same numbers.
        dequantised: the data are (byte + u) / 256 with uniform u: bits/dim are those of the bytes, 8 more than the density's.
        progress: False for silence, True to be heard off a terminal too; default: see :mod:`expost.system.progress`.

    Raises:
        ValueError: no prior, a deterministic encoder, an unnormalised head (CrossEntropy), data that the head cannot have made, NaN.
    """
    check_counts(samples=samples, batch_size=batch_size, chunk=1 if chunk is None else chunk)
    for mark in marks or ():
        check_value(mark, Annotated[int, Meta(ge=1, le=samples)], "a number of samples in marks")
    prior, notes = prepare(model, x)
    at = sorted({max(1, samples // 4), max(1, samples // 2), samples} if marks is None else {*marks, samples})
    bounds: list[Tensor] = []
    effective: list[Tensor] = []
    elbo: list[Tensor] = []
    mass, first = False, True
    with Bar(len(x), enabled=progress, what="likelihood") as bar, evaluating(model):
        for start in range(0, len(x), batch_size):
            images = stored(model, x[start : start + batch_size])
            q = posterior(model, images)
            running = Running(len(images), images.device)
            at_marks = []
            for number, block in enumerate(blocks(samples)):
                with seeded("likelihood", seed, start, number):
                    z = q.sample((BLOCK,))[:block]  # a whole block even if the last is shorter: k changes no sample that came before
                    log_weights = log_prior_of(prior, z) - q.log_prob(z)
                for row, part in chunks(z, chunk, images):
                    p = model.decode(part)
                    if first:
                        mass, first = is_mass(p), False
                        notes += check_head(p)
                    if row == 0 and number == 0:
                        check_data(p, images)
                    log_weights[row : row + len(part)] += log_likelihood(p, images)
                for part in cut(log_weights, number * BLOCK, at):
                    running.update(part)
                    if running.count in at:
                        at_marks.append(running.log_mean())
            bounds.append(torch.stack(at_marks).cpu())
            effective.append(running.effective().cpu())
            elbo.append((running.total / samples).cpu())
            bar.update(min(start + batch_size, len(x)))
    every = torch.cat(bounds, 1)
    bad = ~torch.isfinite(every[-1])
    if bad.any():
        raise ValueError(
            f"log p(x) is not finite for {int(bad.sum())} of {len(x)} images (first: image {int(bad.nonzero()[0])}): "
            "check the data's range and that the training did not diverge"
        )
    ess = torch.cat(effective)
    if float(ess.median()) < FEW and samples >= 4 * FEW:
        notes += (
            f"the median effective sample size is {float(ess.median()):.1f} of {samples}: single samples carry the estimate, so log p(x) "
            "may be much higher than this bound; raise samples, or use annealed importance sampling (annealed_bound, --annealed)",
        )
    return Likelihood(
        every[-1], ess, torch.cat(elbo), samples, dict(zip(at, every, strict=True)), math.prod(x.shape[1:]), mass, seed, notes, dequantised
    )


def log_likelihood(p: Distribution, x: Tensor) -> Tensor:
    """log p(x | z) for a decoded distribution, in nats: the distribution's own ``log_prob``, and for Bernoulli pixels the same sum as
    -Σ softplus((1 - 2x) logit), which loses nothing to cancellation and is several times faster than binary cross-entropy."""
    base = base_of(p)
    if isinstance(base, Bernoulli):
        return -sum_event(F.softplus(base.logits * (1 - 2 * x)), len(p.event_shape))
    return p.log_prob(x)


# -- shared with the annealed bounds and the surgery ---------------------------------------------------------------------------------------


def prepare(model: Autoencoder, x: Tensor | None = None) -> tuple[Distribution, tuple[str, ...]]:
    """The prior p(z) and notes about it; ``ValueError`` for a model without one, and for data that are empty, not finite or not the model's."""
    if model.prior is None:
        raise ValueError(
            "this autoencoder has no prior, so it gives data no probability: fit one, e.g. "
            "model.with_prior(GMM(d, 10).fit(model.latents(x, at='sample')))"
        )
    if x is not None:
        if len(x) == 0:
            raise ValueError("there are no images to evaluate: pass at least one")
        check_finite(x, "images")
        _check_shape(model, x)
    with evaluating(model):
        prior = model.latent()
    if not normalised(prior):
        raise ValueError(
            f"the prior {describe(prior)} is not a normalised density: use a Gaussian, a mixture, a flow or another autoencoder"
        )
    if isinstance(prior, Marginal):
        inner = f"the prior is itself an autoencoder: its log p(z) is estimated with {prior.samples} inner samples, which loosens the bound"
        return prior, (inner,)
    return prior, ()


def _check_shape(model: Autoencoder, x: Tensor) -> None:
    """``ValueError`` for images that the networks do not take: found out with one of them, before any work."""
    shape = tuple(x.shape[1:])
    try:
        with evaluating(model):
            made = tuple(model.decoder(point(model.encoder(stored(model, x[:1])))).event_shape)
    except (RuntimeError, IndexError):
        raise ValueError(f"the model does not take images of shape {shape}: give images of the shape that it was trained on") from None
    if made != shape:
        raise ValueError(f"the model makes images of shape {made}, and these are {shape}: give images of the shape that it was trained on")


def stored(model: Autoencoder, x: Tensor) -> Tensor:
    """Stored data as the model takes them."""
    return model.stored(as_data(x))


def posterior(model: Autoencoder, images: Tensor) -> Distribution:
    """q(z | x), or ``ValueError`` for a deterministic encoder."""
    q = model.encode(images)
    if deterministic(q):
        raise ValueError("a deterministic encoder gives no bound of log p(x): give the encoder a Constant(scale) or Diagonal() head")
    return q


def check_head(p: Distribution) -> tuple[str, ...]:
    """Notes about a decoded distribution; ``ValueError`` if it is no likelihood, or would fit itself to the data it scores."""
    if not normalised(p):
        raise ValueError(f"{describe(p)} is not a normalised likelihood: use a Bernoulli, Gaussian or discretised head for log p(x)")
    base = base_of(p)
    if isinstance(base, IsotropicGaussian):
        if base.optimal:
            raise ValueError("this Gaussian head fits its variance to the data it scores: put the model in evaluation mode first")
        return (f"one pixel variance for all data, as stored in the head: {float(base.scale) ** 2:.4g}",)
    return ()


def is_mass(p: Distribution) -> bool:
    """Whether p(x | z) is a probability of stored values and not a density."""
    base = base_of(p)
    return bool(getattr(base.support, "is_discrete", False)) or hasattr(base, "levels")


def bits_per_dim(nll: Result, dims: int, mass: bool, dequantised: bool = False) -> Result:
    """The same number as -log2 p(x) / D; the conversion goes into the notes."""
    scale = dims * math.log(2)
    value = nll.value / scale
    notes = [f"{nll.value:.6g} nats / ({dims} x ln 2) = {value:.4g} bits/dim"]
    details: dict[str, float] = {}
    if not mass:
        details["dequantised"] = value + 8
        sum_of_both = f"{value:.4g} + log2(256) = {value + 8:.4g} bits/dim"
        if dequantised:
            notes.append(f"8-bit data with uniform noise, (byte + u) / 256: {sum_of_both} bound the code length of the bytes")
            value += 8
        else:
            notes.append(
                "p(x) is a density, not a probability: these bits/dim are no code length and may be negative; only for 8-bit data with "
                f"uniform noise, (byte + u) / 256, do {sum_of_both} bound one"
            )
    error = None if nll.error is None else nll.error / scale
    return Result(nll.name.replace("NLL", "bits/dim"), value, error, nll.n, "bits/dim", (*notes, *nll.notes), details)


def standard_error(values: Tensor) -> float | None:
    """Standard deviation / √n, None for one value."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


def log_prior_of(prior: Distribution, z: Tensor) -> Tensor:
    """log p(z); an inner autoencoder's in slices of bounded memory."""
    if not isinstance(prior, Marginal):
        return prior.log_prob(z)
    flat = z.flatten(0, 1)
    parts = [prior.log_prob(part) for part in flat.split(max(1, INNER_ROWS // prior.samples))]
    return torch.cat(parts).reshape(z.shape[:2])
