"""The commands. Nothing heavy is imported here: each ``run`` imports what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from expost.cli.codec import Compress, Decompress
from expost.cli.common import Failure, echo, load
from expost.cli.diagnose import Diagnose
from expost.cli.evaluate import Compare, Evaluate
from expost.cli.likelihood import Likelihood
from expost.cli.options import DataOptions, Images, OpensRun, Positive, check_file, check_report
from expost.cli.reproduce import Reproduce
from expost.cli.sweep import Sweep
from expost.cli.torchrun import Shared
from expost.cli.wrap import Wrap

if TYPE_CHECKING:
    from expost.train.history import History

__all__ = ["COMMANDS"]

Budget = Literal["smoke", "cpu", "paper"]

#: Codes of a split by which `expost density` judges a fit.
CODES = 10_000


@dataclass
class Demo:
    """The whole way on a small real data set: train, fit densities, sample, score, look. Minutes on two cores."""

    out: Path = Path("runs/demo")
    """folder of the report"""
    seed: int = 0
    """seed of weights, data order, samples"""

    def run(self) -> None:
        from expost.cli.demo import demo

        check_report(self.out)
        demo(self.out, self.seed)


@dataclass
class List:
    """Show recipes, data sets, densities, networks, and what can be reproduced."""

    def run(self) -> None:
        from expost.data import names
        from expost.density import SPECS
        from expost.papers.base import targets as reproducible
        from expost.results import Table
        from expost.runs.discovery import stages
        from expost.runs.experiment import recipes as rows
        from expost.runs.networks import networks as pairs

        recipes = Table(("recipe", "what", "takes", "default data", "densities"), title="Recipes: expost train RECIPE")
        for row in rows().values():
            recipes.add(row.name, row.summary, ", ".join(row.takes), row.data, " ".join(row.densities))
        sets = Table(
            ("data", "what", "source"),
            title="Data sets: --data NAME, or any folder, .npz or .npy file; parts by class: NAME:without=9, NAME:only=3,5, NAME:per-class=10",
        )
        for entry in names():
            sets.add(*entry)
        densities = Table(("density",), title="Densities: expost density RUN SPEC ...")
        for spec in (*SPECS, *stages()):
            if (spec,) not in densities.rows:
                densities.add(spec)
        networks = Table(("network", "what", "takes"), title="Networks: --set network=NAME")
        for name, pair in pairs().items():
            networks.add(name, pair.summary, ", ".join(pair.takes))
        targets = Table(("target", "what"), title="Tables and figures: expost reproduce TARGET")
        for target in reproducible().values():
            targets.add(target.name, target.summary)
        echo("\n\n".join(str(t) for t in (recipes, sets, densities, networks, targets)))


@dataclass
class Train(DataOptions, Shared):
    """Train a recipe on a data set."""

    recipe: Positional[str]
    """name of a recipe, e.g. ghosh2020/rae-l2 (see `expost list`)"""
    data: str | None = None
    """data set name, folder, .npz or .npy file; default: the recipe's"""
    budget: Budget = "cpu"
    """smoke: does it run; cpu: minutes on two cores; paper: the paper's networks and length"""
    set: Annotated[UseAppendAction[list[str]], arg(metavar="NAME=VALUE")] = field(default_factory=list)
    """override a setting, e.g. --set objective.beta=0.02 --set latent=8; may be repeated"""
    seed: int = 0
    """seed of weights, data order and noise"""
    out: Path | None = None
    """run folder; default: runs/RECIPE-DATA-BUDGET-SEED"""
    minutes: Positive | None = None
    """stop after so many minutes, to go on later with --resume"""
    device: str | None = None
    """cpu, cuda, mps; default: a GPU if there is one"""
    resume: bool = False
    """go on with the unfinished run in --out; time limits may be others, or none"""
    dry_run: bool = False
    """show what would be done, and stop"""
    track: tuple[str, ...] = ()
    """trackers, e.g. tensorboard wandb mlflow"""

    def shared(self, main: bool) -> None:
        from expost.runs.overrides import parse
        from expost.runs.run import plan, train_run
        from expost.system.devices import choose_device
        from expost.system.hashes import stable_repr
        from expost.system.locks import holder
        from expost.system.trackers import check_trackers
        from expost.train.folder import RunFolder

        settings: dict[str, Any] = dict(parse(a) for a in self.set)
        if self.minutes is not None:
            settings["training.minutes"] = self.minutes
        choose_device(self.device)
        check_trackers(self.track)
        experiment, dataset = plan(self.recipe, data_name=self.data, budget=self.budget, settings=settings, loading=self.loading())
        model, _ = experiment.build(self.seed)
        parameters = sum(p.numel() for p in model.parameters())
        folder = self.out or Path("runs") / f"{self.recipe.replace('/', '-')}-{dataset.name}-{self.budget}-{self.seed}"
        if self.resume and not RunFolder.at(folder).recipe_file.is_file() and holder(folder) is None:
            raise ValueError(f"there is nothing to resume in {folder}: leave --resume out to start the training")
        echo(
            f"{self.recipe} on {dataset.name} {tuple(dataset.shape)}, {len(dataset.train.x)} training examples; "
            f"network {experiment.network}, {experiment.latent} latents, {parameters} parameters"
        )
        for note in dataset.notes:
            echo(f"note: {note}")
        if self.dry_run:
            for name in ("network", "latent", "objective", "training", "densities"):
                echo(f"{name}: {stable_repr(getattr(experiment, name))}")
            echo(f"folder: {folder}")
            return
        run = train_run(
            experiment,
            dataset,
            source=self.data or dataset.name,
            budget=self.budget,
            settings=settings,
            seed=self.seed,
            out=folder,
            resume=self.resume,
            device=self.device,
            trackers=self.track,
        )
        if run.history is None:
            echo(f"{folder} is already finished")
            return
        if run.history.failed:
            raise Failure(run.history.stopped)
        echo(_ended(run.history, RunFolder.at(folder).state().at))
        echo(f"wrote {folder}")


def _ended(history: History, at: str) -> str:
    """How a training went, in a line."""
    minutes = f"{history.seconds / 60:.3g} minutes" if history.seconds >= 60 else f"{history.seconds:.1f} s"
    ended = f"{history.stopped} after {minutes}"
    if history.stopped == "time":
        ended = f"stopped by the time limit after {minutes}, at {at}"
    split = "val" if history.curve("total", "val").y else "train"  # a run stopped by --minutes may not have been validated
    rate = history.images / max(1e-9, history.seconds)
    line = f"{ended} ({rate:.0f} images/s); {split} loss: {history.last('total', split):.4g} nats per example"
    return line + ("; the same command with --resume goes on" if history.stopped == "time" else "")


@dataclass
class Density(OpensRun):
    """Fit densities to the codes of a trained run, and say how well they fit held-out codes."""

    folder: Positional[Path]
    """run folder"""
    specs: Positional[tuple[str, ...]] = ("gmm:10",)
    """what to fit: gaussian, gmm:10, gmm:10:diagonal, kde, flow, stage ...; gmm:10@sample: to samples of the posteriors, for likelihoods"""
    data: str | None = None
    """where the data is now, if it has moved"""
    seed: int = 0
    """seed of the fits, and of the codes that they are judged by"""
    device: str | None = None
    """cpu, cuda, mps"""

    def run(self) -> None:
        import time

        from expost.results import Table
        from expost.seeds import draw, some
        from expost.system.progress import Bar

        run = load(self.folder, self.data, self.device, self)
        run.check(self.specs)
        rows = draw(len(run.dataset.train.x), CODES, "density", "train", self.seed)
        val = some(run.dataset.val.x, CODES, "density", "val", self.seed)
        codes = {"mean": (run.codes[rows], run.model.latents(val, at="mean"))}
        table = Table(("density", "train (nats per code)", "validation", "seconds"), title=f"Densities on the codes of {self.folder}")
        with Bar(len(self.specs), what="densities") as bar:
            for spec in self.specs:
                bar.update(len(table.rows), spec)
                start = time.perf_counter()
                density = run.density(spec, seed=self.seed, refit=True)
                seconds = time.perf_counter() - start
                at: Literal["mean", "sample"] = "sample" if spec.endswith("@sample") else "mean"
                if at not in codes:
                    codes[at] = run.model.latents(run.dataset.train.x[rows], at=at), run.model.latents(val, at=at)
                if spec.startswith("mean-stage"):
                    table.add(spec, None, None, round(seconds, 2))
                    continue
                table.add(spec, *(float(density().log_prob(z).detach().mean()) for z in codes[at]), round(seconds, 2))
        table.notes.append(
            f"mean log-likelihood of the codes of {len(rows)} training and {len(val)} validation data, drawn at random where there are more: posterior "
            "means, or samples where the spec ends in @sample; a second stage's is a lower bound, a mean-stage has none"
        )
        echo(table)
        run.keep("densities", table.to_json())


@dataclass
class Sample(OpensRun):
    """Sample images from a trained run."""

    folder: Positional[Path]
    """run folder"""
    density: str | None = None
    """density of the codes; default: the recipe's last one"""
    n: Images = 64
    """how many"""
    out: Path | None = None
    """samples.npz: array `images`, float32 in [0, 1], (n, C, H, W); of a run on points (n, d), not bounded"""
    grid: Path | None = None
    """picture of the first 100 samples, .png"""
    data: str | None = None
    """where the data is now, if it has moved"""
    seed: int = 0
    """seed of the samples"""
    device: str | None = None
    """cpu, cuda, mps"""

    def run(self) -> None:
        import numpy as np

        from expost.report import PICTURES, colours, grid, save_picture
        from expost.system.files import atomic

        if self.out is None and self.grid is None:
            raise ValueError("nothing to write: give --out samples.npz, --grid samples.png, or both")
        check_file(self.out, ".npz")
        check_file(self.grid, *PICTURES)
        run = load(self.folder, self.data, self.device, self)
        points = len(run.experiment.task.shape) != 3
        if points and self.grid is not None:
            raise ValueError(f"{self.folder} was trained on points, of which there is no picture: give --out samples.npz without --grid")
        spec = self.density or run.experiment.densities[-1]
        images = run.model.with_prior(run.density(spec)).generate(self.n, seed=self.seed).cpu()
        images = images if points else images.clamp(0, 1)
        if self.out is not None:
            with atomic(self.out) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, images=images.float().numpy())
            echo(f"wrote {len(images)} samples from {spec} to {self.out}")
        if self.grid is not None:
            save_picture(self.grid, grid(images[:100], scale=max(1, 64 // images.shape[-1])))
            echo(f"wrote a picture of {min(100, len(images))} samples to {self.grid}")
            if note := colours(images.shape[1]):
                echo(f"note: {note}")


@dataclass
class Claims(DataOptions):
    """Check the papers' claims: measured figure and verdict for each, training what is needed."""

    paper: Positional[str | None] = None
    """key of a paper (ghosh2020; `expost list` has them all), or one claim (C1); default: all"""
    data: str = "mnist"
    """data set name or folder"""
    budget: Budget = "cpu"
    """of the runs that the claims need"""
    seed: int = 0
    """of the runs"""
    runs: Path = Path("runs/lab")
    """folder of the runs; what is there is not trained again"""
    device: str | None = None
    """cpu, cuda, mps"""
    list: bool = False
    """only list the claims and how they are measured"""

    def run(self) -> None:
        from expost.papers.check import check_claims

        broken = check_claims(
            self.paper, self.data, self.budget, self.seed, self.runs, self.device, only_list=self.list, loading=self.loading()
        )
        if broken:
            raise Failure(f"claims that must or should hold and do not: {', '.join(broken)}")


@dataclass
class Cite:
    """Print BibTeX of what a run used."""

    folder: Positional[Path]
    """run folder"""

    def run(self) -> None:
        from expost.papers.base import bibtex
        from expost.runs.experiment import find
        from expost.train.folder import RunFolder

        folder = RunFolder.existing(self.folder)
        recipe = folder.read_recipe()["recipe"]
        wrapped = {"wrapped/pythae": ["chadebec2022"], "wrapped/diffusers": ["rombach2022"], "wrapped/modules": []}
        keys = wrapped[recipe] if recipe in wrapped else [find(recipe).paper]
        used = {p.stem.partition("-")[0] for p in (folder.path / "densities").glob("*.safetensors")}
        extra = {"stage": "dai2019", "flow": "durkan2019", "gmm": "pedregosa2011"}
        keys += [extra[name] for name in sorted(used) if name in extra]
        if any("FD[" in key for key in folder.results()):
            keys.append("heusel2017")
        if (folder.path / "diagnosis").is_dir():
            keys += ["bozkurt2018", "burda2016", "lucas2019", "lopezpaz2017"]
        if not keys:
            raise ValueError(
                f"{self.folder} is a model of your own, sampled and measured by nothing that has a paper: cite where it comes from"
            )
        echo("\n\n".join(bibtex(key) for key in dict.fromkeys(keys)))


COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "list": List,
    "train": Train,
    "wrap": Wrap,
    "density": Density,
    "sample": Sample,
    "evaluate": Evaluate,
    "compare": Compare,
    "diagnose": Diagnose,
    "likelihood": Likelihood,
    "compress": Compress,
    "decompress": Decompress,
    "reproduce": Reproduce,
    "sweep": Sweep,
    "claims": Claims,
    "cite": Cite,
}
