"""The table at the end of a sweep: one row per run, with the settings that vary, how the run ended, and what was measured on it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expost.autoencoder import evaluating
from expost.results import Table
from expost.runs.experiment import Task, find
from expost.runs.run import plan
from expost.runs.sweep.jobs import Job, ending
from expost.seeds import seeded, some
from expost.system.files import write_json, write_text
from expost.train.folder import RunFolder

if TYPE_CHECKING:
    from expost.runs.sweep.batch import Outcome

__all__ = ["PARAMETERS", "check_measures", "figures", "save", "seed_table", "sweep_table", "varying"]

#: Numbers of results.json that every training leaves.
TRAINING = ("training.seconds", "training.images")
#: The columns of the numbers of trained parameters.
PARAMETERS = ("encoder parameters", "decoder parameters")


def figures(job: Job, measures: Sequence[str] = ("total",)) -> dict[str, float]:
    """Numbers about a finished run: the measures that it has, and how many parameters its encoder and decoder have.

    Args:
        measures: columns of the history (``total``, ``distortion``, ``rate`` ...): their validation means, nats per example, of the weights
            that were kept; or paths into the run's results.json, e.g. ``training.images`` or ``likelihood.value``. Keys of that file may
            have dots themselves.
    """
    found: dict[str, float] = {}
    history = ending(job.folder)
    rows = [row for row in history.rows if row["split"] == "val"] if history is not None else []
    kept = next((row for row in reversed(rows) if history is not None and row["step"] == history.best_step), rows[-1] if rows else {})
    results: dict[str, Any] = {}
    if any(name not in kept for name in measures):
        try:
            results = RunFolder.at(job.folder).results()
        except ValueError:  # damaged: what it had is missing from the table, nothing else is
            results = {}
    for name in measures:
        value = kept[name] if name in kept else _within(results, name)
        if isinstance(value, Mapping):  # a Result
            value = value.get("value")
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return {**found, **_parameters(job)}


def check_measures(jobs: Sequence[Job], measures: Sequence[str]) -> None:
    """``ValueError`` before anything is trained, if a measure is neither a loss of the jobs' recipes nor known of a run that is there already."""
    there = {name for job in jobs for name in figures(job, measures)}
    unknown = [name for name in measures if name not in there and name not in TRAINING]
    if not unknown:
        return
    losses = {name: None for job in {(job.recipe, job.data): job for job in jobs}.values() for name in _losses(job)}
    for name in unknown:
        if name not in losses:
            raise ValueError(
                f'no run will have a measure "{name}": there are {", ".join([*losses, *TRAINING])}, and of runs that are there already the numbers in '
                "their results.json, by path, e.g. likelihood.value"
            )


def _losses(job: Job) -> list[str]:
    """Names of the losses of a job's validation, from a few data and untrained networks."""
    experiment, dataset = plan(job.recipe, data_name=job.data, budget="smoke", loading=job.loading)
    model, objective = experiment.build(0)
    with evaluating(model), torch.enable_grad(), seeded("measures"):
        loss = objective.at(0)(model, model.stored(some(dataset.val.x, 4, "measures")))
    return ["total", *loss.parts]


def _within(value: Any, path: str) -> Any:
    """The entry at a dotted path, where a key may have dots: the longest key that fits is followed."""
    if not path:
        return value
    if not isinstance(value, Mapping):
        return None
    for key in sorted((k for k in value if path == k or path.startswith(f"{k}.")), key=len, reverse=True):
        inner = _within(value[key], path[len(key) + 1 :])
        if inner is not None:
            return inner
    return None


def _parameters(job: Job) -> dict[str, float]:
    try:
        known = RunFolder.at(job.folder).read_recipe()["data"]
        task = Task(known["name"], tuple(known["shape"]), known.get("train", 1))
        experiment = find(job.recipe).prepare(task, job.budget).override(job.settings)
        numbers = _sizes(job.recipe, task, experiment.network, experiment.latent)
    except (ValueError, KeyError):
        return {}
    return {name: float(number) for name, number in zip(PARAMETERS, numbers, strict=True)}


@lru_cache(maxsize=256)
def _sizes(recipe: str, task: Task, network: str, latent: int) -> tuple[int, int]:
    model, _ = find(recipe).prepare(task, "smoke").override({"network": network, "latent": latent}).build(0)
    return sum(p.numel() for p in model.encoder.parameters()), sum(p.numel() for p in model.decoder.parameters())


def varying(jobs: Sequence[Job]) -> list[str]:
    """Names of the settings that are not the same in all jobs, in the order of their first appearance."""
    names = dict.fromkeys(name for job in jobs for name in job.settings)
    return [name for name in names if len({json.dumps(job.settings.get(name)) for job in jobs}) > 1]


def sweep_table(outcomes: Sequence[Outcome], measures: Sequence[str] = ("total",)) -> Table:
    """One row per run."""
    jobs = [outcome.job for outcome in outcomes]
    settings = varying(jobs)
    several = [name for name in ("recipe", "data") if len({getattr(job, name) for job in jobs}) > 1]
    table = Table((*several, *settings, "seed", "status", "seconds", *measures, *PARAMETERS, "run"), title=_title(jobs))
    for outcome in outcomes:
        job = outcome.job
        values = [_cell(job.settings.get(name)) for name in settings]
        numbers = [outcome.figures.get(name) for name in measures]
        sizes = [int(outcome.figures[name]) if name in outcome.figures else None for name in PARAMETERS]
        seconds = round(outcome.seconds, 2) if outcome.seconds is not None else None
        table.add(*(getattr(job, name) for name in several), *values, job.seed, outcome.status, seconds, *numbers, *sizes, job.name)
    table.notes += _notes(outcomes, measures)
    return table


def seed_table(outcomes: Sequence[Outcome], measures: Sequence[str] = ("total",)) -> Table | None:
    """One row per configuration that was trained from several seeds: mean and standard error of every measure; None if there is none."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status in ("done", "skipped"):
            groups.setdefault(json.dumps([outcome.job.recipe, outcome.job.data, outcome.job.settings], sort_keys=True), []).append(outcome)
    groups = {key: group for key, group in groups.items() if len(group) > 1}
    if not groups:
        return None
    jobs = [outcome.job for outcome in outcomes]
    settings = varying(jobs)
    several = [name for name in ("recipe", "data") if len({getattr(job, name) for job in jobs}) > 1]
    table = Table((*several, *settings, "seeds", *(cell for name in measures for cell in (name, f"{name}, error"))), title="Over seeds")
    for group in groups.values():
        job = group[0].job
        numbers: list[float | None] = []
        for name in measures:
            values = [outcome.figures[name] for outcome in group if math.isfinite(outcome.figures.get(name, math.nan))]
            numbers += [statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))] if len(values) > 1 else [None, None]
        table.add(*(getattr(job, name) for name in several), *(_cell(job.settings.get(name)) for name in settings), len(group), *numbers)
    table.notes.append("mean and standard error over seeds of runs that were trained to their end")
    return table


def _title(jobs: Sequence[Job]) -> str:
    first = jobs[0]
    recipes, sets = (list(dict.fromkeys(getattr(job, name) for job in jobs)) for name in ("recipe", "data"))
    constant = [f"{k}={v}" for k, v in first.settings.items() if k not in varying(jobs)]
    return " ".join([f"Sweep: {', '.join(recipes)} on {', '.join(sets)}, {first.budget} budget", *constant])


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def _notes(outcomes: Sequence[Outcome], measures: Sequence[str]) -> list[str]:
    notes = []
    if "total" in measures:
        notes.append(
            "total: validation loss of the kept weights, nats per example; seconds: of training, of failed runs of the last attempt"
        )
    finished = [o for o in outcomes if o.status in ("done", "skipped", "stopped")]
    absent = [name for name in measures if finished and not any(name in o.figures for o in finished)]
    notes += [f'no run has a measure "{name}": it is neither a column of its history nor a number in its results.json' for name in absent]
    notes += [f"{o.job.name} failed: {o.message}" for o in outcomes if o.status == "failed"]
    notes += [f"{o.job.name} was stopped by its time limit: the same sweep goes on with it" for o in outcomes if o.status == "stopped"]
    return notes


def save(base: Path, outcomes: Sequence[Outcome], table: Table) -> tuple[Path, Path, Path]:
    """Write ``base``.csv, .json and .md; returns the paths."""
    csv, as_json, markdown = (base.with_name(f"{base.name}.{ending}") for ending in ("csv", "json", "md"))
    runs = [
        {
            **outcome.job.to_json(),
            "status": outcome.status,
            "seconds": outcome.seconds,
            "message": outcome.message,
            "figures": {k: v if math.isfinite(v) else None for k, v in outcome.figures.items()},
        }
        for outcome in outcomes
    ]
    write_text(csv, table.to_csv())
    write_json(as_json, {"title": table.title, "runs": runs, "notes": table.notes})
    write_text(markdown, f"{table.title}\n\n{table.to_markdown()}\n")
    return csv, as_json, markdown
