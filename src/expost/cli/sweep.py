"""``expost sweep``: many runs, here or on a Slurm cluster, and one table."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from expost.cli.options import Count, DataOptions, Positive
from expost.system.schema import Meta

if TYPE_CHECKING:
    from expost.runs.sweep.jobs import Job
    from expost.runs.sweep.pool import Executor

__all__ = ["Sweep"]


@dataclass
class Sweep(DataOptions):
    """Train many runs: every combination of recipes, data sets, cases, grid and seeds. What is done is skipped, what was interrupted is resumed."""

    recipes: Positional[tuple[str, ...]]
    """names of recipes (see `expost list`)"""
    data: Annotated[UseAppendAction[list[str]], arg(metavar="NAME")] = field(default_factory=list)
    """data set name, folder, .npz or .npy file; may be repeated; default: the recipe's"""
    budget: Literal["smoke", "cpu", "paper"] = "cpu"
    """of the runs"""
    grid: Annotated[UseAppendAction[list[str]], arg(metavar="NAME=VALUE,VALUE")] = field(default_factory=list)
    """an axis of the grid, e.g. --grid latent=8,16,32 --grid network=mlp,small; commas inside brackets belong to a value; may be repeated"""
    case: Annotated[UseAppendAction[list[str]], arg(metavar="'NAME=VALUE NAME=VALUE'")] = field(default_factory=list)
    """settings that go together, separated by spaces, e.g. --case 'network=mlp latent=8' --case 'network=small latent=16'; may be repeated"""
    set: Annotated[UseAppendAction[list[str]], arg(metavar="NAME=VALUE")] = field(default_factory=list)
    """override a setting of all runs; may be repeated"""
    seeds: tuple[int, ...] = (0,)
    """of weights, data order and noise; every combination is trained with each"""
    runs: Path = Path("runs/lab")
    """folder of the runs, the same as that of `expost reproduce` and `expost claims`"""
    jobs: Count | None = None
    """runs at a time; default: one per --threads cores, or one per GPU"""
    threads: Count = 1
    """of each run"""
    device: str | None = None
    """cpu, cuda, mps; default: a GPU if there is one"""
    measure: tuple[str, ...] = ("total",)
    """columns of the table: losses (total, distortion, rate ...) or paths in the runs' results.json (likelihood.value)"""
    out: Path | None = None
    """the table's files without .csv, .json, .md; default: sweeps/RECIPE-DATA-BUDGET-NAME beside the folder of the runs"""
    retry_diverged: bool = False
    """train runs whose loss was not finite again"""
    slurm: Annotated[str | None, arg(metavar="PARTITION")] = None
    """train on this partition of a Slurm cluster (needs expost[slurm])"""
    slurm_time: Count = 240
    """minutes of a run; one that needs more goes on with the next sweep"""
    slurm_gpus: Annotated[int, Meta(ge=0)] = 0
    """of each run"""
    slurm_mem: Positive | None = None
    """GB of each run"""
    slurm_parallel: Count = 64
    """jobs at a time"""
    slurm_option: Annotated[UseAppendAction[list[str]], arg(metavar="NAME=VALUE")] = field(default_factory=list)
    """further parameters of submitit's SlurmExecutor, e.g. --slurm-option account=abc; may be repeated"""
    dry_run: bool = False
    """show the runs and how far each is, and stop"""

    def run(self) -> None:
        from expost.cli.common import Failure
        from expost.runs.overrides import parse
        from expost.runs.sweep.batch import run_jobs
        from expost.runs.sweep.jobs import expand, parse_axis
        from expost.runs.sweep.table import check_measures, save, seed_table, sweep_table
        from expost.system.devices import choose_device
        from expost.system.files import keep

        if self.device is not None and self.slurm is None:  # a cluster's nodes have other devices
            choose_device(self.device)
        grid: dict[str, list[Any]] = {}
        for name, values in map(parse_axis, self.grid):
            if name in grid:
                raise ValueError(f'"{name}" is given as an axis twice: write all its values in one --grid {name}=value,value')
            grid[name] = values
        jobs = expand(
            self.recipes,
            self.data or (None,),
            root=self.runs,
            budget=self.budget,
            settings=dict(map(parse, self.set)),
            cases=[dict(map(parse, case.split())) for case in self.case],
            grid=grid,
            seeds=self.seeds,
            loading=self.loading(),
        )
        if self.dry_run:
            _show(jobs)
            return
        check_measures(jobs, self.measure)
        out = self.out or self.runs.parent / "sweeps" / _name(jobs)
        if not out.name:
            raise ValueError("the table's files need a name: give --out sweeps/name, say")
        outcomes = run_jobs(jobs, self._executor(), measures=self.measure, device=self.device, retry_diverged=self.retry_diverged, say=_say)
        table = sweep_table(outcomes, self.measure)
        print(table)
        over_seeds = seed_table(outcomes, self.measure)
        if over_seeds is not None:
            print(f"\n{over_seeds}\n")
        with keep(out.parent):
            print(f"wrote {', '.join(map(str, save(out, outcomes, table)))}", flush=True)
        failed = [outcome for outcome in outcomes if outcome.status == "failed"]
        if any(outcome.status == "interrupted" for outcome in outcomes):
            raise KeyboardInterrupt("")  # it can be continued
        if failed:
            log = failed[0].job.folder / "sweep.log"
            raise Failure(f"{len(failed)} of {len(jobs)} runs failed: the table's notes say why, and each run's log more, e.g. {log}")

    def _executor(self) -> Executor:
        from expost.runs.overrides import parse
        from expost.runs.sweep.pool import Local, Slurm

        if self.slurm is not None:
            return Slurm(
                self.slurm,
                self.runs / "slurm",
                minutes=self.slurm_time,
                gpus=self.slurm_gpus,
                memory=self.slurm_mem,
                threads=self.threads,
                parallel=self.slurm_parallel,
                options=dict(map(parse, self.slurm_option)),
            )
        return Local(self.jobs, self.threads, _gpus(self.device))


def _say(text: str) -> None:
    print(f"  ... {text}", file=sys.stderr, flush=True)


def _gpus(device: str | None) -> tuple[str, ...]:
    """The GPUs to share among the runs, if they will train on CUDA and the user has not chosen one."""
    import os

    import torch

    if device not in (None, "cuda") or not torch.cuda.is_available():
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(visible.split(",")) if visible else tuple(map(str, range(torch.cuda.device_count())))


def _name(jobs: list[Job]) -> str:
    """A name for the table: the same for the same runs."""
    import hashlib

    first = jobs[0]
    start = first.name.rpartition("-")[0]
    return f"{start}-sweep-{hashlib.sha256(' '.join(job.name for job in jobs).encode()).hexdigest()[:8]}"


def _show(jobs: list[Job]) -> None:
    from expost.results import Table
    from expost.runs.sweep.jobs import state
    from expost.runs.sweep.lock import holder
    from expost.runs.sweep.table import varying

    settings = varying(jobs)
    table = Table(("recipe", "data", *settings, "seed", "state", "folder"), title=f"{len(jobs)} runs")
    for job in jobs:
        who = holder(job.folder)
        values = (None if job.settings.get(name) is None else str(job.settings[name]) for name in settings)
        found = f"being trained by {who}" if who else state(job.folder)
        table.add(job.recipe, job.data, *values, job.seed, found, str(job.folder))
    print(table, flush=True)
