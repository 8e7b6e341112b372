"""``expost wrap``: models from elsewhere become folders that density, sample, evaluate and likelihood take like runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from expost.adapt import from_pythae
from expost.cli import main
from expost.data import load
from expost.runs.run import load_model, load_run
from expost.tensors import unit
from test_adapt import KL, pythae_folder

CPU = ["--device", "cpu"]
MAKE = "somebodys_code:make"
ALLOWED = ["--code", MAKE]
PAIR = "somebodys_code:pair"

CODE = '''
import torch
from torch import nn


class PCA(nn.Module):
    """Eight principal components of digits in [-1, 1], with a small posterior variance."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(64))
        self.axes = nn.Parameter(torch.zeros(8, 64))

    def encode(self, x):
        z = (x.flatten(1) - self.mean) @ self.axes.T
        return z, torch.full_like(z, -4.0)

    def decode(self, z):
        return (self.mean + z @ self.axes).reshape(-1, 1, 8, 8)


def make():
    return PCA()


def pair():
    return nn.Linear(64, 2), nn.Linear(2, 64)


def broken():
    raise RuntimeError("no such luck")


three = lambda: (1, 2, 3)
'''


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    x = 2 * unit(load("digits").train.x).flatten(1) - 1
    _, _, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return {"mean": x.mean(0), "axes": v[:8].contiguous()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, torch.Tensor]) -> Path:
    """A folder with user code and weights, which is the current one; the import state is restored."""
    save_file(weights, tmp_path / "pca.safetensors")
    (tmp_path / "somebodys_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "nothing")  # restores sys.path afterwards
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("somebodys_code", None)
    return tmp_path


def sklearn_pca(x: np.ndarray) -> Any:
    from sklearn.decomposition import PCA

    return PCA(8, svd_solver="full").fit(x)


WRAP_PCA = ["wrap", "somebodys_code:make", "--data", "digits", "--weights", "pca.safetensors", "--range", "-1,1", *CPU]


def test_own_code_density_sample_evaluate_likelihood(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WRAP_PCA, "--out", "run"]) == 0
    out = capsys.readouterr().out
    for words in (
        "latent dimensions               8",
        "Gaussian (mean-logvar)",
        "N(0, I)",
        "[-1, 1]",
        "MSE of the mean image",
        "expost diagnose run --code somebodys_code:make",
    ):
        assert words in out
    assert "note:" not in out
    run = load_run("run", device="cpu", code=MAKE)
    x = unit(run.dataset.test.x)
    pca = sklearn_pca(unit(run.dataset.train.x).flatten(1).numpy())
    rebuilt = pca.inverse_transform(pca.transform(x.flatten(1).numpy())).reshape(x.shape)
    assert np.allclose(run.model.reconstruct(x).numpy(), rebuilt, atol=1e-4)

    sys.modules.pop("somebodys_code")  # a fresh process would import it again
    assert main(["density", "run", *ALLOWED, "gmm:3", *CPU]) == 0
    assert "gmm:3" in capsys.readouterr().out
    assert main(["sample", "run", *ALLOWED, "--density", "gmm:3", "--n", "50", "--out", "samples.npz", *CPU]) == 0
    images = np.load("samples.npz")["images"]
    assert images.shape == (50, 1, 8, 8)
    expected = run.model.with_prior(run.density("gmm:3")).generate(50).clamp(0, 1)
    assert np.array_equal(images, expected.numpy())
    mean = x.mean(0).numpy()
    assert np.abs(images.mean(0) - mean).mean() < 0.06  # samples of a mixture on the codes look like the data ...
    assert np.abs(images - mean).mean() > 0.1  # ... and are not all alike
    assert main(["evaluate", "run", *ALLOWED, "--extractor", "pixels", "--metrics", "fd", "--density", "gmm:3", *CPU]) == 0
    assert "samples gmm:3" in capsys.readouterr().out
    assert main(["likelihood", "run", *ALLOWED, "--n", "20", "--samples", "10", *CPU]) == 0
    assert "nats" in capsys.readouterr().out
    assert main(["cite", "run"]) == 0
    cited = capsys.readouterr().out
    assert "heusel2017" in cited  # it was measured
    assert "pedregosa2011" in cited  # and a mixture fitted
    fitted = load_model("run", density="gmm:3", device="cpu", code=[MAKE])
    assert torch.equal(fitted.generate(5), run.model.with_prior(run.density("gmm:3")).generate(5))


def test_the_weights_are_those_of_the_folder(place: Path) -> None:
    """make() gives zeros: without the saved weights all reconstructions would be the same."""
    assert main([*WRAP_PCA, "--out", "run"]) == 0
    (place / "pca.safetensors").unlink()
    assert float(load_run("run", device="cpu", code=MAKE).model.encoder.net.module.module.axes.detach().abs().sum()) > 1
    description = json.loads((place / "run" / "recipe.json").read_text())
    assert description["recipe"] == "wrapped/modules"
    assert description["settings"]["reference"] == "somebodys_code:make"
    assert description["settings"]["interface"]["input_range"] == [-1.0, 1.0]
    assert len(description["identity"]) == 8


def test_a_wrong_range_is_a_note(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*(a if a != "-1,1" else "0,255" for a in WRAP_PCA), "--out", "run"]) == 0
    assert "--range=-1,1 would give" in capsys.readouterr().out


def test_code_that_has_gone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WRAP_PCA, "--out", "run"]) == 0
    (place / "somebodys_code.py").unlink()
    sys.modules.pop("somebodys_code")
    assert main(["density", "run", *ALLOWED, *CPU]) == 2
    assert "somebodys_code cannot be imported" in capsys.readouterr().err
    (place / "somebodys_code.py").write_text(CODE.replace("zeros(8, 64)", "zeros(9, 64)"))
    assert main(["density", "run", *ALLOWED, *CPU]) == 2
    assert "does not fit this model" in capsys.readouterr().err


def test_a_deterministic_pair(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wrap", "somebodys_code:pair", "--data", "digits", "--input-shape", "64", *CPU]) == 0
    out = capsys.readouterr().out
    assert "deterministic" in out
    assert "no better than the mean image" in out
    run = load_run("runs/wrapped-somebodys_code", device="cpu", code=PAIR)
    assert run.experiment.densities == ("gaussian", "gmm:10")
    assert main(["sample", "runs/wrapped-somebodys_code", "--code", PAIR, "--density", "gaussian", "--n", "3", "--out", "s.npz", *CPU]) == 0


def test_points(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(place / "points.npz", x=np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32))
    assert main(["wrap", "somebodys_code:pair", "--data", "points.npz", "--out", "run", *CPU]) == 0
    assert main(["density", "run", "gaussian", "--code", PAIR, *CPU]) == 0


def test_pythae_folder_is_not_needed_afterwards(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pythae_folder(place / "vae", "VAEConfig")
    model = from_pythae("vae")
    assert main(["wrap", "vae", "--data", "digits", "--out", "run", *CPU]) == 0
    assert "(pythae)" in capsys.readouterr().out
    shutil.rmtree(place / "vae")
    run = load_run("run", device="cpu")
    assert torch.equal(run.model.reconstruct(run.dataset.test.x), model.reconstruct(run.dataset.test.x))
    assert main(["density", "run", "gmm:2", *CPU]) == 0
    assert main(["sample", "run", "--density", "gmm:2", "--out", "s.npz", *CPU]) == 0
    assert run.experiment.objective == type(run.experiment.objective)()


def test_pythae_models_of_a_larger_size_get_padded_data(place: Path) -> None:
    pythae_folder(place / "vae", "AEConfig", shape=(1, 10, 10))
    assert main(["wrap", "vae", "--data", "digits", "--gamma", "optimal", "--out", "run", *CPU]) == 0
    run = load_run("run", device="cpu")
    assert run.dataset.shape == (1, 10, 10)
    assert float(run.model.decoder.head.variance) != 0.5


def test_pythae_own_encoder_by_reference(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pythae_folder(place / "vae", "AEConfig", uses_default_encoder=False)
    assert main(["wrap", "vae", "--data", "digits", *CPU]) == 2
    assert "give it as a module" in capsys.readouterr().err
    (place / "theirs.py").write_text(
        "from torch import nn\n\n\nclass Encoder(nn.Module):\n"
        "    def __init__(self, latent=3):\n        super().__init__()\n"
        "        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(64, 512), nn.ReLU())])\n"
        "        self.embedding = nn.Linear(512, latent)\n\n"
        "    def forward(self, x):\n        return {'embedding': self.embedding(self.layers[0](x.flatten(1)))}\n"
    )
    assert main(["wrap", "vae", "--data", "digits", "--encoder", "theirs:Encoder", "--out", "run", *CPU]) == 0
    run = load_run("run", device="cpu", code="theirs:Encoder")
    expected = from_pythae("vae", networks="mlp").latents(run.dataset.test.x, at="mean")
    assert torch.equal(run.model.latents(run.dataset.test.x, at="mean"), expected)
    sys.modules.pop("theirs")


def test_diffusers_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL(**KL).eval()
    vae.save_pretrained(place / "kl")
    assert main(["wrap", "kl", "--data", "digits", "--out", "run", *CPU]) == 0
    assert "48 (3x4x4)" in capsys.readouterr().out
    shutil.rmtree(place / "kl")
    run = load_run("run", device="cpu")
    x = unit(run.dataset.test.x[:20])
    with torch.no_grad():
        image = (vae.decode(vae.encode(2 * x - 1).latent_dist.mean).sample + 1) / 2
    assert torch.allclose(run.model.reconstruct(x), image, atol=1e-5)
    assert main(["density", "run", "gmm:2:diagonal", *CPU]) == 0
    assert main(["sample", "run", "--density", "gmm:2:diagonal", "--n", "4", "--out", "s.npz", *CPU]) == 0


MISTAKES = {
    "no such model": (["wrap", "nowhere", "--data", "digits"], 'there is no model "nowhere"'),
    "a folder of something else": (["wrap", ".", "--data", "digits"], "is no model folder"),
    "module that is not there": (["wrap", "nobodys_code:make", "--data", "digits"], "cannot be imported"),
    "function that is not there": (["wrap", "somebodys_code:mkae", "--data", "digits"], 'has no "mkae"'),
    "function that fails": (["wrap", "somebodys_code:broken", "--data", "digits"], "no such luck"),
    "function that returns something else": (["wrap", "somebodys_code:three", "--data", "digits"], "returns tuple"),
    "wrong shape": (["wrap", "somebodys_code:pair", "--data", "digits"], "the encoder fails on data of shape (1, 8, 8)"),
    "weights that are not there": (["wrap", "somebodys_code:make", "--data", "digits", "--weights", "no.safetensors"], "does not exist"),
    "weights of another kind": (
        ["wrap", "somebodys_code:make", "--data", "digits", "--weights", "somebodys_code.py"],
        "no safetensors file",
    ),
    "weights of another model": (
        ["wrap", "somebodys_code:pair", "--data", "digits", "--weights", "pca.safetensors"],
        "does not fit this model",
    ),
    "unreadable range": (["wrap", "somebodys_code:make", "--data", "digits", "--range", "white"], "cannot read --range"),
    "one number": (["wrap", "somebodys_code:make", "--data", "digits", "--range", "1"], "write two numbers"),
    "unreadable gamma": (["wrap", "somebodys_code:make", "--data", "digits", "--gamma", "big"], "cannot read --gamma"),
    "option of another kind": (["wrap", "somebodys_code:make", "--data", "digits", "--encoder", "a:b"], "--encoder is not for"),
    "grey levels": (["wrap", "somebodys_code:make", "--data", "digits", "--likelihood", "bernoulli"], "choose cross-entropy"),
    "no device": (["wrap", "somebodys_code:make", "--data", "digits", "--device", "abacus"], "there is no device"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = MISTAKES[name]
    assert main(arguments if "--device" in arguments else [*arguments, *CPU]) == 2
    error = capsys.readouterr().err
    assert error.startswith("expost: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert not (place / "runs").exists()


def test_a_folder_is_not_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WRAP_PCA, "--out", "run"]) == 0
    assert main([*WRAP_PCA, "--out", "run"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    (place / "run" / "recipe.json").write_text((place / "run" / "recipe.json").read_text().replace('"wrapped/modules"', '"wrapped/alien"'))
    assert main(["density", "run", *CPU]) == 2
    assert 'no kind of wrapped model "alien"' in capsys.readouterr().err
