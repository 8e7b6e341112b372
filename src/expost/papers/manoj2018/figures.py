"""manoj2018's figures: codes and samples before and after the ω regulariser, the numbers behind them, radii beside their bounds, radius against modes.

The slides do not print the dimension of the scatter's latent space; two are trained for it (with eight, only two would be seen), eight elsewhere.
"""

from __future__ import annotations

import itertools
import math

import torch

from expost.diagnose.classes.bounds import LARGEST_MASS, isoperimetric_bound, sector_radius, theorem_bound
from expost.diagnose.classes.classify import TAU
from expost.diagnose.classes.distances import class_codes
from expost.papers.manoj2018.grid import PRINTED, grid_models
from expost.papers.manoj2018.spaces import MODELS, PLANE, Space, space
from expost.results import SHOWN, Curve, Demonstration, Series, Strips, Table
from expost.runs.lab import Lab
from expost.seeds import draw

__all__ = ["before_and_after", "coverage_curves", "estimators", "modes", "samples", "scatter"]

#: Test codes in the scatter, and prior samples per model (the slides' 8 x 8).
DOTS, SAMPLES = 2_000, 64
#: Numbers of classes at which the bounds are drawn.
DRAWN = (5, 6, 7, 8, 10, 12, 15, 20, 30, 50, 80)


def _title(lab: Lab) -> str:
    return f"{lab.dataset.name}, {lab.budget} budget, seed {lab.seed}"


def samples(lab: Lab) -> Strips:
    """64 prior samples of both models."""
    rows = {}
    for model, recipe in MODELS.items():
        made = lab.run(recipe).model.generate(SAMPLES, seed=lab.seed).cpu()
        for i in range(0, SAMPLES, SHOWN):
            rows[f"{model}, {i + 1} to {i + SHOWN}"] = made[i : i + SHOWN]
    caption = "Samples from N(0, I) before (VAE) and after (ω-VAE) the regulariser, from the same codes."
    return Strips("manoj2018-samples", f"Prior samples ({_title(lab)})", caption, rows)


def scatter(lab: Lab) -> Demonstration:
    """Test codes in two dimensions by label, before and after; holds if the centroids come closer."""
    table = Table(("model", "distance between centroids", "error", "over the rms norm", "total variance", "outside [-3, 3]²"))
    series: list[Series] = []
    for model, recipe in MODELS.items():
        test = lab.run(recipe, PLANE).dataset.test
        if test.labels is None:
            raise ValueError(f"{lab.dataset.name} has no labels to colour codes by: choose labelled data")
        codes = lab.run(recipe, PLANE).model.latents(test.x, at="mean").cpu()
        found = class_codes(codes, test.labels, seed=lab.seed)
        outside = float((codes.abs() > 3).any(1).double().mean())
        table.add(
            model, found.raw_distance.value, found.raw_distance.error, found.relative_distance.value, found.total_variance.value, outside
        )
        rows = draw(len(codes), DOTS, "dots", lab.seed)
        for label in test.labels.unique().tolist():
            z = codes[rows][test.labels.cpu()[rows] == label]
            series.append(Series(str(label), Curve(z[:, 0].tolist(), z[:, 1].tolist(), f"z₁, {model}", f"z₂, {model}"), "dots"))
    before, after = table.column("distance between centroids")
    return Demonstration(
        "manoj2018-scatter",
        f"Codes of test images by digit, two latent dimensions ({_title(lab)})",
        "with the regulariser and a clipped encoder the classes come closer (D5, in two dimensions)",
        table,
        tuple(series),
        after < before,
        {"before": before, "after": after},
        (f"{DOTS} random test images at most are drawn, all are measured",),
    )


def _spaces(lab: Lab) -> dict[str, Space]:
    return {model: space(lab, model) for model in MODELS}


def _notes(spaces: dict[str, Space]) -> tuple[str, ...]:
    return tuple(f"{model}: {note}" for model, s in spaces.items() for note in s.notes)


def before_and_after(lab: Lab) -> Demonstration:
    """The numbers of both latent spaces; holds if classes come closer, and coverage and code variance fall (D5, D6)."""
    spaces = _spaces(lab)
    before, after = spaces.values()
    table = Table(("quantity", *(cell for model in MODELS for cell in (model, f"{model}, error"))))
    for name in dict.fromkeys((*before.values, *after.values)):
        table.add(name, *(cell for s in spaces.values() for cell in s.values.get(name, (None, None))))
    series = [
        Series(m, Curve(list(map(float, range(len(s.masses)))), list(s.masses), "class", "prior mass"), "bars") for m, s in spaces.items()
    ]
    closer, narrower, less = (
        after[name] < before[name] for name in ("distance between class centroids", "total variance", f"coverage at {TAU}")
    )
    figures = {f"{name}, {model}": value for model, s in spaces.items() for name, (value, _) in s.values.items()}
    return Demonstration(
        "manoj2018-table",
        f"The latent space before and after the regulariser ({_title(lab)})",
        "with the regulariser classes come closer, and the covered prior mass and the variance of codes fall (D5, D6)",
        table,
        tuple(series),
        closer and narrower and less,
        figures,
        (
            "classes are those of the evaluation's classifier; entropies in nats; radii under the arg max unless a probability is given",
            *_notes(spaces),
        ),
    )


def coverage_curves(lab: Lab) -> Demonstration:
    """Share of prior mass covered over thresholds; holds if it is smaller after at most of them."""
    spaces = _spaces(lab)
    before, after = spaces.values()
    table = Table(("threshold", *(cell for model in MODELS for cell in (model, f"{model}, holes"))))
    for t in before.covered:
        table.add(t, *(cell for s in spaces.values() for cell in (s.covered[t][0], 1 - s.covered[t][0])))
    series = tuple(
        Series(m, Curve(list(s.covered), [c for c, _ in s.covered.values()], "threshold τ of the class probability", "prior mass covered"), "points",
               tuple(e for _, e in s.covered.values()))
        for m, s in spaces.items()
    )  # fmt: skip
    less = sum(after.covered[t][0] < before.covered[t][0] for t in before.covered)
    resolved = sum(
        abs(after.covered[t][0] - before.covered[t][0]) > 2 * math.hypot(after.covered[t][1], before.covered[t][1]) for t in before.covered
    )
    figures = {f"{m} at {t}": c for m, s in spaces.items() for t, (c, _) in s.covered.items()}
    return Demonstration(
        "manoj2018-coverage",
        f"Coverage and holes over thresholds ({_title(lab)})",
        "with the regulariser less prior mass is covered, at most thresholds",
        table,
        series,
        2 * less > len(before.covered),
        figures,
        (f"differences are resolved (above two standard errors) at {resolved} of {len(before.covered)} thresholds, one seed",),
    )


def estimators(lab: Lab) -> Demonstration:
    """Estimates of E r beside the bounds, with eight latent dimensions and with two, where a grid is exact.

    Holds if the best estimate is at most (A) within three standard errors, and (A) at most (B) where no class has more than a fifth.
    """
    spaces = _spaces(lab) | {f"{model}, plane": space(lab, model, PLANE) for model in MODELS}
    methods = ("segments", "attack", "grid", "refined")
    table = Table(("model", "exp H2", *(f"E r, {m}" for m in methods), "error", "(A)", "(B)", "largest mass"))
    axes = ("effective number of classes, exp H₂", "class radius E r")
    uniform = [torch.full((k,), 1 / k, dtype=torch.float64) for k in DRAWN]
    drawn = list(map(float, DRAWN))
    series = [
        Series("(B) theorem", Curve(drawn, [theorem_bound(math.log(k)) for k in DRAWN], *axes)),
        Series("(A) isoperimetric, equal masses", Curve(drawn, [isoperimetric_bound(p) for p in uniform], *axes)),
        Series("sectors of the plane", Curve(drawn, [sector_radius(k) for k in DRAWN], *axes)),
    ]
    holds, figures, notes = True, {}, list(_notes(spaces))
    for model, s in spaces.items():
        if "E r, refined" not in s.values:
            notes.append(f"{model}: all prior samples are of one class, so there is no radius and nothing to bound")
            continue
        effective, radii = math.exp(s["collision entropy"]), {m: s.get(f"E r, {m}") for m in methods}
        a, b, best = s["(A) isoperimetric bound"], s.get("(B) theorem's bound"), s["E r, refined"]
        table.add(model, effective, *radii.values(), s.error("E r, refined"), a, b, s["largest mass"])
        slack = 3 * math.hypot(s.error("E r, refined"), s.error("(A) isoperimetric bound"))
        holds = holds and best <= a + slack and (s["largest mass"] > LARGEST_MASS or (b is not None and a <= b))
        for m, radius in radii.items():
            if radius is not None:
                figures[f"{m}, {model}"] = radius
                series.append(Series(f"{model}, {m}", Curve([effective], [radius], *axes), "points", (s.error(f"E r, {m}"),)))
        figures[f"(A), {model}"] = a
        if s["E r, segments"] > a:
            notes.append(f"{model}: segments alone exceed (A): a random search has not converged, the theorem is not broken")
    notes.append("grid: exact up to its step, which is its error bar; refined: from the better of attack and segments")
    return Demonstration(
        "manoj2018-radius",
        f"Estimators of the class radius and its bounds ({_title(lab)})",
        "the class radius is at most the isoperimetric bound (A), and that at most the theorem's (B) where no class has more than a fifth (D1)",
        table,
        tuple(series),
        holds,
        figures,
        tuple(notes),
    )


def modes(lab: Lab) -> Demonstration:
    """E r of 2-D VAEs of the 2D-Grid against captured modes, beside the thesis's GANs (D9); holds if it falls with every step in M."""
    models = grid_models(lab.budget, lab.seed)
    table = Table(("model", "modes", "captured", "E r", "largest mass", "(A)", "high quality"))
    for m in models:
        table.add("VAE", m.modes, m.captured, m.radius, m.largest, m.isoperimetric, m.quality)
    for captured, radius in PRINTED:
        table.add("GAN, thesis", None, captured, radius, None, None, None)
    axes = ("captured modes", "class radius E r")
    most = max(captured for captured, _ in PRINTED)
    line = [float(k) for k in range(2, most + 1)]
    series = (
        Series("VAE, measured", Curve([float(m.captured) for m in models], [m.radius for m in models], *axes), "points"),
        Series("GAN, thesis (read off the plot)", Curve([float(c) for c, _ in PRINTED], [r for _, r in PRINTED], *axes), "points"),
        Series("sectors of the plane", Curve(line, [sector_radius(int(k)) for k in line], *axes)),
        Series("(A) isoperimetric, equal masses", Curve(line, [isoperimetric_bound(torch.full((int(k),), 1 / k)) for k in line], *axes)),
    )
    holds = all(b.radius < a.radius for a, b in itertools.pairwise(models)) and all(m.radius <= m.isoperimetric for m in models)
    return Demonstration(
        "manoj2018-modes",
        f"Class radius against captured modes, 2D-Grid ({lab.budget} budget, seed {lab.seed})",
        "over models with more classes the class radius is smaller (D9)",
        table,
        series,
        holds,
        {f"E r, {m.modes} modes": m.radius for m in models},
        (
            "captured: modes with a prior sample within 3 standard deviations, of 20 000; the VAE's decoder is continuous, so most samples lie between modes",
            f"E r on a grid of step {models[0].step:.3g}: at most √2 steps too large",
        ),
    )
