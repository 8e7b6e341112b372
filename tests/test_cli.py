"""The command line as a user meets it: every command, every mistake one sentence and a non-zero exit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import expost
from expost.cli import main
from toys import model, vectors

SMOKE = ["--data", "digits", "--budget", "smoke", "--device", "cpu"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    assert main(["train", "ghosh2020/rae-l2", *SMOKE, "--set", "latent=4", "--set", "training.steps=20", "--out", str(folder)]) == 0
    return folder


def test_help_imports_no_torch() -> None:
    code = "import sys; from expost.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (
        "demo",
        "list",
        "train",
        "wrap",
        "density",
        "sample",
        "evaluate",
        "diagnose",
        "likelihood",
        "compress",
        "decompress",
        "reproduce",
        "sweep",
        "claims",
        "cite",
    ):
        assert command in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("expost ")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("ghosh2020/rae-l2", "dai2019/two-stage", "mnist", "celeba", "gmm", "stage", "small"):
        assert word in out


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "b"
    assert main(["train", "ghosh2020/vae", *SMOKE, "--out", str(folder), "--dry-run", "--minutes", "1"]) == 0
    out = capsys.readouterr().out
    assert "objective: ELBO(" in out
    assert "minutes=1.0" in out
    assert not folder.exists()


def test_train_writes_a_run(run_folder: Path) -> None:
    recipe = json.loads((run_folder / "recipe.json").read_text())
    assert recipe["recipe"] == "ghosh2020/rae-l2"
    assert recipe["settings"] == {"latent": 4, "training.steps": 20}
    assert recipe["versions"]["torch"]
    assert len(recipe["data"]["hash"]) == 16
    assert (run_folder / "model.safetensors").is_file()
    assert (run_folder / "history.csv").read_text().startswith("step,epoch,split")
    assert not (run_folder / "checkpoint.safetensors").exists()


def test_density_sample_evaluate_cite(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run_folder)
    assert main(["density", folder, "gmm:10", "gaussian", "--device", "cpu"]) == 0
    assert "validation" in capsys.readouterr().out
    samples, picture = tmp_path / "s.npz", tmp_path / "s.png"
    assert (
        main(["sample", folder, "--density", "gmm:10", "--n", "9", "--out", str(samples), "--grid", str(picture), "--device", "cpu"]) == 0
    )
    images = np.load(samples)["images"]
    assert images.shape == (9, 1, 8, 8)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", folder, "--extractor", "pixels", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for row in (
        "reconstruction",
        "samples gaussian",
        "samples gmm:10",
        "interpolation",
        "control: held-out images",
        "control: shuffled pixels",
        "FD[pixels",
        "AuthPct",
        "coverage",
    ):
        assert row in out
    assert main(["cite", folder]) == 0
    cited = capsys.readouterr().out
    assert "@inproceedings{ghosh2020" in cited
    assert "@inproceedings{heusel2017" in cited


MISTAKES = {
    "unknown recipe": (["train", "ghosh2020/rea", *SMOKE], "did you mean"),
    "unknown data": (["train", "ghosh2020/rae", "--data", "mnits"], "mnist"),
    "unknown setting": (["train", "ghosh2020/rae", *SMOKE, "--set", "objective.bta=1"], 'did you mean "beta"'),
    "malformed setting": (["train", "ghosh2020/rae", *SMOKE, "--set", "beta"], "--set name=value"),
    "negative minutes": (["train", "ghosh2020/rae", *SMOKE, "--minutes", "-1"], "must be a number above 0"),
    "no such device": (["train", "ghosh2020/rae", "--data", "digits", "--device", "abacus"], "there is no device"),
    "not a run": (["evaluate", "/nonexistent"], "not a run folder"),
    "nothing to write": (["sample", "/nonexistent"], "nothing to write"),
    "unknown claims": (["claims", "006"], "there are no claims"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_sentence(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, sentence = MISTAKES[name]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("expost: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_unknown_density_and_unusable_density(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["density", str(run_folder), "gmmm", "--device", "cpu"]) == 2
    assert "gmm" in capsys.readouterr().err
    assert main(["sample", str(run_folder), "--density", "prior", "--out", "x.npz", "--device", "cpu"]) == 2
    assert "trains without a prior" in capsys.readouterr().err


def test_a_diverging_run_fails_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        ["train", "ghosh2020/vae", *SMOKE, "--set", "training.lr=1e12", "--set", "training.clip=none", "--out", str(tmp_path / "x")]
    )
    err = capsys.readouterr().err
    assert status == 1
    assert "non-finite loss at step" in err


def test_trackers_write_into_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "tracked"
    assert main(["train", "ghosh2020/ae", *SMOKE, "--set", "training.steps=10", "--track", "tensorboard", "--out", str(folder)]) == 0
    assert list(folder.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nosuch", "choose aim, clearml, comet_ml"), ("mlflow", "pip install mlflow"), ("comet_ml", "pip install comet-ml")],
)
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_made(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    assert main(["train", "ghosh2020/ae", *SMOKE, "--track", "tensorboard", name, "--out", str(tmp_path / "other")]) == 2
    assert sentence in capsys.readouterr().err
    with pytest.raises(ValueError, match=sentence):
        expost.fit(model(), expost.ELBO(), vectors(), training=expost.Training(steps=1), out=tmp_path / "other", trackers=(name,))
    assert not (tmp_path / "other").exists()


def test_a_run_stopped_before_any_validation_still_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ghosh2020/ae", "--data", "digits", "--device", "cpu", "--minutes", "0.0001", "--out", str(tmp_path / "t")]) == 0
    assert "loss:" in capsys.readouterr().out


# -- likelihood, compression, reproduction --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coders") / "a"
    assert main(["train", "yu2020/bits-back", *SMOKE, "--set", "latent=4", "--out", str(folder)]) == 0
    return folder


def test_likelihood_prints_the_conversion_and_is_kept(coder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["likelihood", str(coder_folder), "--samples", "20", "--n", "30", "--surgery"]
    command += ["--annealed", "--annealed-n", "3", "--chains", "2", "--temperatures", "5"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "nats / (64 x ln 2) =" in out
    assert "index-code mutual information" in out
    results = json.loads((coder_folder / "results.json").read_text())
    assert {"likelihood", "annealed", "surgery"} <= results.keys()
    assert main(["likelihood", str(coder_folder), "--samples", "0"]) == 2


def test_a_gaussians_density_becomes_a_bound_on_dequantised_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "g"
    assert main(["train", "dai2019/vae-learned", *SMOKE, "--out", str(folder)]) == 0
    assert main(["likelihood", str(folder), "--samples", "5", "--n", "9", "--dequantise"]) == 0
    out = capsys.readouterr().out
    assert "+ log2(256) =" in out
    assert "bits/dim of the bytes" in out
    assert "likelihood dequantised" in json.loads((folder / "results.json").read_text())


def test_an_unnormalised_head_has_no_likelihood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "ce"
    assert main(["train", "bozkurt2018/shallow", *SMOKE, "--out", str(folder)]) == 0
    assert main(["likelihood", str(folder), "--samples", "5", "--n", "5"]) == 2
    assert "not a normalised likelihood" in capsys.readouterr().err
    assert main(["compress", str(folder), "--out", str(tmp_path / "a.xpz")]) == 2
    assert "no probability mass" in capsys.readouterr().err
    assert not (tmp_path / "a.xpz").exists()


def test_compress_and_decompress(coder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from expost import data

    test = data.load("digits").test.x[:40].numpy()
    np.savez(tmp_path / "in.npz", images=test)
    file, out = tmp_path / "a.xpz", tmp_path / "b.npz"
    assert main(["compress", str(coder_folder), str(tmp_path / "in.npz"), "-o", str(file)]) == 0
    shown = capsys.readouterr().out
    for word in ("net", "with the seed", "-ELBO of these images", "lzma", "every image exactly the same"):
        assert word in shown
    assert main(["decompress", str(file), "-o", str(out)]) == 0
    back = np.load(out)["images"]
    assert back.dtype == np.uint8
    assert np.array_equal(back, test)

    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (tmp_path / "damaged.xpz").write_bytes(damaged)
    assert main(["decompress", str(tmp_path / "damaged.xpz"), "-o", str(tmp_path / "c.npz")]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "c.npz").exists()
    assert main(["decompress", str(tmp_path / "none.xpz")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_compress_with_a_fitted_density_and_a_split(coder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "a.xpz")
    assert main(["compress", str(coder_folder), "--density", "gmm:2", "-o", file]) == 2
    assert "has not been fitted" in capsys.readouterr().err
    assert main(["density", str(coder_folder), "gmm:2@sample"]) == 0
    assert main(["compress", str(coder_folder), "--density", "gmm:2", "--n", "20", "--no-peers", "-o", file]) == 0
    assert main(["decompress", file, "-o", str(tmp_path / "a.npz"), "--run", str(coder_folder)]) == 0
    assert len(np.load(tmp_path / "a.npz")["images"]) == 20


def test_nothing_that_exists_is_replaced_unasked(coder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, file = tmp_path / "in.npz", tmp_path / "in.xpz"
    np.savez(source, images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    before = source.read_bytes()
    assert main(["compress", str(coder_folder), str(source), "-o", str(source)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["compress", str(coder_folder), str(source), "--no-peers", "-o", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "read as uint8 (2, 1, 8, 8), from uint8 (2, 8, 8)" in shown
    assert "not used: labels" in shown
    assert main(["decompress", str(file), "-o", str(source)]) == 2
    assert source.read_bytes() == before
    assert main(["decompress", str(file), "-o", str(source), "--force"]) == 0


@pytest.mark.parametrize(
    ("origin", "options", "sentence"),
    [
        ({"run": "\x1b[2J\u202e\n" + "a" * 5000}, [], "is not at \\x1b[2J\\u202e\\naaa"),
        ({}, [], "is not named in it: give its folder with --run"),
        ({"density": "gmm:1000000000"}, ["--run"], "gmm:1000000000`, or give another run"),
        ({"density": "../model"}, ["--run"], 'cannot read the density "../model"'),
        ({"density": "\x1b[2J" + "a" * 5000}, ["--run"], "\\x1b[2Jaaa"),
    ],
)
def test_names_in_a_compressed_file_are_harmless(
    origin: dict[str, str], options: list[str], sentence: str, coder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from expost.codec.container import pack, unpack

    file = coder_folder.parent / "named.xpz"
    if not file.exists():
        assert main(["compress", str(coder_folder), "--n", "2", "--no-peers", "-o", str(file)]) == 0
        capsys.readouterr()
    whole, forged = unpack(file.read_bytes()), tmp_path / "forged.xpz"
    forged.write_bytes(pack(replace(whole, header=replace(whole.header, origin=origin))))
    assert main(["decompress", str(forged), "-o", str(tmp_path / "a.npz"), *options, *[str(coder_folder)] * len(options)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said[:-1].isprintable()
    assert len(said) < 800
    assert not (tmp_path / "a.npz").exists()


def test_what_another_process_wrote_meanwhile_stays_and_rates_are_shown(
    coder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import expost.codec

    file, out = tmp_path / "a.xpz", tmp_path / "b.npz"
    compress = ["compress", str(coder_folder), "--n", "3", "--no-peers", "-o", str(file)]

    def first(path: Path, function: Any) -> Any:
        """The function, after somebody else has written the file."""

        def run(*arguments: Any, **more: Any) -> Any:
            path.write_text("of another process")
            return function(*arguments, **more)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(expost.codec, "write_compressed", first(file, expost.codec.write_compressed))
        assert main(compress) == 2
        shown = capsys.readouterr()
        assert "-ELBO of these images" in shown.out
        assert "exactly the same" not in shown.out
        assert "a.xpz exists: choose another name with -o, or replace it with --force" in shown.err
        assert file.read_text() == "of another process"
        assert main([*compress, "--force"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(expost.codec, "decompress", first(out, expost.codec.decompress))
        assert main(["decompress", str(file), "-o", str(out)]) == 2
        assert "b.npz exists" in capsys.readouterr().err
        assert out.read_text() == "of another process"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    out.unlink()
    for owner, name, command in (
        (Path, "write_bytes", [*compress, "--force"]),
        (np, "savez_compressed", ["decompress", str(file), "-o", str(out)]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            assert main(command) == 2
        shown = capsys.readouterr()
        assert ("-ELBO of these images" in shown.out) == (command[0] == "compress")
        assert f"cannot write {command[-1 if command[0] == 'decompress' else -2]}: no space left on device; free space" in shown.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.xpz"]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"a": np.zeros((2, 8, 8), np.uint8), "b": np.zeros((2, 8, 8), np.uint8)}, "none is called images"),
        ({"images": np.zeros((2, 9, 9), np.uint8)}, "trained on images of shape (1, 8, 8)"),
        ({"images": np.zeros((2, 3), np.float32)}, "not images"),
        ({}, "holds no arrays"),
    ],
)
def test_files_that_are_not_the_models_images(
    arrays: dict[str, np.ndarray], sentence: str, coder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    assert main(["compress", str(coder_folder), str(tmp_path / "in.npz"), "-o", str(tmp_path / "a.xpz")]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["compress", str(coder_folder), str(tmp_path), "-o", str(tmp_path / "a.xpz")]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["compress", str(coder_folder), "--n", "2", "-o", str(tmp_path), "--force"]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_reproduce_compression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "yu2020/compression", *SMOKE, "--runs", str(tmp_path / "lab"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    out = capsys.readouterr().out
    for word in ("yu2020/bits-back-nested", "lzma, binarised", "images/s in"):
        assert word in out
    assert "expost reproduce yu2020/compression" in (tmp_path / "out" / "report.html").read_text()
    assert main(["reproduce", "yu2020/tabel1"]) == 2
    assert 'did you mean "yu2020/table1"?' in capsys.readouterr().err


def test_options_are_held_to_their_ranges_before_anything_is_done(tmp_path, capsys):
    """Every number that counts something or is a size must be positive: found by walking the commands."""
    from expost.cli.commands import COMMANDS
    from expost.system.schema import check_value, declared

    for command in COMMANDS.values():
        for name, annotation in declared(command).items():
            if any(kind in str(annotation) for kind in ("int", "float")) and name not in ("seed", "seeds", "slurm_gpus", "print"):
                with pytest.raises(ValueError, match=f"^{name} must be"):
                    check_value(-1, annotation, name)
    assert main(["sample", str(tmp_path), "--n", "0", "--grid", "x.png"]) == 2
    assert "--n must be a whole number of at least 1, not 0" in capsys.readouterr().err
