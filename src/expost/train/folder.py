"""Run folders and checkpoints, without pickle.

A run folder holds ``recipe.json`` (name, overrides, seed, versions, data hash), ``model.safetensors``, ``history.csv``, ``results.json``,
``densities/``, and ``state.json``: how far it is (:mod:`expost.system.state`); while training runs also ``checkpoint.safetensors``, which has everything a resumed run needs: weights, optimiser moments,
averaged and best weights, sums of the running interval, and as JSON the step, schedule state and history. It is one file, replaced by
renaming, so a killed process leaves either the old or the new one.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from expost.system.files import (
    NotKept,
    keep,
    load_tensors,
    read_json,
    read_meta,
    read_signed,
    save_tensors,
    write_json,
    write_signed,
    write_text,
)
from expost.system.hashes import experiment_name
from expost.system.locks import trainer, writing
from expost.system.memory import Bounded, machine
from expost.system.schema import Meta, convert, printable
from expost.system.state import FailedRun, State, StateName, Unfinished
from expost.tensors import like
from expost.train.history import History

__all__ = [
    "DataDescription",
    "Description",
    "RunFolder",
    "bounded",
    "check_state",
    "load_weights",
    "moments",
    "prefixed",
    "restore_moments",
    "split_prefix",
    "versions",
]

T = TypeVar("T")
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Pixels = Annotated[int, Meta(ge=1, le=2**24)]


class DataDescription(TypedDict):
    """What recipe.json says of the data."""

    source: Annotated[str, Meta(min_length=1, max_length=4096)]
    """where it was, as the user gave it: a name or a path"""
    path: NotRequired[Annotated[str, Meta(min_length=1, max_length=4096)]]
    """the same as an absolute path, if it was a folder or file"""
    size: NotRequired[Pixels]
    crop: NotRequired[Pixels]
    pad_to: NotRequired[Pixels]
    val: NotRequired[int | float]
    max_items: NotRequired[Annotated[int, Meta(ge=1)]]
    seed: NotRequired[int]
    """what :func:`expost.data.load` was told beside the name"""
    name: Name
    hash: Name
    shape: Annotated[list[Annotated[int, Meta(ge=1, le=2**24)]], Meta(min_length=1, max_length=3)]
    train: NotRequired[Annotated[int, Meta(ge=1, le=2**40)]]
    """training examples; the first versions did not write it"""


class Description(TypedDict):
    """``recipe.json``: what a run is. ``experiment`` and ``identity`` belong to trained runs, ``source`` to wrapped ones."""

    recipe: Name
    budget: Literal["smoke", "cpu", "paper", ""]
    settings: dict[str, Any]
    seed: int
    data: DataDescription
    experiment: NotRequired[str]
    """all settings in full, as :func:`expost.system.hashes.stable_repr` writes them"""
    identity: Annotated[str, Meta(pattern="^[0-9a-f]{8}$")]
    source: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    checksum: NotRequired[str]
    """over what determines the run (:func:`_sum`); older versions did not write it"""


class _Recorded(TypedDict):
    """``state.json``, see :class:`expost.system.state.State`."""

    state: StateName
    at: str
    why: str


class _Took(TypedDict):
    """``training`` in results.json."""

    stopped: str
    seconds: float
    images: int


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("expost", "accelerate", "scikit-learn", "numpy", "zuko"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def split_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def load_weights(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """``module.load_state_dict`` with one sentence that names the first difference."""
    check_state(module.state_dict(), state, where)
    module.load_state_dict(state)


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """``ValueError`` with the first difference in names, shapes or kinds of number between a module's own state and one from a file."""
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or foreign:
        name = (missing or foreign)[0]
        raise ValueError(
            f'{where} does not fit this model: "{name}" is {"missing" if missing else "unknown"}; was it another recipe or other settings?'
        )
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise ValueError(f'{where} does not fit this model: "{name}" is {tuple(value.shape)} there and {tuple(own[name].shape)} here')
        if own[name].is_floating_point() != value.is_floating_point():
            raise ValueError(f'{where} does not fit this model: "{name}" is {value.dtype} there and {own[name].dtype} here')


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of its parameters: ``0/exp_avg`` and so on."""
    state = optimiser.state_dict()["state"]
    return {f"{i}/{name}": torch.as_tensor(value) for i, own in state.items() for name, value in own.items()}


def restore_moments(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give an optimiser what :func:`moments` took from it, in the layout of its parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, moment = key.partition("/")
        state.setdefault(int(index), {})[moment] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, own in optimiser.state.items():
        moved = {k: v for k, v in own.items() if k != "step"}
        check_state(dict.fromkeys(moved, parameter), moved, where)
        own.update({k: like(v, parameter) for k, v in moved.items()})


def kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint that the training would keep if it ended now: the best, else the averaged, else the last ones."""
    return split_prefix("best", tensors) or split_prefix("average", tensors) or split_prefix("model", tensors)


def _sum(recipe: Description) -> str:
    """16 hexadecimal digits of a SHA-256 over the fields that determine a run. Where the data lie and what program wrote them do not."""
    fields = {k: recipe.get(k) for k in ("recipe", "budget", "settings", "seed", "experiment", "identity")}
    fields["data"] = {k: v for k, v in recipe["data"].items() if k in ("name", "hash", "shape")}  # the first versions wrote no more
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _is_itself(recipe: Description) -> bool:
    """Whether the fields are those of the experiment that is written out and named beside them; all versions wrote these."""
    text, data = recipe.get("experiment"), recipe["data"]
    if text is None:
        return recipe["recipe"].startswith("wrapped/")  # no experiment, and an identity of another kind
    without_limit = re.sub(r"(?<=[(, ])minutes=[^,()]*", "minutes=None", text)  # older versions wrote the time limit too
    if recipe["identity"] not in {experiment_name(t, data["hash"], recipe["seed"]) for t in (text, without_limit)}:
        return False
    task = re.search(r"\(recipe='(.*?)', task=Task\(data=.*?, shape=\[([\d, ]+)\], n=(\d+)\)", text)
    said = (recipe["recipe"], ", ".join(map(str, data["shape"])), str(data.get("train", task and task[3])))
    return task is not None and task.groups() == said


def bounded(description: Path, *weights: Path) -> Bounded:
    """A block in which the networks of a description may be built: they have at most four times as many numbers as the files of their weights hold."""
    limit = 4 * sum(file.stat().st_size for file in weights) + 2**24
    return Bounded(limit, f"{description} describes larger networks than those of {weights[0]}: restore it from a copy, or make it again")


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        return cls(Path(path))

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """An existing run, or ``ValueError`` with the remedy."""
        folder = cls(Path(path))
        if not folder.recipe_file.is_file():
            raise ValueError(f"{path} is not a run folder (no recipe.json): {folder._elsewhere()}")
        return folder

    def _elsewhere(self) -> str:
        """What to do about a place that is no run."""
        place = self.path
        inside = sorted(place.glob("*/recipe.json")) if place.is_dir() else []
        near = [file for file in (place.absolute().parent / "recipe.json", *inside) if file.is_file()]
        if len(near) == 1:
            return f'did you mean "{printable(str(near[0].parent if inside else place.parent))}"?'
        if near or (place.is_dir() and any(place.iterdir())):
            return "give the folder that `expost train` or `expost wrap` has written"
        if place.is_file():
            return "it is a file; give the folder of a run, and unpack an archive of one first"
        return f"train one with `expost train RECIPE --out {place}`"

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.json"

    @property
    def model_file(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def history_file(self) -> Path:
        return self.path / "history.csv"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def weights_file(self) -> Path:
        """Where its weights are: those of the end, or, while there are more steps to come, those of the last checkpoint."""
        going_on = self.checkpoint_file.is_file() and self.state().name not in ("finished", "failed")
        return self.checkpoint_file if going_on else self.model_file

    def density_file(self, spec: str) -> Path:
        if not re.fullmatch(r"\w[\w.:@+-]*", spec):  # a name of a file, wherever the spec was read: it stays in the folder
            raise ValueError(f'cannot read the density "{printable(spec)}": write gmm:10, say')
        return self.path / "densities" / f"{spec.replace(':', '-')}.safetensors"

    def write_recipe(self, recipe: Description) -> None:
        write_json(self.recipe_file, {**recipe, "checksum": _sum(recipe)})

    def read_recipe(self) -> Description:
        """The description of the run, its types and ranges checked; whether it is as it was written, :meth:`load_model` checks."""
        value = read_json(self.recipe_file, "the description of a run")
        try:
            return convert(value, Description, f"{self.recipe_file} does not describe a run")
        except ValueError as error:
            raise ValueError(f"{error}: was it edited, or made by another program? restore it from a copy, or train again") from None

    def state(self) -> State:
        """How far the run is.

        What state.json says, unless the files tell more: the first versions wrote none, and a training that is killed, or ends on a full disk,
        has no time to write how it ended.
        """
        said: _Recorded = {"state": "planned" if self.recipe_file.is_file() else "new", "at": "", "why": ""}
        if self.state_file.is_file():
            remedy = "delete it, the other files of the run tell the same"
            said = read_signed(self.state_file, "the state of a run", remedy, _Recorded)
        if said["state"] in ("finished", "failed"):
            return State(said["state"], said["at"], said["why"])
        if (who := trainer(self.path)) is not None:
            return State("running", said["at"], who)
        if self.checkpoint_file.is_file() or not self.model_file.is_file():
            begun = self.checkpoint_file.is_file() or said["state"] == "running"
            return State("stopped" if begun else said["state"], said["at"], said["why"])
        history = History() if (found := self.history()) is None else found  # wrapped models have none
        return State("stopped" if history.stopped == "time" else "failed" if history.failed else "finished", why=history.stopped)

    def write_state(self, state: State) -> None:
        write_signed(self.state_file, {"state": state.name, "at": state.at, "why": state.why})

    def history(self) -> History | None:
        """How the training has gone, as the file of the weights tells; None if it does not, as for wrapped models."""
        try:
            return self._history()
        except ValueError:
            return None

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the training's history, as the file of the weights holds them, under its checksum; history.csv is for people.

        Raises:
            ValueError: it holds none, or is damaged.
        """
        return self._history().rows

    def _history(self) -> History:
        found = read_meta(self.weights_file, "the weights of a run").get("history")
        history = History.from_json(found, f"{self.weights_file} holds no history of a training")
        if not history.seconds:  # the file of equal weights is the same, whatever time they took
            with suppress(ValueError):
                took = self.result("training", _Took)
                history.seconds = took["seconds"] if took is not None else 0.0
        return history

    def check_usable(self, *, failed: bool = False) -> None:
        """The one door to the weights of a run: those of an unfinished one cost a warning, a failed one is refused.

        Args:
            failed: open a failed one nevertheless: its weights are the last good ones.

        Raises:
            FailedRun: its training failed.
            ValueError: it has no weights yet.
        """
        found = self.state()
        if found.name == "failed" and not failed:
            raise FailedRun(f"the training of {self.path} failed, so its weights are not used: {found.why}")
        if found.name in ("finished", "failed"):
            return
        running = found.name == "running"
        if not self.weights_file.is_file():
            doing = (
                f"being trained by {found.why}: wait for its first checkpoint" if running else "not trained: train it first, with --resume"
            )
            raise ValueError(f"the run {self.path} has no weights yet, since it is {doing}")
        doing = f"is being trained by {found.why}" if running else "is not finished"
        at = f" ({found.at})" if found.at else ""
        on = "training goes on with --resume" if self.checkpoint_file.is_file() else "an older version left no checkpoint to go on from"
        warnings.warn(f"{self.path} {doing}{at}: used are its weights so far; {on}", Unfinished, stacklevel=2)

    def forget(self) -> None:
        """Remove what was trained, so that it can be trained from its beginning."""
        for file in (self.model_file, self.checkpoint_file, self.history_file, self.state_file):
            file.unlink(missing_ok=True)

    def run_sum(self) -> dict[str, str]:
        """What ties weights to the run that recipe.json describes, if there is one."""
        return {"run": _sum(self.read_recipe())} if self.recipe_file.is_file() else {}

    def write_history(self, text: str) -> None:
        """Replace history.csv; not waiting for the disk, since it is written again and again."""
        write_text(self.history_file, text, durable=False)

    def results(self) -> dict[str, Any]:
        if not self.results_file.is_file():
            return {}
        remedy = "restore it from a copy, or delete it to measure them again"
        return read_signed(self.results_file, "the results of a run", remedy, dict[str, Any])

    def result(self, key: str, kind: type[T]) -> T | None:
        """One entry of results.json; None, to be measured again, if it is not there or is something else than it should be."""
        found = self.results().get(key)
        try:
            return None if found is None else convert(found, kind, key)
        except ValueError:
            return None

    def add_results(self, key: str, value: Any) -> None:
        """Set one entry of results.json, keeping the others, whoever else writes to it; one that is damaged is set aside, not overwritten.

        The entry has been shown already, or can be measured again: where it cannot be written, a :class:`~expost.system.files.NotKept` warning says so.
        """
        with keep(self.path), writing(self.path):
            try:
                others = self.results()
            except ValueError:
                aside = self.results_file.with_name("results.json.damaged")
                self.results_file.replace(aside)
                warnings.warn(f"{self.results_file} was damaged and is now {aside}", NotKept, stacklevel=2)
                others = {}
            write_signed(self.results_file, {**others, key: value})

    def keep(self, key: str, value: Any) -> None:
        """:meth:`add_results` of what has been shown: what cannot be written costs a warning, and so does a run that goes on, which changes."""
        if self.state().name in ("running", "stopped"):
            warnings.warn(f"not kept: {self.path} is not finished, and what is measured on it will change", Unfinished, stacklevel=2)
            return
        self.add_results(key, value)

    def save_model(self, model: nn.Module, meta: dict[str, Any] | None = None) -> None:
        """Write the trained weights, tied to the run that recipe.json describes, if there is one."""
        content = dict(model.state_dict()), {"kind": "model", **self.run_sum(), **(meta or {})}
        try:
            save_tensors(self.model_file, *content)
        except OSError as error:
            spared = Path(tempfile.mkdtemp(prefix="expost-")) / self.model_file.name
            try:
                save_tensors(spared, *content)
            except OSError:
                raise error from None
            raise OSError(
                error.errno, f"{error.strerror}; the trained weights are in {spared}, move them there", str(self.model_file)
            ) from None

    def bounded(self) -> Bounded:
        """A block in which networks may be built that its weights can be of, with at most four times as many numbers as the file holds."""
        if not self.weights_file.is_file():
            return Bounded(machine(), f"{self.recipe_file} describes networks that are larger than the memory of this machine")
        return bounded(self.recipe_file, self.weights_file)

    def load_model(self, model: nn.Module) -> dict[str, Any]:
        """Load the trained weights into ``model``, if recipe.json is as it was written and of the same run; returns their metadata."""
        recipe = self.read_recipe() if self.recipe_file.is_file() else None
        if recipe is not None and not (recipe.get("checksum", _sum(recipe)) == _sum(recipe) and _is_itself(recipe)):
            raise ValueError(
                f"{self.recipe_file} does not describe a run (its fields do not fit each other): it was edited or damaged; "
                "restore it from a copy, or train again"
            )
        file = self.weights_file
        tensors, meta = load_tensors(file, "the weights of a run")
        tensors = kept(tensors) if file == self.checkpoint_file else tensors
        if recipe is not None and meta.get("run", _sum(recipe)) != _sum(recipe):
            raise ValueError(
                f"{file} holds the weights of another run than {self.recipe_file} describes: restore both from a copy, or train again"
            )
        load_weights(model, tensors, str(file))
        return meta
