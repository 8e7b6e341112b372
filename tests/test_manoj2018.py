"""manoj2018's figures and claims: closed forms, the 2D-Grid, and trained models on scikit-learn's digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from expost.papers.manoj2018 import claims as measures
from expost.papers.manoj2018 import figures
from expost.papers.manoj2018.grid import PRINTED, SD, SPACING, grid_models, lattice, lattice_points
from expost.papers.manoj2018.spaces import MODELS, Space, classifier_of, latent_classes, space
from expost.report.figures import draw
from expost.runs.lab import Lab
from expost.runs.run import Run


@dataclass
class Longer(Lab):
    """A smoke lab that trains the VAE long enough to decode to several digits."""

    def run(self, recipe: str, settings: dict[str, Any] | None = None, **other: Any) -> Run:
        longer = {"training.steps": 300} if recipe == MODELS["VAE"] and settings is None else settings
        return super().run(recipe, longer, **other)


class Blank(Lab):
    """Models that decode every code to one image, and so to one class."""

    def run(self, *a: Any, **k: Any) -> Run:
        run = super().run(*a, **k)
        with torch.no_grad():
            for parameter in run.model.decoder.parameters():
                parameter.zero_()
        return run


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Longer("digits", "smoke", tmp_path_factory.mktemp("lab"), device="cpu", progress=False)


@pytest.mark.parametrize("name", ["d2", "d3", "d9"])
def test_claims_without_images_hold(name: str, lab: Lab) -> None:
    verdict = getattr(measures, name)(lab)
    assert verdict.holds, verdict.measured
    assert all(math.isfinite(v) for v in verdict.figures.values())


@pytest.mark.parametrize("name", ["d1", "d4", "d5", "d6", "d7", "d8"])
def test_claims_of_trained_models_are_measured(name: str, lab: Lab) -> None:
    verdict = getattr(measures, name)(lab)
    assert verdict.measured
    assert verdict.figures
    if name in ("d1", "d4", "d5"):
        assert verdict.holds, verdict.measured


def test_the_numbers_of_a_space_are_kept_and_consistent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    space(lab, "VAE")
    said: list[str] = []
    lab.say = said.append
    first = space(lab, "VAE")
    assert not said, "measured before"
    assert Space.from_json(first.to_json()) == first
    assert sum(first.masses) == pytest.approx(1)
    assert first["E r, refined"] <= min(first["E r, attack"], first["E r, segments"]) + 1e-9
    assert first["attack - segments"] == pytest.approx(first["E r, attack"] - first["E r, segments"], abs=1e-9)
    assert first["variance within classes"] + first["variance between classes"] == pytest.approx(first["total variance"])
    assert first.get("no such quantity") is None
    monkeypatch.setattr("expost.system.storage.code_hash", lambda *modules: "another code")
    assert space(lab, "VAE") == first
    assert len(said) == 1, "measured again once the code has changed"


def test_the_classifier_is_the_evaluations_and_differentiable(lab: Lab) -> None:
    run = lab.run(MODELS["VAE"])
    classify, classifier = latent_classes(lab, run), classifier_of(lab, run.dataset)
    z = torch.randn(7, run.experiment.latent)
    logits = classify(z.requires_grad_())
    assert torch.allclose(logits.detach(), classifier.logits(run.model.decode_points(z.detach()).clamp(0, 1)), atol=1e-4)
    (gradient,) = torch.autograd.grad(logits.sum(), z)
    assert bool((gradient.abs().sum(1) > 0).all())


@pytest.mark.parametrize("name", ["scatter", "before_and_after", "coverage_curves", "estimators", "modes"])
def test_figures(name: str, lab: Lab) -> None:
    made = getattr(figures, name)(lab)
    assert made.table.rows
    assert made.series
    assert all(math.isfinite(v) for s in made.series for v in s.curve.y)
    assert draw(made).axes
    assert made.to_json()["name"].startswith("manoj2018-")


def test_scatter_has_one_cloud_per_digit_and_model(lab: Lab) -> None:
    made = figures.scatter(lab)
    assert [s.label for s in made.series] == [str(i) for i in range(10)] * 2
    assert {s.kind for s in made.series} == {"dots"}
    assert len({s.curve.x_label for s in made.series}) == 2
    assert sum(len(s.curve.x) for s in made.series) == 2 * min(figures.DOTS, len(lab.dataset.test.x))


def test_samples_before_and_after(lab: Lab) -> None:
    made = figures.samples(lab)
    assert len(made.rows) == 8
    assert sum(len(strip) for strip in made.rows.values()) == 128


def test_a_model_of_one_class_has_no_radius_and_breaks_nothing(tmp_path: Path) -> None:
    untrained = Blank("digits", "smoke", tmp_path, device="cpu", progress=False)
    found = space(untrained, "VAE")
    assert max(found.masses) == 1
    assert found.get("E r, refined") is None
    assert not measures.d4(untrained).holds
    assert any("nothing to bound" in note for note in figures.estimators(untrained).notes)


def test_the_lattice() -> None:
    for side in (2, 5):
        modes, sd = lattice(side)
        assert modes.shape == (side * side, 2)
        assert torch.allclose(modes.std(0, correction=0), torch.ones(2), atol=1e-5)
        gap = torch.pdist(modes).min()
        assert float(gap) / sd == pytest.approx(SPACING / SD)
    x, which = lattice_points(3, 3000)
    modes, sd = lattice(3)
    assert torch.equal(torch.cdist(x, modes).argmin(1), which)
    assert float((x - modes[which]).std()) == pytest.approx(sd, rel=0.05)


def test_grid_models_are_the_same_again_and_obey_the_bound() -> None:
    models = grid_models("smoke", 0)
    grid_models.cache_clear()
    assert grid_models("smoke", 0) == models
    assert all(0 < m.radius <= m.isoperimetric for m in models)
    assert all(m.captured <= m.modes for m in models)
    assert PRINTED[0] == (9, 0.259)
    assert len(PRINTED) == 8
