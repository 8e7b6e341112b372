"""Data as people have them: any type and layout of numbers, points, images of any number of channels, in Python and on the command line."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import expost
from expost import heads
from expost.autoencoder import Autoencoder
from expost.cli import main
from expost.data import Dataset, Split, load
from expost.density import GMM, KDE, Flow, FullGaussian
from expost.evaluate import importance_bound
from expost.objectives import ELBO, RAE
from expost.runs import find, plan, recipes
from expost.tensors import as_data
from expost.train.settings import Training
from toys import convolutional, model, pictures, vectors

RECIPES = recipes()

SMOKE = ["--budget", "smoke", "--device", "cpu", "--set", "training.steps=3"]
FEW = Training(steps=3, batch_size=8)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def protected(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


#: What may be done to a float32 array without changing what it holds (beyond the precision named).
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "longdouble": lambda a: a.astype(np.longdouble),
    "big-endian": lambda a: a.astype(">f4"),
    "big-endian float64": lambda a: a.astype(">f8"),
    "Fortran order": np.asfortranarray,
    "every second row": lambda a: np.repeat(a, 2, 0)[::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "read-only": protected,
}

# ---------------------------------------------------------------- types and layouts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("recipe", "shape"), [("ghosh2020/rae", (1, 8, 8)), ("yu2020/vae", (7,))])
def test_arrays_of_any_type_and_layout_are_trained_as_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, recipe: str, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).random((90, *shape)).astype(np.float32)
    changed = LAYOUTS[layout](array)
    if layout == "longdouble":
        changed = changed.astype(np.float64)  # numpy's format keeps it, but not every machine has it
    np.save(tmp_path / "x.npy", changed)
    assert main(["train", recipe, "--data", str(tmp_path / "x.npy"), *SMOKE, "--set", "latent=2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert ("became float32" in said) == ("64" in layout or "16" in layout or layout == "longdouble")
    found, true = load(tmp_path / "x.npy").train.x, as_data(array)
    assert found.dtype == torch.float32
    rows = {tuple(row.flatten().tolist()) for row in (true.half().float() if layout == "float16" else true)}
    assert {tuple(row.flatten().tolist()) for row in found} < rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_door_of_python_takes_arrays_of_any_type_and_layout(layout: str) -> None:
    array = vectors().numpy()
    given, same = LAYOUTS[layout](array), as_data(LAYOUTS[layout](array)).float()
    m, n = model(seed=1), model(seed=1)
    with torch.random.fork_rng():
        expost.fit(m, ELBO(), given, training=FEW, val=given, device="cpu")
    expost.fit(n, ELBO(), same, training=FEW, val=same, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), n.state_dict().values(), strict=True))
    z = m.latents(given, at="mean")
    assert z.dtype == torch.float32
    assert torch.equal(z, m.latents(same, at="mean"))
    assert torch.equal(m.reconstruct(given), m.reconstruct(same))
    codes = LAYOUTS[layout](z.numpy())
    for density in (FullGaussian(2), GMM(2, 2), KDE(2, 50), Flow(2, steps=2)):
        assert torch.isfinite(density.fit(codes)().log_prob(z)).all()


def taking() -> dict[str, tuple[Callable[..., Any], list[str]]]:
    """Every public function of a model and stored data, with the names of the data."""
    found = {}
    for module in (expost.evaluate, expost.diagnose, expost.codec):
        for name in module.__all__:
            hints = inspect.signature(function).parameters if inspect.isfunction(function := getattr(module, name)) else {}
            names = [p for p, parameter in hints.items() if "Tensor" in str(parameter.annotation) and p != "z"]
            if "model" in hints and names:
                found[name] = function, names
    return found


@pytest.mark.parametrize("name", taking())
def test_every_public_function_of_a_model_and_data_takes_them_in_any_form(name: str) -> None:
    function, names = taking()[name]
    split = Split(vectors())
    whole = Dataset.of("v", split, split, split)
    for at, given in enumerate(names):
        needed = [p for p, parameter in inspect.signature(function).parameters.items() if parameter.default is parameter.empty]
        words = dict.fromkeys(needed) | {p: vectors() for p in names[:at]} | {given: whole}
        with pytest.raises(TypeError, match=rf'the data "{given}" are a whole data set'):
            function(**words)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_measures_take_arrays_of_any_type_and_layout(layout: str) -> None:
    given, m = LAYOUTS[layout](vectors().numpy()), model()
    same = as_data(given).float()
    assert torch.equal(importance_bound(m, given, samples=4).log_prob, importance_bound(m, Split(same), samples=4).log_prob)
    assert expost.diagnose.units(m, given).loss == pytest.approx(expost.diagnose.units(m, Split(same)).loss, rel=1e-6)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_tensors_and_models_of_any_float_type_meet(kind: torch.dtype) -> None:
    for m, x in (
        (model(heads.Dirac()).to(kind), vectors()),
        (model(heads.Dirac()), vectors().to(kind)),
        (convolutional().to(kind), pictures()),
    ):
        expost.fit(m, RAE() if x.dim() == 2 else ELBO(), x, training=FEW, device="cpu")
        assert torch.isfinite(m.reconstruct(x)).all()
        assert m.latents(x, at="mean").dtype == (
            torch.float64 if kind == torch.float64 and next(m.parameters()).dtype == kind else torch.float32
        )
    grey = convolutional().double()
    assert torch.equal(grey.stored(pictures()), pictures().double() / 255)
    assert torch.isfinite(GMM(2, 2).fit(torch.randn(200, 2).to(kind))().log_prob(torch.zeros(3, 2))).all()


def test_splits_and_lists_are_taken_and_the_rest_is_one_sentence() -> None:
    x, m = vectors(), model()
    split = Split(x)
    expected = m.latents(x, at="mean")
    assert torch.equal(m.latents(split, at="mean"), expected)
    assert torch.equal(m.latents(list(x), at="mean"), expected)
    assert torch.equal(m.latents(x.tolist(), at="mean"), expected)
    expost.fit(model(), ELBO(), split, val=split, training=FEW, device="cpu")
    FullGaussian(2).fit(expected.tolist())
    whole = Dataset.of("v", split, split, split)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8)
    for given, remedy in (
        (whole, "dataset.train"), (loader, "torch.cat"), (iter(x), "torch.cat"), ([[1.0], [2.0, 3.0]], "list"), (3.0, "tensor"), (None, "tensor"),
        (x.to_sparse(), "to_dense"), (np.array(["a"]), "numbers"), (np.array([1j]), "numbers"), (np.array([None]), "numbers"),
    ):  # fmt: skip
        doors: list[Callable[[Any], object]] = [
            lambda g: expost.fit(m, ELBO(), g, training=FEW), lambda g: m.latents(g, at="mean"), m.reconstruct, FullGaussian(2).fit,
            lambda g: expost.adapt.wrap(torch.nn.Linear(6, 2), torch.nn.Linear(2, 6), g),
        ]  # fmt: skip
        for door in doors:
            with pytest.raises(TypeError, match=remedy):
                door(given)


@pytest.mark.parametrize(
    ("build", "x", "message"),
    [
        (convolutional, pictures().float(), "whole numbers from 0.0 to 255.0: pass x.to.torch.uint8."),
        (convolutional, pictures().float() * 0.5, r"means lie in \[0, 1\].*reach from 0.0 to 127.5"),
        (model, vectors(d=7), r"the encoder does not take data of shape \(7,\)"),
        (convolutional, pictures().repeat(1, 3, 1, 1), r"the encoder does not take data of shape \(3, 8, 8\)"),
        (
            lambda: model(prior=expost.StandardNormal(5)),
            vectors(),
            r"prior is for codes of 5 dimensions, and those of the encoder have shape \(2,\)",
        ),
    ],
)
def test_what_a_model_cannot_take_is_said_before_training(build: Callable[[], Autoencoder], x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expost.fit(build(), ELBO(), x, training=FEW, device="cpu")


# ---------------------------------------------------------------- points


def points(path: Path, low: float = -3.0) -> Path:
    np.save(path, np.random.default_rng(0).uniform(low, 1, (300, 7)).astype(np.float32))
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_points_or_names_those_that_do(tmp_path: Path, name: str) -> None:
    row, anywhere, inside = RECIPES[name], points(tmp_path / "v.npy"), points(tmp_path / "u.npy", 0.0)
    for path, kind in ((anywhere, "points"), (inside, "points in [0, 1]")):
        takes = [r.name for r in RECIPES.values() if {"points", kind} & set(r.takes)]
        if name not in takes:
            with pytest.raises(ValueError, match=rf"{name} takes .* holds points of shape \(7,\): train one of .*kingma2014/vae"):
                plan(name, data_name=str(path), budget="smoke")
            continue
        for budget in ("smoke", "paper"):
            experiment, dataset = plan(name, data_name=str(path), budget=budget)  # type: ignore[arg-type]
            assert experiment.pair.takes != ("images",)
        experiment, dataset = plan(name, data_name=str(path), budget="smoke")
        assert experiment.latent <= 7
        m, objective = experiment.build(0)
        x = dataset.train.x[:8]
        loss = objective(m, x).total.mean()
        loss.backward()
        assert torch.isfinite(loss)
        shown = m.reconstruct(10 * x)
        assert shown.shape == x.shape
    if "images" not in row.takes:
        with pytest.raises(ValueError, match=r"digits holds images of shape \(1, 8, 8\): train one of .*ghosh2020/rae"):
            plan(name, data_name="digits", budget="smoke")


@pytest.mark.parametrize(("scale", "said"), [(1000.0, True), (1e-4, True), (1.0, False)])
def test_points_far_from_the_size_that_networks_are_made_for_are_noted(tmp_path: Path, scale: float, said: bool) -> None:
    np.save(tmp_path / "k.npy", scale * np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32))
    assert any("networks are made for about 1" in note for note in load(tmp_path / "k.npy").notes) == said


def test_means_of_points_are_not_bounded_and_those_of_images_are() -> None:
    for shape, link in (((7,), heads.identity), ((1, 8, 8), torch.sigmoid)):
        for name in ("kingma2014/vae", "ghosh2020/rae", "dai2019/vae-learned"):
            row = find(name)
            experiment = row.prepare(expost.runs.Task("x", shape, 100), "cpu")
            assert experiment.build(0)[0].decoder.head.link is link


def test_networks_say_what_they_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "ghosh2020/rae", "--data", str(points(tmp_path / "v.npy")), *SMOKE, "--dry-run", "--set"]
    assert main([*command, "network=small"]) == 2
    assert "the network small takes images, and v.npy holds points of shape (7,): choose --set network=mlp" in capsys.readouterr().err
    for network in ("mlp", "mlp-20-10+sn", "mlp-linear+sn-decoder", "yu-small", "manoj-fc"):
        assert main([*command, f"network={network}"]) == 0
    assert main(["train", "ghosh2020/rae", "--data", "digits", *SMOKE, "--dry-run", "--set", "network=yu"]) == 2
    assert "--set network=small" in capsys.readouterr().err


def test_points_go_the_whole_way_and_printed_remedies_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "ghosh2020/rae-sn", "--data", str(points(tmp_path / "v.npy")), *SMOKE, "--out", out]) == 0
    assert main(["density", out, "gaussian"]) == 0
    assert main(["sample", out, "--density", "gaussian", "--n", "50", "--out", str(tmp_path / "s.npz")]) == 0
    drawn = np.load(tmp_path / "s.npz")["images"]
    assert drawn.shape == (50, 7)
    assert drawn.min() < 0  # points are not clipped to [0, 1]
    assert main(["sample", out, "--n", "5", "--grid", str(tmp_path / "s.png")]) == 2
    assert main(["evaluate", out]) == 2
    capsys.readouterr()
    assert main(["diagnose", out]) == 0
    lines = [line.split("$ ")[1] for line in capsys.readouterr().out.splitlines() if "$ expost train" in line]
    assert lines
    for line in lines:
        assert main([*shlex.split(line)[1:], "--dry-run"]) == 0


# ---------------------------------------------------------------- numbers of what is wrong


def test_nan_is_reported_by_its_number_in_the_whole_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).random((800, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "r.npz", images=x)
    x[633, 0, 0] = np.nan
    np.savez(tmp_path / "n.npz", images=x)
    compare = ["compare", str(tmp_path / "n.npz"), str(tmp_path / "r.npz"), "--extractor", "pixels", "--metrics", "fd", "--no-controls"]
    assert main(compare) == 2
    said = capsys.readouterr().err
    assert "n.npz: images hold NaN" in said
    assert "row 633" in said
    assert "row 83" not in said
    assert main(["train", "ghosh2020/rae", "--data", str(tmp_path / "n.npz"), *SMOKE]) == 2
    assert "row 633" in capsys.readouterr().err
    with pytest.raises(ValueError, match="row 633"):
        expost.evaluate.set_features(expost.evaluate.features.base.Pixels((1, 8, 8)), torch.from_numpy(x)[:, None])


# ---------------------------------------------------------------- files


def test_compare_reads_what_training_reads_and_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    grey = np.random.default_rng(0).integers(0, 256, (60, 9, 9, 5), dtype=np.uint8)
    np.save(tmp_path / "last.npy", grey.astype(np.float32))
    np.save(tmp_path / "first.npy", grey.transpose(0, 3, 1, 2))
    command = [
        "compare",
        str(tmp_path / "last.npy"),
        str(tmp_path / "first.npy"),
        "--extractor",
        "pixels",
        "--metrics",
        "fd",
        "--no-controls",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "whole floats 0 ... 255 became uint8" in said
    assert "channels were last (60, 9, 9, 5)" in said
    assert torch.equal(
        expost.evaluate.ArraySet(tmp_path / "last.npy").read(0, 60), expost.evaluate.ArraySet(tmp_path / "first.npy").read(0, 60)
    )
    assert load(tmp_path / "last.npy").hash == load(tmp_path / "first.npy").hash
    (tmp_path / "rgba").mkdir()
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA").save(tmp_path / "rgba" / f"{i}.png")
    assert main(["compare", *[str(tmp_path / "rgba")] * 2, *command[3:]]) == 0
    assert "alpha dropped" in capsys.readouterr().out
    with (tmp_path / "negative.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (-5, 8, 8)})
        file.write(bytes(400))
    for bad in (
        ["compare", str(tmp_path / "negative.npy"), *command[2:]],
        ["train", "ghosh2020/rae", "--data", str(tmp_path / "negative.npy")],
    ):
        assert main(bad) == 2
        assert "negative.npy" in capsys.readouterr().err
    x = np.full((20, 1, 4, 4), 0.5, np.float32)
    x[3, 0, 0, 0] = 1.0000001
    with pytest.raises(ValueError, match=r"reach from 0\.5 to 1\.0000001"):
        expost.evaluate.features.base.images(torch.from_numpy(x))


def test_links_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(24):
        place = tmp_path / "store" / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(place)
    real = load(tmp_path / "store")
    linked = tmp_path / "linked"
    (linked / "a").mkdir(parents=True)
    (linked / "b").symlink_to(tmp_path / "store" / "b")
    for file in sorted((tmp_path / "store" / "a").iterdir()):
        (linked / "a" / file.name).symlink_to(file)
    (linked / "a" / "up").symlink_to(linked)
    (linked / "b" / "loop").symlink_to(tmp_path / "store" / "b")
    assert load(linked).hash == real.hash
    assert len(expost.evaluate.FolderSet(linked)) == 24
    (linked / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"gone.png is a link that leads nowhere"):
        load(linked)


@pytest.mark.parametrize("channels", [2, 4, 5, 16])
def test_images_of_any_number_of_channels_go_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: int) -> None:
    np.save(tmp_path / "c.npy", np.random.default_rng(0).integers(0, 256, (300, channels, 8, 8), dtype=np.uint8))
    out = str(tmp_path / "run")
    assert main(["train", "ghosh2020/rae", "--data", str(tmp_path / "c.npy"), *SMOKE, "--out", out]) == 0
    assert main(["sample", out, "--density", "gaussian", "--n", "3", "--grid", str(tmp_path / "s.png")]) == 0
    assert "pictures show" in capsys.readouterr().out
    assert main(["evaluate", out, "--extractor", "pixels", "--density", "gaussian", "--metrics", "fd"]) == 0
    said = capsys.readouterr().out
    assert "samples.png" in said
    assert "pictures show" in said
    if channels == 2:
        assert main(["diagnose", out, "--n", "30"]) == 0
        assert (tmp_path / "run" / "diagnosis" / "samples.png").is_file()


# ---------------------------------------------------------------- resizing, padding, and what is said of them where


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((2, 9, 13), np.uint8), ((5, 8, 8), np.float16), ((16, 7, 9), ">f8"), ((1, 9, 13), np.float32), ((3, 9, 9), np.int16)],
)
def test_arrays_of_any_channels_and_type_are_cropped_and_resized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...], kind: Any
) -> None:
    from PIL import Image

    array = np.random.default_rng(0).integers(0, 256, (40, *shape)).astype(np.float64)
    array = (array / 256 if np.dtype(kind).kind == "f" else array).astype(kind)
    np.save(tmp_path / "x.npy", array)
    found = load(tmp_path / "x.npy", crop=6, size=4, pad_to=8)
    assert found.shape == (shape[0], 8, 8)
    assert found.train.x.dtype == (torch.float32 if np.dtype(kind).kind == "f" else torch.uint8)
    read = expost.evaluate.comparison.image_set(str(tmp_path / "x.npy"), crop=6, size=4, pad_to=8)
    assert (len(read), read.shape) == (40, found.shape)
    top, left = (shape[1] - 6) // 2, (shape[2] - 6) // 2
    cut = array[3, -1, top : top + 6, left : left + 6].astype(np.float32 if np.dtype(kind).kind == "f" else np.uint8)
    expected = np.asarray(Image.fromarray(cut).resize((4, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(read.read(3, 4)[0, -1, 2:6, 2:6].numpy(), expected)
    assert (
        main(["compare", *[str(tmp_path / "x.npy")] * 2, "--extractor", "pixels", "--metrics", "fd", "--no-controls", "--crop", "99"]) == 2
    )
    assert "smaller than --crop 99" in capsys.readouterr().err
    np.save(tmp_path / "v.npy", np.random.default_rng(0).random((300, 7)))
    for option in ("size", "crop", "pad_to"):
        with pytest.raises(ValueError, match=f"points, not images: leave out .*{option}"):
            load(tmp_path / "v.npy", **{option: 4})


def test_the_remedies_of_compare_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.integers(0, 256, (30, 2, 9, 13), dtype=np.uint8))
    np.save(tmp_path / "b.npy", rng.integers(0, 256, (30, 2, 8, 8), dtype=np.uint8))
    command = ["compare", str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--extractor", "pixels", "--metrics", "fd", "--no-controls"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "--size 8" in said
    for option in (["--size", "8"], ["--crop", "8"], ["--pad-to", "16"]):
        assert main([*command, *option]) == 0
    with pytest.raises(SystemExit):
        main([*command, "--val", "4"])  # nothing is held out here


def test_remedies_in_python_become_options_of_the_command() -> None:
    """Every sentence of the library, as ``likelihood`` and ``compress`` would say it."""
    import ast

    from expost.cli.codec import Compress
    from expost.cli.likelihood import Likelihood
    from expost.cli.options import as_options

    found = 0
    for file in Path(expost.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Raise) and node.exc):
                continue
            for text in (n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant) and isinstance(n.value, str)):
                if any(call in text for call in ("with_prior(", "Constant(scale) ", "heads.Bernoulli()")):
                    found += 1
                    for command in (Likelihood, Compress):
                        said = as_options(text, command)
                        assert "(" not in said.rpartition(": ")[2].replace("(...)", ""), said
                        assert "--density gmm:10" in said or " yu2020/bits-back" in said or "kingma2014/vae" in said
    assert found > 6


def test_what_compress_cannot_do_with_a_run_is_said_before_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main(["train", "ghosh2020/rae", "--data", "digits", *SMOKE, "--set", "network=mlp", "--set", "latent=2", "--out", out]) == 0
    capsys.readouterr()
    assert main(["compress", out, "-o", str(tmp_path / "x.xpz"), "--n", "4"]) == 2
    assert "train a recipe whose encoder draws codes" in capsys.readouterr().err
    assert main(["likelihood", out, "--density", "gaussian", "--n", "4"]) == 2
    assert "train a recipe whose encoder draws codes, e.g. kingma2014/vae" in capsys.readouterr().err


@pytest.mark.parametrize("images", [False, True])
def test_networks_that_work_in_place_change_nobodys_data(images: bool) -> None:
    from expost.conditional import Conditional

    x = torch.rand(40, 1, 8, 8) - 0.5 if images else vectors() - 0.5
    m = convolutional() if images else model()
    for part in (m.encoder, m.decoder):
        part.net = torch.nn.Sequential(torch.nn.ReLU(inplace=True), part.net)
    assert isinstance(m.encoder, Conditional)
    before = x.clone()
    codes = torch.randn(5, *m.encode(x[:1]).event_shape)
    kept = codes.clone()
    m.decode(codes)
    m.latents(x, at="mean")
    m.reconstruct(x)
    if not images:
        expost.fit(m, ELBO(), x, training=FEW, val=x, device="cpu")
    assert torch.equal(x, before)
    assert torch.equal(codes, kept)


def test_data_without_values_are_one_sentence() -> None:
    with pytest.raises(TypeError, match="device meta, where tensors have no values"):
        expost.fit(model(), ELBO(), vectors().to("meta"), training=FEW, device="cpu")


# ---------------------------------------------------------------- folders as they are found


def test_names_of_files_and_classes_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from expost.results import Table

    folder = tmp_path / "es\x1b[31mc[/red]"
    for i in range(24):
        place = folder / ["a\x1b[2J", "b\x07"][i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(place)
    compare = ["compare", str(folder), str(folder), "--extractor", "pixels", "--metrics", "fd", "--no-controls"]
    assert main(compare) == 0
    assert main(["train", "ghosh2020/rae", "--data", str(folder), *SMOKE, "--dry-run"]) == 0
    (folder / "a\x1b[2J" / "z\x1b]0;x\x07.png").write_bytes(b"")
    assert main(compare) == 2
    assert main(["train", "ghosh2020/rae", "--data", str(folder), *SMOKE, "--dry-run"]) == 2
    said = "".join(capsys.readouterr())
    assert not {"\x1b", "\x07"} & set(said)
    assert r"z\x1b]0;x\x07.png cannot be decoded" in said
    table = Table(("\x1b[2Jname", "n"), title="of \x1b]0;x\x07", notes=["see\x9b1A", "two\nlines"])
    table.add("\x1b[31mclass\n", 3)
    assert all(c.isprintable() or c == "\n" for c in str(table))
    assert len(str(table).split("\n")) == 7
    assert table.cell("\x1b[31mclass\n", "n") == 3


def test_only_links_are_followed_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand folders take no walk up to the root each."""
    import expost.data.folder as folder

    for i in range(20):
        (tmp_path / "d" / str(i)).mkdir(parents=True)
    (tmp_path / "d" / "0" / "loop").symlink_to(tmp_path / "d")
    asked: list[Any] = []
    true = folder.os.path.realpath
    monkeypatch.setattr(folder.os.path, "realpath", lambda path: asked.append(path) or true(path))
    assert folder.files_below(tmp_path / "d") == []
    assert len(asked) == 2


def test_parts_by_class_and_binary_images_need_no_copy_in_floats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expost.data import mapped
    from expost.objectives import noise

    whole, x = load("digits:without=9"), load("digits").train.x
    drawn = noise.binarised(x, 3)
    sizes: list[int] = []
    monkeypatch.setattr(noise, "ROWS", 100)
    monkeypatch.setattr(noise, "unit", lambda part: sizes.append(len(part)) or part / 255)
    assert torch.equal(noise.binarised(x, 3), drawn)
    assert max(sizes) == 100
    monkeypatch.setattr(mapped, "LIMIT", 1000)
    made: list[Any] = []
    true = mapped.scratch
    monkeypatch.setattr(mapped, "scratch", lambda *a: made.append(a) or true(*a))
    assert load("digits:without=9").hash == whole.hash
    assert made
