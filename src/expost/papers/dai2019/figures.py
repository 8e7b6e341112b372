"""Figures 1 to 10 of dai2019: the variance's way, noise along latent directions, singular spectra, samples, the histogram of encoder variances.

What the paper's sample figures show exactly is not in our facts: the numbering here is an assumption (2: samples of all models; 3 and 4, MNIST: samples,
reconstructions; 5 and 6, CIFAR-10; 7, Fashion-MNIST, both; 8, CelebA, both) and the captions say so. Figures 1, 9 and 10 follow the paper's text.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from expost.diagnose.codes.variances import EncoderVariances, encoder_variances, posterior_variances
from expost.papers.dai2019.noise import NoiseDirections, noise_directions
from expost.papers.dai2019.spectra import LatentSpectra, latent_spectra
from expost.papers.dai2019.variance import VarianceTrace, decoder_variance, variance_trace
from expost.papers.published import published
from expost.results import SHOWN, Demonstration, Series, Strips, Table
from expost.runs.lab import Lab
from expost.runs.run import Run
from expost.seeds import some
from expost.tensors import unit
from expost.train.second_stage import SecondStage

__all__ = [
    "SAMPLE_FIGURES",
    "cifar_run",
    "cifar_source",
    "figure1_centre",
    "figure1_left",
    "figure1_right",
    "figure9",
    "figure10",
    "reconstructions",
    "sample_figure",
    "samples",
    "spectra_of",
    "trace_of",
    "variances_of",
]

LEARNED, FIXED, CROSS = "dai2019/vae-learned", "dai2019/vae-fixed", "dai2019/vae-cross-entropy"
#: Row of a picture -> recipe and density.
MODELS = {
    "VAE, cross-entropy": (CROSS, "prior"),
    "VAE, γ = 1": (FIXED, "prior"),
    "VAE, learned γ": (LEARNED, "prior"),
    "two-stage VAE": (LEARNED, "stage"),
}
#: Images whose encoder variances are gathered.
IMAGES = 10_000
#: Figure -> data set and what is shown; an assumption, see the top of this file.
SAMPLE_FIGURES = {
    2: ("mnist", ("samples",)),
    3: ("mnist", ("samples",)),
    4: ("mnist", ("reconstructions",)),
    5: ("cifar10", ("samples",)),
    6: ("cifar10", ("reconstructions",)),
    7: ("fashion_mnist", ("samples", "reconstructions")),
    8: ("celeba", ("samples", "reconstructions")),
}
ASSUMED = "The numbering of the sample figures is our assumption."
#: Data set -> column and rows of what the paper prints beside its noise rows (supplement, Figure 9).
PRINTED = {
    "mnist": ("MNIST", (0.005, 0.005, 0.007, 0.008, 0.01, 1)),
    "fashion_mnist": ("Fashion", (0.005, 0.005, 0.009, 0.011, 0.03, 1.001)),
    "celeba": ("CelebA", (0.008, 0.009, 0.015, 0.114, 1.013)),
}


def _title(lab: Lab) -> str:
    return f"{lab.dataset.name}, {lab.budget} budget, seed {lab.seed}"


# -- Figure 1 ------------------------------------------------------------------------------------------------------------------------------


def trace_of(run: Run, *, fixed: bool = False) -> VarianceTrace:
    """γ and the squared error per pixel through a run's training."""
    assert run.folder is not None
    return variance_trace(run.folder.rows(), run.experiment.task.dims, gamma=1.0 if fixed else "learned")


def figure1_left(lab: Lab) -> Demonstration:
    """log γ and squared error against iterations, learned and fixed γ, with the closed form log γ* = log MSE.

    Holds if the learned γ ends within 10 % of γ*, below where it began, and with a smaller error than γ = 1.
    """
    learned, fixed = trace_of(lab.run(LEARNED)), trace_of(lab.run(FIXED), fixed=True)
    table = Table(("model", "log γ", "log γ*", "squared error per pixel"))
    series: list[Series] = []
    for name, trace in (("learned γ", learned), ("γ = 1", fixed)):
        table.add(name, trace.log_gamma[-1], trace.optimum[-1], trace.squared_error[-1])
        curves = trace.curves()
        series += [
            Series(f"{name}", curves["log γ"]),
            Series(f"{name}, closed form", curves["log γ*"], "points"),
            Series(f"{name}, error", curves["squared error"]),
        ]
    ratio = math.exp(learned.log_gamma[-1] - learned.optimum[-1])
    good = abs(ratio - 1) < 0.1 and learned.log_gamma[-1] < learned.log_gamma[0] and learned.squared_error[-1] < fixed.squared_error[-1]
    return Demonstration(
        "figure1-left",
        f"Figure 1, left: the decoder's variance while training ({_title(lab)})",
        "a learned variance falls to the mean squared error and reaches a smaller error than variance 1",
        table,
        tuple(series),
        good,
        {
            "log γ": learned.log_gamma[-1],
            "γ / γ*": ratio,
            "error, learned": learned.squared_error[-1],
            "error, fixed": fixed.squared_error[-1],
        },
        (
            "errors are derived from the logged distortion and γ of each interval of training steps; the first interval is a rough mean",
            "the paper's axes: log γ from 0 to -6, squared error 0 to .08, 10⁵ iterations on CelebA",
            *learned.notes,
        ),
    )


def _wanted(lab: Lab) -> tuple[str, tuple[tuple[float, float], ...]] | None:
    """The printed pairs (λ, image variance) of the lab's data set, and their column."""
    if lab.dataset.name not in PRINTED:
        return None
    column, values = PRINTED[lab.dataset.name]
    rows = [f"row {i + 1}, lambda={value:g}" for i, value in enumerate(values)]
    return column, tuple((v, published("dai2019", "Supplement Figure 9", row, column)) for v, row in zip(values, rows, strict=True))


def _nearest(variances: list[float], wanted: list[float]) -> list[int]:
    """Positions whose variance is nearest to each wanted one in log, every position once."""
    free, found = set(range(len(variances))), []
    for value in wanted:
        best = min(sorted(free), key=lambda i: abs(math.log(max(variances[i], 1e-12)) - math.log(value)))
        free.discard(best)
        found.append(best)
    return sorted(found)


def _noise(lab: Lab, number: str, title: str) -> tuple[Demonstration, Strips]:
    run = lab.run(LEARNED)
    image = run.dataset.test.x[0]
    printed = _wanted(lab)
    chosen: list[int] | int = 6
    if printed is not None:
        with torch.no_grad():
            found = posterior_variances(run.model.posteriors(image[None]))[0].sort().values.tolist()
        if len(found) >= len(printed[1]):
            chosen = _nearest(found, [v for v, _ in printed[1]])
    made = noise_directions(run.model, image, chosen=chosen, seed=lab.seed)
    table = Table(("row", "lambda", "image variance", "lambda V / (1 - lambda)", "published lambda", "published image variance"))
    for i, at in enumerate(made.chosen):
        value, change = made.variances[at], made.image_variances[at]
        there = printed[1][i] if printed is not None and len(made.chosen) == len(printed[1]) else (None, None)
        table.add(i + 1, value, change, value * change / (1 - value) if value < 1 else None, *there)
    gamma = decoder_variance(run.model)
    table.notes.append(f"were the decoder linear, λV / (1 - λ) would be γ on average, here {gamma:.4g} (eq. 73 with unit noise)")
    if printed is not None:
        implied = [v * change / (1 - v) for v, change in printed[1] if v < 0.5]
        table.notes.append(
            f"the printed pairs give {min(implied):.3g} to {max(implied):.3g} there: more than a trained γ, so that the paper's noise or unit of image variance is larger than ours"
        )
    rho, unused = made.correlation.value, made.unused
    strip = {_row(made, i): torch.cat([unit(image)[None], made.images[i]]) for i in range(len(made.chosen))}
    caption = "The image, then its mean code with unit noise along one direction, decoded; λ is a variance (σ²), image variance the sum over pixels."
    figures = {"rank correlation": rho, **({"unused, share of largest": unused} if unused is not None else {})}
    shown = Demonstration(
        number,
        f"{title} ({_title(lab)})",
        "the smaller the encoder's variance along a direction, the more noise along it changes the image (rank correlation below -.8)",
        table,
        (made.series(),),
        rho < -0.8 and (unused is None or unused < 0.01),
        {name: value for name, value in figures.items() if math.isfinite(value)},
        ("definition of the image variance, amplitude of the noise: our reading, see expost.papers.dai2019.noise", *made.notes),
    )
    return shown, Strips(f"{number}-rows", f"{title} ({_title(lab)})", caption, strip, 1 + made.images.shape[1])


def _row(made: NoiseDirections, i: int) -> str:
    at = made.chosen[i]
    return f"λ {made.variances[at]:.3g}, variance {made.image_variances[at]:.3g} (direction {made.directions[at]})"


def figure1_centre(lab: Lab) -> tuple[Demonstration, Strips]:
    """Rows of one image under noise along latent directions, with λ and image variance."""
    return _noise(lab, "figure1-centre", "Figure 1, centre: noise along latent directions")


def figure9(lab: Lab) -> tuple[Demonstration, Strips]:
    """The same beside the numbers of the supplement's Figure 9, for the directions whose λ are nearest to the printed ones."""
    return _noise(lab, "figure9", "Supplement, Figure 9: noise along latent directions")


def spectra_of(lab: Lab) -> LatentSpectra:
    """Spectra and discrepancies of first- and second-stage codes of the training images."""
    run = lab.run(LEARNED)
    stage = run.density("stage")
    assert isinstance(stage, SecondStage)
    return latent_spectra(run.model, run.dataset.train.x, stage=stage, seed=lab.seed)


def figure1_right(lab: Lab) -> Demonstration:
    """Singular values / √n of codes of both stages and of N(0, I). Holds if the second stage's are nearer 1."""
    found = spectra_of(lab)
    deviations = {kind: value.deviation for kind, value in found.spectra.items()}
    return Demonstration(
        "figure1-right",
        f"Figure 1, right: singular values of codes ({_title(lab)})",
        "second-stage codes are nearer to N(0, I) than first-stage codes",
        found.table(),
        found.series(),
        deviations["u"] < deviations["z"],
        {f"rms deviation, {kind}": value for kind, value in deviations.items()},
        ("singular values are divided by √n; the paper prints them without, between 300 and 550 at n = 162 770, √n = 403",),
    )


# -- Figures 2 to 8 ------------------------------------------------------------------------------------------------------------------------


def samples(lab: Lab) -> Strips:
    """Samples of the three VAEs from N(0, I), and of the two-stage VAE."""
    rows: dict[str, Tensor] = {}
    for name, (recipe, density) in MODELS.items():
        run = lab.run(recipe)
        rows[name] = run.model.with_prior(run.density(density)).generate(SHOWN, seed=lab.seed).clamp(0, 1).cpu()
    return Strips("samples", f"Samples ({_title(lab)})", f"Decoder means, no pixel noise. {ASSUMED}", rows)


def reconstructions(lab: Lab) -> Strips:
    """Test images and reconstructions of the four models; the two-stage VAE's are its first stage's, bit for bit."""
    rows: dict[str, Tensor] = {}
    for name, (recipe, density) in MODELS.items():
        run = lab.run(recipe)
        x = some(run.dataset.test.x, SHOWN, "pictures", lab.seed)
        rows.setdefault("test images", unit(x))
        rows[name] = run.model.with_prior(run.density(density)).reconstruct(x).clamp(0, 1).cpu()
    caption = f"The second stage does not change reconstructions. {ASSUMED}"
    return Strips("reconstructions", f"Reconstructions ({_title(lab)})", caption, rows)


def sample_figure(lab: Lab, number: int) -> list[Strips]:
    """Figure 2 ... 8 on the lab's data; :data:`SAMPLE_FIGURES` has the data set that belongs to each. ``ValueError`` for another number."""
    if number not in SAMPLE_FIGURES:
        raise ValueError(f"figure {number} shows no samples: choose one of {', '.join(map(str, SAMPLE_FIGURES))}")
    make = {"samples": samples, "reconstructions": reconstructions}
    strips = [make[what](lab) for what in SAMPLE_FIGURES[number][1]]
    return [replace(strip, title=f"Figure {number}: {strip.title}") for strip in strips]


# -- Figure 10 -----------------------------------------------------------------------------------------------------------------------------


def variances_of(run: Run) -> EncoderVariances:
    """Encoder variances of :data:`IMAGES` training images."""
    return encoder_variances(run.model, some(run.dataset.train.x, IMAGES, "variances", run.seed))


def cifar_source(lab: Lab) -> str | None:
    """Where CIFAR-10 is, beside the lab's MNIST: the folder next to it, else the data set's name. None for a lab on other data."""
    if lab.dataset.name != "mnist":
        return None
    place = Path(lab.source)
    return str(place.with_name("cifar10")) if place.is_dir() and place.name == "mnist" else "cifar10"


def cifar_run(lab: Lab, settings: dict[str, int] | None = None) -> tuple[Run | None, str]:
    """The same model on CIFAR-10, or why there is none."""
    source = cifar_source(lab)
    if source is None:
        return None, f"{lab.dataset.name} is not MNIST: it is not compared with CIFAR-10"
    try:
        return lab.run(LEARNED, settings, source=source), ""
    except (ValueError, OSError, ImportError) as error:
        return None, f"CIFAR-10 could not be loaded ({str(error).partition(':')[0]})"


def figure10(lab: Lab) -> Demonstration:
    """Histogram of all encoder variances, and CIFAR-10's beside MNIST's where it can be loaded.

    Holds if both peaks are there: more than 90 % outside [.2, .8], and at least 1 % at either end.
    """
    run = lab.run(LEARNED)
    found = {lab.dataset.name: variances_of(run)}
    other, why = cifar_run(lab)
    if other is not None:
        found["cifar10"] = variances_of(other)
    table = Table(("data", "latent", "below .2", "in [.2, .8]", "above .8", "dimension r", "± r"))
    for name, one in found.items():
        table.add(name, one.kappa, one.small, 1 - one.outside.value, one.large, one.dimension.value, one.dimension.error)
    first = found[lab.dataset.name]
    return Demonstration(
        "figure10",
        f"Supplement, Figure 10: encoder variances ({_title(lab)})",
        "encoder variances have two peaks, near 0 and at 1",
        table,
        tuple(one.series(name) for name, one in found.items()),
        first.outside.value > 0.9 and first.bimodal,
        {
            f"{name}: {what}": value
            for name, one in found.items()
            for what, value in (("outside", one.outside.value), ("r", one.dimension.value))
        },
        tuple(note for note in (*first.notes, why) if note),
    )
