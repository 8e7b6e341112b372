"""A recipe is a row of the literature's table: how to build the model and the objective for a data set, and how long to train.

``recipe.prepare(task, budget)`` gives an :class:`Experiment`: a frozen description whose every field can be overridden
(``--set training.lr=1e-4``), and which builds the model from a seed. Budgets: ``smoke`` (does it run?), ``cpu`` (two cores, at most five
minutes of training on MNIST), ``paper`` (the paper's networks and length).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from expost.autoencoder import Autoencoder
from expost.data import Dataset
from expost.density.spec import parse as parse_density
from expost.heads import Gaussian, Head, identity
from expost.objectives.base import Objective
from expost.optimise import Cosine
from expost.runs import overrides
from expost.runs.discovery import discover, forms, stages
from expost.runs.networks import IMAGES, POINTS, Pair, find_network, kind_of
from expost.seeds import seeded
from expost.system.hashes import experiment_name, stable_repr, timeless
from expost.system.memory import Bounded, machine
from expost.system.schema import Checked, Meta
from expost.train.second_stage import CPU as STAGE_CPU
from expost.train.settings import Training

__all__ = [
    "BUDGETS",
    "UNIT_POINTS",
    "WRAPPED",
    "BudgetName",
    "Experiment",
    "Recipe",
    "Task",
    "cpu_training",
    "decoder_head",
    "find",
    "recipes",
    "register",
    "smoke_training",
]

BudgetName = Literal["smoke", "cpu", "paper"]
BUDGETS: tuple[BudgetName, ...] = ("smoke", "cpu", "paper")
WRAPPED = "wrapped/"
"""How the recipe of a model begins that expost did not train (:mod:`expost.adapt`)."""
_RECIPES: dict[str, Recipe] = {}
UNIT_POINTS = "points in [0, 1]"
"""What a recipe takes whose decoder means grey levels, beside images."""


@dataclass(frozen=True)
class Task(Checked):
    """What a recipe must know about the data.

    Attributes:
        data: name of the data set (``mnist``, ``cifar10``, ``celeba``, ``digits`` or a folder's name).
        shape: of one datum: (C, H, W) for images, (d,) for points.
        n: number of training examples.
    """

    data: str
    shape: tuple[Annotated[int, Meta(ge=1)], ...]
    n: Annotated[int, Meta(ge=1)]

    @property
    def dims(self) -> int:
        """D, the number of pixels times channels."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """``images`` or ``points``."""
        return kind_of(self.shape)

    @property
    def channels(self) -> int:
        """C of images; points have one."""
        return self.shape[0] if self.kind == IMAGES else 1


def cpu_training(task: Task, images: int = 400_000, **other: Any) -> Training:
    """The common short training for two cores: about ``images`` examples, Adam, cosine, averaged weights."""
    epochs = max(4, min(250, round(images / task.n)))
    return Training(**{"epochs": epochs, "batch_size": 128, "lr": 1e-3, "schedule": Cosine(), "ema": 0.999, **other})


def smoke_training(**other: Any) -> Training:
    """A few steps: shows that everything runs."""
    return Training(**{"steps": 30, "batch_size": 64, "lr": 1e-3, "log_every": 10, **other})


@dataclass(frozen=True)
class Experiment(Checked):
    """One recipe made concrete for one task and budget; everything here can be overridden by name.

    Attributes:
        network: name of the encoder / decoder pair, a key of :data:`expost.runs.networks.NETWORKS`.
        latent: d, number of latent dimensions.
        objective, training: what is minimised, and how.
        stage: how a second stage is trained on the codes (``--density stage``).
        densities: what is fitted ex post, as specs.
    """

    recipe: str
    task: Task
    network: str
    latent: Annotated[int, Meta(ge=1, le=1_000_000)]
    objective: Objective
    training: Training
    densities: tuple[str, ...]
    stage: Training = STAGE_CPU
    stage_width: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024

    def build(self, seed: int) -> tuple[Autoencoder, Objective]:
        """The untrained model and its objective, with weights drawn from the seed."""
        objective = copy.deepcopy(self.objective)
        large = f"the networks {self.network} with latent = {self.latent} do not fit into this machine's memory: choose smaller ones"
        with seeded("init", seed), Bounded(machine(), large):
            model = find(self.recipe).model(self.task, self.latent, self.pair)
            for owned in objective.modules().values():
                for module in owned.modules():
                    reset = getattr(module, "reset_parameters", None)
                    if callable(reset):
                        reset()
        return model, objective

    @property
    def pair(self) -> Pair:
        """The networks; ``ValueError`` if there are none of this name, or they do not take data of this kind."""
        pair = find_network(self.network)
        if self.task.kind not in pair.takes:
            others = "network=mlp" if self.task.kind == POINTS else "network=small, or network=mlp"
            raise ValueError(
                f"the network {self.network} takes {' and '.join(pair.takes)}, and {self.task.data} holds {self.task.kind} of shape "
                f"{tuple(self.task.shape)}: choose {others}"
            )
        return pair

    def override(self, settings: Mapping[str, Any]) -> Experiment:
        """A copy with some settings replaced; a latent size or network that changes is followed by nothing else.

        ``epochs`` and ``steps`` exclude each other: one that is set without the other replaces it.

        Raises:
            ValueError: there is no such setting, or what it is set to is not what it may be, in one sentence.
        """
        fixed = {"recipe", "task"} & {path.partition(".")[0] for path in settings}
        if fixed:
            raise ValueError(f'"{fixed.pop()}" is not a setting: choose another recipe or data set on the command line')
        settings = dict(settings)
        for part, (one, other) in itertools.product(("training", "stage"), (("epochs", "steps"), ("steps", "epochs"))):
            if settings.get(f"{part}.{one}") is not None:
                settings.setdefault(f"{part}.{other}", None)
        changed = overrides.apply(self, settings)
        for training in (changed.training, changed.stage):
            training.length(1)
        for spec in changed.densities:
            name = spec.partition("@")[0]
            if name != "prior" and name.partition(":")[0] not in stages():
                parse_density(name, 1, forms())
        return changed

    @property
    def text(self) -> str:
        """Everything that determines a run of this experiment beside data and seed; time limits and intervals of writing do not belong to it."""
        return timeless(stable_repr(self))

    def identity(self, data_hash: str, seed: int) -> str:
        """Eight hex digits that name this experiment's content."""
        return experiment_name(self.text, data_hash, seed)


@dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
        name: ``paper/model``.
        summary: one line.
        paper: key of a paper, as ``expost cite`` knows it.
        model: (task, latent, networks) -> the untrained autoencoder; called under a seed.
        objective: (task, latent) -> objective.
        latent: task -> d.
        training: budget and task -> how to train.
        network: budget and task -> name of the pair.
        densities: fitted ex post; ``prior`` stands for the training prior.
        data: default data set.
        pad_to: side to which images are zero-padded for the networks of the ``paper`` budget, or None.
        stage: budget -> (training, width) of a second stage, where the recipe has its own.
        takes: kinds of data: ``images``, ``points``, or :data:`UNIT_POINTS` where the decoder means grey levels.
    """

    name: str
    summary: str
    paper: str
    model: Callable[[Task, int, Pair], Autoencoder]
    objective: Callable[[Task, int], Objective]
    latent: Callable[[Task], int]
    training: Callable[[BudgetName, Task], Training]
    network: Callable[[BudgetName, Task], str]
    densities: tuple[str, ...] = ("prior", "gmm:10")
    data: str = "mnist"
    pad_to: int | None = None
    stage: Callable[[BudgetName], tuple[Training, int]] | None = None
    takes: tuple[str, ...] = (IMAGES, POINTS)

    def check(self, dataset: Dataset) -> None:
        """``ValueError`` that names the recipes to take, if this one is not for such data."""
        kinds = {kind_of(dataset.shape)}
        if kinds & set(self.takes):
            return
        if kinds == {POINTS} and _in_unit_interval(dataset):
            kinds.add(UNIT_POINTS)
            if UNIT_POINTS in self.takes:
                return
        others = [row.name for row in recipes().values() if kinds & set(row.takes)]
        raise ValueError(
            f"{self.name} takes {' and '.join(self.takes)}, and {dataset.name} holds {kind_of(dataset.shape)} of shape {dataset.shape}: "
            + (f"train one of {', '.join(others)}" if others else "give images (C, H, W) or points (d,)")
        )

    def padding(self, budget: BudgetName, shape: tuple[int, ...]) -> int | None:
        """Side to pad images of this shape to, or None."""
        return self.pad_to if self.pad_to and budget == "paper" and len(shape) == 3 and max(shape[1:]) < self.pad_to else None

    def prepare(self, task: Task, budget: BudgetName | Literal[""]) -> Experiment:
        """The experiment for a task. Points get perceptrons where the recipe's networks are for images, and no code has more numbers than a datum."""
        if budget == "" or budget not in BUDGETS:
            raise ValueError(f'there is no budget "{budget}": choose smoke, cpu or paper')
        d = min(self.latent(task), task.dims)
        network = self.network(budget, task)
        if task.kind == POINTS and POINTS not in find_network(network).takes:
            network = "mlp" + "".join(network.partition("+")[1:])
        with seeded("objective", self.name):
            objective = self.objective(task, d)
        experiment = Experiment(
            recipe=self.name,
            task=task,
            network=network,
            latent=d,
            objective=objective,
            training=self.training(budget, task),
            densities=self.densities,
        )
        if self.stage is not None:
            training, width = self.stage(budget)
            return dataclasses.replace(experiment, stage=training, stage_width=width)
        if budget == "smoke":
            return dataclasses.replace(experiment, stage=smoke_training(), stage_width=64)
        return experiment


def decoder_head(make: Callable[[], Head], task: Task) -> Head:
    """The decoder's head for a task: images have means in [0, 1] where the recipe says so, those of points are not bounded."""
    head = make()
    if task.kind == POINTS and isinstance(head, Gaussian):
        head.link = identity
    return head


def register(*rows: Recipe) -> None:
    """Add rows to the table of recipes."""
    _RECIPES.update({row.name: row for row in rows})


def recipes() -> dict[str, Recipe]:
    """The table of recipes by name, with those of all papers, in the order of their keys."""
    discover()
    return dict(sorted(_RECIPES.items(), key=lambda row: row[0].partition("/")[0]))


def _in_unit_interval(dataset: Dataset) -> bool:
    return all(float(part.x.min()) >= 0 and float(part.x.max()) <= 1 for part in (dataset.train, dataset.val, dataset.test))


def find(name: str) -> Recipe:
    """The recipe of a name, or ``ValueError`` with close matches."""
    import difflib

    if name.startswith(WRAPPED):
        raise ValueError(
            "a wrapped model has no recipe, since expost did not train it: it can be used, but neither trained on nor cited from here"
        )
    rows = recipes()
    if name not in rows:
        close = difflib.get_close_matches(name, rows, 1, 0.5) or [k for k in rows if name and name in k][:1]
        raise ValueError(
            f'there is no recipe "{name}"' + (f': did you mean "{close[0]}"?' if close else ":") + " `expost list` shows them all"
        )
    return rows[name]
