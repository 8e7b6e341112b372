r"""The networks of a coder: encoder and decoder must compute the same probabilities to the last bit, or what follows is noise.

Floating-point sums depend on the order in which they are taken, so on batch shape and threads. A coding copy of a model therefore

* runs its networks in float64 on the CPU, on one thread, always on batches of one stored shape (padded with zeros), or of as many rows as
  fit into 32 MiB, which the model alone decides: a file can ask for any batch, and must not get more memory than its images need;
* rounds every network output to a multiple of 2^-16. A difference in the last bit of float64 (about 1e-16 of the value) then vanishes
  but where a value lies that close to a rounding border, about once in 10^11 outputs; in float32 it would be once in a hundred.

What is left is *detected*: every block carries a checksum of its pixels.

A model is unfolded into levels, one per layer of latents: x | z_1, z_1 | z_2, ..., and a last prior. Latents are integers k with
z = k · step; the step, a power of two, is a quarter of the smallest posterior scale (but for the smallest 1 %), so that the bins are
fine enough to cost nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, MultivariateNormal, Normal

from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import FullGaussian, StandardNormal, VampPrior
from expost.density.base import Density
from expost.density.mixture import GMM, GaussianMixture
from expost.discrete import Discretized
from expost.distributions import Dirac, IsotropicGaussian, base_of
from expost.train.second_stage import SecondStage

__all__ = ["GRID", "Level", "Snapped", "coding_copy", "gaussian_parameters", "levels_of", "mixture_of", "one_thread", "posterior_scales"]

GRID = 2.0**16
"""Network outputs are multiples of 1 / GRID."""

_ROWS = 64  # the usual batch: networks see as many rows whatever they take
_BYTES = 2**25


@contextmanager
def one_thread() -> Iterator[None]:
    """Evaluation on one thread without gradients; the number of threads is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


class Snapped(nn.Module):
    """A float64 network whose outputs are rounded to multiples of 1 / GRID; ``single`` returns them as float32 (exact below 2^8)."""

    def __init__(self, net: nn.Module, single: bool = False) -> None:
        super().__init__()
        self.net, self.single = net, single

    def forward(self, c: Tensor) -> Tensor:
        features = (self.net(c.double()) * GRID).round() / GRID
        if not bool(torch.isfinite(features).all()):
            raise ValueError("the network's outputs are not finite numbers: did its training diverge?")
        return features.float() if self.single else features


@dataclass(frozen=True)
class Level:
    """One layer of latents: q(z | v), p(v | z), the event shapes of v and z, and the most rows that its networks get at once."""

    encoder: Conditional
    decoder: Conditional
    value_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    rows: int


def coding_copy(model: Autoencoder) -> Autoencoder:
    """A copy of the model with snapped float64 networks, in evaluation mode; the decoder's head of the outermost level works in float32."""
    model = copy.deepcopy(model).cpu().eval().double().requires_grad_(False)
    _snap(model, outermost=True)
    return model


def _snap(density: nn.Module | None, outermost: bool = False) -> None:
    if isinstance(density, SecondStage):
        return _snap(density.model)
    if not isinstance(density, Autoencoder):
        return None
    density.encoder.net = Snapped(density.encoder.net)
    density.decoder.net = Snapped(density.decoder.net, single=outermost)
    if outermost:
        density.decoder.head.float()
    return _snap(density.prior)


def levels_of(model: Autoencoder, shape: tuple[int, ...]) -> tuple[list[Level], Density]:
    """The levels of a coding copy for values of this shape, outermost first, and the innermost prior; ``ValueError`` for what cannot be coded."""
    # Without a prior the networks come first: it can be given, another encoder not.
    if model.prior is not None and (made := value_shape(model)) != shape:
        raise ValueError(f"the model makes {made} and the data is {shape}: give images of the model's shape")
    levels: list[Level] = []
    density: Density | None = model
    while isinstance(density, Autoencoder | SecondStage):
        inner = density.model if isinstance(density, SecondStage) else density
        with _measured(inner) as bytes_per_row:
            try:
                q = inner.encode(torch.zeros(1, *shape, dtype=torch.float64))
            except RuntimeError:
                raise ValueError(f"the encoder does not take data of shape {shape}, which the decoder makes: check the model") from None
            _check_posterior(q)
            p = inner.decode(q.mean)
        _check_likelihood(p, outermost=not levels)
        if tuple(p.event_shape) != shape:
            raise ValueError(f"codes of the encoder decode to {tuple(p.event_shape)}, and those of the prior to {shape}: check the model")
        latent_shape = tuple(q.event_shape)
        levels.append(Level(inner.encoder, inner.decoder, shape, latent_shape, max(_ROWS, _BYTES // max(1, *bytes_per_row.values()))))
        shape, density = latent_shape, inner.prior
    value_shape(density)
    assert density is not None
    return levels, density


def value_shape(density: Density | None) -> tuple[int, ...]:
    """The shape of what a coding copy makes, from the innermost prior outwards; ``ValueError`` if there is none that can be coded."""
    if density is None:
        raise ValueError("this autoencoder has no prior to code latents with: give it one, e.g. model.with_prior(GMM(d, 10).fit(codes))")
    if not isinstance(density, Autoencoder | SecondStage):
        _check_prior(density)
        return tuple(density().event_shape)
    inner = density.model if isinstance(density, SecondStage) else density
    latent = value_shape(inner.prior)
    try:
        return tuple(inner.decode(torch.zeros(1, *latent, dtype=torch.float64)).event_shape)
    except RuntimeError:
        raise ValueError(f"the decoder does not take codes of shape {latent}, which the prior makes: check the model") from None


@contextmanager
def _measured(model: Autoencoder) -> Iterator[dict[str, int]]:
    """Bytes of everything that the encoder's and the decoder's modules return while the block runs."""
    total = {"encoder": 0, "decoder": 0}

    def counting(part: str) -> Callable[[nn.Module, Any, Any], None]:
        def count(module: nn.Module, given: Any, returned: Any) -> None:
            if isinstance(returned, Tensor):
                total[part] += returned.numel() * returned.element_size()

        return count

    hooks = [m.register_forward_hook(counting(part)) for part in total for m in getattr(model, part).modules()]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def _check_posterior(q: Distribution) -> None:
    if isinstance(q, Dirac):
        raise ValueError("a deterministic encoder leaves no bits to get back: give the encoder a Constant(scale) or Diagonal() head")
    if not (isinstance(q, MultivariateNormal) or (isinstance(q, Independent) and isinstance(q.base_dist, Normal))):
        raise ValueError(f"posteriors of type {type(base_of(q)).__name__} cannot be coded: use a Diagonal() or FullCovariance() encoder")


def _check_likelihood(p: Distribution, *, outermost: bool) -> None:
    base = base_of(p)
    if outermost and not isinstance(base, Bernoulli | Discretized):
        raise ValueError(
            f"{type(base).__name__} gives pixels no probability mass, which lossless compression needs: "
            "train with heads.Bernoulli() on binary or heads.LogisticMixture() on 8-bit images"
        )
    if not outermost and not isinstance(base, Normal | IsotropicGaussian):
        raise ValueError(f"{type(base).__name__} latents cannot be coded: use Gaussian() or Diagonal() heads between levels")


def _check_prior(prior: Density) -> None:
    if not isinstance(prior, StandardNormal | FullGaussian | GMM | VampPrior):
        raise ValueError(
            f"a {type(prior).__name__} cannot be made discrete here: compress with a standard normal, gaussian, gmm, VampPrior or autoencoder prior"
        )


def gaussian_parameters(p: Distribution) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a factorised Gaussian, both (*batch, *event)."""
    if isinstance(p, IsotropicGaussian):
        return p.mean, p.scale.expand(p.mean.shape)
    return p.mean, p.stddev


def mixture_of(prior: Density) -> GaussianMixture | None:
    """The prior as a mixture of Gaussians; None for the standard normal."""
    if isinstance(prior, StandardNormal):
        return None
    p = prior()
    if isinstance(p, MultivariateNormal):
        one = torch.zeros(1, dtype=p.loc.dtype)
        return GaussianMixture(one, p.loc[None], p.scale_tril[None])
    if not isinstance(p, GaussianMixture):
        raise ValueError(f"a prior of type {type(p).__name__} on maps cannot be coded: use latent vectors with it")
    return p


def posterior_scales(q: Distribution) -> Tensor:
    """The standard deviations with which :mod:`.layers` draws: those of each coordinate given the ones before it."""
    return q.scale_tril.diagonal(dim1=-2, dim2=-1) if isinstance(q, MultivariateNormal) else q.stddev
