"""The classics that the papers build on: rows of the table."""

from __future__ import annotations

from functools import partial

from torch import nn, sigmoid

from expost import heads, nets
from expost.conditional import Conditional
from expost.density import VampPrior
from expost.density.base import Density
from expost.objectives import ELBO, IWAE, Adversarial
from expost.runs.experiment import Task, register
from expost.runs.networks import IMAGES
from expost.runs.rows import half_gaussian, learned, row, small_training


def _vamp(d: int, encoder: Conditional, task: Task) -> Density:
    return VampPrior(encoder, 500, task.shape, bounds=(0.0, 1.0) if task.kind == IMAGES else None)


def _critic(d: int) -> nn.Module:
    return nets.mlp((d, 512, 512, 512, 1))


register(
    row(
        "kingma2014/vae", "VAE, learned decoder variance", "kingma2014",
        encoder=heads.Diagonal, decoder=learned, objective=lambda task, d: ELBO(),
    ),
    row(
        "higgins2017/beta-vae", "beta-VAE, beta = 4", "higgins2017",
        encoder=heads.Diagonal, decoder=learned, objective=lambda task, d: ELBO(beta=4.0),
    ),
    row(
        "burda2016/iwae", "IWAE, ten samples", "burda2016",
        encoder=heads.Diagonal, decoder=learned, objective=lambda task, d: IWAE(samples=10),
    ),
    row(
        "tolstikhin2018/wae-gan", "WAE-GAN (adversarial autoencoder): a critic matches codes to the prior", "tolstikhin2018",
        encoder=heads.Dirac, decoder=lambda: half_gaussian(link=sigmoid), objective=lambda task, d: Adversarial(_critic(d), 10.0),
        training=partial(small_training, betas=(0.5, 0.999)),
    ),
    row(
        "tomczak2018/vampprior", "VAE with a VampPrior of 500 pseudo-inputs", "tomczak2018",
        encoder=heads.Diagonal, decoder=learned, objective=lambda task, d: ELBO(), prior=_vamp,
    ),
)  # fmt: skip
