"""Bozkurt et al. 2018: VAEs of one and of three hidden layers each way."""

from __future__ import annotations

from functools import partial

from expost import heads
from expost.objectives import ELBO
from expost.runs.experiment import BudgetName, Task, register, smoke_training
from expost.runs.networks import NETWORKS, perceptron
from expost.runs.rows import GREY, row
from expost.train.settings import Training

NETWORKS["mlp-400"] = perceptron((400,), "bozkurt2018, shallow: one hidden layer of 400")
NETWORKS["mlp-400-200-100"] = perceptron((400, 200, 100), "bozkurt2018, deep: 400-200-100, mirrored")


def _training(budget: BudgetName, task: Task) -> Training:
    """Plain Adam at 1e-3 in batches of 128, as the authors' code; how long the paper trained is not stated.

    Its code's default is 10 epochs, but its README's total time suggests more, and posteriors go on shrinking for a hundred (docs/log.md).
    """
    if budget == "smoke":
        return smoke_training()
    if task.n < 1_000:  # mini-MNIST: one batch an epoch
        return Training(steps=8_000 if budget == "cpu" else 50_000, batch_size=128, lr=1e-3, validate_every=1_000)
    return Training(epochs=120 if budget == "cpu" else 300, batch_size=128, lr=1e-3)


register(
    row(
        "bozkurt2018/shallow", "VAE of bozkurt2018, one hidden layer of 400, cross-entropy", "bozkurt2018",
        encoder=partial(heads.Diagonal, heads.exp), decoder=heads.CrossEntropy, takes=GREY, objective=lambda task, d: ELBO(), latent=lambda task: 50,
        training=_training, network=lambda budget, task: "mlp-400", densities=("prior", "gmm:10"),
    ),
    row(
        "bozkurt2018/deep", "VAE of bozkurt2018, hidden layers 400-200-100, cross-entropy", "bozkurt2018",
        encoder=partial(heads.Diagonal, heads.exp), decoder=heads.CrossEntropy, takes=GREY, objective=lambda task, d: ELBO(), latent=lambda task: 50,
        training=_training, network=lambda budget, task: "mlp-400-200-100", densities=("prior", "gmm:10"),
    ),
    row(
        "bozkurt2018/mini", "VAE of bozkurt2018 with two latent dimensions, for mini-MNIST (100 images)", "bozkurt2018",
        encoder=partial(heads.Diagonal, heads.exp), decoder=heads.CrossEntropy, takes=GREY, objective=lambda task, d: ELBO(), latent=lambda task: 2,
        training=_training, network=lambda budget, task: "mlp-400-200-100", densities=("prior",), data="mnist:per-class=10",
    ),
)  # fmt: skip
