"""Files that are not as they were written, by accident or on purpose: one sentence or the right result, nothing allocated, nothing used silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from expost.checkpoint import RunFolder
from expost.cli import main, sentence
from expost.recipes.runs import load_model, plan, train_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained run with a fitted density."""
    folder, settings = tmp_path_factory.mktemp("runs") / "run", {"training.steps": 3, "latent": 4}
    experiment, dataset = plan("ghosh2020/rae", data_name="digits", budget="smoke", settings=settings)
    run = train_run(experiment, dataset, source="digits", budget="smoke", settings=settings, out=folder, device="cpu")
    run.density("gmm:3")
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def described(folder: Path, change: dict[str, Any] | bytes, *, drop: tuple[str, ...] = (), old: bool = True) -> None:
    """Rewrite recipe.json with fields changed or dropped ("data.hash"); ``old``: as the first versions wrote it, without a checksum."""
    file = folder / "recipe.json"
    if isinstance(change, bytes):
        file.write_bytes(change)
        return
    recipe = json.loads(file.read_text())
    for name, value in [*change.items(), *((name, ...) for name in (*drop, *(["checksum"] if old else [])))]:
        *path, last = name.split(".") if name.startswith("data.") else [name]
        place = recipe[path[0]] if path else recipe
        if value is ...:
            place.pop(last, None)
        else:
            place[last] = value
    file.write_text(json.dumps(recipe))


def refused(folder: Path) -> str:
    """The one sentence with which the run is not loaded."""
    with pytest.raises(ValueError) as error:
        load_model(folder, device="cpu")
    said = sentence(error.value)
    assert "\n" not in said
    assert "\x1b" not in said
    return said


@pytest.mark.parametrize(
    ("change", "drop", "says"),
    [
        *(
            ({}, (name,), f"(no {name})")
            for name in ("recipe", "seed", "data", "budget", "settings", "identity", "data.hash", "data.shape")
        ),
        ({}, ("data.source",), "(no data.source)"),
        ({}, ("experiment",), "do not fit each other"),
        ({"recipe": 5}, (), "recipe: expected str"),
        ({"settings": []}, (), "settings: expected object"),
        ({"seed": "abc"}, (), "seed: expected int"),
        ({"seed": 1}, (), "do not fit each other"),
        ({"budget": "large"}, (), "budget: invalid"),
        ({"data.train": "x"}, (), "data.train: expected int"),
        ({"data.train": -1}, (), "data.train: expected int >= 1"),
        ({"data.shape": []}, (), "data.shape: "),
        ({"data.shape": [1, 0, 8]}, (), "data.shape[1]: "),
        ({"data.hash": "0" * 16}, (), "do not fit each other"),
        ({"recipe": "ghosh2020/rae-l2"}, (), "do not fit each other"),
        ({"recipe": "\x1b[2J"}, (), 'there is no recipe "\\x1b[2J"'),
        (b'{"recipe": ' + b"[" * 5000 + b"]" * 5000 + b"}", (), "is damaged or is not the description of a run"),
        (b'{"seed": ' + b"9" * 5000 + b"}", (), "is damaged or is not the description of a run"),
        (b"null", (), "expected object, got null"),
        (b"[]", (), "expected object, got array"),
        (b"", (), "is damaged or is not the description of a run"),
        ({"settings": {"training.steps": 3, "latent": 10**9}}, (), "latent"),
        ({"settings": {"objective": 5}}, (), "objective"),
        ({"settings": {"training.steps": 3, "latent": 4, "network": "mlp-200000"}}, (), "larger networks than those of"),
        ({"data.shape": [1, 10**6, 10**6]}, (), "memory"),
    ],
)
def test_a_description_is_checked_before_anything_is_built(copied: Path, change: Any, drop: tuple[str, ...], says: str) -> None:
    described(copied, change, drop=drop)
    said = refused(copied)
    assert says in said
    assert str(copied / "recipe.json") in said


@pytest.mark.parametrize(
    "change",
    [{"recipe": "ghosh2020/rae-l2"}, {"budget": "cpu"}, {"settings": {"latent": 4}}, {"seed": 1}, {"identity": "0" * 8}, {"data.train": 9}],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_description_that_was_edited_is_not_used(copied: Path, change: dict[str, Any], old: bool) -> None:
    """Its checksum no longer fits; without one the experiment written out in it, or the weights, tell."""
    described(copied, change, old=old)
    refused(copied)


def test_weights_of_another_run_are_not_used(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.at(copied)
    recipe = folder.read_recipe()
    recipe["settings"] |= {"training.lr": 0.5}
    folder.write_recipe(recipe)
    assert main(["sample", str(copied), "--n", "2", "--out", str(copied / "s.npz")]) == 2
    assert capsys.readouterr().err.startswith(f"expost: {folder.model_file} holds the weights of another run than")


def test_descriptions_of_other_versions_are_read(copied: Path) -> None:
    """The first versions wrote no number of training examples, none before this one a checksum; newer ones may write more."""
    described(copied, {"more": 1, "versions": {}}, drop=("data.train",))
    load_model(copied, device="cpu")
    folder = RunFolder.at(copied)
    recipe = folder.read_recipe()
    described(copied, {"experiment": recipe["experiment"].replace("minutes=None", "minutes=2.5", 1)})
    assert folder.read_recipe()["seed"] == 0


def test_where_the_data_are_may_be_edited(copied: Path) -> None:
    described(copied, {"data.source": "nowhere"}, old=False)
    load_model(copied, device="cpu")
