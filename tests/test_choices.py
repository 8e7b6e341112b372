"""What a command offers, takes and refuses by name: densities of a run, data of a target."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from expost.cli import main
from expost.evaluate.protocol import check_interpolations
from expost.papers.base import targets
from expost.runs.lab import Lab
from expost.runs.run import Run, load_model, load_run, plan, train_run
from expost.system.progress import Bar

TARGETS = targets()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("choices") / "run"
    settings = {"network": "mlp", "latent": 3, "training.steps": 4, "stage.steps": 4, "stage_width": 8}
    experiment, dataset = plan("ghosh2020/rae", data_name="digits", budget="smoke", settings=settings)
    train_run(experiment, dataset, source="digits", budget="smoke", settings=settings, out=out, device="cpu", progress=False)
    return out


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("stge", 'did you mean "stage"?'),
        ("meanstage", 'did you mean "mean-stage"?'),
        ("xyz", "choose one of normal, gaussian, gmm, kde, flow, stage, mean-stage, prior"),
        ("stage:5", "write stage"),
        ("stage:5@sample", "write stage"),
        ("mean-stage:x", "write mean-stage or mean-stage:0.024"),
        ("prior", "trains without a prior: choose gaussian"),
    ],
)
@pytest.mark.parametrize("command", [["density"], ["evaluate", "--density"], ["diagnose", "--classes", "--density"]])
def test_a_density_that_cannot_be_read_is_said_before_others_are_fitted(
    command: list[str], spec: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "density", lambda *a, **k: pytest.fail("something was fitted"))
    monkeypatch.setattr("expost.evaluate.features.choose.default_extractor", lambda *a, **k: pytest.fail("a classifier was trained"))
    assert main([command[0], str(folder), *command[1:], *["gaussian"] * (command[0] != "diagnose"), spec]) == 2
    said = capsys.readouterr()
    assert (sentence in said.err, said.err.count("\n"), said.out) == (True, 1, "")


def test_other_words_are_read_first_too(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expost.evaluate.features.choose.default_extractor", lambda *a, **k: pytest.fail("a classifier was trained"))
    assert main(["evaluate", str(folder), "--interpolation", "linear", "sphere"]) == 2
    assert 'there is no interpolation "sphere": choose among spherical, linear, norm-corrected' in capsys.readouterr().err
    assert check_interpolations(kind for kind in ("linear", "linear")) == check_interpolations("linear") == ("linear",)


def test_the_standard_normal_is_a_density_of_any_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["density", str(folder), "normal"]) == 0
    assert "normal" in capsys.readouterr().out
    run = load_run(folder, device="cpu")
    assert repr(run.density("normal")) == repr(load_model(folder, density="normal", device="cpu").prior) == "StandardNormal(d=3)"
    assert not list(folder.rglob("normal*"))


def test_progress_says_that_it_is_the_second_stage_that_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = []
    monkeypatch.setattr("expost.train.fit.Bar", lambda *a, what, **k: named.append(what) or Bar(*a, what=what, **k))
    for spec in ("stage", "mean-stage"):
        load_run(folder, device="cpu").density(spec, refit=True)
    assert named == ["second stage", "second stage"]


OWN = [name for name, target in TARGETS.items() if not target.data]


@pytest.mark.parametrize("target", OWN)
@pytest.mark.parametrize("given", [["--data", "digits"], ["--size", "8"], ["--data", "digits", "--pad-to", "9", "--val", "5"]])
def test_a_target_that_makes_its_own_data_takes_no_other(
    target: str, given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", target, *given, "--budget", "smoke"]) == 2
    said = capsys.readouterr()
    assert said.err == f"expost: {target} is of data that it makes itself: leave out {' and '.join(given[::2])}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_targets_say_truly_whether_they_read_data(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that is not there stops those that read one; the others do not notice."""

    def trained(*a: object, source: str, **k: object) -> None:
        raise LookupError(source)

    monkeypatch.setattr("expost.runs.lab.train_run", trained)
    monkeypatch.setattr("expost.papers.yu2020.paper.DEMONSTRATIONS", {})
    lab = Lab(str(tmp_path / "missing.npy"), "smoke", tmp_path / "lab", device="cpu")
    if TARGETS[target].data:
        with pytest.raises((ValueError, OSError), match=r"missing\.npy"):
            TARGETS[target].make(lab)
    else:
        with suppress(LookupError):
            TARGETS[target].make(lab)
