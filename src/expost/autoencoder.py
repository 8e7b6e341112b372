"""An autoencoder is a density on x: p(x) = ∫ p(x | z) p(z) dz, with an encoder q(z | x) beside it.

The prior used in training and the density fitted ex post are the same slot: ``model.with_prior(GMM(d).fit(z))`` is a new model that
shares encoder and decoder. Since an autoencoder is itself a :class:`~expost.density.Density`, it can be the prior of another one: that
is the two-stage VAE, and everything that works on one level works on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from expost.conditional import Conditional
from expost.density.base import Codes, Density
from expost.distributions import Marginal, point
from expost.seeds import seeded
from expost.system.hashes import content_hash
from expost.system.memory import check_room
from expost.system.progress import Bar
from expost.tensors import as_data, batches, check_levels, unit

__all__ = ["Autoencoder", "check_weights", "evaluating", "remembering"]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block; every module's own mode is restored afterwards."""
    every = [m for module in modules for m in module.modules()]
    modes = [m.training for m in every]
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, mode in zip(every, modes, strict=True):
            m.training = mode


@contextmanager
def remembering(encoder: nn.Module) -> Iterator[None]:
    """Batches that the encoder has seen cost it nothing inside the block, in evaluation mode and without gradients: for many measurements of the same data."""
    own, known, before = encoder.forward, dict[str, Distribution](), encoder.__dict__.get("forward")

    def forward(x: Tensor) -> Distribution:
        if encoder.training or torch.is_grad_enabled():
            return own(x)
        key = content_hash(x)
        if key not in known:
            known[key] = own(x)
        return known[key]

    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward
        if before is not None:
            encoder.forward = before


@contextmanager
def _fitting(part: str, what: str, value: Tensor) -> Iterator[None]:
    """A network that fails at what it is given says the shape; one that finds no memory fails as it does."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if "memory" in said:
            raise
        raise ValueError(
            f"the {part} does not take {what} of shape {tuple(value.shape[1:])} ({said[:200]}): give what the model was made for"
        ) from error


def check_weights(model: nn.Module) -> None:
    """``ValueError`` if weights hold NaN or infinity: nothing can be made of such a model."""
    broken = [name for name, value in model.state_dict().items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(
            f"{len(broken)} of the model's weights hold NaN or infinity (first: {broken[0]}), so nothing can be made of it: its training diverged; "
            "train again with a smaller learning rate, --set training.lr=..."
        )


class Autoencoder(Density):
    """(encoder, decoder, prior).

    Args:
        encoder: x -> q(z | x).
        decoder: z -> p(x | z).
        prior: p(z), in training and for sampling; None for a plain autoencoder, which then cannot sample until ``with_prior``.
        samples: K of the K-sample bound by which this model is a density, in particular as the prior of another one; 1 trains a
            hierarchy by its ELBO.

    ``encode``, ``decode`` and ``forward`` are differentiable and take floats. ``latents``, ``generate`` and ``reconstruct`` are for use:
    they take stored data (``uint8`` too), of any length, work in batches in evaluation mode and return results on the model's device.
    """

    def __init__(self, encoder: Conditional, decoder: Conditional, prior: Density | None = None, samples: int = 16) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior, self.samples = encoder, decoder, prior, samples

    def encode(self, x: Tensor) -> Distribution:
        """q(z | x) for x of shape (*batch, *event); ``ValueError`` if x or the prior is of another shape than the model's."""
        with _fitting("encoder", "data", x):
            q: Distribution = self.encoder(x)
        d = getattr(self.prior, "d", None)
        if d is not None and tuple(q.event_shape) != (d,):
            raise ValueError(
                f"the prior is for codes of {d} dimensions, and those of the encoder have shape {tuple(q.event_shape)}: give another prior"
            )
        return q

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z) for z of shape (*batch, d); ``ValueError`` if the decoder takes no codes of this shape."""
        with _fitting("decoder", "codes", z):
            return self.decoder(z)

    def latent(self) -> Distribution:
        """p(z)."""
        if self.prior is None:
            raise ValueError(
                "this autoencoder has no prior to sample from: fit one, e.g. model.with_prior(GMM(d, 10).fit(model.latents(x, at='mean')))"
            )
        return self.prior()

    def forward(self, samples: int | None = None) -> Distribution:
        """p(x): exact sampling, and a ``samples``-sample lower bound (default: the model's) as ``log_prob``."""
        return Marginal(self, self.samples if samples is None else samples)

    def fit(self, z: Codes, *, seed: int = 0) -> Self:
        raise ValueError(
            "an Autoencoder is trained with expost.fit(model, objective, x); to use one as a density on codes, wrap it in SecondStage(...)"
        )

    def with_prior(self, prior: Density | None) -> Autoencoder:
        """The same encoder and decoder (shared, not copied) with another prior; ``self`` is unchanged."""
        return Autoencoder(self.encoder, self.decoder, prior, self.samples)

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What data and codes are for this model: float64 if its weights are, else float32 (networks of lower precision convert for themselves)."""
        weights = next((p.dtype for p in self.decoder.parameters() if p.is_floating_point()), torch.float32)
        return torch.promote_types(weights, torch.float32)

    def stored(self, x: Tensor) -> Tensor:
        """Stored data as the model takes them: on its device, uint8 scaled to [0, 1], of its :attr:`dtype`."""
        return unit(x.to(self.device), self.dtype)

    def _batches(self, x: Tensor, size: int) -> Iterator[Tensor]:
        """What :meth:`stored` takes, from whatever people hold."""
        yield from batches(check_levels(as_data(x), "the data"), size)

    def posteriors(self, x: Tensor, *, batch_size: int = 500) -> Distribution:
        """q(z | x_i) for a whole data set as one distribution of batch shape (n,): what a second stage draws its codes from."""
        with evaluating(self), _bar(x, "encoding") as bar:
            parts = [self.encode(self.stored(b)) for b in bar.over(self._batches(x, batch_size), len)]
        return _concatenate(parts)

    def latents(self, x: Tensor, *, at: Literal["mean", "sample"], batch_size: int = 500, seed: int = 0) -> Tensor:
        """Codes (n, d) of stored data: the posterior means, or one sample of each posterior.

        Args:
            x: (n, *event), uint8 or float.
            at: which; there is no default, because papers differ and results depend on it.
        """
        if at not in ("mean", "sample"):
            raise ValueError(f'at must be "mean" or "sample", not {at!r}')
        with evaluating(self), seeded("latents", seed), _bar(x, "encoding") as bar:
            parts = [self.encode(self.stored(b)) for b in bar.over(self._batches(x, batch_size), len)]
            if at == "mean":
                return torch.cat([q.mean for q in parts])
            try:
                return _concatenate(parts).sample()  # drawn at once: the same codes for any batch size
            except TypeError:
                return torch.cat([q.sample() for q in parts])

    def generate(self, n: int, *, batch_size: int = 500, seed: int = 0) -> Tensor:
        """point(p(x | z)), z ~ p(z): what papers show as samples (no pixel noise), (n, *event) floats."""
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1, not {n}")
        with evaluating(self), seeded("generate", seed):
            prior = self.latent()
            check_room(4.0 * n * prior.event_shape.numel(), f"codes of {n} samples")
            z = prior.sample((n,))
            x = self.decode_points(z, batch_size=batch_size)
        bad = ~torch.isfinite(x.flatten(1)).all(1)
        if bad.any():
            check_weights(self.decoder)
            raise ValueError(
                f"{int(bad.sum())} of {n} samples hold NaN or infinity (first: sample {int(bad.nonzero()[0])}): the prior draws codes that the decoder "
                "cannot follow; fit another density to the codes"
            )
        return x

    def decode_points(self, z: Tensor, *, batch_size: int = 500) -> Tensor:
        """point(p(x | z)) for many codes (n, d): (n, *event)."""
        with evaluating(self), _bar(z, "decoding") as bar:
            made = (point(self.decode(b)) for b in bar.over(batches(z.to(self.device), batch_size), len))
            first = next(made)
            check_room(8.0 * len(z) * first[0].numel(), f"{len(z)} decoded codes")  # as parts and joined
            return torch.cat([first, *made])

    def reconstruct(self, x: Tensor, *, batch_size: int = 500) -> Tensor:
        """point(p(x | point(q(z | x)))) for stored data, (n, *event) floats."""
        with evaluating(self), _bar(x, "reconstructing") as bar:
            return torch.cat([point(self.decode(point(self.encode(self.stored(b))))) for b in bar.over(self._batches(x, batch_size), len)])


def _bar(rows: Tensor, what: str) -> Bar:
    return Bar(len(as_data(rows)), what=what, after=1.0)


def _concatenate(parts: list[Distribution]) -> Distribution:
    """One distribution from batches of one family: Normal (factorised), full-covariance Gaussian, or Dirac."""
    from torch.distributions import Independent, MultivariateNormal, Normal

    from expost.distributions import Dirac

    first = parts[0]
    if isinstance(first, Dirac):
        return Dirac(torch.cat([p.mean for p in parts]))
    if isinstance(first, MultivariateNormal):
        return MultivariateNormal(
            torch.cat([p.mean for p in parts]),
            scale_tril=torch.cat([p.scale_tril for p in parts]),  # type: ignore[attr-defined]
            validate_args=False,
        )
    if isinstance(first, Independent) and isinstance(first.base_dist, Normal):
        return Independent(Normal(torch.cat([p.mean for p in parts]), torch.cat([p.stddev for p in parts]), validate_args=False), 1)
    raise TypeError(f"posteriors of type {type(first).__name__} cannot be gathered: use model.latents(x, at='sample')")
