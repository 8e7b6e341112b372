"""How to train: length, optimiser, schedules, precision. Pure configuration; :func:`expost.fit` does it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from expost.optimise import Constant, Schedule
from expost.system.hashes import stable_repr
from expost.system.schema import Checked, Meta

__all__ = ["Training", "automatic_precision"]


@dataclass(frozen=True)
class Training(Checked):
    """How to train; what to train is the model's and the objective's business.

    Args:
        epochs, steps: length; give one. An epoch visits every example once, but for a last partial batch.
        batch_size: global batch, over all processes.
        lr, schedule: learning rate and its factor over time.
        head_lr: learning rate of the heads' own parameters (the log σ of a learned decoder variance), default ``lr``. Adam moves a scalar
            by at most about lr a step, so short trainings need a larger one here.
        optimiser: ``"adam"``, ``"adamw"`` or ``"amsgrad"``; ``betas``, ``eps``, ``weight_decay`` as in torch.
        clip: largest norm of the gradient, or None.
        ema: decay of an exponential average of the weights, which is then what is validated, kept and returned; or None.
        precision: of the networks: ``"float32"``, ``"bfloat16"``, or ``"auto"``: bfloat16 where it pays (see :func:`automatic_precision`).
        best: keep the weights with the lowest validation loss (needs validation data).
        patience: stop after this many validations without improvement, or None.
        validate_every: epochs between validations.
        log_every: steps between rows of the history.
        checkpoint_every: seconds between checkpoints (a run folder is needed).
        minutes: stop after this much time, with a checkpoint to go on from, or None; a resumed training has as much again.
    """

    epochs: Annotated[int, Meta(ge=1)] | None = None
    steps: Annotated[int, Meta(ge=1)] | None = None
    batch_size: Annotated[int, Meta(ge=1)] = 100
    lr: Annotated[float, Meta(gt=0)] = 1e-3
    schedule: Schedule = Constant()  # noqa: RUF009 - frozen
    head_lr: Annotated[float, Meta(gt=0)] | None = None
    optimiser: Literal["adam", "adamw", "amsgrad"] = "adam"
    betas: tuple[Annotated[float, Meta(ge=0, lt=1)], Annotated[float, Meta(ge=0, lt=1)]] = (0.9, 0.999)
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    clip: Annotated[float, Meta(gt=0)] | None = None
    ema: Annotated[float, Meta(gt=0, lt=1)] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    best: bool = False
    patience: Annotated[int, Meta(ge=1)] | None = None
    validate_every: Annotated[int, Meta(ge=1)] = 1
    log_every: Annotated[int, Meta(ge=1)] = 100
    checkpoint_every: Annotated[float, Meta(ge=0)] = 30.0
    minutes: Annotated[float, Meta(gt=0)] | None = None

    def length(self, per_epoch: int) -> int:
        """Number of steps in all."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give the length of training as epochs=... or as steps=..., one of the two")
        return self.steps if self.steps is not None else per_epoch * (self.epochs or 0)

    def identity(self) -> str:
        """What must agree for a checkpoint to be continued: all but time limits and intervals of writing."""
        return stable_repr(dataclasses.replace(self, minutes=None, checkpoint_every=0.0))


def automatic_precision(model: nn.Module, device: torch.device) -> torch.dtype | None:
    """bfloat16 where it pays: on hardware with bfloat16 arithmetic, for networks whose largest layer has at least 65 536 weights."""
    largest = max((p.numel() for p in model.parameters() if p.dim() >= 2), default=0)
    if largest < 65_536:
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return torch.bfloat16 if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else None
    return None
