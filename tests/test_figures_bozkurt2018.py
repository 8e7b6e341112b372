"""Figures and claims of bozkurt2018 run whole, on eight-pixel digits at the smoke budget; what they show there is not the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expost.papers.bozkurt2018 import architectures as sweep
from expost.papers.bozkurt2018 import claims as measures
from expost.papers.bozkurt2018 import figures
from expost.papers.bozkurt2018.nets import BOZKURT_HIDDEN
from expost.runs.lab import Lab
from expost.runs.run import plan


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab("digits", "smoke", tmp_path_factory.mktemp("lab"), progress=False)


def test_figure_1_shows_inputs_outputs_averages_and_neighbours(lab: Lab) -> None:
    strips = figures.figure1(lab)
    assert len(strips.rows) == 4
    for name, images in strips.rows.items():
        assert images.shape == (18, 1, 8, 8)
        assert len(strips.captions[name]) == 18
        for i in range(0, 18, 6):
            weights = [float(w) for w in strips.captions[name][i + 3 : i + 6]]
            assert weights == sorted(weights, reverse=True)
    made = figures.perplexities(lab)
    assert len(made.series) == 4
    for series, row in zip(made.series, made.table.rows, strict=True):
        assert sum(series.curve.y) <= row[4]
        assert len(series.curve.y) == 30


def test_models_differ_by_what_they_have_seen(lab: Lab) -> None:
    found = figures.examine(lab)
    assert set(found) == set(figures.MODELS)
    assert found["deep, with"].n_train > found["deep, without"].n_train
    for f in found.values():
        assert (f.to_input >= f.floor_input - 1e-6).all()
        assert (f.to_average >= f.floor_average - 1e-6).all()
    assert figures.judge(lab, figures.run_of(lab, "bozkurt2018/deep", 9), 9) is found["deep, without"]  # not computed twice


def test_figure_2_judges_by_the_share_below_the_line(lab: Lab) -> None:
    made = figures.figure2(lab)
    by_hand = {name: float((f.to_input < f.to_average).double().mean()) for name, f in figures.examine(lab).items()}
    for name, share in by_hand.items():
        assert made.figures[f"{name}, closer to x"] == pytest.approx(share)
    shallow, deep = by_hand["shallow, without"], by_hand["deep, without"]
    assert made.holds == (shallow > 0.7 and deep < 0.5 and deep < shallow - 0.2)


def test_figure_3_maps_the_plane(lab: Lab) -> None:
    maps, table = figures.figure3(lab)
    (row,) = maps.values()
    assert row["largest weight"].shape == (200, 200)
    assert row["with posteriors (±2σ)"].shape == (3, 200, 200)
    assert 0 <= row["aggregate posterior, square root"].min() <= row["aggregate posterior, square root"].max() <= 1
    assert row["decoder over the plane"].shape == (3, 120, 120)
    assert table.rows[1][1] == pytest.approx(float(figures.mini_map(lab).stds.median()))


def test_architectures_are_the_papers() -> None:
    """Decoder parameters read off the authors' figure, for MNIST."""
    from expost.runs.experiment import Task

    golden = {(): 39984, (400,): 334784, (400, 200): 404984, (400, 200, 100): 420084, (400, 400, 400): 655584, (100, 100, 100): 104484}
    assert len(BOZKURT_HIDDEN) == 20
    for hidden, parameters in golden.items():
        recipe, settings = sweep.recipe_of(hidden, "smoke")
        experiment, _ = plan(recipe, data_name="digits", budget="smoke", settings=settings)
        decoder = experiment.pair.decoder(50, Task("mnist", (1, 28, 28), 60_000).shape, 1)
        assert sum(p.numel() for p in decoder.parameters()) == parameters


def test_the_sweep_is_ordered_and_judged(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "BOZKURT_HIDDEN", ((), (100,), (400,), (200, 100), (400, 200, 100)))
    models = sweep.architectures(lab, 9)
    assert [a.parameters for a in models] == sorted(a.parameters for a in models)
    made = sweep.sweep_figure(lab, 9)
    assert len(made.table.rows) == 5
    assert {s.label for s in made.series} == {"0 hidden layers", "1 hidden layer", "2 hidden layers", "3 hidden layers"}
    strips = sweep.digit_strips(lab, 9)
    assert [len(images) for images in strips.rows.values()] == [6, 6]
    assert all(torch.isfinite(images).all() for images in strips.rows.values())
    one = [a.found.gap.value for a in models if a.depth == 1]
    assert measures.a8(lab).holds == (max(one) < 0)
    assert set(measures.a7(lab).figures) == {"depth", "parameters"}


def test_the_optimum_is_found_by_descent_too(lab: Lab) -> None:
    verdict = measures.a1(lab)
    assert verdict.holds, verdict.measured
    assert verdict.figures["free decoder"] < 1e-4


@pytest.mark.parametrize("claim", [measures.a2, measures.a3, measures.a4, measures.a5, measures.a6, measures.a9, measures.a10])
def test_claims_are_measured(lab: Lab, claim: object) -> None:
    verdict = claim(lab)  # type: ignore[operator]
    assert verdict.measured
    assert all(isinstance(v, float) for v in verdict.figures.values())


def test_data_without_the_digit_is_refused(tmp_path: Path) -> None:
    lab = Lab("digits:only=0,1", "smoke", tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds out class 9"):
        figures.digit_images(figures.run_of(lab, "bozkurt2018/shallow", None), 9)
