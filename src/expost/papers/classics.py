"""Papers 000 and 003, and the classics that they build on: rows of the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn, sigmoid

from expost import heads, nets
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal, VampPrior
from expost.density.base import Density
from expost.objectives import ELBO, IWAE, Adversarial, ClassDistance, Clipped, Objective
from expost.runs.experiment import UNIT_POINTS, BudgetName, Recipe, Task, cpu_training, decoder_head, smoke_training
from expost.papers.ghosh2020.models import gaussian as half_gaussian
from expost.papers.ghosh2020.models import latent as ghosh_latent
from expost.runs.networks import IMAGES, POINTS, Pair
from expost.train.settings import Training

__all__ = ["RECIPES", "assemble", "learned", "row"]

Prior = Callable[[int, Conditional, Task], Density]


def assemble(
    task: Task, d: int, pair: Pair, encoder: Callable[[], heads.Head], decoder: Callable[[], heads.Head], prior: Prior | None = None
) -> Autoencoder:
    """Networks of the pair under the two heads; the prior is N(0, I) unless given."""
    encoder_head, head = encoder(), decoder_head(decoder, task)
    encode = Conditional(pair.encoder(task.shape, encoder_head.size(d)), encoder_head, 1, len(task.shape))
    decode = Conditional(pair.decoder(d, task.shape, head.size(task.shape[0])), head, len(task.shape), 1)
    return Autoencoder(encode, decode, prior(d, encode, task) if prior else StandardNormal(d))


def _vamp(d: int, encoder: Conditional, task: Task) -> Density:
    return VampPrior(encoder, 500, task.shape, bounds=(0.0, 1.0) if task.kind == IMAGES else None)


def _small_training(budget: BudgetName, task: Task, **paper: object) -> Training:
    if budget == "smoke":
        return smoke_training(head_lr=1e-2)
    if budget == "cpu":
        return cpu_training(task, head_lr=1e-2)
    return Training(**{"epochs": 100, "batch_size": 128, "lr": 1e-3, "best": False, **paper})  # type: ignore[arg-type]


def _bozkurt_training(budget: BudgetName, task: Task) -> Training:
    """Plain Adam at 1e-3 in batches of 128, as the authors' code; how long the paper trained is not stated.

    Its code's default is 10 epochs, but its README's total time suggests more, and posteriors go on shrinking for a hundred (docs/log.md).
    """
    if budget == "smoke":
        return smoke_training()
    if task.n < 1_000:  # mini-MNIST: one batch an epoch
        return Training(steps=8_000 if budget == "cpu" else 50_000, batch_size=128, lr=1e-3, validate_every=1_000)
    return Training(epochs=120 if budget == "cpu" else 300, batch_size=128, lr=1e-3)


def _critic(d: int) -> nn.Module:
    return nets.mlp((d, 512, 512, 512, 1))


def row(
    name: str,
    summary: str,
    paper: str,
    *,
    encoder: Callable[[], heads.Head],
    decoder: Callable[[], heads.Head],
    objective: Callable[[Task, int], Objective],
    model: Callable[[Task, int, Pair], Autoencoder] | None = None,
    latent: Callable[[Task], int] = ghosh_latent,
    training: Callable[[BudgetName, Task], Training] = _small_training,
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
    return heads.Gaussian("shared", link=sigmoid)


#: What a cross-entropy of grey levels is for.
GREY = (IMAGES, UNIT_POINTS)


def _omega(task: Task, d: int) -> Objective:
    return Clipped(ELBO() + ClassDistance(30.0), 0.3)


RECIPES = (
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
        training=partial(_small_training, betas=(0.5, 0.999)),
    ),
    row(
        "tomczak2018/vampprior", "VAE with a VampPrior of 500 pseudo-inputs", "tomczak2018",
        encoder=heads.Diagonal, decoder=learned, objective=lambda task, d: ELBO(), prior=_vamp,
    ),
    row(
        "bozkurt2018/shallow", "VAE of 000, one hidden layer of 400, cross-entropy", "bozkurt2018",
        encoder=partial(heads.Diagonal, heads.exp), decoder=heads.CrossEntropy, takes=GREY, objective=lambda task, d: ELBO(), latent=lambda task: 50,
        training=_bozkurt_training, network=lambda budget, task: "mlp-400", densities=("prior", "gmm:10"),
    ),
    row(
        "bozkurt2018/deep", "VAE of 000, hidden layers 400-200-100, cross-entropy", "bozkurt2018",
        encoder=partial(heads.Diagonal, heads.exp), decoder=heads.CrossEntropy, takes=GREY, objective=lambda task, d: ELBO(), latent=lambda task: 50,
        training=_bozkurt_training, network=lambda budget, task: "mlp-400-200-100", densities=("prior", "gmm:10"),
    ),
    row(
        "bozkurt2018/mini", "VAE of 000 with two latent dimensions, for mini-MNIST (100 images)", "bozkurt2018",
        encoder=partial(heads.Diagonal, heads.exp), decoder=heads.CrossEntropy, takes=GREY, objective=lambda task, d: ELBO(), latent=lambda task: 2,
        training=_bozkurt_training, network=lambda budget, task: "mlp-400-200-100", densities=("prior",), data="mnist:per-class=10",
    ),
    row(
        "manoj2018/vae", "VAE of 003, cross-entropy", "manoj2018",
        encoder=heads.Diagonal, decoder=heads.CrossEntropy, takes=GREY, objective=lambda task, d: ELBO(), latent=lambda task: 8,
        training=partial(_small_training, epochs=20, batch_size=300), network=lambda budget, task: "manoj" if budget == "paper" else "small",
    ),
    row(
        "manoj2018/omega-vae", "VAE of 003 with the class-distance regulariser, clipped encoder", "manoj2018",
        encoder=heads.Diagonal, decoder=heads.CrossEntropy, takes=GREY, objective=_omega, latent=lambda task: 8,
        training=partial(_small_training, epochs=20, batch_size=300), network=lambda budget, task: "manoj" if budget == "paper" else "small",
    ),
)  # fmt: skip
