"""Data sorted by class, the layout of most folders, score like their shuffled copy: what stands for a whole is drawn, never cut.

Six classes are told apart by where they are bright, and the last one is far from the others; 12 000/900/2 400 images, more than any command
looks at. What is measured on the sorted copy must lie within the spread of other draws (seeds) of the shuffled one. The two runs have the same
weights: their training moves nothing.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import expost
from expost import data
from expost.cli import main
from expost.cli.codec import Compress
from expost.evaluate.comparison import compare
from expost.evaluate.features.base import Pixels
from expost.runs.classes import class_report
from expost.runs.diagnosis import diagnose_run
from expost.runs.run import Run, load_run
from expost.seeds import draw, generator, permutation, some
from toys import linear

CLASSES, SIZES = 6, {"train": 12_000, "val": 900, "test": 2_400}
CPU = ["--device", "cpu"]


def planted(n: int, seed: str) -> tuple[Tensor, Tensor]:
    """n images (n, 1, 8, 8) sorted by class: a bright row of pixels at the height of the class, the last class all bright and noisier."""
    labels = torch.arange(n) * CLASSES // n
    noise, last = torch.randn(n, 1, 8, 8, generator=generator("planted", seed)), labels == CLASSES - 1
    x = 100 + 10 * noise
    x[torch.arange(n), 0, labels + 1] += 60
    x[last] = 230 + 20 * noise[last]
    return x.clamp(0, 255).round().to(torch.uint8), labels


def classes_in(x: Tensor) -> int:
    """How many planted classes there are among images in [0, 255] or [0, 1]."""
    rows = (x.float() / 255 if x.dtype == torch.uint8 else x).mean((1, 3))
    return len(torch.where(rows[:, 0] > 0.7, CLASSES - 1, rows.argmax(1) - 1).unique())


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images sorted by class and shuffled, as files."""
    folder, arrays = tmp_path_factory.mktemp("sets"), {"sorted": {}, "shuffled": {}}
    for part, n in SIZES.items():
        x, labels = planted(n, part)
        for name, rows in (("sorted", torch.arange(n)), ("shuffled", permutation(n, "shuffled", part))):
            arrays[name] |= {f"x_{part}": x[rows].numpy(), f"y_{part}": labels[rows].numpy()}
    for name, held in arrays.items():
        np.savez(folder / f"{name}.npz", **held)
    return {name: folder / f"{name}.npz" for name in arrays}


@pytest.fixture(scope="module")
def folders(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of one VAE on each."""
    root = tmp_path_factory.mktemp("runs")
    for name, file in sets.items():
        settings = ["network=mlp", "latent=3", "training.steps=2", "training.lr=1e-12"]
        chosen = [part for setting in settings for part in ("--set", setting)]
        assert main(["train", "ghosh2020/vae", "--data", str(file), "--budget", "smoke", *chosen, *CPU, "--out", str(root / name)]) == 0
    return {name: root / name for name in sets}


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path]) -> dict[str, Run]:
    return {name: load_run(folder, device="cpu") for name, folder in folders.items()}


def alike(measure: Callable[[str, int], list[float]], draws: int = 3) -> None:
    """Every figure of the sorted copy lies among those of the shuffled one under other seeds, give or take twice their range and 3 % (noise of codes)."""
    others = torch.tensor([measure("shuffled", seed) for seed in range(1, draws + 1)], dtype=torch.float64)
    here = torch.tensor(measure("sorted", 0), dtype=torch.float64)
    low, high = others.amin(0), others.amax(0)
    slack = 2 * (high - low) + 0.03 * high.abs()
    assert bool(((here >= low - slack) & (here <= high + slack)).all()), (here, others)


def results(folder: Path, start: str) -> object:
    """The one entry of a run's results.json whose key begins so."""
    (found,) = (value for key, value in json.loads((folder / "results.json").read_text()).items() if key.startswith(start))
    return found


# -- the function


def test_draw_is_a_sorted_part_of_a_keyed_permutation_and_all_where_there_are_no_more() -> None:
    rows = draw(1000, 100, "a", 0)
    assert torch.equal(rows, permutation(1000, "a", 0)[:100].sort().values)
    assert torch.equal(rows, draw(1000, 100, "a", 0))
    assert len(rows.unique()) == 100
    assert not torch.equal(rows, draw(1000, 100, "a", 1))
    assert not torch.equal(rows, draw(1000, 100, "b", 0))
    assert torch.equal(draw(5, 5, "a"), torch.arange(5))
    assert torch.equal(draw(5, 9, "a"), torch.arange(5))
    assert len(draw(5, 0, "a")) == 0
    x = torch.arange(50)
    assert some(x, 50, "a") is x
    assert torch.equal(some(x, 7, "a"), draw(50, 7, "a"))


# -- the commands


@pytest.mark.parametrize("n", [10_000, 300])
def test_evaluate(folders: dict[str, Path], n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FD of all rows; among them the control of held-out images, .0x here and above 1 for the first n images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shown: dict[str, Tensor] = {}
    monkeypatch.setattr("expost.report.save_panels", lambda path, rows: shown.update(rows))

    def measure(name: str, seed: int) -> list[float]:
        options = ["--density", "prior", "--metrics", "fd", "--extractor", "pixels", "--n", str(n), "--seed", str(seed)]
        assert main(["evaluate", str(folders[name]), *options, *CPU]) == 0
        found = results(folders[name], f"FD[pixels@{Pixels((1, 8, 8)).hash}], n = {min(n, 900)}, seed {seed}")
        return [row["FD"]["value"] for row in found["rows"].values()]

    alike(measure)
    assert classes_in(shown["test images"]) >= 4


def test_density(folders: dict[str, Path]) -> None:
    """Mean log-likelihoods of training and validation codes."""

    def measure(name: str, seed: int) -> list[float]:
        assert main(["density", str(folders[name]), "gaussian", "gaussian@sample", "--seed", str(seed), *CPU]) == 0
        return [value for row in results(folders[name], "densities")["rows"] for value in row[1:3]]

    alike(measure)


def test_likelihood(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The bound of 300 images, and that of the 50 among them that annealing looks at."""

    def measure(name: str, seed: int) -> list[float]:
        options = ["--samples", "4", "--n", "300", "--annealed", "--annealed-n", "50", "--chains", "2", "--temperatures", "3"]
        assert main(["likelihood", str(folders[name]), *options, "--seed", str(seed), *CPU]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("importance bound of the same 50"))
        return [results(folders[name], "likelihood")["nll"]["value"], float(line.rpartition(": ")[2].removesuffix(" nats"))]

    alike(measure)


def test_diagnose_and_its_pictures(runs: dict[str, Run]) -> None:
    def measure(name: str, seed: int) -> list[float]:
        found = diagnose_run(runs[name], "prior", n=100, seed=seed)
        strips = {strip.name: strip for strip in found.strips}
        assert classes_in(strips["memorisation"].rows["held-out data"]) >= 4
        charts = {chart.name: chart for chart in found.charts}
        assert {s.label for s in charts["codes"].series} == {"draws, prior", *(f"class {c}" for c in range(CLASSES))}
        assert "10000 training data" in charts["variances"].title
        figures = [found.diagnosis.measured[key].value for key in ("code_scale", "relative_error")]
        return [*figures, found.diagnosis.panel.measured["reconstruction_gain"].value, charts["variances"].series[0].curve.y[-1]]

    alike(measure, 2)


def test_a_deterministic_model_shows_random_images_too(sets: dict[str, Path], tmp_path: Path) -> None:
    options = ["--set", "network=mlp", "--set", "latent=3", "--set", "training.steps=2"]
    run = tmp_path / "rae"
    assert main(["train", "ghosh2020/rae", "--data", str(sets["sorted"]), "--budget", "smoke", *options, *CPU, "--out", str(run)]) == 0
    strips = {strip.name: strip for strip in diagnose_run(load_run(run, device="cpu"), "gaussian", n=100).strips}
    assert classes_in(strips["reconstructions"].rows["held-out data"]) >= 4


def test_diagnose_classes(runs: dict[str, Run]) -> None:
    """Distances between class centroids, and holes among reconstructions, are those of all classes."""

    class Judge(torch.nn.Module):
        """Logits by the planted rows, in place of a trained classifier."""

        label = "FD[judge]"

    def measure(name: str, seed: int) -> list[float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("expost.runs.classes.differentiable_logits", lambda _, x: 20 * x.mean((1, 3))[:, 1 : CLASSES + 1])
            table, _ = class_report(runs[name], runs[name].density("gaussian"), "gaussian", Judge(), n=300, seed=seed)
        wanted = ("distance between class centroids", "the same among reconstructions of held-out data", "between classes")
        return [row[1] for row in table.rows if any(row[0].startswith(w) for w in wanted)]

    alike(measure)


def test_compare(sets: dict[str, Path]) -> None:
    whole = {name: data.load(file) for name, file in sets.items()}

    def measure(name: str, seed: int) -> list[float]:
        x = whole[name]
        found = compare(x.val.x, x.test.x, x.train.x, extractor="pixels", groups=("fd",), n=300, seed=seed)
        return [row["FD"].value for row in found.values()]

    alike(measure)


def test_wrap(sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Error of reconstructions (2 000 test images), the variance γ (1 000 training images)."""
    (tmp_path / "planted_model.py").write_text(
        "import torch\nfrom torch import nn\n\ndef pair():\n    torch.manual_seed(0)\n    return nn.Linear(64, 3), nn.Linear(3, 64)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)

    def measure(name: str, seed: int) -> list[float]:
        options = ["--input-shape", "64", "--seed", str(seed), "--out", str(tmp_path / f"{name}{seed}")]
        assert main(["wrap", "planted_model:pair", "--data", str(sets[name]), *options, *CPU]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        return [float(line[-1]) for line in lines if line[:2] in (["reconstruction", "MSE"], ["gamma", "(variance)"], ["codes:", "mean"])]

    alike(measure)


def identity() -> expost.Autoencoder:
    parts = [expost.Conditional(linear(torch.eye(2)), head) for head in (expost.heads.Dirac(), expost.heads.Gaussian(0.5))]
    return expost.Autoencoder(*parts, expost.StandardNormal(2))


@pytest.mark.parametrize("objective", [expost.WAE(10.0), expost.ClassDistance(30.0)], ids=["MMD", "class distance"])
def test_validation_while_training(runs: dict[str, Run], objective: expost.Objective) -> None:
    """What a sweep tabulates: statistics of a batch of one class are not those of a batch of all."""
    points = torch.randn(900, 2, generator=generator("points")) + 3 * (torch.arange(900) // 300 - 1)[:, None]

    def measure(name: str, seed: int) -> list[float]:
        if isinstance(objective, expost.WAE):
            model, val = identity(), points if name == "sorted" else points[permutation(900, "shuffled")]
        else:
            model, val = runs[name].model, runs[name].dataset.val.x
        training = expost.Training(steps=1, batch_size=100, lr=1e-12)
        return [expost.fit(model, objective, val[:100], val=val, training=training, seed=seed).last("total", "val")]

    alike(measure)


def test_compress_draws_from_a_split_and_takes_the_first_of_a_file(folders: dict[str, Path], sets: dict[str, Path], tmp_path: Path) -> None:
    x, what = Compress(folders["sorted"], n=60)._images()
    assert what == "random 60 of 2400 images"
    assert classes_in(x) == CLASSES
    assert torch.equal(x, Compress(folders["sorted"], n=60)._images()[0])
    test = data.load(sets["sorted"]).test.x
    np.save(tmp_path / "mine.npy", test.numpy())
    mine, what = Compress(folders["sorted"], tmp_path / "mine.npy", n=60)._images()
    assert what == "the first 60 of 2400 images"
    assert torch.equal(mine, test[:60])
    assert Compress(folders["sorted"])._images()[1] == "2400 images"


#: What may be cut from the beginning, and why it is no choice of data.
CUTS = {
    ("cli/codec.py", "x[:self.n]"): "the user's own file, whose first images are asked for",
    ("cli/commands.py", "images[:100]"): "independent samples",
    ("codec/container.py", "data[:len(MAGIC)]"): "bytes",
    ("density/em.py", "z[:first]"): "in random order",
    ("density/flow.py", "train[:10000]"): "in random order",
    ("diagnose/codes/mismatch.py", "data[:len(data) // 7]"): "in random order",
    ("evaluate/metrics/prd.py", "x[:n]"): "a buffer",
    ("evaluate/features/sets.py", "rows[:filled]"): "a buffer",
    ("objectives/classes.py", "z[:half]"): "pairs of a batch",
    ("objectives/classes.py", "x[:half]"): "pairs of a batch",
    ("report/pictures.py", "images[:columns]"): "images that were chosen to be shown",
}
#: Names of what holds data, and of calls that return some.
HOLDERS = {"x", "y", "z", "train", "val", "test", "held_out", "held", "codes", "labels", "images", "data", "real", "fresh", "rows"}
CALLS = {
    "latents",
    "posteriors",
    "reconstruct",
    "unit",
    "extract",
    "cached_features",
    "reference",
    "validation",
    "digit_images",
    "load",
    "cat",
}


def test_nothing_that_holds_data_is_cut_from_its_beginning() -> None:
    """No ``x[:n]`` and no ``f(x)[:n]`` in the sources: draw() and some() choose. ``[:1]``, a probe of shapes, ``[:0]`` and ``[:-n]`` are no choice."""
    root, found = Path(expost.__file__).parent, set()
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Subscript):
                continue
            first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
            if not isinstance(first, ast.Slice) or first.lower or first.step or not first.upper:
                continue
            whole = node.value.func if (call := isinstance(node.value, ast.Call)) else node.value
            name = getattr(whole, "id", getattr(whole, "attr", ""))
            if (
                name in (CALLS if call else HOLDERS)
                and ast.unparse(first.upper) not in ("0", "1")
                and not isinstance(first.upper, ast.UnaryOp)
            ):
                found.add((path.relative_to(root).as_posix(), ast.unparse(node)))
    assert found <= CUTS.keys(), f"choose with expost.seeds.draw or some: {sorted(found - CUTS.keys())}"
