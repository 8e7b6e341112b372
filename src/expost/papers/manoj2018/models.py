"""Manoj 2018: a VAE before and after the class-distance regulariser."""

from __future__ import annotations

from functools import partial

from expost import heads
from expost.objectives import ELBO, ClassDistance, Clipped, Objective
from expost.papers.manoj2018.nets import manoj_decoder, manoj_encoder, manoj_fc_decoder, manoj_fc_encoder
from expost.runs.experiment import Task, register
from expost.runs.networks import IMAGES, POINTS, add_network
from expost.runs.rows import GREY, row, small_training

add_network("manoj-fc", manoj_fc_encoder, manoj_fc_decoder, "manoj2018, fully connected alternative", (IMAGES, POINTS))
add_network("manoj", manoj_encoder, manoj_decoder, "manoj2018, MNIST")


def _omega(task: Task, d: int) -> Objective:
    return Clipped(ELBO() + ClassDistance(30.0), 0.3)


register(
    row(
        "manoj2018/vae", "VAE of manoj2018, cross-entropy", "manoj2018",
        encoder=heads.Diagonal, decoder=heads.CrossEntropy, takes=GREY, objective=lambda task, d: ELBO(), latent=lambda task: 8,
        training=partial(small_training, epochs=20, batch_size=300), network=lambda budget, task: "manoj" if budget == "paper" else "small",
    ),
    row(
        "manoj2018/omega-vae", "VAE of manoj2018 with the class-distance regulariser, clipped encoder", "manoj2018",
        encoder=heads.Diagonal, decoder=heads.CrossEntropy, takes=GREY, objective=_omega, latent=lambda task: 8,
        training=partial(small_training, epochs=20, batch_size=300), network=lambda budget, task: "manoj" if budget == "paper" else "small",
    ),
)  # fmt: skip
