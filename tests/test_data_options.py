"""How data are loaded is said once, when training: later commands load them the same way, from any folder; remedies can be typed where they are printed."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from expost.cli import main
from expost.cli.commands import COMMANDS
from expost.cli.options import DataOptions, as_options
from expost.data import load
from expost.runs import load_run
from expost.runs.origin import arguments

SMOKE = ["--budget", "smoke", "--device", "cpu", "--set", "training.steps=3", "--set", "latent=2"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def photos(root: Path, n: int = 30, shape: tuple[int, ...] | None = None) -> Path:
    """Pictures in two class folders, all of one shape (H, W[, 3]) or of different sizes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(n):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        size = shape or (*rng.integers(9, 20, 2), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(root / "ab"[i % 2] / f"{i}.png")
    return root


def test_every_command_that_reads_data_takes_the_options() -> None:
    reading = ["train", "wrap", "density", "sample", "evaluate", "diagnose", "likelihood", "compress", "reproduce", "sweep", "claims"]
    assert [name for name in reading if not issubclass(COMMANDS[name], DataOptions)] == []


def test_the_remedy_for_pictures_of_different_sizes_works_where_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "ghosh2020/rae", "--data", str(photos(tmp_path / "photos")), *SMOKE, "--out", str(tmp_path / "run")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "images differ in size" in said
    assert "give --size 32" in said
    assert main([*command, "--size", "12", "--val", "0.2"]) == 0
    assert main(["sweep", "ghosh2020/rae", "--data", str(tmp_path / "photos"), *SMOKE, "--runs", str(tmp_path / "lab"), "--dry-run"]) == 2
    assert (
        main(["sweep", "ghosh2020/rae", "--data", str(tmp_path / "photos"), "--crop", "9", "--dry-run", "--runs", str(tmp_path / "lab")])
        == 0
    )


def test_later_commands_load_the_data_as_the_training_did_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "some" / "photos")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ["--data", "some/photos", "--size", "12", "--pad-to", "16", "--val", "6"]
    assert main(["train", "ghosh2020/rae", *options, *SMOKE, "--out", "run"]) == 0
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())["data"]
    assert (saved["source"], saved["path"]) == ("some/photos", str(tmp_path / "some" / "photos"))
    assert (saved["size"], saved["pad_to"], saved["val"], saved["shape"]) == (12, 16, 6, [3, 16, 16])
    assert arguments(saved) == shlex.split(f"--data {tmp_path}/some/photos --size 12 --pad-to 16 --val 6")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = load_run("../run", device="cpu")
    assert (run.dataset.shape, len(run.dataset.val)) == ((3, 16, 16), 6)
    assert run.dataset.hash == load(**run.dataset.origin).hash == saved["hash"]
    sample = ["sample", "../run", "--density", "gaussian", "--n", "2", "--out", "s.npz"]
    assert main(sample) == 0

    (tmp_path / "some" / "photos").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "run" / "densities")
    capsys.readouterr()
    assert main(sample) == 2
    said = capsys.readouterr().err
    assert "../run" in said
    assert "not at" in said
    assert "--data" in said
    assert "hub" not in said
    assert main([*sample, "--data", "../moved"]) == 0
    assert main([*sample, "--data", "../moved", "--size", "11"]) == 2
    assert "(another content hash): pass the original (--data ...), or leave out --size 11\n" in capsys.readouterr().err
    (tmp_path / "moved").rename(tmp_path / "some" / "photos")
    assert main([*sample, "--size", "11", "--pad-to", "17"]) == 2
    assert "(another content hash): leave out --size 11 and --pad-to 17\n" in capsys.readouterr().err


def test_sentences_name_options_where_there_are_any() -> None:
    train, evaluate = COMMANDS["train"], COMMANDS["evaluate"]
    said = "pad them (pad_to=32), take network=mlp, val=0.1 or size=..., or resume=True; `x --set latent=2` and --set latent=3 stay, a/size=3 too"
    words = "pad them (--pad-to 32), take --set network=mlp, --val 0.1 or --size ..., or --resume; `x --set latent=2` and --set latent=3 stay, a/size=3 too"
    assert as_options(said, train) == words
    assert as_options("network=mlp, leave out pad_to, data_name=...", evaluate) == "network=mlp, leave out --pad-to, --data ..."
    wrap = COMMANDS["wrap"]
    assert as_options("say posterior='mean-logvar'; a range of (-1, 1) would do", wrap) == (
        "say --posterior mean-logvar; --range=-1,1 would do"
    )


@pytest.mark.parametrize(
    ("data", "network", "remedy"),
    [
        ((3, 3), "small", ["--size", "8"]),
        ((3, 3), "small", ["--set", "network=mlp"]),
        ((9, 13), "squeezed", ["--pad-to", "16"]),
        ((9, 13), "squeezed", ["--set", "network=small"]),
        ((8, 12), "manoj", ["--size", "16"]),
        ((9, 9), "dai-residual", ["--pad-to", "16"]),
    ],
)
def test_networks_that_do_not_fit_the_images_say_what_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: tuple[int, int], network: str, remedy: list[str]
) -> None:
    command = ["train", "kingma2014/vae", "--data", str(photos(tmp_path / "photos", shape=data)), *SMOKE, "--dry-run"]
    assert main([*command, "--set", f"network={network}"]) == 2
    said = capsys.readouterr().err
    assert "  ".join(remedy).replace("  ", " ") in said
    assert "_encoder" not in said
    assert main([*command, "--set", f"network={network}", *remedy]) == 0
