"""The lab: trained runs and their scores, made when first asked for and kept under a name of their content.

Claims and tables ask the lab for what they need; a run is trained once per (experiment, data, seed), and an interrupted one is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from expost import data
from expost.evaluate.features.base import Extractor
from expost.evaluate.features.choose import extractor_of
from expost.evaluate.protocol import DEFAULT, INTERPOLATIONS, Scores, ScoresValue
from expost.runs.experiment import BudgetName, Experiment
from expost.runs.run import CODE, Run, load_run, plan, train_run, training_code
from expost.system.devices import choose_device
from expost.system.storage import remember
from expost.train.fit import Watch

__all__ = ["Lab", "check_root", "run_path"]

T = TypeVar("T")


def silent(text: str) -> None:
    """Say nothing."""


def run_path(root: Path, experiment: Experiment, dataset: data.Dataset, budget: BudgetName, seed: int) -> Path:
    """The folder of a run in a lab: ``root / recipe-data-budget-identity``, so that equal experiments share one and others never do."""
    return root / f"{experiment.recipe.replace('/', '-')}-{dataset.name}-{budget}-{experiment.identity(dataset.hash, seed)}"


def check_root(root: Path) -> None:
    """``ValueError`` where runs cannot lie, before anything is measured or trained."""
    for path in (root, *root.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"runs cannot lie in {root}, because {path} is a file: choose another folder of runs (--runs)")
    if (root / "recipe.json").is_file():
        raise ValueError(f"{root} is a run itself: give the folder in which runs lie (--runs)")


@dataclass
class Lab:
    """Where claims get their runs from.

    Args:
        source: data set name or folder.
        budget: of every run.
        root: folder of the runs.
        seed: of every run.
        say: called with one line about what is being done.
        loading: options of :func:`expost.data.load` for the source and its parts; toy densities take none.
    """

    source: str = "mnist"
    budget: BudgetName = "cpu"
    root: Path = Path("runs/lab")
    seed: int = 0
    device: str | None = None
    progress: bool | None = None
    say: Callable[[str], None] = silent
    loading: Mapping[str, Any] = field(default_factory=dict)
    _runs: dict[str, Run] = field(default_factory=dict, repr=False)
    _extractors: dict[str, tuple[Extractor, tuple[str, ...]]] = field(default_factory=dict, repr=False)
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def plan(self, recipe: str, settings: dict[str, Any] | None = None, *, source: str | None = None) -> tuple[Experiment, data.Dataset]:
        """What :meth:`run` would train, and on what."""
        source = source or self.source
        loading = {} if source in data.toy.TOYS else self.loading
        return plan(recipe, data_name=source, budget=self.budget, settings=settings, loading=loading)

    def __post_init__(self) -> None:
        check_root(self.root)
        choose_device(self.device)  # before hours of training

    def run(self, recipe: str, settings: dict[str, Any] | None = None, *, source: str | None = None, watch: Watch | None = None) -> Run:
        """The trained run of a recipe: from memory, from its folder, or trained now; on the lab's data unless ``source`` names other.

        ``watch`` is asked at every validation, and only if the run is trained now.
        """
        source = source or self.source
        experiment, dataset = self.plan(recipe, settings, source=source)
        identity = experiment.identity(dataset.hash, self.seed)
        if identity not in self._runs:
            path = run_path(self.root, experiment, dataset, self.budget, self.seed)
            if (path / "model.safetensors").is_file():
                run = load_run(path, device=self.device, dataset=dataset)
            else:
                self.say(f"training {recipe} on {dataset.name} ({self.budget} budget, seed {self.seed})")
                run = train_run(
                    experiment,
                    dataset,
                    source=source,
                    budget=self.budget,
                    settings=settings,
                    seed=self.seed,
                    out=path,
                    resume=(path / "recipe.json").is_file(),
                    device=self.device,
                    progress=self.progress,
                    watch=watch,
                )
            self._runs[identity] = replace(run, current=True)
        return self._runs[identity]

    def scores(
        self,
        recipe: str,
        densities: tuple[str, ...],
        n: int = 10_000,
        *,
        settings: dict[str, Any] | None = None,
        groups: tuple[str, ...] = DEFAULT,
    ) -> Scores:
        """Scores of a recipe's run for these densities and groups of metrics; measured once per extractor and version of the metrics' code."""
        run = self.run(recipe, settings)
        assert run.folder is not None
        extractor, notes = self.extractor(run.dataset)
        found: list[ScoresValue] = []

        def enough(kept: ScoresValue) -> bool:
            found.append(kept)
            return {f"samples {d}" for d in densities} <= kept["rows"].keys() and set(groups) <= set(kept["groups"])

        def make() -> ScoresValue:
            """With all that was measured before."""
            before = (row.removeprefix("samples ") for kept in found for row in kept["rows"] if row.startswith("samples "))
            every, chosen = dict.fromkeys((*before, *densities)), dict.fromkeys((*(g for kept in found for g in kept["groups"]), *groups))
            self.say(f"scoring {recipe}: {', '.join(every)}")
            made = run.score(
                extractor, densities=tuple(every), n=n, notes=notes, groups=tuple(chosen), interpolations=INTERPOLATIONS, keep=False
            )
            return made.to_json()

        most = min(n, len(run.dataset.val.x), len(run.dataset.test.x))
        return Scores.from_json(self.remember(run, "scores", make, extractor.identity, most, kind=ScoresValue, enough=enough))

    def remember(
        self,
        run: Run,
        name: str,
        make: Callable[[], T],
        *key: Any,
        kind: type[T],
        code: tuple[Any, ...] = (),
        enough: Callable[[T], bool] = lambda found: True,
    ) -> T:
        """A measurement of a run, made once per state of the code that makes it: see :func:`expost.system.storage.remember`."""
        assert run.folder is not None
        what = (run.weights, run.dataset.hash, self.seed, *key)
        return remember(run.folder.path / "measured", name, make, *what, kind=kind, code=code, enough=enough)

    def extractor(self, dataset: data.Dataset) -> tuple[Extractor, tuple[str, ...]]:
        """The extractor of a data set's scores, and what must be said about it."""
        if dataset.hash not in self._extractors:
            self._extractors[dataset.hash] = extractor_of("classifier", dataset)
        return self._extractors[dataset.hash]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several figures and claims need, made for the first and kept in memory."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    @property
    def asked(self) -> int:
        """How many runs were asked for so far."""
        return len(self._runs)

    def trained_by_other_code(self) -> list[Path]:
        """The folders of runs, of those asked for, that other code has trained than what would train them now."""
        folders = [(run.folder, training_code(run.experiment)) for run in self._runs.values() if run.folder is not None]
        return [folder.path for folder, code in folders if folder.read_recipe().get("versions", {}).get(CODE) != code]

    @cached_property
    def dataset(self) -> data.Dataset:
        return data.load(self.source, **self.loading)
