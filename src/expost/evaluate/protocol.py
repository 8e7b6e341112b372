"""How good are reconstructions, samples and interpolations? One protocol for every model (Ghosh et al. 2020, section 5).

* reconstruction: reconstructed validation images against the test set, and the mean squared error per pixel on the test set.
* samples: n samples, from the training prior or a density fitted ex post, against the test set.
* interpolation: decoded midpoints of random pairs of validation codes: on the sphere, on the line, and on the line but rescaled to the mean
  norm of the two ends.
* A density that is itself an autoencoder whose codes can be reached (ghosh2020's mean-stage) adds reconstructions and interpolations through both
  stages, as ghosh2020's table has them.

Beside them stand controls, without which no such number means anything: held-out real images, training images, training images moved by a
pixel, and images with shuffled pixels. All sets have the same size n, because a Fréchet distance is biased in n; where a split is larger, its n
images are drawn at random, since the first ones may all be of one class.

ghosh2020's repository differs from its text in places, and dai2019's too; :class:`~expost.papers.quirks.Quirks` has them as flags, all off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder
from expost.density.base import Density
from expost.evaluate.controls import CONTROLS, blind, control_sets, scored
from expost.evaluate.features.base import Extractor
from expost.evaluate.features.sets import Generated, ImageSet, InMemory, Mapped, set_features
from expost.evaluate.interpolate import lerp, lerp_to_mean_norm, pairs, slerp
from expost.evaluate.metrics.suite import COPYING, QUALITY, Reference, check_groups, measure
from expost.evaluate.treatment import Treatment
from expost.results import Result, ResultValue, Table, format_number
from expost.system.files import cache_folder
from expost.system.hashes import content_hash
from expost.system.progress import Bar
from expost.system.storage import code_hash, remember
from expost.tensors import batches, takes_data, unit

__all__ = ["DEFAULT", "INTERPOLATIONS", "Scores", "controls_of", "same_scale", "score"]

INTERPOLATIONS = ("spherical", "linear", "norm-corrected")
#: The groups of metrics that ghosh2020's tables need.
DEFAULT: tuple[str, ...] = ("fd", "prd")


class ScoresValue(TypedDict):
    """What :meth:`Scores.to_json` gives."""

    label: str
    rows: dict[str, dict[str, ResultValue]]
    groups: list[str]
    mse: float
    n: int
    seed: int
    notes: list[str]
    code: str
    reference: str


@dataclass(frozen=True)
class Scores:
    """All metrics of one model under one extractor.

    Attributes:
        label: of the Fréchet distance, e.g. ``FD[classifier-mnist@1a2b3c]``.
        rows: row -> metric -> result: ``reconstruction``, ``samples <density>``, ``interpolation`` (spherical), and the controls.
        groups: the groups of metrics that were measured.
        mse: mean squared error per pixel of test reconstructions.
        n: images on each side.
        seed: of samples, pairs, subsets.
        notes: about the extractor, sample sizes, treatment.
        code: names the code that measured them, see :func:`expost.system.storage.code_hash`.
        reference: what everything is compared with.
    """

    label: str
    rows: dict[str, dict[str, Result]]
    groups: tuple[str, ...]
    mse: float
    n: int
    seed: int
    notes: tuple[str, ...] = field(default=())
    code: str = ""
    reference: str = "test images"

    @property
    def values(self) -> dict[str, float]:
        """Row -> Fréchet distance."""
        return self.of("FD")

    def of(self, metric: str) -> dict[str, float]:
        """Row -> one metric, where it was measured."""
        return {row: results[metric].value for row, results in self.rows.items() if metric in results}

    def table(self, title: str = "") -> Table:
        """How near the sets are to the test set; the last four rows are controls."""
        found = [m for m in QUALITY if any(m in results for results in self.rows.values())]
        columns = ("what", *(self.label if m == "FD" else m for m in found), "MSE per pixel")
        notes = [f"n = {self.n} images on each side, seed {self.seed}; reference: {self.reference}", *self.notes]
        notes += self._warnings(found)
        if "F8" in found:
            notes.append("F8 weighs recall, F1/8 precision; rows below the samples are real images, as controls")
        table = Table(columns, title=title, notes=notes)
        for row, results in self.rows.items():
            table.add(row, *(_cell(results.get(m)) for m in found), self.mse if row == "reconstruction" else None)
        return table

    def memorisation(self, title: str = "") -> Table | None:
        """Generated images, held-out ones and copies side by side, or None where there were no training features."""
        found = [m for m in COPYING if any(m in results for results in self.rows.values())]
        if not found:
            return None
        notes = [
            "copies show as AuthPct near 0 %, C_T far below 0, NN ratio near 100 %, copy distance near 0; judge the model's rows by the controls: "
            "none of these metrics separates copying from other faults alone"
        ]
        table = Table(("what", *found), title=title, notes=notes)
        for row, results in self.rows.items():
            table.add(row, *(_cell(results.get(m)) for m in found))
        notes += self._warnings(found)
        return table

    def _warnings(self, metrics: Iterable[str]) -> list[str]:
        """Largest standard errors, then notes of results, each once: plain where every row bears it, else with its rows."""
        metrics = list(metrics)
        errors = {m: max((r[m].error or 0 for r in self.rows.values() if m in r), default=0.0) for m in metrics}
        largest = ", ".join(f"{m} {format_number(e)}" for m, e in errors.items() if e > 0)
        rows: dict[str, list[str]] = {}
        for row, results in self.rows.items():
            whose: dict[str, list[str]] = {}
            for metric in (m for m in metrics if m in results):
                for note in results[metric].notes:
                    whose.setdefault(note, []).append(metric)
            for note, named in whose.items():
                said = note if note.startswith("no ") else f"{', '.join(named)}: {note}"
                rows.setdefault(said, []).append(row)
        notes = [note if len(where) == len(self.rows) else f"{', '.join(where)}: {note}" for note, where in rows.items()]
        return [f"standard errors are at most: {largest}"] * bool(largest) + notes

    def joined(self, old: Mapping[str, Any] | None) -> Scores:
        """These scores and what an earlier measurement of the same kind has beyond them: other metrics, rows, groups."""
        kind = (self.label, self.n, self.seed, self.code, self.reference, list(self.notes), self.mse)
        if old is None or tuple(old.get(k) for k in ("label", "n", "seed", "code", "reference", "notes", "mse")) != kind:
            return self
        before = Scores.from_json(old)
        rows = {row: {**before.rows.get(row, {}), **self.rows.get(row, {})} for row in dict.fromkeys((*self.rows, *before.rows))}
        ordered = {row: rows[row] for row in sorted(rows, key=lambda r: r.startswith("control: "))}
        return dataclasses.replace(self, rows=ordered, groups=check_groups((*before.groups, *self.groups)))

    def tables(self, title: str = "") -> list[Table]:
        second = self.memorisation("Memorisation: " + title if title else "Memorisation")
        return [self.table(title)] + ([second] if second is not None else [])

    def to_json(self) -> ScoresValue:
        rows = {row: {metric: result.to_json() for metric, result in results.items()} for row, results in self.rows.items()}
        return {
            "label": self.label, "rows": rows, "groups": list(self.groups), "mse": self.mse, "n": self.n, "seed": self.seed, "notes": list(self.notes),
            "code": self.code, "reference": self.reference,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | ScoresValue) -> Scores:
        rows = {row: {m: Result.from_json(r) for m, r in results.items()} for row, results in value["rows"].items()}
        return cls(
            value["label"],
            rows,
            tuple(value["groups"]),
            value["mse"],
            value["n"],
            value["seed"],
            tuple(value["notes"]),
            value["code"],
            value["reference"],
        )


def check_interpolations(kinds: Iterable[str]) -> tuple[str, ...]:
    """``kinds`` without repetitions; ``ValueError`` names what exists."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds))
    unknown = sorted(set(kinds) - set(INTERPOLATIONS))
    if unknown:
        raise ValueError(f'there is no interpolation "{unknown[0]}": choose among {", ".join(INTERPOLATIONS)}')
    return kinds


@takes_data("val", "test", "train")
def score(
    model: Autoencoder,
    val: Tensor,
    test: Tensor,
    extractor: Extractor,
    densities: Mapping[str, Density],
    *,
    train: Tensor | None = None,
    groups: Iterable[str] = DEFAULT,
    interpolations: Iterable[str] = ("spherical",),
    n: int = 10_000,
    seed: int = 0,
    treatment: Treatment | None = None,
    name: str = "test images",
    cache: str | Path | None = None,
    notes: tuple[str, ...] = (),
) -> Scores:
    """Score a trained model.

    Args:
        model: trained; its own prior is not used here, pass it in ``densities`` as ``prior``.
        val: validation images (m, C, H, W): reconstructed and interpolated.
        test: test images: the reference of every distance.
        extractor: features.
        densities: name -> density of codes, each a row ``samples <name>``.
        train: training images, for controls and for metrics of memorisation; without them the controls are drawn from ``val``.
        groups: of metrics, see :mod:`expost.evaluate.metrics.suite`.
        interpolations: which midpoints, among :data:`INTERPOLATIONS`.
        n: images per set, drawn at random from each split, at most the size of the smaller of the two.
        seed: of these images, of samples, pairs and subsets.
        treatment: of images, as somebody's code did it; none by default.
        name: of the reference set.
        cache: folder of cached features and controls; the user's by default.
    """
    chosen, treatment, interpolations = check_groups(groups), treatment or Treatment(), check_interpolations(interpolations)
    n = min(n, len(val), len(test))
    if n < 2:
        raise ValueError("scoring needs at least two validation and two test images")
    kind = treatment.compared
    splits = {"test": test, "validation": val, "training": train}
    if (compared := splits[kind]) is None:
        raise ValueError("the reference is to be training images: pass them as train")
    real = scored(compared, n, kind, seed)
    which, unseen = ("test", test) if kind == "validation" else ("validation", val)  # neither seen nor the reference
    fresh = scored(unseen, n, which, seed)
    val = scored(treatment.validation(val, train), n, "validation", seed)
    device = model.device
    reference = Reference.of(extractor, treatment.real(real), train, name=name, cache=cache, device=device)
    rows: dict[str, dict[str, Result]] = {}

    def add(row: str, images: Tensor | ImageSet) -> None:
        bar.update(len(rows), row)
        images = InMemory(images) if isinstance(images, Tensor) else images
        shown = Mapped(images, lambda x: treatment.generated(x.clamp(0, 1)), row)
        features = set_features(extractor, shown, device=device)
        rows[row] = measure(features, reference, name=row, groups=chosen, seed=seed)

    def midpoints(of: Autoencoder, suffix: str) -> None:
        codes = of.latents(val, at="mean")
        first, second = pairs(len(codes), n, seed)
        for kind in interpolations:
            a, b = codes[first], codes[second]
            middle = {"spherical": slerp, "linear": lerp, "norm-corrected": lerp_to_mean_norm}[kind](0.5, a, b)
            add("interpolation" + ("" if kind == "spherical" else f" {kind}") + suffix, of.decode_points(middle))

    stages = sum(hasattr(density, "joined") for density in densities.values())
    planned = len(densities) + (1 + stages) * (1 + len(interpolations)) + len(CONTROLS)
    with Bar(planned, what="scores", after=1.0) as bar:
        add("reconstruction", treatment.reconstruct(model, val, seed=seed))
        for spec, density in densities.items():
            add(f"samples {spec}", Generated(model.with_prior(density), n, seed))
        midpoints(model, "")
        for spec, density in densities.items():
            joined = getattr(density, "joined", None)
            if joined is not None:
                both = joined(model)
                add(f"reconstruction through {spec}", treatment.reconstruct(both, val, seed=seed))
                midpoints(both, f" through {spec}")
        bar.update(len(rows), "controls")
        rows |= _controls(extractor, reference, fresh, unseen if train is None else train, n, chosen, seed, cache, device)
    for row, results in rows.items():
        note = None if row.startswith("control: ") else blind(results, rows["control: shuffled pixels"], "these images")
        if note is not None:
            first = next(iter(results))
            results[first] = dataclasses.replace(results[first], notes=(*results[first].notes, note))
    every = tuple(dict.fromkeys((*notes, *treatment.describe())))
    return Scores(extractor.label, rows, chosen, _mse(model, test, treatment, seed), n, seed, every, code_hash(__name__), f"{kind} images")


def _controls(
    extractor: Extractor,
    reference: Reference,
    val: Tensor,
    train: Tensor,
    n: int,
    groups: tuple[str, ...],
    seed: int,
    cache: str | Path | None,
    device: torch.device,
) -> dict[str, dict[str, Result]]:
    """Metrics of the control sets; they depend on real data only and are kept on disk, under all that determines them."""
    sets = control_sets(val, train, n, seed=seed)
    key = extractor.identity, reference.key, groups, n, seed, [content_hash(sets[c]) for c in CONTROLS]

    def make() -> dict[str, dict[str, ResultValue]]:
        found = {}
        for row, images in sets.items():
            results = measure(set_features(extractor, images, device=device), reference, name=row, groups=groups, seed=seed)
            found[f"control: {row}"] = {metric: result.to_json() for metric, result in results.items()}
        return found

    folder = cache_folder("controls", root=cache)
    kept = remember(folder, "controls", make, *key, kind=dict[str, dict[str, ResultValue]], code=(extractor,))
    return {row: {metric: Result.from_json(r) for metric, r in results.items()} for row, results in kept.items()}


def _cell(result: Result | None) -> float | None:
    return None if result is None else result.shown


def _mse(model: Autoencoder, x: Tensor, treatment: Treatment, seed: int) -> float:
    total = 0.0
    for i, b in enumerate(batches(x, 1000)):
        shown = treatment.reconstruct(model, b, seed=seed + i)
        total += float((shown - unit(b.to(model.device))).square().sum(dtype=torch.float64))
    return total / x.numel()


def controls_of(scores: Scores) -> Table:
    """The control rows, which are the same for every model."""
    rows = {row: results for row, results in scores.rows.items() if row.startswith("control: ")}
    metrics = list(next(iter(rows.values())))
    table = Table(
        ("control", *(scores.label if m == "FD" else m for m in metrics)), title="Controls: real images in place of generated ones"
    )
    for row, results in rows.items():
        table.add(row.removeprefix("control: "), *(results[m].value if m in results else None for m in metrics))
    table.notes.append(f"against the same {scores.n} test images")
    return table


def same_scale(label: str) -> str:
    if label.startswith("FID"):
        return "the extractor is the paper's, so values may be compared too"
    return "another extractor than the paper's: orderings can be compared, values cannot"
