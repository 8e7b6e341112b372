"""Figures 3 to 6 of ghosh2020: two sweeps of the VAE, strips of images of all models, samples beside their nearest training images.

Where the paper's caption and its code disagree, the caption is followed: interpolations are spherical (the code draws straight ones), and a
sample comes before its neighbours (the code puts it last).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.evaluate.features.base import Pixels, extract
from expost.evaluate.interpolate import pairs, slerp
from expost.evaluate.metrics.memorisation import copy_distance
from expost.papers.ghosh2020.knobs import WATCHED, during_training, kl_weights
from expost.papers.ghosh2020.mean_stage import MeanStage
from expost.papers.ghosh2020.models import stage_spec
from expost.papers.ghosh2020.table import MODELS, SINGLE, normal_of
from expost.results import SHOWN, Curve, Demonstration, Series, Strips, Table
from expost.runs.lab import Lab
from expost.runs.run import Run
from expost.seeds import some
from expost.statistics.neighbours import nearest
from expost.tensors import unit

__all__ = ["copies_table", "figure3_left", "figure3_right", "interpolations", "neighbours", "reconstructions", "samples"]

#: Points of an interpolation, ends included, and interpolations side by side.
POINTS, SIDE_BY_SIDE = 8, 2


def _runs(lab: Lab) -> dict[str, Run]:
    return {model: lab.run(recipe) for model, recipe in MODELS.items()}


def _title(lab: Lab) -> str:
    return f"{lab.dataset.name}, {lab.budget} budget, seed {lab.seed}"


def reconstructions(lab: Lab) -> Strips:
    """Test images and every model's reconstructions of them; the 2sVAE's pass through both stages."""
    rows: dict[str, Tensor] = {}
    for model, run in _runs(lab).items():
        x = some(run.dataset.test.x, SHOWN, "pictures", lab.seed)
        rows.setdefault("test images", unit(x))
        rows[model] = _two_stage(run).reconstruct(x).cpu() if model == "2sVAE" else run.model.reconstruct(x).cpu()
    return Strips("reconstructions", f"Reconstructions ({_title(lab)})", "The first row are the test images themselves.", rows)


def _two_stage(run: Run) -> Autoencoder:
    stage = run.density(stage_spec(run.experiment.task))
    assert isinstance(stage, MeanStage)
    return stage.joined(run.model)


def samples(lab: Lab) -> Strips:
    """Samples of every model from N and from the mixture."""
    rows: dict[str, Tensor] = {}
    for model, run in _runs(lab).items():
        if model == "2sVAE":
            rows["2sVAE"] = run.model.with_prior(run.density(stage_spec(run.experiment.task))).generate(SHOWN, seed=lab.seed).cpu()
            continue
        for spec, name in ((normal_of(model), "N"), ("gmm:10", "GMM-10")):
            rows[f"{model}, {name}"] = run.model.with_prior(run.density(spec)).generate(SHOWN, seed=lab.seed).cpu()
    return Strips("samples", f"Samples ({_title(lab)})", "N is the training prior for VAE and WAE, a fitted Gaussian for the others.", rows)


def interpolations(lab: Lab) -> Strips:
    """Spherical paths between the codes of two pairs of test images, whose ends are the images themselves."""
    t = torch.linspace(0, 1, POINTS)
    rows: dict[str, Tensor] = {}
    for model, run in _runs(lab).items():
        autoencoder = _two_stage(run) if model == "2sVAE" else run.model
        x = run.dataset.test.x
        first, second = pairs(len(x), SIDE_BY_SIDE, lab.seed)
        strip = []
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            ends = x[[a, b]]
            z = autoencoder.latents(ends, at="mean")
            path = slerp(t[:, None].to(z), z[:1], z[1:])
            decoded = autoencoder.decode_points(path).cpu()
            decoded[0], decoded[-1] = unit(ends[0]), unit(ends[1])
            strip.append(decoded)
        rows[model] = torch.cat(strip)
    caption = f"{SIDE_BY_SIDE} paths of {POINTS} images in every row; first and last image of a path are test images."
    return Strips("interpolations", f"Spherical interpolations ({_title(lab)})", caption, rows, POINTS * SIDE_BY_SIDE)


def _pixels(run: Run) -> Pixels:
    return Pixels((run.dataset.shape[0], run.dataset.shape[1], run.dataset.shape[2]))


def neighbours(lab: Lab, model: str = "RAE-L2", shown: int = 20, near: int = 3) -> Strips:
    """Samples from the mixture, each followed by its ``near`` nearest training images in pixels."""
    run = lab.run(MODELS[model])
    pixels, train = _pixels(run), run.dataset.train.x
    made = run.model.with_prior(run.density("gmm:10")).generate(shown, seed=lab.seed).clamp(0, 1).cpu()
    found = nearest(extract(pixels, made), extract(pixels, train), near)
    groups = [
        torch.cat([_framed(image[None]), _coloured(unit(train[index]).cpu())]) for image, index in zip(made, found.indices, strict=True)
    ]
    per_row = SHOWN // (near + 1)
    rows = {f"samples {i + 1} to {i + per_row}": torch.cat(groups[i : i + per_row]) for i in range(0, shown, per_row)}
    caption = f"Samples of {model} with GMM-10 (framed), each followed by its {near} nearest training images in pixel L2."
    return Strips("neighbours", f"Nearest training images ({_title(lab)})", caption, rows, SHOWN)


def _coloured(x: Tensor) -> Tensor:
    return x.expand(len(x), 3, *x.shape[2:])


def _framed(x: Tensor) -> Tensor:
    """A red frame of one pixel around images (n, C, H, W)."""
    x = _coloured(x).clone()
    red = torch.tensor([0.85, 0.1, 0.1])[:, None]
    x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1] = red, red, red, red
    return x


def copies_table(lab: Lab, n: int = 2_000) -> tuple[Table, bool]:
    """Claim C12: median pixel distance of samples to the nearest training image, relative to that of test images."""
    table = Table(("model", "relative distance", "verdict"), title=f"Are samples copies of training images? ({_title(lab)})")
    real = lab.run(MODELS[SINGLE[0]])  # all models are trained on the same images
    pixels = _pixels(real)
    train, test = (extract(pixels, x, device=lab.device) for x in (real.dataset.train.x, some(real.dataset.test.x, n, "copies", lab.seed)))
    of_test = nearest(test, train)
    for model in SINGLE:
        run = lab.run(MODELS[model])
        made = run.model.with_prior(run.density("gmm:10")).generate(n, seed=lab.seed).clamp(0, 1)
        distance = copy_distance(extract(pixels, made, device=lab.device), test, train, test_nearest=of_test).value
        table.add(model, distance, "no copies" if distance > 0.5 else "COPIES")
    table.notes.append(
        f"{n} samples from GMM-10, {min(n, len(lab.dataset.test.x))} test images; below .5 a sample is nearer to its training image than it should be"
    )
    return table, all(verdict == "no copies" for verdict in table.column("verdict"))


def figure3_left(lab: Lab) -> Demonstration:
    """FD of test reconstructions while training, for k latent samples."""
    curves = during_training(lab)
    table = Table(("k", "at the end", "mean over epochs"))
    for k, curve in curves.items():
        table.add(k, curve.y[-1], sum(curve.y) / len(curve.y))
    worst = max(curves, key=lambda k: curves[k].y[-1])
    return Demonstration(
        "figure3-left",
        f"Figure 3, left: latent samples per image ({_title(lab)})",
        "more latent samples per image in the reconstruction term lower the FD of reconstructions after equal epochs; one is worst (C10)",
        table,
        tuple(Series(f"k = {k}", curve, "points" if len(curve.x) == 1 else "line") for k, curve in curves.items()),
        worst == 1,
        {f"{WATCHED}, k = {k}": curve.y[-1] for k, curve in curves.items()},
    )


def figure3_right(lab: Lab) -> Demonstration:
    """FD of reconstructions and samples against the weight of the KL term."""
    found = kl_weights(lab)
    table = Table(("beta", "reconstruction FD", "sample FD", "MSE per pixel"))
    for w in found:
        table.add(w.beta, w.reconstruction, w.samples, w.mse)
    best = min(range(len(found)), key=lambda i: found[i].samples)
    falls = all(found[i + 1].samples < found[i].samples for i in range(best))
    worse = all(b.mse >= a.mse and b.reconstruction >= a.reconstruction for a, b in itertools.pairwise(found))
    betas = [w.beta for w in found]
    return Demonstration(
        "figure3-right",
        f"Figure 3, right: weight of the KL term ({_title(lab)})",
        "a larger weight worsens reconstructions and improves samples from N(0, I) up to an optimum (C11)",
        table,
        (
            Series("reconstructions", Curve(betas, [w.reconstruction for w in found], "weight β of the KL term", found[0].label)),
            Series("samples from N(0, I)", Curve(betas, [w.samples for w in found], "weight β of the KL term", found[0].label)),
        ),
        worse and falls and best > 0,
        {"best weight": found[best].beta},
    )
