"""The one gradient loop that small fits share: a flow on codes, an adversary, a learned scale; and learning-rate schedules.

``minimise`` knows nothing of models: it is given a loss, the parameters it may change, and where batches come from. What it promises:

* the same seed gives the same result, bit for bit: batch order and the noise inside the loss of step t are functions of (seed, t);
* a loss that is NaN or infinite ends the fit with a sentence, never with silently spoilt parameters that look fitted;
* with ``validate`` the parameters that are left behind are the best ones seen, not the last.

A schedule is a factor for each moment of training, ``factor(progress, epoch)``: progress in [0, 1] is the fraction of all steps done, epoch counts
from 0. All are frozen dataclasses without hidden state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from expost.seeds import permutation, seeded
from expost.system.progress import Bar
from expost.system.schema import Checked, Meta

__all__ = ["Constant", "Cosine", "Halving", "Milestones", "Plateau", "Schedule", "Trace", "minimise"]

#: step -> a batch; for data that is drawn rather than stored.
Sampler = Callable[[int], Tensor]


@dataclass(frozen=True)
class Trace:
    """What happened: the loss of every step, the validations made, and why it stopped."""

    losses: list[float]
    stopped: str
    validations: list[tuple[int, float]] = field(default_factory=list)
    best: float | None = None

    @property
    def steps(self) -> int:
        """Gradient steps taken."""
        return len(self.losses)


def minimise(
    loss_fn: Callable[..., Tensor],
    params: Iterable[Tensor],
    *,
    data: Tensor | Sampler | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 256,
    lr: float = 1e-3,
    lr_schedule: Callable[[float], float] | None = None,
    seed: int = 0,
    clip: float | None = None,
    validate: Callable[[], float] | None = None,
    validate_every: int | None = None,
    patience: int = 5,
    progress: Callable[[int, float], None] | None = None,
) -> Trace:
    """Adam (Kingma & Ba 2015) on ``loss_fn`` until the steps are used up or validation stops improving.

    Args:
        loss_fn: batch -> scalar loss; () -> scalar loss when ``data`` is None.
        params: what is changed, in place.
        data: rows (n, ...) to draw shuffled batches from, a sampler step -> batch, or None.
        steps, epochs: how long; exactly one of the two. An epoch is n // batch_size steps, each on other rows.
        lr_schedule: progress in [0, 1) -> factor on ``lr``.
        seed: of the batch order and of all noise that ``loss_fn`` draws from torch's global generators.
        clip: largest allowed gradient norm over all parameters together; None does not clip.
        validate: () -> what should be small, called without gradients; the best parameters seen are restored at the end.
        validate_every: steps between validations; default one epoch, or a fiftieth of all steps.
        patience: stop after so many validations in a row without improvement.
        progress: called with (step, loss) after every step.

    Raises:
        ValueError: if the arguments contradict each other, or the loss becomes NaN or infinite.
    """
    params = list(params)
    if not params:
        raise ValueError("there is nothing to minimise over: params is empty")
    rows = data if isinstance(data, Tensor) else None
    sampler = None if data is None or isinstance(data, Tensor) else data
    per_epoch = max(1, len(rows) // batch_size) if rows is not None else 1
    total = _total(steps, epochs, per_epoch, rows is not None, batch_size)
    validate_every = validate_every or (per_epoch if rows is not None else max(1, total // 50))
    optimiser = torch.optim.Adam(params, lr=lr, fused=all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params))

    # Reading a loss waits for the device, so on a GPU losses are looked at in blocks.
    look_every = 1 if params[0].device.type == "cpu" or progress is not None else 50
    losses: list[float] = []
    unread: list[Tensor] = []
    validations: list[tuple[int, float]] = []
    best, kept, since = math.inf, None, 0
    stopped = "all steps done"
    order = torch.empty(0, dtype=torch.int64)
    batch: tuple[Tensor, ...] = ()

    with Bar(total, what="minimising", unit="step", after=1.0) as bar:
        for step in range(total):
            for group in optimiser.param_groups:
                group["lr"] = lr * (lr_schedule(step / total) if lr_schedule is not None else 1.0)
            if rows is not None:
                position = step % per_epoch
                if position == 0:
                    order = permutation(len(rows), "minimise", seed, step // per_epoch).to(rows.device)
                batch = (rows[order[position * batch_size : (position + 1) * batch_size]],)
            elif sampler is not None:
                batch = (sampler(step),)
            optimiser.zero_grad(set_to_none=True)
            with torch.enable_grad(), seeded("minimise", seed, step):
                loss = loss_fn(*batch)
                loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(params, clip)
            optimiser.step()
            unread.append(loss.detach())

            check = validate is not None and (step + 1) % validate_every == 0
            if len(unread) >= look_every or check or step + 1 == total:
                losses += _read(unread, step)
                if progress is not None:
                    progress(step, losses[-1])
                bar.update(step + 1, {"loss": losses[-1]})
            if check and validate is not None:
                with torch.no_grad(), seeded("minimise", "validate", seed):
                    value = float(validate())
                validations.append((step + 1, value))
                if value < best:
                    best, kept, since = value, [p.detach().clone() for p in params], 0
                else:
                    since += 1
                if since >= patience:
                    stopped = f"no improvement in {patience} validations"
                    break

    if kept is not None:
        with torch.no_grad():
            for p, value_kept in zip(params, kept, strict=True):
                p.copy_(value_kept)
    return Trace(losses, stopped, validations, best if kept is not None else None)


def _total(steps: int | None, epochs: int | None, per_epoch: int, stored: bool, batch_size: int) -> int:
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps or epochs, not both and not neither")
    if epochs is not None and not stored:
        raise ValueError("epochs need stored data: give steps when data is a sampler or None")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    total = steps if steps is not None else (epochs or 0) * per_epoch
    if total < 1:
        raise ValueError(f"at least one step is needed, not {total}")
    return total


def _read(unread: list[Tensor], last: int) -> list[float]:
    """The losses as numbers, emptying ``unread``; raises at the first that is not finite."""
    values = torch.stack(unread).tolist()
    first = last - len(values) + 1
    unread.clear()
    for i, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"the loss became {value} at step {first + i}: lower lr, clip the gradient, or check the data")
    return list(values)


@dataclass(frozen=True)
class Constant(Checked):
    """Factor 1 throughout."""

    def factor(self, progress: float, epoch: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Halving(Checked):
    """Half the rate every so many epochs (dai2019: 150 on MNIST)."""

    every: Annotated[int, Meta(ge=1)]

    def factor(self, progress: float, epoch: int) -> float:
        return 0.5 ** (epoch // self.every)


@dataclass(frozen=True)
class Milestones(Checked):
    """Multiply by ``factor_each`` at each fraction of the training (yu2020: halved at 60, 70, 80 and 90 %)."""

    at: tuple[Annotated[float, Meta(ge=0, le=1)], ...] = (0.6, 0.7, 0.8, 0.9)
    factor_each: Annotated[float, Meta(gt=0)] = 0.5

    def factor(self, progress: float, epoch: int) -> float:
        return float(self.factor_each ** sum(progress >= fraction for fraction in self.at))


@dataclass(frozen=True)
class Cosine(Checked):
    """Linear warm-up over the first ``warmup`` of training, then half a cosine down to ``final``."""

    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    final: Annotated[float, Meta(ge=0)] = 0.0

    def factor(self, progress: float, epoch: int) -> float:
        if progress < self.warmup:
            return min(1.0, max(progress, 1e-3) / self.warmup)
        rest = (progress - self.warmup) / max(1e-12, 1 - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))


@dataclass(frozen=True)
class Plateau(Checked):
    """Multiply by ``factor_each`` when the validation loss has not improved for ``patience`` validations (ghosh2020: 0.5 and 5).

    The loop keeps the count and the current factor; :meth:`after_validation` is the rule.
    """

    patience: Annotated[int, Meta(ge=1)] = 5
    factor_each: Annotated[float, Meta(gt=0)] = 0.5
    floor: Annotated[float, Meta(ge=0)] = 0.0

    def factor(self, progress: float, epoch: int) -> float:
        return 1.0

    def after_validation(self, value: float, state: dict[str, float]) -> dict[str, float]:
        """The next state {best, bad, factor} after a validation loss."""
        best, bad, factor = state.get("best", math.inf), state.get("bad", 0.0), state.get("factor", 1.0)
        if value < best:
            return {"best": value, "bad": 0.0, "factor": factor}
        bad += 1
        if bad >= self.patience:
            return {"best": best, "bad": 0.0, "factor": max(self.floor, factor * self.factor_each)}
        return {"best": best, "bad": bad, "factor": factor}


Schedule = Constant | Halving | Milestones | Cosine | Plateau
