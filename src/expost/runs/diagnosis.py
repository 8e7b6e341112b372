"""``expost diagnose``: the findings of a run, the commands that mend them, and the pictures that show them.

:func:`commands` turns a remedy in words (:mod:`expost.diagnose.findings`) into command lines for this run's recipe, data and settings. A remedy
without an honest command, such as "more data", has none.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from expost.autoencoder import evaluating
from expost.density.base import Density
from expost.diagnose.codes.variances import encoder_variances
from expost.diagnose.findings import PERPLEXITY, Diagnosis, Finding, Remedy, diagnose
from expost.evaluate.features.choose import extractor_of
from expost.evaluate.features.classifier import TrainedClassifier
from expost.objectives import ELBO
from expost.results import SHOWN, Curve, Demonstration, Series, Strips, Table
from expost.runs.classes import class_report
from expost.runs.densities import fitted_at
from expost.runs.origin import arguments
from expost.runs.run import Run
from expost.runs.wrapped import code_options
from expost.seeds import draw, seeded, some
from expost.tensors import unit

__all__ = ["Report", "commands", "diagnose_run", "weight_that_keeps"]

#: Latent units shown in the strips of traversals, and how far they go, in standard deviations of the density.
TRAVERSED, REACH = 8, 3.0
#: By how much the weight of the KL term is raised against memorising, and against exploding codes.
STRONGER = 4.0
#: Points in a scatter plot.
DOTS = 3000


@dataclass(frozen=True, eq=False)
class Report:
    """What ``expost diagnose`` prints and draws.

    Attributes:
        diagnosis: measurements and findings.
        commands: for every finding, the command lines that mend it, or none.
        strips, charts: pictures.
        classes: masses, holes and radius, if they were asked for.
    """

    diagnosis: Diagnosis
    commands: tuple[tuple[str, ...], ...]
    strips: tuple[Strips, ...]
    charts: tuple[Demonstration, ...]
    classes: Table | None = None

    def to_json(self) -> dict[str, Any]:
        found = self.diagnosis.to_json()
        for finding, lines in zip(found["findings"], self.commands, strict=True):
            finding["commands"] = list(lines)
        return {**found, "classes": self.classes.to_json() if self.classes is not None else None}


def diagnose_run(
    run: Run,
    density: str,
    *,
    n: int = 2000,
    seed: int = 0,
    classes: bool = False,
    pictures: bool = True,
    progress: bool | None = None,
) -> Report:
    """Diagnose a run against the density of a spec; training data are the run's, held-out data its test split.

    ``classes`` adds masses, holes and radius (:mod:`expost.runs.classes`), by the evaluation's classifier, which is trained if there is none yet.
    """
    run.check([density])
    data = run.dataset
    classifier = extractor_of("classifier", data)[0] if classes else None  # what cannot be had is said at once
    if classes and not isinstance(classifier, TrainedClassifier):
        raise ValueError(f"{data.name} has no labels, so there are no classes to look for: leave --classes out")
    fitted = run.density(density)
    objective = run.experiment.objective
    beta = float(objective.beta) if isinstance(objective, ELBO) else 1.0
    at = fitted_at(density)
    found = diagnose(run.model, data.train.x, data.test.x, density=fitted, at=at, beta=beta, n=n, seed=seed, progress=progress)
    if (diverged := _diverged(run)) is not None:
        found = replace(found, findings=(diverged,))  # whatever else is wrong with the weights before that, this comes first
    table: Table | None = None
    if isinstance(classifier, TrainedClassifier):
        table, holes = class_report(run, fitted, density, classifier, n=n, seed=seed)
        if holes is not None:
            found = replace(found, findings=tuple(sorted((*found.findings, holes), key=lambda f: -f.excess)))
    strips: tuple[Strips, ...] = ()
    charts: tuple[Demonstration, ...] = ()
    if pictures:
        strips = _strips(run, fitted, found, density, seed) if data.train.x.dim() == 4 else ()
        charts = _charts(run, fitted, found, density, n, seed)
    return Report(found, tuple(commands(run, f, found, density) for f in found.findings), strips, charts, table)


def _diverged(run: Run) -> Finding | None:
    """A training that stopped at a loss that was not finite: its weights are those before, if any are."""
    state = run.folder.state() if run.folder is not None else None
    if state is None or state.name != "failed":
        return None
    rate = run.experiment.training.lr
    remedy = Remedy("a smaller learning rate", settings={"training.lr": float(f"{rate / 10:.2g}") if rate <= 0.1 else 1e-3})
    return Finding("diverged training", "the training stopped because its loss was not finite", state.why, "any (a finite loss)", remedy)


def commands(run: Run, finding: Finding, found: Diagnosis, density: str = "prior") -> tuple[str, ...]:
    """The command lines of a finding's remedy for this run; none where there is no honest one."""
    if run.folder is None:
        return ()
    folder, remedy, saved = run.folder.path, finding.remedy, run.folder.read_recipe()
    if remedy.density is not None and remedy.density != density:
        other, code = remedy.density, code_options(saved)
        return (
            _line("expost", "density", folder, other, *code),
            _line("expost", "sample", folder, "--density", other, "--grid", folder / "samples.png", *code),
            _line("expost", "diagnose", folder, "--density", other, *(["--classes"] if finding.name.startswith("holes") else []), *code),
        )
    if saved["recipe"].startswith("wrapped/"):
        return ()
    recipe, settings, objective = saved["recipe"], dict(saved["settings"]), run.experiment.objective
    if finding.name == "collapsed posterior" and (weight := weight_that_keeps(run, found)) is not None:
        settings["objective.beta"] = weight
    elif finding.name == "memorising decoder" and isinstance(objective, ELBO) and objective.beta > 0:
        settings["objective.beta"] = STRONGER * objective.beta
    elif finding.name == "exploding codes" and isinstance(objective, ELBO):
        default = run.recipe.prepare(run.experiment.task, saved["budget"]).objective
        assert isinstance(default, ELBO)
        settings["objective.beta"] = default.beta if default.beta > objective.beta else STRONGER * objective.beta
    elif remedy.settings:
        settings |= remedy.settings
    elif remedy.recipe is not None and remedy.recipe != recipe:
        recipe, settings = remedy.recipe, _common(settings, run)
    else:
        return ()
    out = folder.with_name(f"{folder.name}-mended-{finding.name.split()[0]}")
    chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={_value(value)}")]
    train = _line(
        "expost",
        "train",
        recipe,
        *arguments(saved["data"]),
        "--budget",
        saved["budget"],
        "--seed",
        saved["seed"],
        *chosen,
        "--out",
        out,
    )
    return (train, _line("expost", "diagnose", out))


def weight_that_keeps(run: Run, found: Diagnosis) -> float | None:
    """The weight of the KL term for which a linear VAE would keep half of the units with room to spare; None if the weight is not to blame.

    It keeps unit u while βγ is below the eigenvalue λ_u of the data's covariance (Lucas et al. 2019): β is lowered until βγ is half of λ_{d/2}.
    """
    objective, linear = run.experiment.objective, found.panel.linear
    if not isinstance(objective, ELBO) or linear is None or linear.kept > math.ceil(linear.d / 2):
        return None
    wanted = float(linear.eigenvalues[min(len(linear.eigenvalues), math.ceil(linear.d / 2)) - 1]) / 2
    if not 0 < wanted < linear.gamma:
        return None
    return float(f"{objective.beta * wanted / linear.gamma:.3g}")


def _common(settings: dict[str, Any], run: Run) -> dict[str, Any]:
    """The settings that every recipe has; the latent size stays."""
    kept = {k: v for k, v in settings.items() if k in ("network", "latent") or k.startswith("training.")}
    return {**kept, "latent": run.experiment.latent}


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _line(*parts: object) -> str:
    return shlex.join(str(p) for p in parts)


def _strips(run: Run, density: Density, found: Diagnosis, spec: str, seed: int) -> tuple[Strips, ...]:
    model, data = run.model, run.dataset
    made = []
    if found.optimal is not None:
        o = found.optimal
        shown = draw(len(o.inputs), SHOWN, "pictures", seed)
        nearest = unit(data.train.x[o.weights.indices.cpu()[shown, 0]]).cpu()
        rows = {
            "held-out data": o.inputs[shown],
            "reconstruction": o.reconstructions[shown],
            "optimal decoder": o.averages[shown],
            "largest weight": nearest,
        }
        captions = {"largest weight": [f"{w:.2f}" for w in o.weights.weights.cpu()[shown, 0].tolist()]}
        text = (
            "A decoder that memorises gives the third row instead of the first: the average of training data weighted by q(z | x_n) / Σ q(z | x_j). "
            "Below, the training image of largest weight."
        )
        made.append(Strips("memorisation", "Does the decoder memorise?", text, rows, SHOWN, captions))
    else:
        x = some(data.test.x, SHOWN, "pictures", seed)
        rows = {"held-out data": unit(x).cpu(), "reconstruction": model.reconstruct(x).cpu()}
        made.append(Strips("reconstructions", "Reconstructions", "Data that the model has not seen.", rows))
    with torch.no_grad():
        samples = model.with_prior(density).generate(2 * SHOWN, seed=seed).clamp(0, 1).cpu()
    rows = {f"samples, {spec}": samples[:SHOWN], "more": samples[SHOWN:]}
    made.append(Strips("samples", "Samples", f"Decoded draws from {spec}.", rows))
    return (*made, _traversals(run, density, found, seed))


def _traversals(run: Run, density: Density, found: Diagnosis, seed: int) -> Strips:
    """Decoded lines through the mean code along single units, the most used first and the least used last."""
    model = run.model
    with evaluating(density), seeded("traversals", seed):
        draws = density().sample(torch.Size((2000,)))
    centre, spread = draws.mean(0), draws.std(0)
    units = found.panel.units
    order = units.ablation.argsort(descending=True).tolist() if units is not None else list(range(len(centre)))
    chosen = order if len(order) <= TRAVERSED else [*order[: TRAVERSED - 1], order[-1]]
    steps = torch.linspace(-REACH, REACH, 11, device=centre.device)
    rows = {}
    for u in chosen:
        z = centre.repeat(len(steps), 1)
        z[:, u] += steps * spread[u]
        rows[f"unit {u}"] = model.decode_points(z).clamp(0, 1).cpu()
    text = f"Single units from {-REACH:g} to {REACH:g} standard deviations of the density around its mean; the most used units first, the least used last."
    return Strips("traversals", "What single units do", text, rows, len(steps))


def _chart(name: str, title: str, claim: str, series: tuple[Series, ...]) -> Demonstration:
    return Demonstration(name, title, claim, Table(("",)), series, True)


def _charts(run: Run, density: Density, found: Diagnosis, spec: str, n: int, seed: int) -> tuple[Demonstration, ...]:
    made = []
    units, marginals = found.panel.units, found.panel.marginals
    if units is not None:
        order = units.ablation.argsort(descending=True).tolist()
        place = [float(i) for i in range(len(order))]
        series = [
            Series(
                "ablation",
                Curve(place, units.ablation[order].tolist(), "unit, most used first", f"loss without it ({units.measure})"),
                "bars",
            )
        ]
        if units.kl is not None:
            series.append(Series("KL", Curve(place, units.kl[order].tolist(), "unit, most used first", "KL to the prior (nats)"), "bars"))
        if marginals is not None and bool(torch.isfinite(marginals.kl).all()):
            curve = Curve(place, marginals.kl[order].tolist(), "unit, most used first", f"KL of q(z_u) to {marginals.reference} (nats)")
            series.append(Series("marginal KL", curve, "bars"))
        made.append(
            _chart(
                "units", "Latent units", "What each unit is worth, what it costs, and how far its distribution is from p(z).", tuple(series)
            )
        )
    if found.optimal is not None:
        part = some(run.dataset.train.x, 10_000, "variances", seed)
        shares = encoder_variances(run.model, part).series("posterior variances")
        text = "Units that carry information have variances near 0, those that do not near 1."
        made.append(_chart("variances", f"Encoder variances of {len(part)} training data", text, (shares,)))
        o = found.optimal
        far = float(torch.quantile(torch.cat([o.to_input, o.to_average]), 0.999))
        axes = ("distance of x̂ from the optimal decoder", f"distance of x̂ from the input ({o.kind})")
        few = (o.weights.perplexity < PERPLEXITY).cpu()
        parts = (("one or two training examples explain the code", few), ("an average of more", ~few))
        picked = [(label, some(mask.nonzero()[:, 0], DOTS, "dots", seed)) for label, mask in parts]
        dots = [Series(label, Curve(o.to_average[at].tolist(), o.to_input[at].tolist(), *axes), "dots") for label, at in picked if len(at)]
        line = Series("equally far", Curve([0.0, far], [0.0, far], *axes))
        text = (
            f"Where one or two training examples explain a code (perplexity below {PERPLEXITY:g}), points below the line are reconstructed from what "
            "they are, points above it from memory. An average of more training data is no copy of any, wherever it lies."
        )
        made.append(_chart("generalisation", "Is a reconstruction closer to its input or to training data?", text, (*dots, line)))
    made.append(_codes(run, density, units.ablation if units is not None else None, spec, n, seed))
    return tuple(made)


def _codes(run: Run, density: Density, ablation: Tensor | None, spec: str, n: int, seed: int) -> Demonstration:
    """Codes of held-out data and draws of the density, in the two most used units."""
    rows = draw(len(run.dataset.test.x), DOTS, "dots", seed)
    z = run.model.latents(run.dataset.test.x[rows], at=fitted_at(spec), seed=seed).cpu()
    with evaluating(density), seeded("codes", seed):
        draws = density().sample(torch.Size((min(len(z), n),))).cpu()
    first, second = (
        ablation.argsort(descending=True)[:2].tolist() if ablation is not None and len(ablation) > 1 else (0, min(1, z.shape[1] - 1))
    )
    axes = (f"unit {first}", f"unit {second}")
    series = [Series(f"draws, {spec}", Curve(draws[:, first].tolist(), draws[:, second].tolist(), *axes), "dots")]
    labels = run.dataset.test.labels
    if labels is None or run.dataset.classes > 10:
        series.append(Series("codes", Curve(z[:, first].tolist(), z[:, second].tolist(), *axes), "dots"))
    else:
        for c in range(run.dataset.classes):
            part = z[labels[rows] == c]
            if len(part):
                series.append(Series(f"class {c}", Curve(part[:, first].tolist(), part[:, second].tolist(), *axes), "dots"))
    what = "samples of q(z | x)" if fitted_at(spec) == "sample" else "posterior means"
    text = f"Codes of held-out data ({what}) over draws from {spec}, in the two most used units: where only draws are, samples are decoded without data."
    return _chart("codes", "Codes and what is sampled", text, tuple(series))
