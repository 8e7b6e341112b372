"""A run is planned, running, stopped, finished or failed; its folder says which, and every command acts by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import expost
from expost import heads
from expost.cli import main
from expost.cli.commands import COMMANDS
from expost.cli.options import OpensModel
from expost.runs import load_run, plan, train_run
from expost.runs.run import load_model
from expost.system.files import load_tensors
from expost.system.state import FailedRun, Note, Unfinished
from expost.train.folder import RunFolder
from expost.train.settings import Training
from toys import model, vectors

RECIPE = ["train", "yu2020/bits-back", "--data", "digits", "--budget", "smoke", "--device", "cpu"]
RECIPE += ["--set", "network=mlp", "--set", "latent=2", "--set", "training.steps=12"]

#: What each command that opens a run is asked for.
ASKED = {
    "density": ["{run}", "gaussian"],
    "sample": ["{run}", "--n", "2", "--density", "prior", "--out", "{new}/s.npz"],
    "evaluate": ["{run}", "--n", "20", "--extractor", "pixels", "--metrics", "fd", "--density", "prior"],
    "diagnose": ["{run}", "--n", "40", "--density", "prior", "--out", "{new}/diagnosis"],
    "likelihood": ["{run}", "--n", "4", "--samples", "3"],
    "compress": ["{run}", "--n", "3", "--no-peers", "--out", "{new}/a.xpz"],
    "decompress": ["{file}", "--run", "{run}", "--out", "{new}/b.npz"],
}


def run(*arguments: Any) -> int:
    return main([str(a) for a in arguments])


def model_of(folder: RunFolder) -> torch.nn.Module:
    with pytest.warns(Unfinished):
        return load_model(folder.path, device="cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run in every state; ``killed``, ``older`` and others are those of what a process leaves that cannot say so."""
    root = tmp_path_factory.mktemp("runs")
    made = {name: root / name for name in ("finished", "stopped", "failed")}
    assert run(*RECIPE, "--out", made["finished"]) == 0
    assert run(*RECIPE, "--out", made["stopped"], "--minutes", "1e-9") == 0
    assert run(*RECIPE, "--out", made["failed"], "--set", "training.lr=1e30") == 1
    for name, source in (("killed", "stopped"), ("planned", "finished"), ("early", "stopped")):
        made[name] = root / name
        shutil.copytree(made[source], made[name])
    for name in ("finished", "stopped", "failed"):  # as the first versions left them
        made[f"older {name}"] = root / f"older-{name}"
        shutil.copytree(made[name], made[f"older {name}"])
        (made[f"older {name}"] / "state.json").unlink()
    old = RunFolder.at(made["older stopped"])  # a time limit ended a run
    weights = model_of(old)
    history = old.history()
    assert history is not None
    old.checkpoint_file.unlink()
    old.save_model(weights, {"history": history.to_json()})
    made["older killed"] = root / "older-killed"
    shutil.copytree(made["killed"], made["older killed"])
    (made["older killed"] / "state.json").unlink()
    for name in ("planned", "early"):
        for file in made[name].iterdir():
            if file.name != "recipe.json":
                file.unlink()
    for name, state in (("killed", "running"), ("planned", "planned"), ("early", "running")):
        (made[name] / "state.json").write_text(json.dumps({"state": state, "at": "step 1 of 12", "why": ""}))
    assert run("compress", made["finished"], "--n", "3", "--no-peers", "--out", root / "a.xpz") == 0
    return made


STATES = {
    "finished": "finished", "stopped": "stopped", "failed": "failed", "killed": "stopped", "planned": "planned", "early": "stopped",
    "older finished": "finished", "older stopped": "stopped", "older failed": "failed",
    "older killed": "stopped",
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_the_folder_says_how_far_its_run_is(name: str, runs: dict[str, Path]) -> None:
    assert RunFolder.at(runs[name]).state().name == STATES[name]


def test_every_command_that_opens_a_run_is_asked() -> None:
    assert {name for name, kind in COMMANDS.items() if issubclass(kind, OpensModel)} == ASKED.keys()


@pytest.mark.parametrize("command", ASKED)
@pytest.mark.parametrize("name", ["finished", "stopped", "failed", "planned"])
def test_every_command_acts_by_the_state(
    command: str, name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    shutil.copytree(runs[name], folder)
    before = {file.name for file in folder.iterdir()}
    status = run(command, *(a.format(run=folder, new=tmp_path / "new", file=runs["finished"].parent / "a.xpz") for a in ASKED[command]))
    said = capsys.readouterr()
    if name == "failed" and command == "diagnose":
        assert status == 0
        assert "1. diverged training" in said.out
    elif name == "failed":
        assert status == 1
        assert f"the training of {folder} failed, so its weights are not used: non-finite loss at step" in said.err
    elif name == "planned":
        assert status == 2
        assert "has no weights yet" in said.err
    elif name == "stopped":
        assert f"note: {folder} is not finished (step 1 of 12): used are its weights so far" in said.err
        assert status == (2 if command == "decompress" else 0), said.err  # made by other weights
    else:
        assert status == 0, said.err
        assert "not finished" not in said.err
    if name in ("failed", "planned") and command != "diagnose":
        assert said.err.count("\n") == 1
        assert {file.name for file in folder.iterdir()} == before
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["killed", "older killed", "older stopped", "older failed", "early"])
def test_python_is_told_the_same(name: str, runs: dict[str, Path]) -> None:
    doors: list[Callable[[], Any]] = [lambda: load_run(runs[name], device="cpu"), lambda: load_model(runs[name], device="cpu")]
    for door in doors:
        if name == "older failed":
            with pytest.raises(FailedRun, match="non-finite loss"):
                door()
        elif name == "early":
            with pytest.raises(ValueError, match="has no weights yet"):
                door()
        else:
            with pytest.warns(Unfinished, match="is not finished"):
                door()
    if name == "older failed":
        assert load_run(runs[name], device="cpu", failed=True).model.generate(1).isfinite().all()


RESUMED = {
    "finished": (0, "is already finished"),
    "stopped": (0, "finished after"),
    "killed": (0, "finished after"),
    "early": (0, "finished after"),
    "planned": (0, "finished after"),
    "older stopped": (2, "was stopped by its time limit and has no checkpoint to go on from"),
    "older killed": (0, "finished after"),
    "failed": (1, "has failed, and would fail again: non-finite loss"),
    "older failed": (1, "has failed, and would fail again: non-finite loss"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_what_resume_does(name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[name], folder)
    settings = ["--set", "training.lr=1e30"] if "failed" in name else []
    assert run(*RECIPE, *settings, "--resume", "--set", "training.checkpoint_every=7", "--out", folder) == RESUMED[name][0]
    said = capsys.readouterr()
    assert RESUMED[name][1] in said.out + said.err
    if RESUMED[name][0] == 0:
        whole, ended = (load_tensors(f / "model.safetensors", "x")[0] for f in (runs["finished"], folder))
        assert all(torch.equal(whole[key], ended[key]) for key in whole)
        assert sorted(file.name for file in folder.iterdir() if file.is_file()) == [
            "history.csv", "model.safetensors", "recipe.json", "results.json", "state.json",
        ]  # fmt: skip
        header, *_ = (folder / "history.csv").read_text().splitlines()
        assert header == (runs["finished"] / "history.csv").read_text().splitlines()[0], "columns in the same order"


def test_a_time_limit_is_of_a_session_and_says_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "ghosh2020/ae", "--data", "digits", "--set", "network=mlp", "--set", "training.epochs=2", "--out", tmp_path / "a"]
    for attempt in ("1", "2"):
        assert run(*command, "--minutes", "1e-9", *(["--resume"] if attempt == "2" else [])) == 0
        said = capsys.readouterr().out
        assert "stopped by the time limit after" in said
        assert "at epoch 0." in said
        assert "of 2 (" in said
        assert "the same command with --resume goes on" in said
    assert load_tensors(tmp_path / "a" / "checkpoint.safetensors", "x")[1]["step"] == 2
    assert run(*command) == 2
    assert "already holds an unfinished run of ghosh2020/ae (epoch 0.2 of 2): continue it with --resume" in capsys.readouterr().err
    assert run(*command, "--set", "training.epochs=3", "--resume") == 2
    assert "with other settings (training.epochs: 2, now 3)" in capsys.readouterr().err


STARTS: dict[str, tuple[list[str], str]] = {
    "a batch of one": (["--set", "network=small", "--set", "training.batch_size=1"], "batch normalisation needs more than one example"),
    "a negative decay": (["--set", "training.weight_decay=-1"], "weight_decay"),
    "an infinite loss": (["--data", "{new}/big.npy"], "the loss is not finite before the first update: scale the data, which reach from -"),
    "no memory": (["--set", "training.lr=0.001"], "not enough memory"),
    "nothing to resume": (["--resume"], "there is nothing to resume in"),
}


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("there", [False, True])
def test_a_start_that_fails_leaves_nothing(
    name: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "a"
    if there:
        folder.mkdir(parents=True)
    new = tmp_path / "new"
    new.mkdir()
    torch.manual_seed(0)
    import numpy as np

    np.save(new / "big.npy", 1e30 * torch.randn(60, 7).numpy())
    if name == "no memory":

        def full(*a: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(torch.optim.Adam, "step", full)
    extra, sentence = STARTS[name]
    recipe = ["train", "yu2020/vae" if "--data" in extra else "ghosh2020/ae", "--budget", "smoke"]
    command = [*recipe, *(["--data", "digits"] if "--data" not in extra else []), *(a.format(new=new) for a in extra)]
    assert run(*command, "--out", folder) in (1, 2)
    assert sentence in capsys.readouterr().err
    assert folder.exists() == there
    assert (tmp_path / "runs").exists() == there
    assert not there or not list(folder.iterdir())


def test_fit_leaves_nothing_of_a_first_loss_that_is_not_finite(tmp_path: Path) -> None:
    x = 1e30 * vectors()
    m = model(heads.Dirac())
    before = [p.clone() for p in m.parameters()]
    history = expost.fit(m, expost.RAE(), x, training=Training(steps=5), out=tmp_path / "a" / "b", device="cpu")
    assert history.failed
    assert history.stopped.startswith("the loss is not finite before the first update: scale the data, which reach from -")
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))


#: Files whose writing is the last thing that a killed training does: which, for the how many-th time, whether it still gets its name.
KILLS = [
    ("recipe.json", 1, False), ("recipe.json", 1, True), ("state.json", 2, True), ("checkpoint.safetensors", 1, False),
    ("checkpoint.safetensors", 1, True), ("checkpoint.safetensors", 2, False), ("model.safetensors", 1, False), ("model.safetensors", 1, True),
    ("state.json", -1, False), ("state.json", -1, True), ("results.json", 1, False), ("densities/gaussian.safetensors", 1, False),
]  # fmt: skip


@pytest.mark.parametrize(("file", "time", "done"), KILLS)
def test_a_run_that_is_killed_at_any_moment_goes_on(
    file: str, time: int, done: bool, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = [*RECIPE, "--set", "training.checkpoint_every=1e-9", "--out", folder]
    last = time == -1
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        seen, real = [0], os.replace

        def replaced(source: Any, target: Any) -> None:
            hit = Path(target) == folder / file and (not last or json.loads(Path(source).read_text())["state"] == "finished")
            seen[0] += hit
            if hit and (last or seen[0] == time):
                if done:
                    real(source, target)
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.replace = replaced
        run(*command)
        run("density", folder, "gaussian", "--device", "cpu")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it was killed there"
    before = RunFolder.at(folder).state().name
    assert before in ("new", "planned", "stopped", "finished")
    assert run(*command, *(["--resume"] if before != "new" else [])) == 0, capsys.readouterr().err
    assert run("density", folder, "gaussian", "--device", "cpu") == 0
    whole, ended = (load_tensors(f / "model.safetensors", "x")[0] for f in (runs["finished"], folder))
    assert all(torch.equal(whole[key], ended[key]) for key in whole)
    names = {f.name for f in folder.iterdir() if not f.name.endswith((".tmp.json", ".tmp.csv", ".tmp.safetensors"))}
    assert names <= {"densities", "history.csv", "model.safetensors", "recipe.json", "results.json", "state.json"}


@pytest.mark.parametrize(
    ("scale", "lr", "says"),
    [(1.0, 1e-3, None), (1e9, 1e-3, "scale the data, which reach from -"), (1.0, 1e3, "lower the learning rate or clip gradients")],
)
def test_a_loss_that_is_finite_and_absurd_is_said(scale: float, lr: float, says: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = expost.fit(
            model(heads.Dirac()), expost.RAE(), scale * vectors(), training=Training(steps=20, lr=lr, log_every=1), device="cpu"
        )
    assert history.stopped == "finished"
    said = [str(warning.message) for warning in caught if isinstance(warning.message, Note)]
    assert len(said) == (says is not None)
    assert says is None or (said[0].startswith("the loss went from ") and says in said[0])


@pytest.mark.parametrize("command", [["claims", "E1"], ["sweep", "ghosh2020/ae", "--data", "digits"], ["reproduce", "yu2020/table1"]])
def test_runs_lie_in_a_folder_of_runs(
    command: list[str], runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for place, says in ((tmp_path / "file" / "lab", "file is a file"), (runs["finished"], "is a run itself")):
        assert run(*command, "--runs", place) == 2
        said = capsys.readouterr()
        assert says in said.err
        assert said.err.count("\n") == 1
        assert said.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_crash_later_leaves_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, dataset = plan("ghosh2020/ae", data_name="digits", budget="smoke", settings={"network": "mlp", "training.steps": 6})

    def lost(*a: Any) -> dict[str, float]:
        raise RuntimeError("the lights went out")

    with pytest.raises(RuntimeError, match="lights"):
        train_run(experiment, dataset, source="digits", budget="smoke", out=tmp_path / "a", watch=lost, device="cpu")
    state = RunFolder.at(tmp_path / "a").state()
    assert (state.name, state.why) == ("stopped", "RuntimeError: the lights went out")
    done = train_run(experiment, dataset, source="digits", budget="smoke", out=tmp_path / "a", resume=True, device="cpu")
    assert done.history is not None
    assert done.history.stopped == "finished"
