r"""Ghosh et al. 2020, From Variational to Deterministic Autoencoders (ghosh2020): nine models under one protocol.

The weights below are those of the released configuration, in *its* units, and are converted to nats with
the decoder variance γ = ½, where the distortion is ‖x - x̂‖² up to a constant:

* VAE, CV-VAE: Σ_pixels mean_c (x - x̂)² + w · KL     ->  β = C · w
* RAE, AE:     mean over D of (x - x̂)² + β_code · mean over d of z² + λ_code · R   ->  β = 2 β_code D / d, λ = λ_code · D
* WAE:         mean over D of (x - x̂)² + λ_code · MMD  ->  λ = λ_code · D   (CelebA: 0.05 ‖x - x̂‖² + 100 MMD  ->  λ = 2000)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from expost import heads
from expost.autoencoder import Autoencoder
from expost.conditional import Conditional
from expost.density import StandardNormal
from expost.density.base import Density
from expost.objectives import ELBO, RAE, WAE, DecoderL2, GradientPenalty, Objective
from expost.optimise import Plateau
from expost.papers.ghosh2020.mean_stage import PAPER as STAGE_PAPER
from expost.papers.ghosh2020.mean_stage import MeanStage
from expost.papers.ghosh2020.nets import ghosh_celeba_decoder, ghosh_celeba_encoder, ghosh_decoder, ghosh_encoder
from expost.runs.discovery import add_density
from expost.runs.experiment import BudgetName, Experiment, Recipe, Task, cpu_training, decoder_head, register, smoke_training
from expost.runs.networks import Pair, add_network, with_spectral
from expost.runs.rows import half_gaussian, latent
from expost.train.second_stage import CPU as STAGE_CPU
from expost.train.settings import Training

__all__ = ["STAGE_WEIGHTS", "WEIGHTS", "build", "latent", "stage_spec"]


def _mean_stage(experiment: Experiment, seed: int, weight: str) -> Density:
    beta = float(weight or STAGE_WEIGHTS["mnist"] * experiment.latent)
    training = None if experiment.stage == STAGE_CPU else experiment.stage  # the short one depends on the dimension
    return MeanStage(experiment.latent, beta, experiment.stage_width, training, seed=seed)


add_density("mean-stage", "mean-stage or mean-stage:0.024, the weight of its KL term", _mean_stage)
add_network("ghosh", ghosh_encoder, ghosh_decoder, "ghosh2020, MNIST (32 x 32) and CIFAR-10")
with_spectral("ghosh")
add_network("ghosh-celeba", ghosh_celeba_encoder, ghosh_celeba_decoder, "ghosh2020, CelebA (64 x 64)")
with_spectral("ghosh-celeba")
add_network(
    "ghosh-celeba-64",
    partial(ghosh_celeba_encoder, width=64),
    partial(ghosh_celeba_decoder, width=64),
    "ghosh2020, CelebA, half as wide: what its code uses for the CV-VAE",
)

#: ghosh2020's code units, by model and data set; other data sets use MNIST's.
WEIGHTS: dict[str, dict[str, tuple[float, ...]]] = {
    "vae": {"mnist": (0.312,), "cifar10": (0.024,), "celeba": (0.09024,)},
    "cv-vae": {"mnist": (0.039,), "cifar10": (9e-4,), "celeba": (0.01,)},
    "wae": {"mnist": (0.03,), "cifar10": (0.006,), "celeba": (100.0,)},
    "rae-gp": {"mnist": (1e-4, 5e-8), "cifar10": (9e-4, 0.0), "celeba": (1e-4, 1e-7)},
    "rae-l2": {"mnist": (1e-4, 1e-7), "cifar10": (1e-3, 1e-6), "celeba": (1e-4, 1e-7)},
    "rae-sn": {"mnist": (0.009,), "cifar10": (0.03,), "celeba": (2.4e-3,)},
    "rae": {"mnist": (5e-4,), "cifar10": (0.01,), "celeba": (1e-4,)},
    "ae": {"mnist": (0.0,), "cifar10": (0.0,), "celeba": (0.0,)},
}
#: β₂ of ghosh2020's own two-stage variant.
STAGE_WEIGHTS = {"mnist": 1.5e-3, "cifar10": 1e-3, "celeba": 2e-3}
_PAPER_EPOCHS = {"mnist": 100, "cifar10": 100, "celeba": 70}
_PAPER_LR = {"vae": 1e-4, "cv-vae": 1e-4, "wae": 1e-3}  # the others: 5e-4, CelebA 1e-3


def weights(model: str, task: Task) -> tuple[float, ...]:
    return WEIGHTS[model].get(task.data, WEIGHTS[model]["mnist"])


def code_dims(task: Task) -> int:
    """D in the released code, which pads MNIST to 32 x 32 before averaging over pixels."""
    return 1024 if task.data in ("mnist", "fashion_mnist") else task.dims


def build(task: Task, d: int, pair: Pair, head: Callable[[], heads.Head], prior: bool) -> Autoencoder:
    """Encoder with the given head, sigmoid Gaussian decoder with γ = ½."""
    from torch import sigmoid

    encoder_head, last = head(), decoder_head(partial(half_gaussian, link=sigmoid), task)
    return Autoencoder(
        Conditional(pair.encoder(task.shape, encoder_head.size(d)), encoder_head, 1, len(task.shape)),
        Conditional(pair.decoder(d, task.shape, last.size(task.shape[0])), last, len(task.shape), 1),
        StandardNormal(d) if prior else None,
    )


def _elbo(model: str, task: Task, d: int) -> Objective:
    (w,) = weights(model, task)
    return ELBO(beta=task.channels * w)


def _rae(model: str, task: Task, d: int) -> Objective:
    beta = 2 * weights(model, task)[0] * code_dims(task) / d
    strength = weights(model, task)[1] * code_dims(task) if len(weights(model, task)) > 1 else 0.0
    if model == "rae-gp":
        return RAE(beta, GradientPenalty(strength, "energy"))
    if model == "rae-l2":
        dense = (nn.Linear,) if task.data == "celeba" else ()  # the code leaves out the first dense layer on MNIST and CIFAR-10
        return RAE(beta, DecoderL2(strength, (nn.ConvTranspose2d, *dense)))
    return RAE(beta)


def _wae(model: str, task: Task, d: int) -> Objective:
    (w,) = weights(model, task)
    if task.data == "celeba":
        return WAE(weight=w / 0.05, input_noise=0.01)
    return WAE(weight=w * code_dims(task))


def _training(model: str, budget: BudgetName, task: Task) -> Training:
    if budget == "smoke":
        return smoke_training()
    if budget == "cpu":
        # spectral norms of 1 leave the sharpness of the image to the normalisation scales, which need a larger rate to grow in a short training
        return cpu_training(task, batch_size=100, lr=5e-3 if model == "rae-sn" else 1e-3)
    lr = _PAPER_LR.get(model, 1e-3 if task.data == "celeba" else 5e-4)
    epochs = 70 if task.data == "cifar10" and model in ("cv-vae", "wae", "rae-gp") else _PAPER_EPOCHS.get(task.data, 100)
    batch = 1000 if task.data == "celeba" and model == "vae" else 100
    return Training(epochs=epochs, batch_size=batch, lr=lr, eps=1e-7, schedule=Plateau(patience=5, factor_each=0.5), best=True)


def _stage(budget: BudgetName) -> tuple[Training, int]:
    if budget == "smoke":
        return smoke_training(), 64
    return (STAGE_CPU if budget == "cpu" else STAGE_PAPER), 1024


def stage_spec(task: Task) -> str:
    """The density of ghosh2020's two-stage row: its code averages squares over dimensions, so β = d β₂ where the distortion is their sum."""
    return f"mean-stage:{latent(task) * STAGE_WEIGHTS.get(task.data, STAGE_WEIGHTS['mnist']):.6g}"


def _network(name: str, budget: BudgetName, task: Task) -> str:
    suffix = "+sn" if name == "rae-sn" else ""
    if budget != "paper":
        return "small" + suffix
    if name == "cv-vae" and task.data == "celeba":
        return "ghosh-celeba-64"  # its configuration alone has 64 base filters
    return ("ghosh-celeba" if task.data == "celeba" or task.shape[-1] == 64 else "ghosh") + suffix


def _row(model: str, summary: str, head: Callable[[], heads.Head], prior: bool, objective: Callable[[str, Task, int], Objective]) -> Recipe:
    return Recipe(
        name=f"ghosh2020/{model}",
        summary=summary,
        paper="ghosh2020",
        model=lambda task, d, pair: build(task, d, pair, head, prior),
        objective=partial(objective, model),
        latent=latent,
        training=partial(_training, model),
        network=partial(_network, model),
        densities=("prior", "gmm:10") if prior and model != "cv-vae" else ("gaussian", "gmm:10"),
        pad_to=32,
        stage=_stage,
    )


_diagonal = partial(heads.Diagonal, heads.exp_tanh)

register(
    _row("vae", "VAE, Gaussian decoder, KL weight of ghosh2020", _diagonal, True, _elbo),
    _row("cv-vae", "VAE with constant encoder std 0.7", partial(heads.Constant, 0.7), True, _elbo),
    _row("wae", "WAE-MMD, multi-scale IMQ kernel", heads.Dirac, True, _wae),
    _row("rae-gp", "RAE with gradient penalty on the decoder", heads.Dirac, False, _rae),
    _row("rae-l2", "RAE with L2 penalty on the decoder", heads.Dirac, False, _rae),
    _row("rae-sn", "RAE with spectrally normalised networks", heads.Dirac, False, _rae),
    _row("rae", "RAE, penalty on codes only", heads.Dirac, False, _rae),
    _row("ae", "plain autoencoder", heads.Dirac, False, _rae),
)
