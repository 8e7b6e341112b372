"""``fit``: the training loop.

Under ``torchrun`` several processes, GPUs or machines share the work (:mod:`expost.system.processes`); the data stays one tensor on the device and
is sliced, not loaded. Two properties are promised and tested:

* *Determinism*: the order of epoch e depends on (seed, e) and the noise of step t on (seed, t, process) alone. Same seed, machine and
  number of threads: bitwise the same weights.
* *Exact resume*: since nothing random is carried from step to step, a checkpoint is weights, optimiser moments and a step number. A run
  killed at any moment and resumed ends with the weights of an uninterrupted one, bit for bit.

With W processes each takes its rows of the same global batch; gradients are averaged, so deterministic objectives give the losses of one
process. Batch statistics (batch normalisation, MMD) are those of each process's rows.
"""

from __future__ import annotations

import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from expost.autoencoder import Autoencoder, evaluating
from expost.conditional import network_precision
from expost.density.base import Codes, draw_codes
from expost.fast.memory import retained
from expost.heads import Gaussian
from expost.objectives.base import Objective
from expost.optimise import Plateau
from expost.seeds import permutation, seed_from, seeded
from expost.system.devices import choose_device
from expost.system.files import FULL, Room, keep, load_tensors, save_tensors
from expost.system.hashes import stable_repr
from expost.system.interrupt import Interruptible
from expost.system.locks import training as holding
from expost.system.processes import Processes, join
from expost.system.progress import Bar
from expost.system.schema import Meta
from expost.system.state import Note, State, StateName, leaving_nothing, made
from expost.system.trackers import Trackers, check_trackers
from expost.tensors import as_data, batches, check_finite, check_levels, like, spelled, unit
from expost.train.folder import RunFolder, check_state, load_weights, moments, prefixed, restore_moments, split_prefix
from expost.train.history import UNTRAINED, History
from expost.train.settings import Training, automatic_precision

__all__ = ["Watch", "fit"]

Watch = Callable[[Autoencoder], dict[str, float]]


class _State(TypedDict):
    """What a checkpoint says beside its tensors."""

    fingerprint: str
    step: Annotated[int, Meta(ge=0)]
    count: Annotated[int, Meta(ge=0)]
    best: float
    bad: Annotated[int, Meta(ge=0)]
    schedule: dict[str, float]
    history: dict[str, Any]


READ_AHEAD = 2**29
"""Bytes of data from which batches are gathered one step ahead."""

ABSURD = 1e4
"""Nats per number of an example above which a loss, and times by which one that grows, is said to be absurd, finite as it is."""

FAR = 100.0
"""Values of data that are said to be large where the loss is not finite."""


class _NothingTrained(Exception):
    """The loss of the very first step was not finite: whatever is wrong was wrong before the training."""


class _Step(nn.Module):
    """What DistributedDataParallel wraps: a player's network with the loss as its forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, loss: Any, model: list[Autoencoder], x: Tensor) -> Any:
        return loss(model[0], x)


def fit(
    model: Autoencoder,
    objective: Objective,
    x: Codes,
    *,
    training: Training,
    val: Tensor | None = None,
    seed: int = 0,
    out: str | Path | RunFolder | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    trackers: tuple[str, ...] = (),
    watch: Watch | None = None,
    what: str = "training",
) -> History:
    """Train ``model`` in place, and return the history.

    Args:
        model: the autoencoder; moved to the device.
        objective: (model, x) -> nats per example.
        x: training data (n, *event), ``uint8`` images or floats, kept on the device; or a distribution of batch shape (n,), of which a fresh
            sample is drawn every epoch (how a second stage sees the codes).
        training: length, optimiser, schedules.
        val: validation data, for ``best``, ``patience``, ``Plateau`` and the history.
        seed: of data order and noise. Weights are initialised by whoever built the model.
        out: run folder for history, checkpoints and the final weights.
        resume: continue from the folder's checkpoint if there is one.
        device: where to train, e.g. ``"cpu"`` or ``"cuda:1"``; default: a CUDA GPU if there is one.
        progress: False for silence, True to be heard off a terminal too; default: see :mod:`expost.system.progress`.
        trackers: names of trackers known to accelerate (``"tensorboard"``, ``"wandb"``, ``"mlflow"`` ...), which must be installed.
        watch: called at every validation with the model as it would be kept (averaged weights, evaluation mode, no gradients); the numbers
            it returns join the history's validation row. It has no influence on the training.
        what: what progress calls this training, where it is part of something else.

    Raises:
        ValueError: data or settings that cannot be trained on, in one sentence.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.

    A non-finite loss does not raise: training stops, the last good weights are restored, and ``history.failed`` is true. A time limit leaves
    a checkpoint (``history.stopped == "time"``). A training of which not one step succeeded leaves nothing in its folder.
    """
    return _Fit(model, objective, x, training, val, seed, out, device, trackers, watch).run(resume, progress, what)


class _Fit:
    """State of one training; the methods are its phases."""

    def __init__(
        self,
        model: Autoencoder,
        objective: Objective,
        x: Codes,
        training: Training,
        val: Tensor | None,
        seed: int,
        out: str | Path | RunFolder | None,
        device: str | torch.device | None,
        trackers: tuple[str, ...],
        watch: Watch | None,
    ) -> None:
        folder = out if isinstance(out, RunFolder) or out is None else RunFolder.at(out)
        self.source = x
        x = x.mean if isinstance(x, Distribution) else as_data(x, "the training data")
        val = None if val is None else as_data(val, "the validation data")
        if len(x) < 1:
            raise ValueError("there are no training examples: the training split is empty")
        check_finite(x, "the training data")
        _check_fit(model, x)
        if val is not None and val.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the validation data are of shape {tuple(val.shape[1:])}, the training data of {tuple(x.shape[1:])}: make them equal"
            )
        if (training.best or training.patience or isinstance(training.schedule, Plateau)) and val is None:
            raise ValueError("best=True, patience and Plateau need validation data: pass val=...")
        if trackers and folder is None:
            raise ValueError("trackers write into the run folder: pass out=...")
        check_trackers(trackers)
        self.wanted, self.watch = trackers, watch
        self.trackers: Trackers | None = None
        self.device = choose_device(device)
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)
        join()
        self.processes = Processes()
        self.rank, self.world = self.processes.rank, self.processes.world
        self.model, self.objective, self.training, self.seed, self.folder = model.to(self.device), objective, training, seed, folder
        for module in objective.modules().values():
            module.to(self.device)
        checked = _checksum(x) if val is None else f"{_checksum(x)} {_checksum(val)}"
        self.fingerprint = f"{training.identity()} {stable_repr(objective)} {tuple(x.shape)} {checked} seed={seed}"
        self.x, self.val = self._placed(x), None if val is None else self._placed(val)
        self.reader = ThreadPoolExecutor(1, "rows") if x.nbytes > READ_AHEAD and self.x.device.type == "cpu" else None
        self.ahead: tuple[tuple[int, int], Future[Tensor]] | None = None
        self.batch = min(training.batch_size, len(x))
        if self.batch % self.world:
            raise ValueError(f"the batch of {self.batch} cannot be shared by {self.world} processes: choose a multiple of {self.world}")
        if self.batch // self.world == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            raise ValueError(f"batch normalisation needs more than one example in a process: batch_size must be at least {2 * self.world}")
        self.per_epoch = len(x) // self.batch
        self.total = training.length(self.per_epoch)
        self.precision = {"auto": automatic_precision(model, self.device), "float32": None, "bfloat16": torch.bfloat16}[training.precision]
        players = objective.players(model)
        self.names = [p.name for p in players]
        self.wrapped = [self._shared(_Step(p.module)) for p in players]
        self.optimisers = [self._optimiser(p.module) for p in players]
        self.parameters = [[p for p in player.module.parameters() if p.requires_grad] for player in players]
        self.heads = [m for m in model.modules() if isinstance(m, Gaussian)]
        self.step, self.schedule_state, self.best, self.bad = 0, dict[str, float](), math.inf, 0
        self.begun, self.tie = False, dict[str, str]()
        self.history, self.sums, self.count = History(), dict[str, Tensor](), 0
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()} if training.ema else None
        self.averaged = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.best_state: dict[str, Tensor] | None = None
        self.good, self.good_step = self._snapshot(), 0
        self.room: Room | None = None

    def _shared(self, step: _Step) -> nn.Module:
        """The step, averaging its gradients over the processes."""
        if self.world == 1 or not any(p.requires_grad for p in step.parameters()):
            return step
        return nn.parallel.DistributedDataParallel(step, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def _optimiser(self, module: nn.Module) -> torch.optim.Adam | torch.optim.AdamW:
        t = self.training
        own = {id(p) for m in module.modules() if isinstance(m, Gaussian) for p in m.parameters(recurse=False)}
        groups = [
            {"params": [p for p in module.parameters() if p.requires_grad and id(p) not in own], "base": t.lr},
            {"params": [p for p in module.parameters() if p.requires_grad and id(p) in own], "base": t.head_lr or t.lr},
        ]
        kind = torch.optim.AdamW if t.optimiser == "adamw" else torch.optim.Adam
        fused = self.device.type in ("cpu", "cuda")
        return kind(
            [g for g in groups if g["params"]],
            lr=t.lr, betas=t.betas, eps=t.eps, weight_decay=t.weight_decay, amsgrad=t.optimiser == "amsgrad", fused=fused,
        )  # fmt: skip

    # -- the loop ---------------------------------------------------------------------------------------------------------------------

    def run(self, resume: bool, progress: bool | None, what: str) -> History:
        """Train under the folder's lock, with room on its disk held for what will be written."""
        with suppress(_NothingTrained), ExitStack() as stack:
            with self.processes.together():
                if self.folder is not None and self.processes.main:
                    stack.enter_context(made(self.folder.path))
                    stack.enter_context(holding(self.folder.path))
                    stack.enter_context(leaving_nothing(self.folder.path, lambda: self.begun))
            self._run(resume, progress, what, stack)
        return self.history

    def _run(self, resume: bool, progress: bool | None, what: str, stack: ExitStack) -> None:
        if self.folder is not None:
            self.tie = self.folder.run_sum()
            if resume and self._already_finished():
                return
            if self.folder.weights_file == self.folder.checkpoint_file:
                if not resume:
                    raise ValueError(
                        f"{self.folder.path} holds an unfinished run: continue it with resume=True (--resume), or choose another folder"
                    )
                self._restore()
            with self.processes.together():
                if self.processes.main:
                    self.room = stack.enter_context(self._room(self.folder.path))
        if self.wanted and self.folder is not None and self.processes.main:
            config = {"training": repr(self.training), "objective": stable_repr(self.objective), "seed": self.seed}
            self.trackers = Trackers(self.wanted, self.folder.path, config)
        self.session = self.saved = time.monotonic()
        self.clock = self.session - self.history.seconds
        modes = [m.training for m in self.model.modules()]
        bar = Bar(self.total, self.step, what=what, unit="step", enabled=progress)
        hoard = self.device.type == "cpu" and sum(p.numel() for p in self.model.parameters()) > 2_000_000
        try:
            with seeded("fit", self.seed), retained(hoard), _without_layout_warnings(self.world > 1), Interruptible() as interrupt, bar:
                self.model.train()
                for module in self.objective.modules().values():
                    module.train()
                while self.step < self.total and not self.history.stopped:
                    self._one_step()
                    bar.update(self.step, self._means)
                    self._bookkeeping()
                    if self.step == self.total or self.history.stopped:
                        break
                    if self._agreed(interrupt.requested):
                        self._stop("interrupted")
                        raise self._interrupted()
                    if self.training.minutes is not None and self._agreed(time.monotonic() - self.session > 60 * self.training.minutes):
                        self._stop("time")
            if self.history.stopped == "time":
                if self.count:
                    self._row("train", self._running())  # of the last interval; the checkpoint goes on without it
                self._keep()
            else:
                self._finish()
        except Exception as error:
            if self.begun:
                self._record("stopped", " ".join(f"{type(error).__name__}: {error}".split())[:500])
            raise
        except KeyboardInterrupt as error:  # a second one, in the middle of a step
            raise error if error.args else self._interrupted() from None
        finally:
            for m, mode in zip(self.model.modules(), modes, strict=True):
                m.training = mode
            if self.trackers is not None:
                self.trackers.finish()
        if interrupt.requested:  # too late for this training, in time for what would follow
            raise KeyboardInterrupt

    def _room(self, folder: Path) -> Room:
        """Disk space for the weights and a checkpoint: a disk that fills up meanwhile shall not cost the training."""
        modules = [self.model, *self.objective.modules().values()]
        parameters, state = (
            sum(t.numel() * t.element_size() for t in tensors)
            for tensors in (
                [p for players in self.parameters for p in players],
                [t for module in modules for t in module.state_dict().values()],
            )
        )
        self.weights = sum(t.numel() * t.element_size() for t in self.model.state_dict().values()) + 2**16
        moments = (3 if self.training.optimiser == "amsgrad" else 2) * parameters
        self.checkpoint = state + moments + self.weights * ((self.average is not None) + self.training.best) + 2**16
        try:
            return Room(folder, self.weights + self.checkpoint)
        except OSError as error:
            if error.errno not in FULL:
                raise
            need = f"{(error.strerror or 'no space').lower()} for weights and a checkpoint, {(self.weights + self.checkpoint) / 1e6:.1f} MB"
            raise OSError(error.errno, need, str(folder)) from None

    def _one_step(self) -> None:
        epoch, place = divmod(self.step, self.per_epoch)
        if place == 0 or not hasattr(self, "order"):
            self.order = permutation(len(self.x), "order", self.seed, epoch)
            if isinstance(self.source, Distribution):
                self.x = draw_codes(self.source, seed=self.seed, epoch=epoch).to(self.device)
        share = self.batch // self.world
        start = place * self.batch + self.rank * share
        x = unit(self._rows(start, share, place + 1 < self.per_epoch), self.model.dtype)
        self.last = x
        objective = self.objective.at(self.step)
        _reseed(seed_from("noise", self.seed, self.step, self.rank), self.device)
        rate = self.training.schedule.factor(self.step / self.total, epoch) * self.schedule_state.get("factor", 1.0)
        parts: dict[str, Tensor] = {}
        for i, player in enumerate(objective.players(self.model)):
            optimiser = self.optimisers[i]
            for group in optimiser.param_groups:
                group["lr"] = rate * group["base"]
            with network_precision(self.precision):
                loss = self.wrapped[i](player.loss, [self.model], x)
            loss.total.mean().backward()
            if self.training.clip is not None:
                nn.utils.clip_grad_norm_(self.parameters[i], self.training.clip)
            optimiser.step()
            for other in self.optimisers:
                other.zero_grad(set_to_none=True)
            if i == 0:
                parts["total"] = loss.total.detach().mean()
            parts |= {name: value.detach().mean() for name, value in loss.parts.items()}
        for head in self.heads:
            head.track()
        objective.after_step(self.model)
        if self.average is not None:
            _average(self.average, self.model.state_dict(), self.averaged, self.training.ema or 0.0, self.step)
        # in the order of this step: a checkpoint's are in that of the alphabet
        self.sums = {**{name: self.sums[name] + v if name in self.sums else v.double() for name, v in parts.items()}, **{
            name: v for name, v in self.sums.items() if name not in parts}}  # fmt: skip
        self.count += 1
        self.step += 1

    def _placed(self, x: Tensor) -> Tensor:
        """On the device; data of more than half of a GPU's free memory stay where they are, and go there batch by batch."""
        if self.device.type == "cuda" and x.nbytes > torch.cuda.mem_get_info(self.device)[0] // 2:
            return x
        return x.to(self.device)

    def _rows(self, start: int, share: int, more: bool) -> Tensor:
        """The rows of this step. Those of large data, which are mapped from a file, are gathered by a thread one step ahead."""
        order = self.order
        if self.reader is None:
            return self.x.index_select(0, order[start : start + share].to(self.x.device)).to(self.device)
        if self.ahead is None or self.ahead[0] != (self.step, start):
            self.ahead = (self.step, start), self.reader.submit(self.x.index_select, 0, order[start : start + share])
        rows = self.ahead[1].result()
        following = start + self.batch
        self.ahead = None
        if more:
            self.ahead = (self.step + 1, following), self.reader.submit(self.x.index_select, 0, order[following : following + share])
        return rows.to(self.device)

    def _bookkeeping(self) -> None:
        """After a step: notice a non-finite loss, write rows, validate, checkpoint, watch the clock."""
        boundary = self.step % self.per_epoch == 0 or self.step == self.total
        due = boundary or self.step % self.training.log_every == 0
        if (due or self.device.type == "cpu" or not self.begun) and self._agreed(not math.isfinite(float(self.sums["total"]))):
            self._roll_back()
            return
        if not self.begun:
            self.begun = True
            self._record("running")
        if due:
            self._row("train", self._running())
            self.sums, self.count = {}, 0
        epoch = math.ceil(self.step / self.per_epoch)
        if boundary and (epoch % self.training.validate_every == 0 or self.step == self.total):
            self._validate(epoch)
        if boundary or self._agreed(time.monotonic() - self.saved > self.training.checkpoint_every):
            if self._agreed(not all(bool(torch.isfinite(p).all()) for p in self.model.parameters())):
                self._roll_back()
                return
            self.good, self.good_step = self._snapshot(), self.step
            if self._agreed(time.monotonic() - self.saved > self.training.checkpoint_every):
                self._save()

    def _agreed(self, flag: bool) -> bool:
        """The same answer in every process: true if it is true in any."""
        return self.processes.noticed(flag)

    def _means(self) -> dict[str, float]:
        """Means over the interval so far, of this process's rows."""
        return {name: float(value) / max(1, self.count) for name, value in self.sums.items()}

    def _running(self) -> dict[str, float]:
        """Means over the interval so far, of all processes' rows; every process must ask."""
        means = self._means()
        if self.world > 1 and means:
            stacked = self.processes.mean(torch.tensor(list(means.values()), dtype=torch.float64, device=self.processes.place))
            return dict(zip(means, stacked.tolist(), strict=True))
        return means

    def _share_buffers(self) -> None:
        """Give every process the buffers of process 0 (batch statistics differ), so that all validate and keep the same model."""
        if self.world > 1:
            parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
            for state in (self.model.state_dict(), self.average or {}):
                for name, value in state.items():
                    if name not in parameters and value.is_floating_point():
                        value.copy_(self.processes.from_main(value))

    def _row(self, split: str, values: dict[str, float]) -> None:
        row: dict[str, Any] = {"step": self.step, "epoch": round(self.step / self.per_epoch, 4), "split": split}
        row |= {"seconds": round(time.monotonic() - self.clock, 3), "lr": self.optimisers[0].param_groups[0]["lr"], **values}
        if split == "train":
            for head in self.heads:
                if head.kind in ("shared", "optimal"):
                    row["log_gamma"] = 2 * float(head.log_scale.detach())
        self.history.rows.append(row)
        if self.folder is not None and self.processes.main:
            with keep(self.folder.path):
                self.folder.write_history(self.history.to_csv())
        if self.trackers is not None:
            self.trackers.log({f"{split}/{k}": v for k, v in row.items() if isinstance(v, float)}, self.step)

    def _validate(self, epoch: int) -> None:
        if self.val is None:
            return
        self._share_buffers()
        current = self.model.state_dict()
        kept = {k: v.clone() for k, v in current.items()} if self.average is not None else None
        if self.average is not None:
            self.model.load_state_dict(self.average)
        totals: dict[str, float] = {}
        n, size = len(self.val), max(2, self.batch)
        used = n - (n > 1 and n % size == 1)  # batch statistics need two
        # in a fixed random order: MMD and distances of classes are not those of batches of one class
        order = permutation(used, "val", self.seed).to(self.device)
        objective = self.objective.at(self.step)
        with evaluating(self.model, *objective.modules().values()), seeded("val", self.seed, epoch), network_precision(self.precision):
            for rows in batches(order, size):
                loss = objective(self.model, unit(self.val.index_select(0, rows.to(self.val.device)).to(self.device), self.model.dtype))
                for name, value in {"total": loss.total, **loss.parts}.items():
                    totals[name] = totals.get(name, 0.0) + float(value.mean()) * len(rows) / used
        watched: dict[str, float] = {}
        if self.watch is not None:
            with evaluating(self.model), seeded("watch", self.seed, epoch):
                watched = self.watch(self.model)
        self._row("val", {**totals, **watched})
        loss_now = totals["total"]
        if isinstance(self.training.schedule, Plateau):
            self.schedule_state = self.training.schedule.after_validation(loss_now, self.schedule_state)
        if loss_now < self.best:
            self.best, self.bad = loss_now, 0
            if self.training.best:
                self.best_state, self.history.best_step = {k: v.clone() for k, v in self.model.state_dict().items()}, self.step
        else:
            self.bad += 1
            if self.training.patience is not None and self.bad >= self.training.patience:
                self.history.stopped = "early stop"
        if kept is not None:
            self.model.load_state_dict(kept)

    # -- state ------------------------------------------------------------------------------------------------------------------------

    def _snapshot(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in (self.average or self.model.state_dict()).items()}

    def _roll_back(self) -> None:
        low, high = (float(v) for v in self.last.aminmax())
        far = f"scale the data, which reach from {low:.3g} to {high:.3g}"
        self.history.stopped = (
            f"non-finite loss at step {self.step}: the weights are those of step {self.good_step}; lower the learning rate or clip gradients (training.clip=1)"
            + (f", or {far}" if max(-low, high) > FAR else "")
            if self.begun
            else f"{UNTRAINED}: {far}, or check the weights in the objective"
        )
        self.model.load_state_dict(self.good)
        self.average, self.best_state = None, None
        self.history.best_step = self.good_step
        if not self.begun:
            raise _NothingTrained

    def _stop(self, why: str) -> None:
        """Leave a checkpoint to go on from."""
        self.history.stopped = why
        self._save()
        self._record("stopped", why)
        self.processes.wait()

    def _interrupted(self) -> KeyboardInterrupt:
        """Says where it can go on, if a checkpoint was kept."""
        kept = self.folder is not None and self.folder.checkpoint_file.is_file()
        return KeyboardInterrupt(f"at {self._at()}, with a checkpoint") if kept else KeyboardInterrupt()

    def _at(self) -> str:
        """Where the training is."""
        epochs = self.training.epochs
        return f"step {self.step} of {self.total}" if epochs is None else f"epoch {self.step / self.per_epoch:.1f} of {epochs}"

    def _record(self, name: StateName, why: str = "") -> None:
        """Write how far the run is."""
        if self.folder is not None and self.processes.main:
            with keep(self.folder.path):
                self.folder.write_state(State(name, self._at(), why))

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.folder is None or not self.processes.main:
            return
        tensors = prefixed("model", dict(self.model.state_dict()))
        for name, module in self.objective.modules().items():
            tensors |= prefixed(f"objective/{name}", dict(module.state_dict()))
        for name, optimiser in zip(self.names, self.optimisers, strict=True):
            tensors |= prefixed(f"optimiser/{name}", moments(optimiser))
        tensors |= prefixed("average", self.average or {}) | prefixed("best", self.best_state or {}) | prefixed("sums", self.sums)
        self.history.seconds = time.monotonic() - self.clock
        state = {
            "kind": "checkpoint", **self.tie, "fingerprint": self.fingerprint, "step": self.step, "count": self.count, "best": self.best, "bad": self.bad,
            "schedule": self.schedule_state, "history": self.history.to_json(),
        }  # fmt: skip
        with keep(self.folder.path):
            assert self.room is not None
            self.room.resize(self.weights)
            save_tensors(self.folder.checkpoint_file, tensors, state)
            self.room.resize(self.weights + self.checkpoint)
            self._record("running")

    def _restore(self) -> None:
        assert self.folder is not None
        where = str(self.folder.checkpoint_file)
        tensors, state = load_tensors(where, "the checkpoint of a run", meta=_State)
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{where} belongs to a run with other settings or other data: repeat the original settings, or choose another folder"
            )
        load_weights(self.model, split_prefix("model", tensors), where)
        for name, module in self.objective.modules().items():
            load_weights(module, split_prefix(f"objective/{name}", tensors), where)
        for name, optimiser in zip(self.names, self.optimisers, strict=True):
            restore_moments(optimiser, split_prefix(f"optimiser/{name}", tensors), where)
        own_state = self.model.state_dict()
        for name in ("average", "best"):
            if state_of := split_prefix(name, tensors):
                check_state(own_state, state_of, where)
        self.average = {k: like(v, own_state[k]) for k, v in split_prefix("average", tensors).items()} or self.average
        self.best_state = {k: like(v, own_state[k]) for k, v in split_prefix("best", tensors).items()} or None
        self.sums = {k: v.to(self.device) for k, v in split_prefix("sums", tensors).items()}
        self.step, self.count, self.best, self.bad = state["step"], state["count"], state["best"], state["bad"]
        self.schedule_state, self.history = state["schedule"], History.from_json(state["history"])
        self.history.stopped = ""
        self.begun = True
        self._record("running")
        self.good, self.good_step = self._snapshot(), self.step

    def _already_finished(self) -> bool:
        """Whether the folder holds the end of this very run; if so its weights and history are taken from there."""
        assert self.folder is not None
        if self.folder.weights_file != self.folder.model_file or not self.folder.model_file.is_file():
            return False
        tensors, meta = load_tensors(self.folder.model_file, "the weights of a run")
        if meta.get("fingerprint") != self.fingerprint:
            return False
        load_weights(self.model, tensors, str(self.folder.model_file))
        self.history = self.folder.history() or History()
        return True

    def _keep(self) -> None:
        """Give the model the weights that are kept."""
        self._share_buffers()
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)
        elif self.average is not None:
            self.model.load_state_dict(self.average)
        if self.best_state is None and not self.history.failed:
            self.history.best_step = self.step
        self.history.seconds, self.history.images = time.monotonic() - self.clock, self.step * self.batch

    def _finish(self) -> None:
        self._keep()
        self.history.stopped = self.history.stopped or "finished"
        if self.folder is not None and self.processes.main:
            if self.room is not None:
                self.room.release()
            end = {"step": self.history.best_step, "stopped": self.history.stopped}
            self.folder.save_model(self.model, {**end, "fingerprint": self.fingerprint, "history": self.history.timeless().to_json()})
            took = {"stopped": self.history.stopped, "seconds": round(self.history.seconds, 2), "images": self.history.images}
            self.folder.add_results("training", took)
            with keep(self.folder.path):
                self.folder.write_history(self.history.to_csv())
            self.folder.checkpoint_file.unlink(missing_ok=True)
            self._record("failed" if self.history.failed else "finished", self.history.stopped)
        if self.processes.main:
            self._question()
        self.processes.wait()

    def _question(self) -> None:
        """A warning where the loss is finite, and yet no result of a training that went well."""
        losses = self.history.curve("total").y
        if self.history.failed or not losses:
            return
        first, last, dims = losses[0], losses[-1], math.prod(self.x.shape[1:])
        went = f"the loss went from {first:.3g} to {last:.3g} nats per example: "
        if last > ABSURD * max(dims, abs(first)):
            warnings.warn(f"{went}lower the learning rate or clip gradients (training.clip=1)", Note, stacklevel=2)
        elif last > ABSURD * dims:
            low, high = (float(v) for v in self.last.aminmax())
            warnings.warn(f"{went}scale the data, which reach from {low:.3g} to {high:.3g}", Note, stacklevel=2)


@contextmanager
def _without_layout_warnings(shared: bool) -> Iterator[None]:
    """Without what DistributedDataParallel says, in every process, of channels-last gradients of layers with one input channel."""
    if not shared:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grad strides do not match")
        yield


def _check_fit(model: Autoencoder, x: Tensor) -> None:
    """``ValueError`` where data do not go through the model, or lie where its decoder cannot reach; before anything is trained or written."""
    check_levels(x, "the training data")
    head = model.decoder.head
    if x.is_floating_point() and isinstance(head, Gaussian) and head.link is torch.sigmoid and (float(x.min()) < 0 or float(x.max()) > 1):
        reach = f"from {spelled(x.min())} to {spelled(x.max())}"
        raise ValueError(f"the decoder's means lie in [0, 1] (a sigmoid), and the training data reach {reach}: scale them to [0, 1]")
    with evaluating(model):
        q = model.encode(model.stored(x[:1]))
        model.decode(q.mean)
        event = model.latent().event_shape if model.prior is not None else ()  # an autoencoder as a prior does not know its own
        if event and event != q.event_shape:
            raise ValueError(f"the prior is on codes of shape {tuple(event)}, the encoder makes {tuple(q.event_shape)}: build it for these")


def _reseed(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _average(average: dict[str, Tensor], current: dict[str, Tensor], parameters: set[str], decay: float, step: int) -> None:
    """average <- decay · average + (1 - decay) · current, with the decay growing from 0 as (1 + t) / (10 + t).

    Averaged are ``parameters`` and the running statistics of normalisation; other state is copied: a counter has no mean, and the mean of a
    power iteration's unit vectors is not one (it halved the spectral norms of RAE-SN).
    """
    decay = min(decay, (1 + step) / (10 + step))
    mean = [k for k in current if k in parameters or k.endswith(("running_mean", "running_var"))]
    torch._foreach_lerp_([average[k] for k in mean], [current[k] for k in mean], 1 - decay)
    for name in current.keys() - set(mean):
        average[name].copy_(current[name])


def _checksum(x: Tensor) -> str:
    """A quick fingerprint of the data, over at most 64 MB."""
    flat = x.detach().cpu().reshape(-1)
    flat = flat[:: max(1, flat.numel() * flat.element_size() // 2**26)].contiguous()
    return f"{zlib.crc32(flat.view(torch.uint8).numpy().tobytes()):08x}"
