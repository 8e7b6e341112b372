r"""The decoder's variance γ of p(x | z) = N(f(z), γ I): its closed form, and its way through a training.

On D pixels the reconstruction loss is (D/2) (log 2πγ + MSE/γ), MSE = E‖x - f(z)‖² / D over data and z ~ q(z | x). At fixed f it is least at

    γ* = MSE,    where it equals (D/2) (log 2πγ* + 1)

(Dai & Wipf 2019; Yu 2020). A learned γ that has converged equals γ*; one that has not lags behind, since Adam moves the scalar log γ by about
its learning rate a step. The paper calls γ the variance and its code the standard deviation: both are reported here, and γ is the variance.

**Out of a history.** A training logs the mean distortion of an interval of steps and log γ at its end, not the error itself. With log γ going
straight from a to b over the interval and a constant error, mean distortion = (D/2) [log 2π + (a + b)/2 + MSE · (e^-a - e^-b)/(b - a)], which
:func:`variance_trace` solves for MSE. That is exact for a fixed γ, and good once γ moves slowly; in the first interval, where both fall by
orders of magnitude, it is a rough mean. With γ optimal for every batch the loss is (D/2) (log 2πMSE + 1), and the result the geometric mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from expost import heads
from expost.autoencoder import Autoencoder, evaluating
from expost.distributions import point
from expost.results import Curve, Result
from expost.seeds import seed_from
from expost.system.progress import Bar
from expost.tensors import batches, takes_data, unit

__all__ = ["VarianceTrace", "decoder_variance", "optimal_variance", "variance_trace"]

#: Below so many data the error of γ* is itself badly known.
FEW = 100


def decoder_variance(model: Autoencoder) -> float:
    """γ of the model's Gaussian decoder, a variance; ``ValueError`` if its head has not one variance."""
    head = model.decoder.head
    if not isinstance(head, heads.Gaussian) or head.kind == "pixel":
        raise ValueError(
            f"a decoder with the head {type(head).__name__} has not one variance: pass gamma, e.g. optimal_variance(model, x).value"
        )
    return float(head.variance.detach())


@takes_data("x")
def optimal_variance(model: Autoencoder, x: Tensor, *, draws: int = 1, batch_size: int = 500, seed: int = 0) -> Result:
    """γ* = mean of ‖x - f(z)‖² / D over data and z ~ q(z | x): the decoder variance that maximises the likelihood at fixed f.

    Dai & Wipf 2019, section 2; Yu 2020. For a deterministic encoder z is its code; f(z) is the decoder's mean, whatever its head.

    Args:
        model: an autoencoder.
        x: data (n, *event), uint8 or floats.
        draws: codes per datum.
        batch_size: data decoded at once; changes the result by round-off (1e-6) only.
        seed: of the codes.

    Returns:
        ``value``: γ*, squared units of x (pixels in [0, 1]). ``error``: its standard error over data. ``details``: ``std`` √γ*,
        ``loss`` (D/2) (log 2πγ* + 1), nats per datum, and, if the decoder has one Gaussian variance, ``gamma``, ``gamma std``, ``ratio`` γ/γ* and
        ``loss at gamma``.

    Raises:
        ValueError: fewer than two data, no draws.
    """
    if len(x) < 2 or draws < 1:
        raise ValueError(f"the error of a mean needs at least 2 data and 1 draw, not {len(x)} and {draws}: pass more")
    error = torch.zeros(len(x), dtype=torch.float64)
    with Bar(draws, what="decoder variance", unit="draw", after=1.0) as bar:
        for draw in bar.over(range(draws)):
            z = model.latents(x, at="sample", batch_size=batch_size, seed=seed if draw == 0 else seed_from("optimal variance", seed, draw))
            with evaluating(model):
                parts = [
                    (point(model.decode(codes)) - unit(data.to(codes.device))).flatten(1).double().square().mean(1)
                    for codes, data in zip(batches(z, batch_size), batches(x, batch_size), strict=True)
                ]
            error += torch.cat(parts).cpu() / draws
    best, dims = float(error.mean()), x[0].numel()
    notes: tuple[str, ...] = () if len(x) >= FEW else (f"n = {len(x)} is below {FEW}: the error is rough",)
    if not best > 0:
        return Result(
            "optimal decoder variance",
            best,
            0.0,
            len(x),
            notes=(*notes, "every datum is reconstructed exactly: the likelihood is unbounded"),
        )
    details = {"std": math.sqrt(best), "loss": _loss(best, best, dims)}
    try:
        own = decoder_variance(model)
    except ValueError:
        notes += ("the decoder has no variance of its own to compare with",)
    else:
        details |= {"gamma": own, "gamma std": math.sqrt(own), "ratio": own / best, "loss at gamma": _loss(own, best, dims)}
    spread = float(error.std()) / len(x) ** 0.5
    return Result(
        "optimal decoder variance", best, spread, len(x), notes=notes, details=details, context={"seed": seed, "draws": draws, "dims": dims}
    )


def _loss(gamma: float, mse: float, dims: int) -> float:
    """(D/2) (log 2πγ + MSE/γ)."""
    return 0.5 * dims * (math.log(2 * math.pi * gamma) + mse / gamma)


@dataclass(frozen=True)
class VarianceTrace:
    """γ and the error through a training.

    Attributes:
        steps: training steps at which the intervals end.
        log_gamma: log of the variance there.
        squared_error: mean squared error per pixel of the interval; NaN where the logged numbers fit no error (see the top of the file).
        optimum: log γ* = log squared_error, the closed form at each step.
        notes: how many intervals fitted none.
    """

    steps: tuple[float, ...]
    log_gamma: tuple[float, ...]
    squared_error: tuple[float, ...]
    optimum: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def curves(self) -> dict[str, Curve]:
        """``log γ``, ``log γ*`` and ``squared error`` against steps; intervals without an error are left out of the last two."""
        kept = [i for i, error in enumerate(self.squared_error) if math.isfinite(error)]
        some = [self.steps[i] for i in kept]
        return {
            "log γ": Curve(list(self.steps), list(self.log_gamma), "iterations", "log γ"),
            "log γ*": Curve(some, [self.optimum[i] for i in kept], "iterations", "log γ"),
            "squared error": Curve(some, [self.squared_error[i] for i in kept], "iterations", "squared error per pixel"),
        }


def variance_trace(
    rows: Iterable[Mapping[str, Any]], dims: int, *, gamma: float | Literal["learned", "optimal"] = "learned", start: float | None = 0.0
) -> VarianceTrace:
    """log γ and the squared error per pixel against training steps, with the closed-form optimum at each step (Dai & Wipf 2019, Figure 1, left).

    Args:
        rows: of a history: ``history.rows``, or those of a run's ``history.csv`` (texts); only the ``train`` rows are used.
        dims: D, pixels times channels.
        gamma: the variance if it was fixed; else whether it was a learned parameter or the batch's optimum, which the rows record as ``log_gamma``.
        start: log γ before the first step (0 for a learned one); None if unknown: the first interval then takes its end's value.

    Raises:
        ValueError: a variance that is not positive, or rows without distortion, or without log_gamma where it is needed.

    >>> rows = [{"split": "train", "step": 10, "distortion": 0.5 * 4 * (math.log(2 * math.pi) + 0.2)}]
    >>> variance_trace(rows, 4, gamma=1.0).squared_error[0]  # doctest: +ELLIPSIS
    0.2...
    """
    if dims < 1 or (not isinstance(gamma, str) and not gamma > 0):
        raise ValueError(f"dims and a fixed variance must be positive, not {dims} and {gamma}")
    train = [row for row in rows if row.get("split") == "train"]
    needed = ("step", "distortion") if not isinstance(gamma, str) else ("step", "distortion", "log_gamma")
    missing = [name for name in needed if any(row.get(name) in (None, "") for row in train)]
    if not train or missing:
        lack = " and ".join(missing) or "any training row"
        raise ValueError(
            f"this history lacks {lack}: pass the rows of a Gaussian decoder's training, and gamma=... if its variance was fixed"
        )
    steps, logs, errors = [], [], []
    before = None if gamma == "optimal" else start if isinstance(gamma, str) else math.log(gamma)
    for row in train:
        after = float(row["log_gamma"]) if isinstance(gamma, str) else math.log(gamma)
        scaled = 2 * float(row["distortion"]) / dims - math.log(2 * math.pi)
        if gamma == "optimal":
            error = math.exp(scaled - 1)
        else:
            first = after if before is None else before
            fall = after - first
            weight = math.exp(-first) * (-math.expm1(-fall) / fall if abs(fall) > 1e-9 else 1.0)
            error = (scaled - (first + after) / 2) / weight
            before = after
        steps.append(float(row["step"]))
        logs.append(after)
        errors.append(error if error > 0 else math.nan)
    bad = sum(math.isnan(e) for e in errors)
    notes = (f"{bad} of {len(errors)} intervals fit no positive error: γ moved too fast within them",) if bad else ()
    return VarianceTrace(tuple(steps), tuple(logs), tuple(errors), tuple(math.log(e) if e > 0 else math.nan for e in errors), notes)
