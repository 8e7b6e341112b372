"""Trainings that tests interrupt, kill and resume, in processes of their own. Run as a script under torchrun by test_distributed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import expost
from expost import heads
from expost.autoencoder import Autoencoder
from expost.objectives import ELBO, RAE, Adversarial, Clipped, Loss, Objective
from expost.optimise import Plateau
from expost.runs import find, plan, recipes
from expost.runs.run import prepare_prior
from expost.seeds import seeded
from expost.train.settings import Training
from toys import convolutional, model, pictures, vectors

RECIPES = recipes()


def critic() -> nn.Module:
    with seeded("critic"):
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


class Watched(Objective):
    """An objective that calls ``before`` with each step and ``after`` after it; not a dataclass, so that neither belongs to the run's identity."""

    def __init__(
        self, objective: Objective, before: Callable[[int], None], after: Callable[[Autoencoder], None] = lambda model: None
    ) -> None:
        self.objective, self.before, self.after = objective, before, after

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        return self.objective(model, x)

    def at(self, step: int) -> Objective:
        self.before(step)
        return Watched(self.objective.at(step), self.before, self.after)

    def modules(self) -> dict[str, nn.Module]:
        return self.objective.modules()

    def players(self, model: Autoencoder) -> Any:
        return self.objective.players(model)

    def after_step(self, model: Autoencoder) -> None:
        self.objective.after_step(model)
        self.after(model)


#: Everything that a checkpoint must carry: batch normalisation, a critic, averaged and best weights, a plateau schedule, sums of a row.
EVERYTHING = Training(
    steps=150, batch_size=8, lr=1e-2, schedule=Plateau(patience=2, factor_each=0.9), ema=0.9, best=True, clip=1.0, log_every=7,
    checkpoint_every=0.03,
)  # fmt: skip


def everything(folder: Path | None, before: Callable[[int], None], *, resume: bool = False) -> tuple[Autoencoder, Objective, Any]:
    """A training with all the state there is."""
    m = convolutional(heads.Gaussian("optimal", torch.sigmoid))
    own = critic()
    objective = Watched(Clipped(Adversarial(own, 1.0), 5.0), before)
    history = expost.fit(m, objective, pictures(44), training=EVERYTHING, val=pictures(13, seed=1), out=folder, resume=resume, device="cpu")
    return m, objective, history


def child(folder: str, reached: Any) -> None:
    """Start or resume ``everything``, telling each step through shared memory."""
    torch.set_num_threads(1)

    def tell(step: int) -> None:
        reached.value = step

    everything(Path(folder), tell, resume=True)


def recipe_run(name: str, folder: Path | None, events: dict[int, Any] | None = None) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Nine steps of a recipe's own network and objective at the cpu budget, started or resumed, with a checkpoint after each.

    Returns all weights at its end, and the history but for its clock.

    Args:
        events: step -> the signal that this process gets, or the exception that is raised, before it.
    """
    row = find(name)
    experiment, dataset = plan(name, data_name=row.data if row.data == "8gaussians" else "digits")
    optimiser = ("adam", "adamw", "amsgrad")[sorted(RECIPES).index(name) % 3]
    training = Training(
        steps=9, batch_size=16, lr=1e-3, optimiser=optimiser, weight_decay=1e-4, clip=1.0, ema=0.9, best=True, log_every=3, checkpoint_every=0,
        schedule=Plateau(patience=1),
    )  # fmt: skip
    m, own = experiment.build(seed=0)
    prepare_prior(m, dataset)
    pending = dict(events or {})

    def before(step: int) -> None:
        event = pending.pop(step, None)
        if isinstance(event, signal.Signals):
            os.kill(os.getpid(), event)
        elif event is not None:
            raise event("as a user's own code would")

    history = expost.fit(
        m, Watched(own, before), dataset.train.x[:70], val=dataset.val.x[:20], training=training, out=folder, resume=True, device="cpu"
    )
    owned = {f"{part}.{k}": v for part, module in own.modules().items() for k, v in module.state_dict().items()}
    return {**m.state_dict(), **owned}, [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


ENDLESS = Training(steps=100_000, batch_size=8, log_every=5, checkpoint_every=1e9)


def interruptible(folder: str) -> None:
    """A long training, for Ctrl-C; exits with 130 when interrupted."""
    torch.set_num_threads(1)
    objective = Watched(ELBO(), lambda step: None)
    try:
        expost.fit(model(), objective, vectors(), training=ENDLESS, out=folder, resume=True, device="cpu")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)


# -- several processes -----------------------------------------------------------------------------------------------------------------------

SHARED = Training(steps=24, batch_size=16, lr=3e-3, log_every=1, clip=0.5, ema=0.9)


def deterministic(out: Path | None = None, before: Callable[[int], None] = lambda step: None, *, resume: bool = False, **k: Any) -> Any:
    """An objective without noise or batch statistics: any number of processes must give the same losses."""
    m = model(heads.Dirac(), heads.Gaussian("shared"))
    objective = Watched(RAE(0.1), before)
    history = expost.fit(m, objective, vectors(70), training=SHARED, val=vectors(9, seed=1), out=out, resume=resume, device="cpu", **k)
    return m, history


def summary(m: nn.Module, history: Any) -> dict[str, Any]:
    return {
        "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows],
        "weights": torch.cat([p.detach().flatten() for p in m.state_dict().values()]).double().tolist(),
        "stopped": history.stopped,
        "best_step": history.best_step,
    }


def commands(folder: Path) -> list[Any]:
    """How commands end in this process that are run one after the other, as ``torchrun -m expost`` runs them."""
    from expost.cli import main
    from expost.runs import run as runs

    rank, out, ended = os.environ["RANK"], str(folder / "run"), list[Any]()

    def command(*arguments: str) -> None:
        try:
            ended.append(main(arguments))
        except SystemExit as end:
            ended.append(end.code)

    train = ("train", "ghosh2020/rae", "--data", "digits", "--budget", "smoke", "--device", "cpu", "--out", out)
    command(*train)
    command("density", out, "gaussian")
    command("sample", out, "--density", "gaussian", "-n", "4", "--out", f"{out}.npz")
    command("evaluate", out, "-n", "60", "--extractor", "pixels", "--metrics", "fd", "--density", "gaussian", "stage")
    command(*train)  # the folder is taken: the main process looks, and tells the other
    command(*train, "--resume")
    command("train", "--nosuch")
    command("sample", out)
    plan = runs.plan

    def failing(*a: Any, **k: Any) -> Any:
        if rank == "1":
            raise ValueError("process 1 has no disk")
        return plan(*a, **k)

    runs.plan = failing
    command(*train)  # process 0 waits for process 1, until that ends
    return ended


def distributed(folder: Path) -> None:
    """All that test_distributed looks at, from one launch; every process writes what it ended with."""
    rank = int(os.environ["RANK"])
    results = {"deterministic": summary(*deterministic(progress=True)), "threads": torch.get_num_threads()}

    def interrupt(step: int) -> None:
        if step == 9 and rank == 1:  # one process alone notices the signal
            os.kill(os.getpid(), signal.SIGINT)

    try:
        deterministic(folder / "run", interrupt)
        results["interrupted"] = False
    except KeyboardInterrupt:
        results["interrupted"] = True
        results["checkpoint"] = (folder / "run" / "checkpoint.safetensors").is_file()
    results["resumed"] = summary(*deterministic(folder / "run", resume=True))

    m, _, history = everything(None, lambda step: None)  # batch statistics, a critic, Plateau and best: processes must agree on all of it
    results["everything"] = summary(m, history)

    m = model(heads.Dirac())
    bad = expost.fit(m, OneSided(rank), vectors(70), training=SHARED, out=folder / "bad", device="cpu")
    results["one-sided"] = summary(m, bad)
    results["commands"] = commands(folder / "commands")
    (folder / f"rank{rank}.json").write_text(json.dumps(results))


@dataclass(frozen=True)
class OneSided(Objective):
    """A loss that overflows at step 6 in process 1 only."""

    rank: int
    step: int = 0

    def __repr__(self) -> str:
        return "OneSided"

    def __call__(self, model: Autoencoder, x: Tensor) -> Loss:
        loss = RAE()(model, x)
        return Loss(loss.total * float("inf"), loss.parts) if self.rank == 1 and self.step == 6 else loss

    def at(self, step: int) -> Objective:
        return OneSided(self.rank, step)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
