"""What most rows of the table of recipes share: models from a pair of networks and two heads, short trainings, usual latent dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import sigmoid

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.density.base import Density
from expost.objectives import Objective
from expost.runs.experiment import UNIT_POINTS, BudgetName, Recipe, Task, cpu_training, decoder_head, smoke_training
from expost.runs.networks import IMAGES, POINTS, Pair
from expost.train.settings import Training

__all__ = ["GREY", "Prior", "assemble", "half_gaussian", "latent", "learned", "row", "small_training"]

Prior = Callable[[int, Conditional, Task], Density]
_LATENT = {"mnist": 16, "fashion_mnist": 16, "cifar10": 128, "celeba": 64, "digits": 8}

#: γ = ½: the distortion is ‖x - x̂‖² and a constant.
half_gaussian = partial(heads.Gaussian, scale=math.sqrt(0.5))

#: What a cross-entropy of grey levels is for.
GREY = (IMAGES, UNIT_POINTS)


def latent(task: Task) -> int:
    """d of Ghosh et al. 2020 by the name of the data, else 16."""
    return _LATENT.get(task.data, 16)


def assemble(
    task: Task, d: int, pair: Pair, encoder: Callable[[], heads.Head], decoder: Callable[[], heads.Head], prior: Prior | None = None
) -> Autoencoder:
    """Networks of the pair under the two heads; the prior is N(0, I) unless given."""
    encoder_head, head = encoder(), decoder_head(decoder, task)
    encode = Conditional(pair.encoder(task.shape, encoder_head.size(d)), encoder_head, 1, len(task.shape))
    decode = Conditional(pair.decoder(d, task.shape, head.size(task.shape[0])), head, len(task.shape), 1)
    return Autoencoder(encode, decode, prior(d, encode, task) if prior else StandardNormal(d))


def small_training(budget: BudgetName, task: Task, **paper: object) -> Training:
    """Adam, 100 epochs at the ``paper`` budget; the head has a rate of its own."""
    if budget == "smoke":
        return smoke_training(head_lr=1e-2)
    if budget == "cpu":
        return cpu_training(task, head_lr=1e-2)
    return Training(**{"epochs": 100, "batch_size": 128, "lr": 1e-3, "best": False, **paper})  # type: ignore[arg-type]


def row(
    name: str,
    summary: str,
    paper: str,
    *,
    encoder: Callable[[], heads.Head],
    decoder: Callable[[], heads.Head],
    objective: Callable[[Task, int], Objective],
    model: Callable[[Task, int, Pair], Autoencoder] | None = None,
    latent: Callable[[Task], int] = latent,
    training: Callable[[BudgetName, Task], Training] = small_training,
    network: Callable[[BudgetName, Task], str] = lambda budget, task: "small",
    prior: Prior | None = None,
    densities: tuple[str, ...] = ("prior", "gmm:10"),
    data: str = "mnist",
    takes: tuple[str, ...] = (IMAGES, POINTS),
) -> Recipe:
    """A recipe whose model is :func:`assemble`'s, unless ``model`` builds it."""
    return Recipe(
        name=name,
        summary=summary,
        paper=paper,
        model=model or (lambda task, d, pair: assemble(task, d, pair, encoder, decoder, prior)),
        objective=objective,
        latent=latent,
        training=training,
        network=network,
        densities=densities,
        data=data,
        takes=takes,
    )


def learned() -> heads.Head:
    """A Gaussian of one learned variance, its mean in [0, 1]."""
    return heads.Gaussian("shared", link=sigmoid)
