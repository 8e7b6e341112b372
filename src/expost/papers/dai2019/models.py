r"""Dai & Wipf 2019, Diagnosing and Enhancing VAE Models (dai2019): learn the decoder variance γ, then a second stage on the codes.

Each image bears (1/2γ)‖x - f(z)‖² + (D/2) log 2πγ + KL. The paper's code calls the *standard deviation* γ; here γ is the variance.
Within a short training log γ cannot travel far at the weights' learning rate (Adam moves a scalar by about lr a step), so the ``cpu`` budget
gives it a rate of its own; ``vae-optimal`` uses the closed form γ* = mean squared error instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import sigmoid

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.objectives import ELBO
from expost.optimise import Halving
from expost.papers.dai2019.nets import dai_decoder, dai_encoder
from expost.papers.dai2019.residual import dai_residual_decoder, dai_residual_encoder, dai_wae_decoder, dai_wae_encoder
from expost.runs.experiment import UNIT_POINTS, BudgetName, Recipe, Task, cpu_training, decoder_head, register, smoke_training
from expost.runs.networks import IMAGES, POINTS, Pair, add_network
from expost.train.second_stage import CPU as STAGE_CPU
from expost.train.settings import Training

add_network("dai", dai_encoder, dai_decoder, "dai2019, neutral InfoGAN net, spectrally normalised encoder")
add_network("dai-residual", dai_residual_encoder, dai_residual_decoder, "dai2019, residual net of the paper (flattened, two blocks)")
add_network(
    "dai-residual-code",
    partial(dai_residual_encoder, blocks=1, pool="mean"),
    partial(dai_residual_decoder, blocks=1),
    "dai2019, residual net of the released code (pooled, one block)",
)
add_network("dai-wae", dai_wae_encoder, dai_wae_decoder, "dai2019, the repository's WAE net")

_LATENT = {"digits": 16}
#: data set -> (epochs, halve every) of the first and the second stage, from the supplement.
_SCHEDULE = {
    "mnist": ((400, 150), (800, 300)),
    "fashion_mnist": ((400, 150), (800, 300)),
    "cifar10": ((1000, 300), (2000, 600)),
    "celeba": ((120, 48), (300, 120)),
}


def _latent(task: Task) -> int:
    return _LATENT.get(task.data, 64)


def _model(task: Task, d: int, pair: Pair, head: Callable[[], heads.Head]) -> Autoencoder:
    encoder_head, last = heads.Diagonal(heads.softplus), decoder_head(head, task)
    return Autoencoder(
        Conditional(pair.encoder(task.shape, encoder_head.size(d)), encoder_head, 1, len(task.shape)),
        Conditional(pair.decoder(d, task.shape, last.size(task.shape[0])), last, len(task.shape), 1),
        StandardNormal(d),
    )


def _training(budget: BudgetName, task: Task) -> Training:
    if budget == "smoke":
        return smoke_training(head_lr=1e-2)
    if budget == "cpu":
        return cpu_training(task, head_lr=1e-2)
    (epochs, halve), _ = _SCHEDULE.get(task.data, _SCHEDULE["mnist"])
    return Training(epochs=epochs, batch_size=64, lr=1e-4, schedule=Halving(halve))


def _stage(budget: BudgetName) -> tuple[Training, int]:
    if budget == "smoke":
        return smoke_training(head_lr=1e-2), 64
    if budget == "cpu":
        return STAGE_CPU, 512
    (epochs, halve) = _SCHEDULE["mnist"][1]
    return Training(epochs=epochs, batch_size=64, lr=1e-4, schedule=Halving(halve)), 1024


def _gaussian(scale: float | Literal["shared", "optimal"]) -> heads.Head:
    return heads.Gaussian(scale, link=sigmoid)


def _row(
    name: str, summary: str, head: Callable[[], heads.Head], densities: tuple[str, ...], takes: tuple[str, ...] = (IMAGES, POINTS)
) -> Recipe:
    return Recipe(
        name=f"dai2019/{name}",
        summary=summary,
        paper="dai2019",
        model=lambda task, d, pair: _model(task, d, pair, head),
        objective=lambda task, d: ELBO(),
        latent=_latent,
        training=_training,
        network=lambda budget, task: "dai" if budget == "paper" else "small",
        densities=densities,
        stage=_stage,
        takes=takes,
    )


register(
    _row("vae-cross-entropy", "VAE, cross-entropy of grey levels", heads.CrossEntropy, ("prior",), (IMAGES, UNIT_POINTS)),
    _row("vae-fixed", "VAE, decoder variance fixed at 1", partial(_gaussian, 1.0), ("prior",)),
    _row("vae-learned", "VAE, learned decoder variance", partial(_gaussian, "shared"), ("prior",)),
    _row("vae-optimal", "VAE, closed-form optimal decoder variance", partial(_gaussian, "optimal"), ("prior",)),
    _row("two-stage", "two-stage VAE: learned variance, second VAE on the codes", partial(_gaussian, "shared"), ("prior", "stage")),
)
