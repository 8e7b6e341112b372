r"""manoj2018 before and after the ω regulariser: everything of its section on class radius, measured once per trained model and kept in its folder.

The classes of a latent space are those of the evaluation's classifier on decoded means. Radii are measured at codes of N(0, I) under the arg max
(a partition: the bounds apply), and once more given that the probability reaches τ = .9 (manoj2018 gives no τ), with holes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from torch import Tensor

from expost import data
from expost.diagnose.classes.attack import attack_radius, refined_radius
from expost.diagnose.classes.bounds import HIGHEST, entropy_bound, radius_bounds
from expost.diagnose.classes.classify import TAU, LatentClasses, outputs, prior_codes
from expost.diagnose.classes.distances import class_codes, prior_reach
from expost.diagnose.classes.grid import class_grid, grid_radius
from expost.diagnose.classes.masses import class_masses, coverage
from expost.diagnose.classes.radius import segment_radius, smallest
from expost.evaluate.features.classifier import TrainedClassifier, differentiable_logits
from expost.results import Result
from expost.runs.lab import Lab
from expost.runs.run import Run

__all__ = ["MODELS", "PLANE", "Space", "classifier_of", "latent_classes", "space"]

MODELS = {"VAE": "manoj2018/vae", "ω-VAE": "manoj2018/omega-vae"}
"""Before and after: its name in tables -> recipe."""

#: Codes at which the radius is measured, and codes for masses and coverage. The slides average over 1000 codes.
CODES = {"smoke": 40, "cpu": 300, "paper": 1000}
MASSES = {"smoke": 500, "cpu": 10_000, "paper": 100_000}
#: Nodes per side of the grid on a latent plane.
NODES = {"smoke": 41, "cpu": 301, "paper": 601}
#: What makes the latent space a plane.
PLANE = {"latent": 2}


@dataclass(frozen=True)
class Space:
    """The latent space of one model in numbers.

    Attributes:
        values: name -> (value, standard error or None).
        masses: p_i.
        covered: τ -> (share of prior mass covered, standard error).
        notes: what the reader must know.
    """

    values: dict[str, tuple[float, float | None]]
    masses: tuple[float, ...]
    covered: dict[float, tuple[float, float]]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.values[name][0]

    def get(self, name: str) -> float | None:
        """None where it could not be measured: with one class there is no radius."""
        return self.values[name][0] if name in self.values else None

    def error(self, name: str) -> float:
        return self.values[name][1] or 0.0

    def to_json(self) -> _Kept:
        covered = {str(t): v for t, v in self.covered.items()}
        return {
            "values": dict(self.values),
            "masses": list(self.masses),
            "covered": covered,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: _Kept) -> Space:
        return cls(
            {k: (v, e) for k, (v, e) in value["values"].items()},
            tuple(value["masses"]),
            {float(t): (v, e) for t, (v, e) in value["covered"].items()},
            tuple(value["notes"]),
        )


class _Kept(TypedDict):
    """What is kept of a space."""

    values: dict[str, tuple[float, float | None]]
    masses: list[float]
    covered: dict[str, tuple[float, float]]
    notes: list[str]


def classifier_of(lab: Lab, dataset: data.Dataset) -> TrainedClassifier:
    """The evaluation's classifier of a data set; ``ValueError`` if its images have no labels."""
    extractor, _ = lab.extractor(dataset)
    if not isinstance(extractor, TrainedClassifier):
        raise ValueError(
            f"{dataset.name} has no labels, so there is no classifier to cut the latent space into classes: choose labelled data"
        )
    return extractor


def latent_classes(lab: Lab, run: Run) -> LatentClasses:
    """Codes of a run -> logits of the evaluation's classifier."""
    classifier = classifier_of(lab, run.dataset).to(run.model.device)
    return LatentClasses(run.model, partial(differentiable_logits, classifier))


def space(lab: Lab, model: str, settings: dict[str, Any] | None = None) -> Space:
    """The latent space of a model of :data:`MODELS`; measured once per classifier and version of the code. In a plane with the exact grid."""
    run = lab.run(MODELS[model], settings)
    classifier = classifier_of(lab, run.dataset)

    def make() -> _Kept:
        lab.say(f"class radius of {MODELS[model]}, {run.experiment.latent} latent dimensions, at {CODES[lab.budget]} codes")
        return _measure(lab, run).to_json()

    return Space.from_json(lab.remember(run, "class-radius", make, CODES[lab.budget], classifier.hash, kind=_Kept))


def _measure(lab: Lab, run: Run) -> Space:
    classify, d, seed = latent_classes(lab, run), run.experiment.latent, lab.seed
    drawn = outputs(classify, prior_codes(MASSES[lab.budget], d, seed=seed))
    masses, covered = class_masses(drawn), coverage(drawn)
    bounds = radius_bounds(masses)
    values: dict[str, tuple[float, float | None]] = {}
    if masses.seen > 1:
        values |= _radii(classify, prior_codes(CODES[lab.budget], d, seed=seed + 1), seed)
        if d == 2:
            values |= _grid(classify, NODES[lab.budget])
        values["(A) isoperimetric bound"] = (bounds.isoperimetric.value, bounds.isoperimetric.error)
    if bounds.theorem is not None:
        values["(B) theorem's bound"] = (bounds.theorem, None)
    values["largest mass"] = (bounds.largest, None)
    for result in (masses.collision(), masses.entropy(2), masses.entropy(1)):
        values[result.name] = (result.value, result.error)
    at = covered.thresholds.index(TAU)
    values[f"coverage at {TAU}"] = (float(covered.covered[at]), float(covered.errors[at]))
    codes = run.model.latents(run.dataset.test.x, at="mean")
    assert run.dataset.test.labels is not None  # there is a classifier
    found: tuple[Result, ...] = (*class_codes(codes, run.dataset.test.labels, seed=seed).results, prior_reach(codes, seed=seed))
    for result in found:
        values[result.name] = (result.value, result.error)
    shares = {t: (float(c), float(e)) for t, c, e in zip(covered.thresholds, covered.covered, covered.errors, strict=True)}
    return Space(values, tuple(masses.p.tolist()), shares, (*masses.notes, *bounds.assumptions))


def _radii(classify: LatentClasses, z: Tensor, seed: int) -> dict[str, tuple[float, float | None]]:
    """The three estimates at the same codes, and what they imply."""
    segments, attack = segment_radius(classify, z, seed=seed), attack_radius(classify, z, seed=seed)
    refined = refined_radius(classify, z, smallest(attack, segments))
    values: dict[str, tuple[float, float | None]] = {}
    for name, radius in (("segments", segments), ("attack", attack), ("refined", refined)):
        values[f"E r, {name}"], values[f"median r, {name}"] = (radius.mean, radius.error), (radius.median, None)
    gain = (attack.radii - segments.radii)[attack.found & segments.found]
    values["attack - segments"] = (float(gain.mean()), float(gain.std() / len(gain) ** 0.5))
    if attack.missing:
        values["share from which the attack found nothing"] = (attack.missing, None)
    if refined.mean < HIGHEST:
        values["largest H2 that E r allows"] = (entropy_bound(refined.mean), None)
    try:
        sure = refined_radius(classify, z, segment_radius(classify, z, threshold=TAU, seed=seed), threshold=TAU)
        values[f"E r given p >= {TAU}, refined"] = (sure.mean, sure.error)
    except ValueError:  # an untrained decoder convinces the classifier of one class at most
        pass
    return values


def _grid(classify: LatentClasses, nodes: int) -> dict[str, tuple[float, float | None]]:
    """The exact radius of a latent plane; its error is the grid's step."""
    grid = class_grid(classify, nodes=nodes)
    if len(grid.labels.unique()) < 2:
        return {}
    radius = grid_radius(grid)
    return {"E r, grid": (radius.mean, grid.step), "median r, grid": (radius.median, None)}
