"""Runs: a recipe trained on a data set in a folder, and everything one does with it afterwards.

``train_run`` -> ``fit_density`` -> ``score_run`` is the main job; :func:`load_run` brings a finished run back from its folder.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from torch import Tensor

from expost import data
from expost.autoencoder import Autoencoder, check_weights
from expost.density.base import Codes, Density
from expost.density.gaussian import StandardNormal
from expost.evaluate.features.base import Extractor
from expost.evaluate.features.choose import extractor_of
from expost.evaluate.protocol import DEFAULT, Scores, score
from expost.evaluate.treatment import Treatment
from expost.runs.densities import fitted_at, fresh_density
from expost.runs.experiment import WRAPPED, BudgetName, Experiment, Recipe, Task, find
from expost.runs.origin import describe, load_again
from expost.runs.wrapped import code_options, rebuild_wrapped
from expost.system.devices import choose_device
from expost.system.files import keep as keep_for_later
from expost.system.files import load_tensors, save_tensors
from expost.system.hashes import experiment_name, timeless
from expost.system.locks import NAME, training, writing
from expost.system.processes import Processes, apart, join
from expost.system.state import FailedRun, State, check_folder, leaving_nothing, made
from expost.system.storage import code_hash
from expost.train.fit import Watch, fit
from expost.train.folder import Description, RunFolder, load_weights, versions
from expost.train.history import History
from expost.train.second_stage import SecondStage

__all__ = ["Run", "load_model", "load_run", "plan", "train_run"]

#: What ``recipe.json`` calls the code of the training, among versions.
CODE = "training code"
#: How the names of settings end that a resumed run may have otherwise.
TIMES = (".minutes", ".checkpoint_every")
#: Files that a folder may hold before its run begins: of a start that was killed, and of a sweep.
OWN = ("recipe.json", "state.json", "sweep.log", NAME)


@dataclass(frozen=True)
class Run:
    """A recipe on a data set: the experiment, the data and the model, with its folder if it has one.

    Attributes:
        source: the data, or what loads them: they are loaded when they are first needed, so a run whose data are away can do all that needs none.
        current: densities that other code has fitted are fitted again; else what lies in the folder is used, whatever fitted it.
    """

    experiment: Experiment
    source: data.Dataset | Callable[[], data.Dataset] = field(repr=False)
    model: Autoencoder
    seed: int
    folder: RunFolder | None = None
    history: History | None = None
    current: bool = False

    @cached_property
    def dataset(self) -> data.Dataset:
        return self.source() if callable(self.source) else self.source

    @property
    def recipe(self) -> Recipe:
        return find(self.experiment.recipe)

    @cached_property
    def codes(self) -> Tensor:
        """Posterior means of the training images, (n, d)."""
        return self.model.latents(self.dataset.train.x, at="mean")

    def density(self, spec: str, *, seed: int | None = None, refit: bool = False) -> Density:
        """The density of a spec on the training codes: ``prior`` is the training prior, ``normal`` N(0, I); others are fitted, or loaded from
        the folder.

        ``gmm:10`` is fitted to posterior means, for sampling; ``gmm:10@sample`` to one sample of every posterior, q(z), for likelihoods.
        """
        fresh = self.unfitted(spec)
        if spec == "prior":
            return fresh
        if isinstance(fresh, StandardNormal):  # N(0, I), whatever the codes are
            return fresh.to(self.model.device).eval()
        file, code = self.folder.density_file(spec) if self.folder else None, code_hash(type(fresh).__module__)
        if file is not None and file.is_file() and not refit:
            again = _again(self.folder, spec) if self.folder else ""
            if _load_fitted(fresh, file, spec, self.weights, again, code if self.current else None):
                return fresh.to(self.model.device).eval()
        fresh.to(self.model.device)
        source: Codes
        if isinstance(fresh, SecondStage):
            source = self.model.posteriors(self.dataset.train.x)
        else:
            source = self.model.latents(self.dataset.train.x, at="sample") if fitted_at(spec) == "sample" else self.codes
        with apart():  # every process fits what one alone would
            fresh.fit(source, seed=self.seed if seed is None else seed)
        if self.folder is not None and file is not None and Processes().main:
            with keep_for_later(self.folder.path), writing(self.folder.path):
                save_tensors(file, dict(fresh.state_dict()), {"kind": "density", "spec": spec, "model": self.weights, "code": code})
        return fresh.eval()

    def unfitted(self, spec: str) -> Density:
        """What :meth:`density` fits; ``ValueError`` for a spec that cannot be read."""
        if spec == "prior":
            if self.model.prior is None:
                raise ValueError(f"{self.experiment.recipe} trains without a prior: choose gaussian, gmm:10, kde, flow or stage")
            return self.model.prior
        return fresh_density(spec, self.experiment, self.seed)

    def check(self, specs: Iterable[str]) -> None:
        """``ValueError`` for a spec that cannot be read: before others are fitted, or anything else that takes long."""
        for spec in specs:
            self.unfitted(spec)

    def keep(self, key: str, value: dict[str, Any]) -> None:
        """Keep what was measured in the folder, if there is one, see :meth:`expost.train.folder.RunFolder.keep`; by the main process."""
        if self.folder is not None and Processes().main:
            self.folder.keep(key, value)

    @property
    def weights(self) -> str:
        """A name of the weights: what was fitted to, or measured with, other weights has another one."""
        return _weights_name(self.model)

    def score(
        self,
        extractor: Extractor | None = None,
        *,
        densities: tuple[str, ...] | None = None,
        n: int = 10_000,
        seed: int = 0,
        notes: tuple[str, ...] = (),
        groups: tuple[str, ...] = DEFAULT,
        interpolations: tuple[str, ...] = ("spherical",),
        treatment: Treatment | None = None,
        keep: bool = True,
    ) -> Scores:
        """Scores of reconstructions, samples per density, interpolations, as :func:`expost.evaluate.protocol.score` defines them.

        Kept in the folder's results.json under the extractor's label, n and seed, joined with earlier ones of the same kind, unless ``keep`` is
        False; scores of treated images are not kept.
        """
        if len(self.experiment.task.shape) != 3:
            raise ValueError("Fréchet distances are for images: this run was trained on points; see what it learned with `expost diagnose`")
        if extractor is None:
            extractor, notes = extractor_of("classifier", self.dataset)
        specs = self.experiment.densities if densities is None else densities
        self.check(specs)
        fitted = {spec: self.density(spec) for spec in specs}
        splits = self.dataset
        scores = score(
            self.model, splits.val.x, splits.test.x, extractor, fitted, train=splits.train.x, n=n, seed=seed, notes=notes,
            groups=groups, interpolations=interpolations, treatment=treatment, name=f"{splits.name} test",
        )  # fmt: skip
        if keep and self.folder is not None and (treatment is None or not treatment.active):
            key = f"{scores.label}, n = {scores.n}, seed {scores.seed}"
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # earlier ones that are damaged are not joined
                scores = scores.joined(self.folder.results().get(key))
            self.keep(key, dict(scores.to_json()))
        return scores


class _Fitted(TypedDict):
    """What the file of a run's density says beside its tensors."""

    spec: str
    model: str
    """name of the weights whose codes it was fitted to"""
    code: NotRequired[str]
    """of the density; older versions did not write it"""


def _load_fitted(fresh: Density, file: Path, spec: str, weights: str, again: str, code: str | None = None) -> bool:
    """Load a fitted density; false if it is of another spec or other weights, or by other code than asked for."""
    try:
        tensors, meta = load_tensors(file, "a fitted density", meta=_Fitted)
        if meta["model"] != weights or meta["spec"] != spec or (code is not None and meta.get("code") != code):
            return False
        load_weights(fresh, tensors, str(file))
    except ValueError as error:
        raise ValueError(f"{error}: run `{again}`") from None
    return True


def _again(folder: RunFolder, spec: str) -> str:
    """The command that fits a density of a run."""
    return shlex.join(["expost", "density", str(folder.path), spec, *code_options(folder.read_recipe())])


def _weights_name(model: Autoencoder) -> str:
    """A name of the weights, so that a density fitted to other weights is never used."""
    from expost.system.hashes import state_hash

    return state_hash({**model.encoder.state_dict(prefix="encoder."), **model.decoder.state_dict(prefix="decoder.")}, {})


def training_code(experiment: Experiment) -> str:
    """Names the code that turns an experiment into weights: the training loop, its networks and its objective."""
    return code_hash("expost.train.fit", "expost.runs.networks", type(experiment.objective).__module__)


def plan(
    recipe: str,
    *,
    data_name: str | None = None,
    budget: BudgetName = "cpu",
    settings: dict[str, Any] | None = None,
    loading: Mapping[str, Any] | None = None,
) -> tuple[Experiment, data.Dataset]:
    """The experiment and the data that a command line describes, without training.

    Args:
        loading: options of :func:`expost.data.load`: size, crop, pad_to, val.
    """
    row = find(recipe)
    name, options = data_name or row.data, dict(loading or {})
    dataset = data.load(name, **options)
    row.check(dataset)
    padding = row.padding(budget, dataset.shape)
    if padding:
        dataset = data.load(name, **{**options, "pad_to": padding})
    task = Task(dataset.name, tuple(dataset.shape), len(dataset.train.x))
    experiment = row.prepare(task, budget).override(settings or {})
    _ = experiment.pair  # a network that is not there, or not for such data
    return experiment, dataset


def train_run(
    experiment: Experiment,
    dataset: data.Dataset,
    *,
    source: str,
    budget: BudgetName | Literal[""] = "",
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: bool | None = None,
    trackers: tuple[str, ...] = (),
    watch: Watch | None = None,
) -> Run:
    """Train an experiment; with ``out`` the run folder records everything needed to load, resume and repeat it.

    Args:
        source: the data's name or path, as the user gave it.
        watch: measured at every validation, see :func:`expost.fit`.
    """
    join()
    processes = Processes()
    folder = RunFolder.at(out) if out is not None else None
    with ExitStack() as stack:
        if folder is not None:
            description: Description = {
                "recipe": experiment.recipe,
                "budget": budget,
                "settings": settings or {},
                "seed": seed,
                "data": describe(dataset, source),
                "experiment": experiment.text,
                "identity": experiment.identity(dataset.hash, seed),
                "versions": versions() | {CODE: training_code(experiment)},
            }
            finished = False
            with processes.together():
                if processes.main:
                    _check_place(folder)
                    stack.enter_context(made(folder.path))
                    stack.enter_context(training(folder.path))
                    finished = _same_run(folder, description, resume)
                    if not finished:
                        stack.enter_context(leaving_nothing(folder.path, lambda: folder.state().begun))
                        folder.write_recipe(description)
                        if not folder.state().begun:
                            folder.write_state(State("planned"))
            if processes.noticed(finished):
                return load_run(folder.path, device=device, dataset=dataset)
        model, objective = experiment.build(seed)
        prepare_prior(model, dataset)
        history = fit(
            model,
            objective,
            dataset.train.x,
            val=dataset.val.x,
            training=experiment.training,
            seed=seed,
            out=folder,
            resume=resume,
            device=device,
            progress=progress,
            trackers=trackers,
            watch=watch,
        )
        if history.untrained:
            raise ValueError(history.stopped)
        return Run(experiment, dataset, model, seed, folder, history)


def prepare_prior(model: Autoencoder, dataset: data.Dataset) -> None:
    """Start a VampPrior's pseudo-inputs from training images."""
    from expost.density import VampPrior

    if isinstance(model.prior, VampPrior):
        model.prior.from_data(dataset.train.x)


def _check_place(folder: RunFolder) -> None:
    """``ValueError`` if the folder is no place for a run, before so much as a lock is put into it."""
    if not folder.state().begun:
        check_folder(folder.path, *OWN)


def _same_run(folder: RunFolder, description: Description, resume: bool) -> bool:
    """Whether the folder holds this very run, trained to its end; ``ValueError`` if it holds something that must not be lost.

    A run of which not one step succeeded is not lost: it may be replaced by any other.
    """
    state = folder.state()
    if not state.begun and not (resume and folder.recipe_file.is_file()):
        return False
    if not folder.recipe_file.is_file():
        raise ValueError(f"{folder.path} holds a training without a recipe, by expost.fit(out=...): choose another --out")
    old, at = folder.read_recipe(), f" ({state.at})" if state.at else ""
    if not resume:
        held = {"finished": "a finished", "failed": "a failed"}.get(state.name, "an unfinished")
        way = "continue it with --resume, or choose another --out" if held == "an unfinished" else "choose another --out"
        raise ValueError(f"{folder.path} already holds {held} run of {old['recipe']}{at}: {way}")
    before = {old["identity"], experiment_name(timeless(old.get("experiment", "")), old["data"]["hash"], old["seed"])}
    if description["identity"] not in before:
        raise ValueError(
            f"{folder.path} holds a run of {old['recipe']} with {_difference(old, description)}: repeat the original settings, data and seed "
            "to resume, or choose another --out"
        )
    if state.name == "failed":
        raise FailedRun(f"{folder.path} has failed, and would fail again: {state.why}; train it with other settings into another --out")
    if state.name == "stopped" and folder.weights_file == folder.model_file and folder.model_file.is_file():
        raise ValueError(
            f"{folder.path} was stopped by its time limit and has no checkpoint to go on from: train it anew into another --out"
        )
    return state.name == "finished"


def _difference(old: Description, new: Description) -> str:
    """What distinguishes two runs, in words."""
    if old["recipe"] != new["recipe"]:
        return "another recipe"
    if old["data"]["hash"] != new["data"]["hash"]:
        return f"other data ({old['data']['name']})"
    if old["seed"] != new["seed"]:
        return f"another seed ({old['seed']})"
    if old["budget"] != new["budget"]:
        return f"another budget ({old['budget']})"
    before, now = json.loads(json.dumps([old["settings"], new["settings"]]))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name) and not name.endswith(TIMES))
    if not names:
        return "other defaults (another version of expost)"
    return "other settings (" + ", ".join(f"{name}: {before.get(name, 'default')}, now {now.get(name, 'default')}" for name in names) + ")"


def load_run(
    path: str | Path,
    *,
    data_name: str | None = None,
    device: str | None = None,
    dataset: data.Dataset | None = None,
    code: str | Sequence[str] = (),
    loading: Mapping[str, Any] | None = None,
    failed: bool = False,
) -> Run:
    """A trained run from its folder; its data are loaded when they are first needed, or now if they are named here.

    One that is not finished has its weights so far, and costs an :class:`~expost.system.state.Unfinished` warning.

    Args:
        data_name: where the data is now, if it has moved.
        code: the ``package.module:function`` of a wrapped model, allowed to be run if it is what the folder names; nothing else is.
        loading: options of :func:`expost.data.load` in place of those that the run was trained with.
        failed: load the last good weights of a run whose loss was not finite, which is refused otherwise.
    """
    folder = RunFolder.existing(path)
    folder.check_usable(failed=failed)
    saved = folder.read_recipe()

    def checked(found: data.Dataset) -> data.Dataset:
        if found.hash != saved["data"]["hash"]:
            told = " and ".join(f"{name}={value}" for name, value in (loading or {}).items())
            ways = ["pass the original (data_name=...)"] * (not told or data_name is not None) + [f"leave out {told}"] * bool(told)
            raise ValueError(f"the data {found.name} is not what {path} was trained on (another content hash): {', or '.join(ways)}")
        return found

    if dataset is not None:
        checked(dataset)
    experiment, model = _rebuild(folder, saved, device, code)
    source = dataset or (lambda: checked(load_again(saved["data"], path, data_name=data_name, loading=loading)))
    if callable(source) and (data_name is not None or loading):
        source = source()  # what was named is looked at, also where it is not needed
    return Run(experiment, source, model, saved["seed"], folder)


def load_model(path: str | Path, *, density: str = "prior", device: str | None = None, code: str | Sequence[str] = ()) -> Autoencoder:
    """The trained model of a run folder, without its data: for compression elsewhere.

    Args:
        density: what stands as the prior: the training prior, or a density that was fitted and lies in the folder.
        code: as for :func:`load_run`.
    """
    folder = RunFolder.existing(path)
    folder.check_usable()
    saved = folder.read_recipe()
    experiment, model = _rebuild(folder, saved, device, code)
    if density == "prior":
        return model
    fitted = fresh_density(density, experiment, saved["seed"])
    if isinstance(fitted, StandardNormal):
        return model.with_prior(fitted.to(model.device).eval())
    file = folder.density_file(density)
    again = _again(folder, density)
    if not file.is_file():
        raise ValueError(f'"{density}" has not been fitted to {path}: run `{again}`')
    if not _load_fitted(fitted, file, density, _weights_name(model), again):
        raise ValueError(f"{file} was fitted to other weights: run `{again}` again")
    return model.with_prior(fitted.to(model.device).eval())


def _rebuild(folder: RunFolder, saved: Description, device: str | None, code: str | Sequence[str] = ()) -> tuple[Experiment, Autoencoder]:
    known = saved["data"]
    examples = known.get("train") or len(load_again(known, folder.path).train)  # the first versions did not write their number
    task = Task(known["name"], tuple(known["shape"]), examples)
    if saved["recipe"].startswith(WRAPPED):
        experiment, model = rebuild_wrapped(folder, saved, task, code)
    else:
        try:
            with folder.bounded():
                experiment = find(saved["recipe"]).prepare(task, saved["budget"]).override(saved["settings"])
                model, _ = experiment.build(saved["seed"])
        except ValueError as error:
            raise ValueError(f"{folder.recipe_file}: {error}") from None
    folder.load_model(model)
    check_weights(model)
    return experiment, model.to(choose_device(device)).eval()
