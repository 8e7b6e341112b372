"""A run is used from any folder, from one that cannot be written, and without its data where none are needed; nothing is written where it should not be."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expost import heads
from expost.cli import main
from expost.density import FullGaussian, StandardNormal
from expost.runs import load_run
from expost.system.files import load_tensors, save_tensors
from toys import model, pictures, vectors

STEPS = ["--budget", "smoke", "--device", "cpu", "--set", "network=mlp", "--set", "latent=2", "--set", "training.steps=3"]


def run(*arguments: Any) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures ``x.npy``, a run on them by that name, a fitted density, and a compressed file."""
    home = tmp_path_factory.mktemp("home")
    np.save(home / "x.npy", pictures(200).numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert run("train", "yu2020/bits-back", "--data", "x.npy", *STEPS, "--out", "a") == 0
        assert run("density", "a", "gaussian") == 0
        np.savez("own.npz", images=pictures(3, seed=5).numpy())
        assert run("compress", "a", "own.npz", "--no-peers", "-o", "own.xpz") == 0
    return home


@pytest.fixture
def moved(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in a place of its own, seen from another folder; its data are where they were."""
    shutil.copytree(home, tmp_path / "home")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


#: Commands by what they need beside the weights.
WITHOUT_DATA = [
    ["sample", "{a}", "--density", "gaussian", "--n", "2", "--out", "s.npz"],
    ["sample", "{a}", "--density", "prior", "--n", "2", "--out", "s.npz"],
    ["compress", "{a}", "{home}/own.npz", "--no-peers", "-o", "b.xpz"],
    ["decompress", "{home}/own.xpz", "--run", "{a}", "-o", "b.npz"],
    ["cite", "{a}"],
]
WITH_DATA = [
    ["sample", "{a}", "--density", "gmm:2", "--n", "2", "--out", "s.npz"],
    ["density", "{a}", "gaussian"],
    ["evaluate", "{a}", "--n", "20", "--extractor", "pixels", "--metrics", "fd", "--density", "gaussian"],
    ["diagnose", "{a}", "--n", "20", "--density", "gaussian", "--out", "d"],
    ["likelihood", "{a}", "--n", "2", "--samples", "2"],
]


@pytest.mark.parametrize(
    ("data", "command"),
    [*(("gone", command) for command in [*WITHOUT_DATA, *WITH_DATA]), ("there", WITH_DATA[0]), ("there", WITH_DATA[2])],
    ids=str,
)
def test_from_another_folder_and_without_the_data(
    data: str, command: list[str], moved: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = home / "x.npy"
    if data == "gone":
        place.rename(moved / "moved.npy")
    try:
        words = [word.format(a=moved / "a", home=moved) for word in command]
        needed = data == "gone" and command in WITH_DATA
        status = run(*words)
        said = capsys.readouterr()
        if not needed:
            assert status == 0, said.err
            return
        assert status == 2
        assert f"the data of the run {moved / 'a'} are not at {place} any more: say where they are now (--data ...)" in said.err
        assert not list(Path.cwd().iterdir())
        if command[0] in ("sample", "likelihood"):
            assert run(*words, "--data", moved / "moved.npy") == 0
    finally:
        if data == "gone":
            (moved / "moved.npy").rename(place)


def read_only(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nothing can be made in the folder, whoever asks (root may write everywhere)."""

    def forbid(owner: Any, name: str, place: Any) -> None:
        real = getattr(owner, name)

        def refused(*a: Any, **k: Any) -> Any:
            if Path(place(a, k)).absolute().is_relative_to(folder):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place(a, k)))
            return real(*a, **k)

        patch.setattr(owner, name, refused)

    forbid(tempfile, "mkstemp", lambda a, k: k["dir"])
    forbid(os, "mkdir", lambda a, k: a[0])
    access = os.access
    patch.setattr(
        os, "access", lambda path, mode: access(path, mode) and not (mode & os.W_OK and Path(path).absolute().is_relative_to(folder))
    )


@pytest.mark.parametrize("command", [*WITHOUT_DATA, *WITH_DATA], ids=str)
def test_from_a_folder_that_cannot_be_written(
    command: list[str], moved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in moved.rglob("*") if file.is_file()}
    read_only(monkeypatch, moved)
    assert run(*(word.format(a=moved / "a", home=moved) for word in command)) == 0
    said = capsys.readouterr()
    assert ("note: not kept: " in said.err) == (command[0] in ("density", "evaluate", "likelihood") or "gmm:2" in command), said.err
    assert said.out
    assert {file: file.read_bytes() for file in moved.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("a/model.safetensors", 'did you mean "a"?'),
        (".", 'did you mean "a"?'),
        ("a.zip", "unpack an archive"),
        ("filled", "give the folder that `expost train` or `expost wrap` has written"),
        ("nowhere", "`expost train RECIPE --out nowhere`"),
        ("empty", "`expost train RECIPE --out empty`"),
    ],
)
def test_what_is_no_run_is_said_with_what_to_do(
    place: str, remedy: str, moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(moved / "a", "a")
    for folder in ("filled", "empty"):
        Path(folder).mkdir()
    for file in ("a.zip", "filled/note.txt"):
        Path(file).write_bytes(b"PK")
    assert run("sample", place, "--out", "s.npz") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"expost: {place} is not a run folder (no recipe.json): ")
    assert remedy in said


#: Commands that make a folder.
MAKERS = {
    "train": ["train", "ghosh2020/ae", "--data", "digits", *STEPS],
    "wrap": ["wrap", "somewhere:make", "--data", "digits"],
    "diagnose": ["diagnose", "run"],
    "demo": ["demo"],
    "reproduce": ["reproduce", "yu2020/table1"],
}


@pytest.mark.parametrize("command", MAKERS)
@pytest.mark.parametrize("out", ["", "photos", "note.txt"])
def test_nothing_is_written_among_other_files(
    command: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("photos/cat.png", "note.txt"):
        (tmp_path / name).write_bytes(b"mine")
    assert run(*MAKERS[command], "--out", out) == 2
    err = capsys.readouterr().err
    assert ("needs a folder of its own" if out == "" else "is not empty and holds no" if out == "photos" else "is a file") in err
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["note.txt", "photos", "photos/cat.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "s.npy"], "s.npy would be .npz under another name: call it s.npz"),
        (["--out", "s.npz", "--grid", "s.doc"], "s.doc would be .png or"),
        (["--out", "s.npz", "--n", "10000000000000"], "ask for fewer"),
        (["--out", "s.npz", "--n", "-1"], "--n must be a whole number of at least 1"),
    ],
)
def test_samples_that_cannot_be_written(words: list[str], sentence: str, moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", moved / "a", "--density", "prior", *words) == 2
    assert sentence in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".jpg", b"\xff\xd8"), (".WEBP", b"RIFF")])
def test_a_picture_is_what_its_name_says(suffix: str, start: bytes, moved: Path) -> None:
    assert run("sample", moved / "a", "--density", "prior", "--n", "2", "--grid", f"s{suffix}") == 0
    assert Path(f"s{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize("command", [*WITHOUT_DATA[:4], *WITH_DATA], ids=str)
def test_weights_with_nan_are_refused_before_anything_is_written(
    command: list[str], moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = moved / "a" / "model.safetensors"
    tensors, meta = load_tensors(file, "x")
    tensors["decoder.net.0.0.weight"].view(-1)[0] = torch.nan
    save_tensors(file, tensors, meta)
    assert run(*(word.format(a=moved / "a", home=moved) for word in command)) == 2
    assert "1 of the model's weights hold NaN or infinity (first: decoder.net.0.0.weight)" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_samples_with_nan_are_a_sentence() -> None:
    far = FullGaussian(2).fit(torch.randn(50, 2))
    far.mean.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"4 of 4 samples hold NaN or infinity \(first: sample 0\)"):
        model(heads.Dirac()).with_prior(far).generate(4)


def test_shapes_that_do_not_fit_are_a_sentence() -> None:
    m = model()
    with pytest.raises(ValueError, match=r"the encoder does not take data of shape \(7,\) \("):
        m.latents(vectors(d=7), at="mean")
    with pytest.raises(ValueError, match=r"the decoder does not take codes of shape \(3,\) \("):
        m.with_prior(StandardNormal(3)).generate(2)
    for d in (1, 3):  # a prior of one dimension would be stretched without a word
        with pytest.raises(ValueError, match=f"the prior is for codes of {d} dimensions"):
            m.with_prior(StandardNormal(d)).encode(vectors())


def test_a_measure_that_no_run_will_have_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["sweep", "ghosh2020/vae", "--data", "digits", "--budget", "smoke", "--runs", "lab"]
    assert run(*command, "--measure", "rate", "foo") == 2
    assert 'no run will have a measure "foo": there are total, distortion, rate, training.seconds' in capsys.readouterr().err
    assert run(*command, "--out", "") == 2
    assert "need a name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_loads_its_data_when_they_are_needed(moved: Path) -> None:
    run = load_run(moved / "a", device="cpu")
    assert "dataset" not in vars(run)
    assert run.density("gaussian") is not None
    assert "dataset" not in vars(run)
    assert len(run.codes) == len(run.dataset.train)
