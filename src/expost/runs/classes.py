"""``expost diagnose --classes``: what classes are sampled, where the holes are, how close the classes lie (manoj2018), for any run on labelled data.

The classes are those of the evaluation's classifier on decoded codes. A *hole* is a code whose image the classifier gives no class with a probability of
at least τ = .9; since the classifier also hesitates about good images, the share of holes among draws stands beside that among reconstructions of
held-out data, and only the difference is blamed on what is sampled. The class radius and its bounds are those of N(0, I), so they are given for that prior only.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from expost.autoencoder import evaluating
from expost.density import StandardNormal
from expost.density.base import Density
from expost.diagnose.classes.attack import attack_radius, refined_radius
from expost.diagnose.classes.bounds import radius_bounds
from expost.diagnose.classes.classify import TAU, LatentClasses, outputs, prior_codes
from expost.diagnose.classes.distances import class_codes
from expost.diagnose.classes.masses import class_masses, coverage
from expost.diagnose.classes.radius import segment_radius, smallest
from expost.diagnose.findings import Finding, Remedy
from expost.evaluate.features.classifier import TrainedClassifier, differentiable_logits
from expost.results import Table
from expost.runs.run import Run
from expost.seeds import draw, seeded

__all__ = ["HOLES", "class_report"]

#: By how much the share of holes among draws may exceed that among reconstructions.
HOLES = 0.25
#: Codes at which the radius is measured.
CODES = 300


def class_report(
    run: Run, density: Density, spec: str, classifier: TrainedClassifier, *, n: int = 2000, seed: int = 0
) -> tuple[Table, Finding | None]:
    """Masses, holes, distances and radius as a table, and a finding if there are holes where samples are drawn.

    Raises:
        ValueError: data without labels.
    """
    model, test = run.model, run.dataset.test
    if test.labels is None:
        raise ValueError(f"{run.dataset.name} has no labels, so there are no classes to look for: leave --classes out")
    classify = LatentClasses(model, partial(differentiable_logits, classifier.to(model.device)))
    with evaluating(density), seeded("class report", seed):
        drawn = outputs(classify, density().sample(torch.Size((n,))))
    rows = draw(len(test.x), n, "diagnose", seed)  # those of the diagnosis
    codes = model.latents(test.x[rows], at="mean")
    kept = outputs(classify, codes)
    masses, of_draws, of_data = class_masses(drawn), coverage(drawn), coverage(kept)
    at = of_draws.thresholds.index(TAU)
    holes = [(1 - float(c.covered[at]), float(c.errors[at])) for c in (of_draws, of_data)]
    table = Table(
        ("quantity", "value", "error"), title=f"classes of {spec}, by {classifier.label.partition('[')[2].rstrip(']') or 'the classifier'}"
    )
    table.add(f"holes among draws (no class reaches {TAU:g})", *holes[0])
    table.add("the same among reconstructions of held-out data", *holes[1])
    for result in (masses.collision(), masses.entropy(2), masses.entropy(1)):
        table.add(result.name, float(result.value), result.error)
    table.add("largest entropy, log K", math.log(len(masses.p)), None)
    for i, (p, error) in enumerate(zip(masses.p.tolist(), masses.errors.tolist(), strict=True)):
        table.add(f"mass of class {i}", p, error)
    for result in class_codes(codes, test.labels[rows], seed=seed).results:
        table.add(result.name, float(result.value), result.error)
    if isinstance(density, StandardNormal) and masses.seen > 1:
        z, bounds = prior_codes(CODES, run.experiment.latent, seed=seed + 1).to(model.device), radius_bounds(masses)
        radius = refined_radius(classify, z, smallest(attack_radius(classify, z, seed=seed), segment_radius(classify, z, seed=seed)))
        table.add("class radius E r (upper estimate)", radius.mean, radius.error)
        table.add("(A) isoperimetric bound", float(bounds.isoperimetric.value), bounds.isoperimetric.error)
        if bounds.theorem is not None:
            table.add("(B) theorem's bound", bounds.theorem, None)
        table.notes += bounds.assumptions
    table.notes += [
        f"n = {n} draws, {len(codes)} held-out data, seed {seed}; entropies in nats; draws belong to their most probable class",
        *masses.notes,
    ]
    return table, _holes(holes, spec)


def _holes(holes: list[tuple[float, float]], spec: str) -> Finding | None:
    (drawn, error), (kept, own) = holes
    if drawn - kept <= HOLES:
        return None
    other = (
        Remedy("sample from a density fitted to the codes", density="gmm:10")
        if spec == "prior"
        else Remedy("more components", density="gmm:50")
    )
    return Finding(
        "holes between classes",
        "many samples belong to no class: what is sampled has mass between the classes, where no data are",
        f"{drawn:.3f} ± {error:.3f} of draws reach no class with probability {TAU:g}, of reconstructions {kept:.3f} ± {own:.3f}",
        f"{HOLES:g} more than among reconstructions (ours; holes: Manoj 2018)",
        other,
        1 + math.log2((drawn - kept) / HOLES),
    )
