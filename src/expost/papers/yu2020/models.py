"""yu2020: the plane densities, and lossless compression by bits-back coding.

The plane VAE has free bits of 0.05 per latent, the IWAE none. At the ``paper`` budget both see batches of 200, as the paper says (its VAE was
in fact trained on 40 000 points a step). At the ``cpu`` budget both decode equally many codes in equally many steps: one code for each of 2000
points, or ten for each of 200.

The compressors are not the paper's (it names none): one-level and two-level autoencoders with discrete likelihoods on
:mod:`expost.papers.yu2020.squeezed`. The outer latents of the two-level one are maps, H/4 x W/4, whose prior is another autoencoder; both are
trained together by the ELBO, one sample at each level.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.objectives import ELBO, IWAE, Binarised
from expost.optimise import Cosine, Milestones
from expost.papers.yu2020.nets import yu_decoder, yu_encoder
from expost.papers.yu2020.squeezed import maps_decoder, maps_encoder, squeezed_decoder, squeezed_encoder
from expost.runs.experiment import BudgetName, Task, cpu_training, register, smoke_training
from expost.runs.networks import IMAGES, POINTS, Pair, add_network
from expost.runs.rows import learned, row
from expost.train.settings import Training


def _points(build: Callable[..., nn.Module], **options: int) -> Callable[..., nn.Module]:
    """A network on vectors as an encoder of points (d,)."""
    return lambda shape, out: build(shape[0], out, **options)


def _point_decoder(**options: int) -> Callable[..., nn.Module]:
    return lambda latent, shape, out: yu_decoder(latent, out, **options)


def _add_squeezed(name: str, summary: str, width: int, encoder_blocks: tuple[int, int], decoder_blocks: tuple[int, int]) -> None:
    for maps in (False, True):
        encoder = partial(squeezed_encoder, width=width, blocks=encoder_blocks, maps=maps)
        decoder = partial(squeezed_decoder, width=width, blocks=decoder_blocks, maps=maps)
        add_network(f"{name}-maps" if maps else name, encoder, decoder, f"{summary}{', latent maps' if maps else ''}")


_add_squeezed("squeezed", "residual blocks at half and quarter resolution, for likelihoods", 32, (1, 2), (2, 2))
_add_squeezed("squeezed-wide", "the same, wider and deeper, for a GPU", 96, (2, 4), (4, 4))
add_network("yu", _points(yu_encoder), _point_decoder(), "yu2020, weight-normed dense block, growth 1024, depth 6", (POINTS,))
add_network(
    "yu-small", _points(yu_encoder, growth=96, depth=4), _point_decoder(growth=96, depth=4), "yu2020 at CPU scale: growth 96, depth 4",
    (POINTS,),
)  # fmt: skip

MAPS = 8
"""Channels of the outer latents of the two-level model."""


def _points_training(budget: BudgetName, task: Task, iterations: int, batch_size: int) -> Training:
    """``batch_size`` at the cpu budget; the paper's batch is 200 for both models."""
    if budget == "smoke":
        return smoke_training()
    if budget == "cpu":
        return Training(steps=16_000, batch_size=batch_size, lr=5e-3, schedule=Cosine(), ema=0.999, clip=10.0)
    return Training(steps=iterations, batch_size=200, lr=1e-4, optimiser="amsgrad", schedule=Milestones())


def _pixel() -> heads.Head:
    return heads.Gaussian("pixel")


def _lossless_training(budget: BudgetName, task: Task, images: int = 2_000_000) -> Training:
    if budget == "smoke":
        return smoke_training(clip=200.0)
    if budget == "cpu":
        return cpu_training(task, images, lr=1.5e-3, clip=200.0)
    return Training(epochs=400, batch_size=128, lr=1e-3, schedule=Cosine(), ema=0.9995, clip=200.0, best=True)


def _two_level(task: Task, d: int, pair: Pair) -> Autoencoder:
    """x | maps of 8 channels at a quarter of the resolution | d-dimensional vector."""
    channels, height, width = task.shape
    maps = (MAPS, height // 4, width // 4)
    pixel, outer, inner, between = heads.LogisticMixture(), heads.Diagonal(), heads.Diagonal(), heads.Gaussian("pixel")
    prior = Autoencoder(
        Conditional(maps_encoder(maps, inner.size(d)), inner, 1, 3),
        Conditional(maps_decoder(d, maps, between.size(MAPS)), between, 3, 1),
        StandardNormal(d),
        samples=1,
    )
    encoder = Conditional(pair.encoder(task.shape, outer.size(MAPS)), outer, 3, 3)
    return Autoencoder(encoder, Conditional(pair.decoder(MAPS, task.shape, pixel.size(channels)), pixel, 3, 3), prior, samples=1)


def _squeezed(budget: BudgetName, task: Task) -> str:
    return "squeezed-wide" if budget == "paper" else "squeezed"


register(
    row(
        "yu2020/vae", "VAE of yu2020 on a 2-D density, free bits 0.05", "yu2020",
        encoder=heads.Diagonal, decoder=_pixel, objective=lambda task, d: ELBO(free_bits=0.05), latent=lambda task: 2,
        training=partial(_points_training, iterations=60_000, batch_size=2000), network=lambda budget, task: "yu" if budget == "paper" else "yu-small",
        densities=("prior",), data="8gaussians", takes=(POINTS,),
    ),
    row(
        "yu2020/iwae", "IWAE of yu2020 on a 2-D density, ten samples", "yu2020",
        encoder=heads.Diagonal, decoder=_pixel, objective=lambda task, d: IWAE(samples=10), latent=lambda task: 2,
        training=partial(_points_training, iterations=30_000, batch_size=200), network=lambda budget, task: "yu" if budget == "paper" else "yu-small",
        densities=("prior",), data="8gaussians", takes=(POINTS,),
    ),
    row(
        "yu2020/sigma-vae", "Sigma-VAE of yu2020: full-covariance encoder, learned decoder variance", "yu2020",
        encoder=heads.FullCovariance, decoder=learned, objective=lambda task, d: ELBO(),
    ),
    row(
        "yu2020/bits-back", "lossless compression: one level of latents, mixture of discretised logistics", "yu2020",
        encoder=heads.Diagonal, decoder=heads.LogisticMixture, takes=(IMAGES,), objective=lambda task, d: ELBO(), latent=lambda task: 48,
        training=_lossless_training, network=_squeezed, densities=("prior",),
    ),
    row(
        "yu2020/bits-back-nested", "lossless compression: latent maps whose prior is an autoencoder", "yu2020",
        encoder=heads.Diagonal, decoder=heads.LogisticMixture, takes=(IMAGES,), objective=lambda task, d: ELBO(), model=_two_level, latent=lambda task: 32,
        training=partial(_lossless_training, images=1_500_000), network=lambda budget, task: f"{_squeezed(budget, task)}-maps", densities=("prior",),
    ),
    row(
        "yu2020/bits-back-binary", "lossless compression of stochastically binarised images", "yu2020",
        encoder=heads.Diagonal, decoder=heads.Bernoulli, takes=(IMAGES,), objective=lambda task, d: Binarised(ELBO()), latent=lambda task: 40,
        training=partial(_lossless_training, images=1_000_000), network=_squeezed, densities=("prior",),
    ),
)  # fmt: skip
