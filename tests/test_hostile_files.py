"""Files that are not as they were written, by accident or on purpose: one sentence or the right result, nothing allocated, nothing used silently."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from expost.adapt import Origin, wrap
from expost.cli import main, sentence
from expost.data import load
from expost.runs.run import load_model, plan, train_run
from expost.runs.wrapped import save_wrapped
from expost.system.files import NotKept
from expost.system.locks import Locked, hold
from expost.train.folder import RunFolder
from test_files import small_disk


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


# ---------------------------------------------------------------- writers and disks


def test_two_writers_keep_all_their_results(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)

    def write(name: str) -> None:
        for i in range(100):
            folder.add_results(f"{name} {i}", i)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folder.results()) == 200
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_damaged_results_are_set_aside(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    for damaged in ("{", "[]"):
        folder.results_file.write_text(damaged)
        with pytest.warns(NotKept, match="was damaged and is now"):
            folder.add_results("a", 1)
        assert folder.results() == {"a": 1}
        assert (tmp_path / "results.json.damaged").read_text() == damaged


@pytest.mark.parametrize("change", ["a value", "a word", "a list", "nothing"])
def test_a_changed_state_or_result_is_not_used(change: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checksum finds what the types allow; older versions wrote none."""
    folder = RunFolder.at(copied)
    for file, key, value, read in (
        (folder.state_file, "state", "failed", folder.state),
        (folder.results_file, "training", {"images": 1}, folder.results),
    ):
        found, before = json.loads(file.read_text()), read()
        if change == "nothing":
            del found["checksum"]
            file.write_text(json.dumps(found))
            assert read() == before
            continue
        changed = {"a value": {**found, key: value}, "a word": {**found, "checksum": "x"}, "a list": [found]}[change]
        file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"{file} is damaged or is not the .* delete it"):
            read()
    if change == "a value":
        assert main(["sample", str(copied), "--density", "gmm:3", "--n", "2", "--out", str(copied / "s.npz"), "--device", "cpu"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        folder.state_file.unlink()  # as the sentence says
        assert folder.state().name == "finished"


def test_results_of_another_form_are_measured_again(tmp_path: Path) -> None:
    folder = RunFolder.at(tmp_path)
    folder.add_results("a", {"x": "1"})
    assert folder.result("a", dict[str, float]) is None
    assert folder.result("a", dict[str, str]) == {"x": "1"}
    assert folder.result("b", dict[str, str]) is None


def test_the_record_of_a_training_is_read_where_it_has_a_checksum(copied: Path) -> None:
    """history.csv is for people: what becomes of it changes no figure."""
    folder = RunFolder.at(copied)
    before = folder.rows()
    folder.history_file.write_text(folder.history_file.read_text().replace("1", "7"))
    assert folder.rows() == before
    data = folder.model_file.read_bytes()
    assert data.count(b'distortion\\": ') > 1
    folder.model_file.write_bytes(data.replace(b'distortion\\": ', b'distortion\\": 1', 1))
    with pytest.raises(ValueError):
        folder.rows()


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """Another training holds the lock of the folder inside the block."""
    held, over = threading.Event(), threading.Event()

    def other() -> None:
        with hold(folder):
            held.set()
            over.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(60)
    try:
        yield
    finally:
        over.set()
        thread.join()


#: What writes into a run, with what it must not have written there while another process holds the lock.
WRITERS = {
    "density": (["{run}", "gaussian"], "densities/gaussian.safetensors"),
    "sample": (["{run}", "--density", "gaussian", "--n", "2", "--out", "{new}/s.npz"], "densities/gaussian.safetensors"),
    "evaluate": (["{run}", "--n", "20", "--extractor", "pixels", "--metrics", "fd", "--density", "gmm:3"], "samples.png"),
    "diagnose": (["{run}", "--n", "40", "--density", "gmm:3"], "diagnosis/report.html"),
}


@pytest.mark.parametrize("command", WRITERS)
def test_every_writer_takes_the_lock(command: str, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, file = WRITERS[command]
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    words = [word.format(run=copied, new=tmp_path / "new") for word in arguments]
    with held_by_another(copied):
        assert main([command, *words, "--device", "cpu"]) == 0
    assert "note: not kept: " in (said := capsys.readouterr().err)
    assert f"is being trained by process {os.getpid()} on " in said
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before
    assert main([command, *words, "--device", "cpu"]) == 0
    assert (copied / file).is_file()


def test_wrap_writes_nothing_where_another_trains(tmp_path: Path) -> None:
    dataset, folder = load("digits"), tmp_path / "run"
    model = wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)), torch.nn.Linear(2, 64), dataset.train.x[:20])

    def save() -> RunFolder:
        return save_wrapped(folder, model, Origin("modules", {}), dataset, source="digits")

    with held_by_another(folder):
        there = sorted(folder.iterdir())
        with pytest.raises(Locked, match="is being trained by process"):
            save()
        assert sorted(folder.iterdir()) == there
    assert save().model_file.is_file()


def test_a_run_that_is_being_trained_is_not_trained_by_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "ghosh2020/rae", "--data", "digits", "--budget", "smoke", "--device", "cpu", "--out", str(tmp_path / "run")]
    with held_by_another(tmp_path / "run"):
        assert main([*arguments, "--resume"]) == 2
        with pytest.warns(NotKept, match="is being trained by process"):
            RunFolder.at(tmp_path / "run").add_results("a", 1)
    error = capsys.readouterr().err
    assert f"is being trained by process {os.getpid()} on " in error
    assert error.count("\n") == 1


def test_a_disk_that_is_too_small_is_said_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "ghosh2020/rae", "--data", "digits", "--budget", "smoke", "--device", "cpu", "--out", str(tmp_path / "run")]
    with small_disk(10**6):
        assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "for weights and a checkpoint" in error
    assert "free space, then run the same command again" in error
    assert error.count("\n") == 1
    assert main(arguments) == 0, "as the sentence says"


def test_tables_are_printed_also_where_nothing_can_be_written(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["density", "gaussian"], ["evaluate", "--extractor", "pixels", "--n", "40", "--density", "gmm:3", "--metrics", "fd"]):
        with small_disk(1):
            assert main([command[0], str(copied), *command[1:], "--device", "cpu"]) == 0
        said = capsys.readouterr()
        assert "---" in said.out
        assert f"note: not kept: {copied} cannot be written (file too large)" in said.err


def test_nothing_that_is_printed_steers_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expost.cli.commands.List.run", lambda self: print("a\x1b[2Jb\nc \u202e"))
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "a\\x1b[2Jb\nc \\u202e\n"
