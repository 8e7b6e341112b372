"""A folder sorted by class beside its shuffled copy: every command's figures, of one model with the same weights.

    python benchmarks/sorted_folder.py DATA                             DATA: any labelled images, e.g. a folder of parquet files
    python benchmarks/sorted_folder.py DATA --steps 100 --n 300         a quick look
    python benchmarks/sorted_folder.py DATA --classes                   also `diagnose --classes`, which trains a classifier

The data are written twice, into ``train``, ``val`` and ``test`` each: as PNG files in class folders, and as arrays in random order. A model is
trained on the arrays; a run on the folder gets its weights. Then every command that looks at a part of the data runs on the folder, on the arrays,
and on the arrays with another seed: by how much the last two differ is what a draw is worth. ``evaluate`` runs with its default n,
too. The recipe is a VAE, so that every command applies.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import expost.report
from expost import data
from expost.cli import main
from expost.results import Table
from expost.runs.run import load_run
from expost.train.folder import RunFolder

RECIPE = "ghosh2020/vae"
COLUMNS = {"sorted folder": ("sorted", 0), "shuffled": ("shuffled", 0), "shuffled, seed 1": ("shuffled", 1)}
CODE = """
from torch import nn
from expost.runs.run import load_model

model = load_model({run!r}, device="cpu")


class Mean(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x).mean


def pair():
    return Mean(model.encoder), Mean(model.decoder)
"""


def expost_(*arguments: object) -> str:
    """What a command prints; its failure ends the script."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main([str(a) for a in arguments])
    if status:
        raise SystemExit(f"expost {' '.join(map(str, arguments))} ended with status {status}")
    return said.getvalue()


def write(source: str, share: float, root: Path) -> dict[str, Path]:
    """Both copies, and each split of both by itself, for `expost compare`."""
    whole = data.load(source, val=share)
    names = {"sorted": root / "folder", "shuffled": root / "shuffled.npz"}
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "val", "test"):
        x, labels = getattr(whole, part).x, getattr(whole, part).labels
        if labels is None or x.dtype != torch.uint8 or x.shape[1] not in (1, 3):
            raise SystemExit(f"{source} is not labelled grey or colour images: give others")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(len(part)))
        arrays |= {f"x_{part}": x[order].numpy(), f"y_{part}": labels[order].numpy()}
        np.save(root / f"{part}.npy", x[order].numpy())
        for i, (image, label) in enumerate(zip(x, labels.tolist(), strict=True)):
            place = names["sorted"] / part / f"class{label:03}" / f"{i:06}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels).save(place, compress_level=1)
    np.savez(names["shuffled"], **arrays)
    return names


def runs(sets: dict[str, Path], steps: int, root: Path) -> dict[str, Path]:
    """A run on each copy, with the same weights."""
    folders = {name: root / f"run-{name}" for name in sets}
    train = ("train", RECIPE, "--device", "cpu", "--budget", "cpu")
    print(
        expost_(
            *train,
            "--data",
            sets["shuffled"],
            "--set",
            "training.epochs=None",
            "--set",
            f"training.steps={steps}",
            "--out",
            folders["shuffled"],
        ).splitlines()[-2],
        flush=True,
    )
    once = ("--set", "training.epochs=None", "--set", "training.steps=1")
    expost_(*train, "--data", sets["sorted"], *once, "--out", folders["sorted"])
    RunFolder.at(folders["sorted"]).save_model(load_run(folders["shuffled"], device="cpu").model)
    return folders


def results(folder: Path, key: str) -> Any:
    """The entry of results.json whose key begins with ``key``; it is taken out, so that the next command's can be told from it."""
    file = folder / "results.json"
    held = json.loads(file.read_text())
    (name,) = [k for k in held if k.startswith(key)]
    found = held.pop(name)
    file.write_text(json.dumps(held))
    return found


def figures(name: str, seed: int, run: Path, sets: dict[str, Path], root: Path, options: argparse.Namespace) -> dict[str, float]:
    found: dict[str, float] = {}
    common, shown = ("--seed", seed, "--device", "cpu"), {}

    expost_("density", run, "gaussian", "gmm:10", *common)
    for spec, train, val, _ in results(run, "densities")["rows"]:
        found |= {f"density {spec}: train": train, f"density {spec}: validation": val}

    expost.report.save_panels = lambda path, rows, *a, **k: shown.update(rows)  # type: ignore[assignment]
    metrics = ("--metrics", "fd", "kid", "neighbours", "--extractor", options.extractor)
    for n in ((), ("--n", options.n)):
        expost_("evaluate", run, "--density", "prior", "gmm:10", *metrics, *n, *common)
        scores = results(run, "FD[")
        for row, measured in scores["rows"].items():
            found[f"evaluate, n = {scores['n']}: FD, {row}"] = measured["FD"]["value"]
        for metric in ("coverage", "recall"):
            found[f"evaluate, n = {scores['n']}: {metric}, held-out images"] = scores["rows"]["control: held-out images"][metric]["value"]
    found["evaluate: MSE of all test images"] = scores["mse"]
    loaded = load_run(run, device="cpu").dataset.test
    found["evaluate: classes among the 16 test images shown"] = classes(shown["test images"], loaded)

    part = ("--n", options.n)  # diagnose and compare draw from all there is by default, or nearly
    expost_("diagnose", run, "--density", "gmm:10", *part, *(["--classes"] if options.classes else []), *common)
    report = json.loads((run / "diagnosis" / "diagnosis.json").read_text())
    measured = {**report["measured"], **report["panel"]["results"]}
    for key in (
        "code_scale",
        "loss_ratio",
        "relative_error",
        "mutual_information",
        "reconstruction_gain",
        "mmd",
        "c2st",
        "dimension_codes",
    ):
        if key in measured:
            found[f"diagnose, n = {options.n}: {key}"] = measured[key]["value"]
    found[f"diagnose, n = {options.n}: findings"] = len(report["findings"])
    if report["classes"] is not None:
        found |= {f"diagnose --classes, n = {options.n}: {row[0]}": row[1] for row in report["classes"]["rows"] if row[1] is not None}

    expost_("likelihood", run, "--n", options.n, "--samples", 16, *common)
    found[f"likelihood, n = {options.n}: nats"] = results(run, "likelihood")["nll"]["value"]

    sides = [sets["sorted"] / side if name == "sorted" else root / f"{side}.npy" for side in ("val", "test")]
    expost_("compare", *sides, "--metrics", "fd", "neighbours", *part, "--out", root / "compared.json", *common)
    compared = json.loads((root / "compared.json").read_text())["generated"]
    for metric in ("FD", "coverage"):
        found[f"compare validation with test, n = {options.n}: {metric}"] = compared[metric]["value"]

    said = expost_("wrap", "shared_model:pair", "--data", sets[name], "--out", root / f"wrapped-{name}-{seed}", *common)
    lines = {line.rsplit(None, 1)[0].strip(): line.rsplit(None, 1)[1] for line in said.splitlines() if line.strip()}
    for line in ("reconstruction MSE", "gamma (variance)", "codes: mean", "codes: standard deviation"):
        found[f"wrap: {line}"] = float(lines[line])
    return found


def classes(images: Tensor, split: data.Split) -> int:
    """How many classes there are among some images of a split."""
    known = {x.numpy().tobytes(): int(y) for x, y in zip(split.x, split.labels, strict=True)}
    return len({known[x.numpy().tobytes()] for x in images.cpu()})


def cli() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="labelled images: a data set by name, a folder or a file")
    parser.add_argument("--steps", type=int, default=250, help="of training")
    parser.add_argument("--n", type=int, default=600, help="a part smaller than the splits")
    parser.add_argument("--val", type=float, default=0.2, help="share of the training images that becomes the validation folder")
    parser.add_argument("--extractor", default="random", help="of evaluate; the classifier takes long on large images")
    parser.add_argument("--classes", action="store_true", help="also diagnose --classes")
    options = parser.parse_args()
    source = os.path.abspath(options.data) if os.path.exists(options.data) else options.data
    with tempfile.TemporaryDirectory(prefix="sorted-folder-") as place:
        root = Path(place)
        sets = write(source, options.val, root)
        folders = runs(sets, options.steps, root)
        (root / "shared_model.py").write_text(CODE.format(run=str(folders["shuffled"])))
        os.chdir(root)
        sys.path.insert(0, str(root))
        columns = {column: figures(name, seed, folders[name], sets, root, options) for column, (name, seed) in COLUMNS.items()}
        table = Table(("figure", *columns), title=f"{Path(source).name} as class folders and shuffled, the same {RECIPE}")
        for figure in columns["shuffled"]:
            table.add(figure, *(values.get(figure) for values in columns.values()))
        print(table)


if __name__ == "__main__":
    cli()
