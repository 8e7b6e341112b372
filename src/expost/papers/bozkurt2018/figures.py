"""Figures of bozkurt2018: does a VAE reconstruct a digit that it has never seen, or the training images nearest to it?

Four models: one hidden layer of 400 ("shallow") or 400-200-100 ("deep"), trained with all digits or without one; always judged on the test
images of that digit. Weights, averages and reconstructions are at the posterior mean, as in the authors' code (:mod:`expost.diagnose.optimal`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from expost.diagnose.optimal import LatentMap, OptimalDecoder, latent_map, optimal_decoder
from expost.results import Curve, Demonstration, Series, Strips, Table
from expost.runs.lab import Lab
from expost.runs.run import Run
from expost.seeds import draw
from expost.tensors import unit

__all__ = [
    "HELD_OUT",
    "MODELS",
    "before_training",
    "digit_images",
    "examine",
    "figure1",
    "figure2",
    "figure3",
    "judge",
    "mini",
    "mini_map",
    "perplexities",
    "run_of",
    "title_of",
]

#: The paper's default.
HELD_OUT = 9
#: Label -> (recipe, whether the digit was in the training data); the order of Figure 2's colours.
MODELS = {
    "shallow, with": ("bozkurt2018/shallow", True),
    "shallow, without": ("bozkurt2018/shallow", False),
    "deep, with": ("bozkurt2018/deep", True),
    "deep, without": ("bozkurt2018/deep", False),
}
#: Modes of the densities in the authors' figure, read off by eye (± 5): (BCE(μ, x̂), BCE(x, x̂)).
LEVELS = {"shallow, with": (75, 57), "shallow, without": (115, 70), "deep, with": (76, 67), "deep, without": (95, 115)}
#: Perplexities drawn by the authors' histogram.
BINS, UP_TO = 30, 6.0


def _without(lab: Lab, digit: int) -> str:
    return f"{lab.source}:without={digit}"


def run_of(lab: Lab, recipe: str, digit: int | None, settings: dict[str, object] | None = None) -> Run:
    """A run on all classes (``digit`` None), or on all but one."""
    return lab.run(recipe, settings, source=None if digit is None else _without(lab, digit))


def digit_images(run: Run, digit: int) -> Tensor:
    """The test images of one digit; ``ValueError`` if the data has no labels or none of it."""
    test = run.dataset.test
    if test.labels is None or not bool((test.labels == digit).any()):
        raise ValueError(
            f"bozkurt2018 holds out class {digit}, which the test images of {run.dataset.name} do not have: use data with labels 0 to 9"
        )
    return test.x[test.labels == digit]


def judge(lab: Lab, run: Run, digit: int) -> OptimalDecoder:
    """The optimal decoder beside the model's, for the test images of a digit; kept in memory, since several figures and claims ask for it."""
    assert run.folder is not None
    key = ("bozkurt2018", run.folder.path, digit)  # not the experiment: read from an older folder it may have newer defaults
    return lab.once(key, lambda: optimal_decoder(run.model, run.dataset.train.x, digit_images(run, digit)))


def examine(lab: Lab, digit: int = HELD_OUT) -> dict[str, OptimalDecoder]:
    """The four models on the test images of the digit."""
    return {name: judge(lab, run_of(lab, recipe, None if seen else digit), digit) for name, (recipe, seen) in MODELS.items()}


def title_of(lab: Lab) -> str:
    return f"{lab.dataset.name}, {lab.budget} budget, seed {lab.seed}"


def figure1(lab: Lab, digit: int = HELD_OUT, shown: int = 3) -> Strips:
    """Input, decoder output, weighted average, and the three training images of largest weight, for three test images and four models."""
    rows: dict[str, Tensor] = {}
    captions: dict[str, list[str]] = {}
    for name, (recipe, seen) in MODELS.items():
        run = run_of(lab, recipe, None if seen else digit)
        found, train = judge(lab, run, digit), run.dataset.train.x
        strip: list[Tensor] = []
        captions[f"{name} {digit}s"] = []
        for i in draw(len(found.inputs), shown, "figure 1", lab.seed).tolist():
            best = unit(train[found.weights.indices[i].cpu()]).cpu()
            strip += [found.inputs[i : i + 1], found.reconstructions[i : i + 1], found.averages[i : i + 1], best]
            captions[f"{name} {digit}s"] += ["input", "decoder", "average", *(f"{w:.2f}" for w in found.weights.weights[i].tolist())]
        rows[f"{name} {digit}s"] = torch.cat(strip)
    caption = (
        f"Test images of {digit}; the models were trained with or without {digit}s. The last three images of six are the training "
        "images of largest weight, with their weights."
    )
    return Strips("figure1", f"bozkurt2018, Figure 1 ({title_of(lab)})", caption, rows, 6 * shown, captions)


def perplexities(lab: Lab, digit: int = HELD_OUT) -> Demonstration:
    """Figure 1, inset: histogram of the perplexity of the weights over all test images of the digit."""
    table = Table(("model", "below 1.2", "median", "mean", "images"))
    series, figures = [], {}
    width = UP_TO / BINS
    centres = [width * (i + 0.5) for i in range(BINS)]
    for name, found in examine(lab, digit).items():
        perplexity = found.weights.perplexity.cpu()
        share = found.certain()
        table.add(f"{name} {digit}", share.value, float(perplexity.median()), float(perplexity.mean()), len(perplexity))
        counts = torch.histc(perplexity.float(), BINS, 0, UP_TO).tolist()
        axes = ("perplexity of the weights", f"images, {name.partition(',')[0]}")
        series.append(Series(f"{name.replace(',', '')} {digit}s", Curve(centres, counts, *axes), "bars"))
        figures[f"{name}, below 1.2"] = share.value
    lowest = min(figures.values())
    return Demonstration(
        "figure1-perplexity",
        f"bozkurt2018, Figure 1: perplexity of the optimal decoder's weights ({title_of(lab)})",
        "the histogram peaks at 1: more than 40 % of the test images of the digit have a perplexity below 1.2 (A2)",
        table,
        tuple(series),
        lowest > 0.4,
        figures,
        (f"perplexities above {UP_TO:g} are in the table only",),
    )


def figure2(lab: Lab, digit: int = HELD_OUT) -> Demonstration:
    """Distance of the reconstruction from the input against distance from the weighted average, four models."""
    found = examine(lab, digit)
    table = Table(("model", "BCE(x, x̂)", "BCE(μ, x̂)", "KL(x, x̂)", "KL(μ, x̂)", "closer to x", "mode", "authors' mode"))
    series, figures = [], {}
    for name, f in found.items():
        panel = name.partition(",")[0]
        axes = ("BCE(μ, x̂), nats", f"BCE(x, x̂), nats, {panel}")
        series.append(Series(f"{name.replace(',', '')} {digit}s", Curve(f.to_average.tolist(), f.to_input.tolist(), *axes), "dots"))
        mode = _mode(f.to_average, f.to_input)
        excess = [float((a - b).mean()) for a, b in ((f.to_input, f.floor_input), (f.to_average, f.floor_average))]
        share = f.closer_to_input.value
        table.add(
            f"{name} {digit}", float(f.to_input.mean()), float(f.to_average.mean()), *excess, share,
            f"{mode[0]:.0f}, {mode[1]:.0f}", "{}, {}".format(*LEVELS[name]),
        )  # fmt: skip
        figures[f"{name}, closer to x"] = share
        figures[f"{name}, BCE(x)"], figures[f"{name}, BCE(mu)"] = float(f.to_input.mean()), float(f.to_average.mean())
    top = max(float(torch.quantile(torch.cat([f.to_input, f.to_average]), 0.999)) for f in found.values())
    diagonals = (Curve([0.0, top], [0.0, top], "BCE(μ, x̂), nats", f"BCE(x, x̂), nats, {panel}") for panel in ("shallow", "deep"))
    series += [Series("equally far", diagonal) for diagonal in diagonals]
    shallow, deep = (figures[f"{name}, without, closer to x"] for name in ("shallow", "deep"))
    return Demonstration(
        "figure2",
        f"bozkurt2018, Figure 2: is a reconstruction closer to its input or to the training data? ({title_of(lab)})",
        f"below the line a reconstruction is closer to its input. Trained without {digit}s, most of the shallow model's are (> .7, A3), fewer than "
        "half of the deep model's (A4)",
        table,
        tuple(series),
        shallow > 0.7 and deep < 0.5 and deep < shallow - 0.2,
        figures,
        (
            "x is the input, μ the weighted average of training images, x̂ the reconstruction; KL is BCE less the entropy of its target, "
            "because μ is softer than x where perplexity exceeds 1",
            "modes of a Gaussian kernel density, as (BCE(μ, x̂), BCE(x, x̂)); the authors' were read off their figure by eye (± 5)",
        ),
    )


def _mode(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Where a Gaussian kernel density of points is largest (among the points)."""
    from scipy.stats import gaussian_kde

    points = torch.stack([x, y]).double().numpy()
    if points.shape[1] < 4:
        return math.nan, math.nan
    best = int(gaussian_kde(points)(points).argmax())
    return float(points[0, best]), float(points[1, best])


def mini(lab: Lab) -> Run:
    """The two-dimensional model of mini-MNIST: 10 training images of every digit."""
    return lab.run("bozkurt2018/mini", source=f"{lab.source}:per-class=10")


def mini_map(lab: Lab) -> LatentMap:
    """Largest weight and aggregate posterior over [-5, 5]² of the mini model."""
    run = mini(lab)
    points = 200 if lab.budget == "smoke" else 600
    return lab.once(("bozkurt2018 map", points), lambda: latent_map(run.model, run.dataset.train.x, points=points))


def figure3(lab: Lab) -> tuple[dict[str, dict[str, Tensor]], Table]:
    """Maps of mini-MNIST: largest weight, posteriors, aggregate posterior, and what the decoder makes of the plane."""
    run, found = mini(lab), mini_map(lab)
    eroded = -torch.nn.functional.max_pool2d(-found.largest.float()[None, None], 3, 1, 1)[0, 0]
    density = (found.log_aggregate - found.log_aggregate.max()).exp().float()
    maps = {
        f"mini-MNIST ({len(found.means)} images)": {
            "largest weight": eroded,
            "with posteriors (±2σ)": _with_ellipses(eroded, found),
            "aggregate posterior, square root": density.sqrt(),
            "decoder over the plane": _decoded_plane(run, found.bound).expand(3, -1, -1),
        }
    }
    table = Table(("quantity", "measured"), title=f"bozkurt2018, Figure 3 ({title_of(lab)})")
    table.add("prior-weighted share of the plane with largest weight > .9 (A10: above .8)", found.certain_share())
    table.add("median posterior standard deviation (A9: below .1)", float(found.stds.median()))
    table.add("the same before training", before_training(lab))
    table.notes.append(
        f"largest weights are shown after a 3 x 3 grey erosion, on [-{found.bound:g}, {found.bound:g}]²; z₁ to the right, z₂ up"
    )
    return maps, table


def before_training(lab: Lab) -> float:
    """Median posterior standard deviation of the mini model with its initial weights."""
    run = mini(lab)
    model, _ = run.experiment.build(run.seed)
    return float(model.posteriors(run.dataset.train.x).stddev.median())


def _with_ellipses(picture: Tensor, found: LatentMap, deviations: float = 2.0) -> Tensor:
    """RGB: the map in grey with the ellipses of ± ``deviations`` σ of every posterior in red; at least a dot where one is smaller than a pixel."""
    points = len(picture)
    step = 2 * found.bound / (points - 1)
    rgb = (0.35 + 0.65 * picture).clamp(0, 1).expand(3, points, points).clone()
    red = torch.tensor([0.85, 0.1, 0.1])[:, None]
    angles = torch.linspace(0, 2 * math.pi, 721)[:-1]
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    for mean, std in zip(found.means.float(), found.stds.float(), strict=True):
        ring = mean + deviations * std * circle
        columns, rows = ((ring[:, 0] + found.bound) / step).round().long(), ((found.bound - ring[:, 1]) / step).round().long()
        inside = (columns >= 0) & (columns < points) & (rows >= 0) & (rows < points)
        rgb[:, rows[inside], columns[inside]] = red
    return rgb


def _decoded_plane(run: Run, bound: float, across: int = 15) -> Tensor:
    """(side, side) picture of decoded images at the centres of ``across`` x ``across`` cells of the square."""
    width = 2 * bound / across
    centres = torch.arange(across) * width - bound + width / 2
    z = torch.stack([centres[None].expand(across, across), centres.flip(0)[:, None].expand(across, across)], -1).reshape(-1, 2)
    images = run.model.decode_points(z).cpu().mean(1)
    height, wide = images.shape[1:]
    return images.reshape(across, across, height, wide).permute(0, 2, 1, 3).reshape(across * height, across * wide)
