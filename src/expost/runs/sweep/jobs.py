"""The runs that a sweep consists of: which they are, where each lies, and how far it is.

A sweep is the product recipes x data sets x cases x grid x seeds. Each of its runs has the folder that :class:`expost.runs.lab.Lab` would
give it, so a sweep fills a lab: what it has trained, claims and tables do not train again, and the other way round. The folder is all the
state there is; a sweep that was interrupted, in whatever way, is continued by asking for the same runs again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from expost.runs import overrides
from expost.runs.experiment import BudgetName, find
from expost.runs.lab import check_root, run_path
from expost.runs.run import plan
from expost.train.folder import RunFolder
from expost.train.history import History

__all__ = ["Job", "State", "ending", "expand", "parse_axis", "state"]

#: ``diverged``: training ended on a non-finite loss; the folder holds the last good weights.
State = Literal["new", "unfinished", "done", "diverged"]


@dataclass(frozen=True)
class Job:
    """One run to be trained.

    Attributes:
        recipe, data, budget, settings, seed: as ``expost train`` takes them.
        folder: where it lies.
        loading: options of :func:`expost.data.load`.
    """

    recipe: str
    data: str
    budget: BudgetName
    settings: dict[str, Any]
    seed: int
    folder: Path
    loading: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "data": self.data,
            "budget": self.budget,
            "settings": self.settings,
            "seed": self.seed,
            "folder": str(self.folder.absolute()),
            "loading": self.loading,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        return cls(**{**value, "folder": Path(value["folder"])})


def expand(
    recipes: Sequence[str],
    data: Sequence[str | None] = (None,),
    *,
    root: Path,
    budget: BudgetName = "cpu",
    settings: Mapping[str, Any] | None = None,
    cases: Sequence[Mapping[str, Any]] = (),
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0,),
    loading: Mapping[str, Any] | None = None,
) -> list[Job]:
    """All runs of a sweep, in the order of the arguments, seeds innermost. Nothing is trained; the data are loaded to know their hashes.

    Args:
        recipes: names.
        data: names or folders; None is the recipe's own.
        root: folder of the runs, e.g. ``runs/lab``.
        settings: of every run.
        cases: settings that go together; each case makes its own runs. None given: one case without settings.
        grid: setting -> its values; every combination is a run.
        seeds: of each.
        loading: options of :func:`expost.data.load`: size, crop, pad_to, val.

    Raises:
        ValueError: an unknown name, a setting that is given twice or cannot be set, two runs that are the same.
    """
    check_root(root)
    shared, axes = dict(settings or {}), dict(grid or {})
    if not recipes:
        raise ValueError("a sweep needs at least one recipe: `expost list` shows them all")
    for empty in (name for name, values in (*axes.items(), ("seeds", seeds)) if not len(values)):
        raise ValueError(f'"{empty}" has no values: give at least one')
    _given_once([shared, axes, *cases])
    jobs: list[Job] = []
    for recipe, name in itertools.product(recipes, data or (None,)):
        base, dataset = plan(recipe, data_name=name, budget=budget, loading=loading)
        for case, values in itertools.product(cases or ({},), itertools.product(*axes.values())):
            wanted = _as_json({**shared, **case, **dict(zip(axes, values, strict=True))})
            experiment = base.override(wanted)
            _ = experiment.pair  # an unknown network is a mistake of the whole sweep
            for seed in seeds:
                folder = run_path(root, experiment, dataset, budget, seed)
                jobs.append(Job(recipe, name or find(recipe).data, budget, wanted, seed, folder, dict(loading or {})))
    _different(jobs)
    return jobs


def _given_once(groups: Sequence[Mapping[str, Any]]) -> None:
    shared, axes, *cases = groups
    for name in axes:
        if name in shared or any(name in case for case in cases):
            raise ValueError(f'"{name}" is an axis of the grid and a setting: give it once')
    for case in cases:
        for name in case.keys() & shared.keys():
            raise ValueError(f'"{name}" is set in a case and for all runs: give it once')


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as recipe.json will keep them: tuples become lists."""
    try:
        return json.loads(json.dumps(settings))
    except TypeError:
        raise ValueError(f"the settings {settings} cannot be kept in a run's recipe.json: use numbers, texts and lists") from None


def _different(jobs: Sequence[Job]) -> None:
    seen: dict[Path, Job] = {}
    for job in jobs:
        if job.folder in seen:
            first = seen[job.folder]
            raise ValueError(
                f"the sweep has the same run twice: {job.recipe} on {job.data} with {first.settings} and seed {first.seed}, "
                f"and with {job.settings} and seed {job.seed}; leave one out"
            )
        seen[job.folder] = job


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """``"latent=8,16"`` -> ("latent", [8, 16]): values separated by commas, where commas inside brackets or quotes belong to a value.

    Example:
        >>> parse_axis("training.betas=(0.9,0.99),(0.5,0.9)")
        ('training.betas', [(0.9, 0.99), (0.5, 0.9)])
    """
    name, sign, values = text.partition("=")
    if not sign or not name.strip() or not values.strip():
        raise ValueError(f'cannot read "{text}": an axis is written as --grid name=value,value, e.g. --grid latent=8,16,32')
    parts, depth, quote = [""], 0, ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
            if character == "," and depth == 0:
                parts.append("")
                continue
        parts[-1] += character
    if depth or quote or not all(part.strip() for part in parts):
        raise ValueError(f'cannot read "{text}": a value is empty, or a bracket or a quote is not closed')
    return name.strip(), [overrides.parse(f"{name}={part}")[1] for part in parts]


def ending(folder: Path) -> History | None:
    """How the training of a run went so far that is finished, failed, or has used its time; None if it is none of these, or not readable."""
    run = RunFolder.at(folder)
    state = run.state()
    return run.history() if state.name in ("finished", "failed") or state.why == "time" else None


def state(folder: Path) -> State:
    """How far the run in a folder is; what its time limit stopped is unfinished, and goes on."""
    history = ending(folder)
    if history is None or history.stopped == "time":
        return "unfinished" if RunFolder.at(folder).recipe_file.is_file() else "new"
    return "diverged" if history.failed else "done"
