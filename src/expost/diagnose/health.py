r"""The panel: is it alive, and does q(z) match what it is sampled from? All diagnostics of latent units, mismatch and dimension in one call.

| question | numbers (:meth:`Panel.results`) |
|---|---|
| which units live? | ``active_units``, ``active_units_relative``, ``kl_units``, ``used_units``, ``ignored_units``, ``rate`` |
| which should? | ``predicted_units`` (a linear VAE with the same γ) |
| does the code say which image it is? | ``mutual_information``, ``reconstruction_gain`` |
| does q(z) match p(z)? | ``aggregate_kl``, ``marginal_kl``, ``marginal_kl_largest``, ``mmd``, ``c2st`` |
| how many dimensions are filled? | ``dimension_data``, ``dimension_data_mle``, ``dimension_codes``, ``dimension_codes_mle`` |

**The collapse alarm** sounds for any of: no active unit; I(n; z) below 0.1 nat; images reconstructed from their own codes no better than from
codes of the prior (by 3 standard errors, and by 0.1 nat; where I(n; z) is above 1 nat, only if the gain is known to be within 0.1 nat of 0). The first and second ask the encoder, the third asks the decoder: a decoder that
ignores z is a collapse that the encoder's numbers do not show.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from expost.autoencoder import Autoencoder, evaluating
from expost.density import FullGaussian, StandardNormal
from expost.density.base import Density
from expost.diagnose.codes.dimension import levina_bickel, neighbourhoods, two_nn
from expost.diagnose.codes.linear import LinearUnits, linear_units
from expost.diagnose.codes.marginals import Marginals, marginals
from expost.diagnose.codes.mismatch import c2st, mmd
from expost.diagnose.codes.units import Units, gaussian_error, loss_of, standard_error, units
from expost.distributions import check_data, deterministic
from expost.divergences import has_closed_form, kl
from expost.posterior.aggregate import AggregatePosterior, mutual_information
from expost.results import Result, Table
from expost.seeds import seeded, some
from expost.system.progress import Bar
from expost.tensors import check_finite, takes_data, unit

__all__ = ["LEAST", "Panel", "panel", "reconstruction_gain"]

#: Nats of mutual information, and of gain over codes of the prior, below which a model has collapsed.
LEAST = 0.1
#: Nats of mutual information above which a decoder that gains nothing from codes is no collapse.
IGNORANT = 1.0
#: Decoded codes that the ablation may cost.
DECODED = 32_000


@dataclass(frozen=True, eq=False)
class Panel:
    """What :func:`panel` found.

    Attributes:
        units, linear, marginals: the parts with one row per unit; None where one could not be computed, which a note explains.
        measured: the other numbers by name.
        collapse: why the alarm sounds, one sentence per reason; empty if it does not.
        reference: what codes were compared with.
        d: latent units; ``seed``: of everything random.
        notes: sentences that the reader must know.
    """

    units: Units | None
    linear: LinearUnits | None
    marginals: Marginals | None
    measured: dict[str, Result]
    collapse: tuple[str, ...]
    reference: str
    d: int
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def collapsed(self) -> bool:
        """Whether the alarm sounds."""
        return bool(self.collapse)

    def results(self) -> dict[str, Result]:
        """Every number by name (the table at the top of this file), and ``collapse``: 1 if the alarm sounds, with its reasons as notes."""
        parts = [part.results() for part in (self.units, self.linear, self.marginals) if part is not None]
        found = {name: result for part in parts for name, result in part.items()}
        found |= self.measured
        return {"collapse": Result("collapse", float(self.collapsed), notes=self.collapse), **found}

    def tables(self) -> list[Table]:
        """A summary, and the parts in detail."""
        summary = Table(("measure", "value", "error", "n", "unit"), title="collapse and mismatch")
        for name, result in self.results().items():
            if name != "collapse":
                summary.add(name, result.value, result.error, result.n, result.unit)
        summary.notes += [f"ALARM, collapsed: {reason}" for reason in self.collapse]
        for name in ("mmd", "c2st"):
            if name in self.measured:
                summary.notes.append(
                    f"{name}: p = {self.measured[name].details['p']:.3g} for codes of held-out images being draws from {self.reference}"
                )
        summary.notes += self.notes
        said: dict[str, list[str]] = {}
        for name, result in self.measured.items():
            for note in result.notes:
                said.setdefault(note, []).append(name)
        summary.notes += [f"{', '.join(names)}: {note}" for note, names in said.items()]
        parts = [(self.units, "latent units"), (self.linear, "what a linear VAE would keep"), (self.marginals, "marginals of q(z)")]
        return [summary, *(part.table(title) for part, title in parts if part is not None)]

    def __str__(self) -> str:
        return "\n\n".join(str(table) for table in self.tables())

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None."""
        return _plain(
            {
                "results": {name: result.to_json() for name, result in self.results().items()},
                "tables": [table.to_json() for table in self.tables()],
                "collapse": list(self.collapse),
                "guilty": list(self.marginals.guilty) if self.marginals is not None else [],
                "disagreements": self.units.disagreements() if self.units is not None else {},
                "reference": self.reference,
                "d": self.d,
                "seed": self.seed,
                "notes": list(self.notes),
            }
        )


@takes_data("x_train", "x_val")
def panel(
    model: Autoencoder,
    x_train: Tensor,
    x_val: Tensor,
    *,
    density: Density | None = None,
    at: Literal["sample", "mean"] = "sample",
    gamma: float | None = None,
    beta: float = 1.0,
    n: int = 2000,
    seed: int = 0,
    memory: int = 256 << 20,
    progress: bool | None = None,
) -> Panel:
    """All diagnostics of latent units, mismatch and dimension (see the top of this file).

    Args:
        model: any autoencoder with codes (d,).
        x_train: (N, *event), uint8 or floats: the data it was trained on, for the aggregate posterior, its covariance and the dimension.
        x_val: held-out data, for units and the two tests.
        density: p(z) that codes are compared with and drawn from; default, the model's prior, and without one a Gaussian fitted to training codes.
        at: whether codes are samples of q(z | x), or posterior means, which is what a density fitted to means is to be compared with.
        gamma, beta: for :func:`~expost.diagnose.codes.linear.linear_units`.
        n: held-out images used; of the training data 2n, and for the covariance 5n, or n where 5n would be fewer than the numbers of an image.
        seed: of the choice of images, and of everything drawn.
        memory: bytes that each part may take beyond its inputs.
        progress: False for silence, True to be heard off a terminal too; default: see :mod:`expost.system.progress`.

    Raises:
        ValueError: fewer than 20 images on a side, n below 20, NaN, or an event that the model does not take. What only one part cannot do becomes a note.
    """
    if min(len(x_train), len(x_val), n) < 20:
        raise ValueError(f"the panel needs at least 20 images on each side, not {len(x_train)}, {len(x_val)} and n = {n}: pass more data")
    check_finite(x_train, "training data")
    check_finite(x_val, "held-out data")
    train, held = some(x_train, 2 * n, "panel", "train", seed), some(x_val, n, "panel", "held", seed)
    with evaluating(model):
        q = model.encode(unit(held[:1].to(model.device)))
    d, exact = q.mean.shape[-1], not deterministic(q)
    notes: list[str] = []
    if density is None:
        density = model.prior
    if density is None:
        density = FullGaussian(d).fit(model.latents(train, at="mean").cpu())
        notes.append("the model has no prior: codes are compared with a full Gaussian fitted to training codes")
    if density is not model.prior:
        density = copy.deepcopy(density).to(model.device)
    reference = "N(0, I)" if isinstance(density, StandardNormal) else type(density).__name__
    own = model if model.prior is not None or not exact else model.with_prior(density)  # units are judged by the prior of training
    found: dict[str, Any] = {}

    def codes() -> Tensor:
        return model.latents(held, at=at, seed=seed)

    def dimensions(points: Tensor, name: str) -> dict[str, Result]:
        near = neighbourhoods(points, n=None, seed=seed, memory=memory)
        return {name: two_nn(near, name=name), f"{name}_mle": levina_bickel(near, name=f"{name}_mle")}

    def information() -> Result:
        return replace(mutual_information(AggregatePosterior(model.posteriors(train), memory=memory), seed=seed), name="mutual_information")

    parts: dict[str, Callable[[], Any]] = {
        "units": lambda: units(own, held, images=max(100, min(500, DECODED // d)), seed=seed),
        "linear": lambda: linear_units(
            model,
            some(x_train, _most(x_train, n, memory), "panel", "covariance", seed),
            gamma=gamma,
            beta=beta,
            seed=seed,
            memory=memory,
        ),
        "marginals": lambda: marginals(model, train, density=density, at=at, seed=seed, memory=memory),
        "mutual_information": information,
        "reconstruction_gain": lambda: reconstruction_gain(model, held, density=density, seed=seed),
        "mmd": lambda: mmd(codes(), density, n=n, seed=seed, memory=memory),
        "c2st": lambda: c2st(codes(), density, n=n, seed=seed),
        "dimension_data": lambda: dimensions(train, "dimension_data"),
        "dimension_codes": lambda: dimensions(model.latents(train, at="mean"), "dimension_codes"),
    }
    if not exact:
        del parts["mutual_information"]
    with Bar(len(parts), enabled=progress, what="panel") as bar:
        for step, (name, part) in enumerate(parts.items()):
            bar.update(step, name.replace("_", " "))
            try:
                outcome = part()
                found |= outcome if isinstance(outcome, dict) else {name: outcome}
            except (
                ValueError
            ) as error:  # one part's limits; what is wrong with the data or the model has been refused above, or stops every part
                notes.append(f"{name} is left out: {error}")
    if not found:
        raise ValueError(notes[-1].split(": ", 1)[1])
    if "mutual_information" in found:
        with evaluating(model):
            posteriors, prior = model.posteriors(train), density()
            if has_closed_form(posteriors, prior):
                found["aggregate_kl"] = _aggregate_kl(kl(posteriors, prior).double().cpu(), found["mutual_information"])
    alive: Units | None = found.pop("units", None)
    linear: LinearUnits | None = found.pop("linear", None)
    marginal: Marginals | None = found.pop("marginals", None)
    collapse = _alarm(alive, found)
    notes += _why(alive, linear, bool(collapse), exact) + _blame(marginal, found.get("aggregate_kl"), found.get("mutual_information"))
    return Panel(alive, linear, marginal, found, collapse, reference, d, seed, tuple(notes))


@takes_data("x")
def reconstruction_gain(
    model: Autoencoder,
    x: Tensor,
    *,
    density: Density | None = None,
    batch_size: int = 500,
    seed: int = 0,
    name: str = "reconstruction_gain",
) -> Result:
    """How much better images are explained by their own codes than by codes of the prior: mean -log p(x | z′) + log p(x | z), z ~ q(z | x), z′ ~ p(z).

    Zero if the decoder ignores z, or if q(z | x) is the prior. Paired per image, in nats; of a Gaussian head on a deterministic encoder, the
    difference of ‖x - x̂‖².

    Args:
        model: any autoencoder.
        x: (n, *event), uint8 or floats.
        density: what z′ is drawn from; default, the prior.

    Returns:
        ``value`` with its standard error; ``details``: ``own`` and ``prior``, the two mean losses; ``floor``: 0.1 nat in the unit of the value.

    Raises:
        ValueError: no prior, NaN, or data that the decoder cannot score.
    """
    check_finite(x, "data")
    source = model if density is None else model.with_prior(density)
    z = model.latents(x, at="sample", batch_size=batch_size, seed=seed)
    with evaluating(source):
        with seeded("gain", seed):
            other = source.latent().sample(torch.Size((len(x),))).to(z)
        q = model.encode(unit(x[:1].to(model.device)))
        own, prior, error = [], [], 0.0
        for start in range(0, len(x), batch_size):
            block = slice(start, start + batch_size)
            images = unit(x[block].to(model.device))
            p = model.decode(z[block])
            check_data(p, images)
            squared = gaussian_error(model, q, p)
            own.append(loss_of(p, images, squared))
            prior.append(loss_of(model.decode(other[block]), images, squared))
            error += float((images - p.mean).square().double().sum())
    kept, drawn = torch.cat(own), torch.cat(prior)
    floor = 2 * error / x.numel() * LEAST if squared else LEAST
    details = {"own": float(kept.mean()), "prior": float(drawn.mean()), "floor": floor}
    measure = "squared error" if squared else "nats"
    return Result(
        name, float((drawn - kept).mean()), float(standard_error(drawn - kept)), len(x), measure, details=details, context={"seed": seed}
    )


def _aggregate_kl(rate: Tensor, information: Result) -> Result:
    """KL(q(z) || p(z)) = rate - I(n; z) of the same images."""
    value = float(rate.mean()) - information.value
    return Result("aggregate_kl", value, information.error, information.n, "nats", details={"rate": float(rate.mean())})


def _alarm(alive: Units | None, found: dict[str, Result]) -> tuple[str, ...]:
    """Why the model has collapsed."""
    reasons = []
    if alive is not None and not bool(alive.active("relative").any()):
        reasons.append(f"none of {len(alive)} units varies with x (variance of posterior means above 0.01 of the {alive.scale_of}'s)")
    information = found.get("mutual_information")
    if information is not None and information.value < LEAST:
        reasons.append(f"I(n; z) = {information.value:.3g} nats, below {LEAST}: the code does not say which image it belongs to")
    gain = found.get("reconstruction_gain")
    if gain is not None and _gains_nothing(gain, information):
        reasons.append(
            f"codes of the prior explain the data as well as their own codes do: these gain {gain.value:.3g} ± {gain.error or 0:.2g} {gain.unit}"
        )
    return tuple(reasons)


def _gains_nothing(gain: Result, information: Result | None) -> bool:
    """Whether own codes are worth no more than codes of the prior.

    Where codes do say which image they belong to, a gain that is lost in the noise, or negative, is another fault (memory, a wrong range): there
    the gain must be known to be near zero, as that of a decoder is which ignores z.
    """
    error, floor = gain.error or 0.0, gain.details["floor"]
    if information is not None and information.value >= IGNORANT:
        return abs(gain.value) + 3 * error <= floor
    return not gain.value > max(3 * error, floor)


def _why(alive: Units | None, linear: LinearUnits | None, collapsed: bool, exact: bool) -> list[str]:
    """What the linear VAE's prediction says about the units that live."""
    if alive is None or linear is None or not exact:
        return []
    live, d = int(alive.active("relative").sum()), len(alive)
    if linear.kept == 0:
        return [
            f"βγ = {linear.gamma:.3g} exceeds the largest eigenvalue {float(linear.eigenvalues[0]):.3g}: a linear VAE would collapse too; lower β, or learn γ"
        ]
    if live < linear.kept:
        what = "the collapse is not γ's doing" if collapsed else "units were lost in training, or the decoder needs fewer"
        return [f"a linear VAE with βγ = {linear.gamma:.3g} would keep {linear.kept} of {d} units, {live} live: {what}"]
    if live > linear.kept:
        return [f"{live} of {d} units live, where a linear VAE with βγ = {linear.gamma:.3g} would keep {linear.kept}"]
    return []


def _blame(marginal: Marginals | None, whole: Result | None, information: Result | None) -> list[str]:
    """How much of KL(q(z) || p(z)) single dimensions explain."""
    if marginal is None or whole is None or information is None:
        return []
    own, total = float(marginal.kl.sum()), whole.value
    if not math.isfinite(own) or total < LEAST:
        return []
    rest = "their dependence"
    if information.notes:
        rest += ", or only the gaps between the codes of these images: I(n; z) is at its ceiling, so that the total is an upper bound"
    return [f"of KL(q(z) || p(z)) = {total:.1f} nats single dimensions explain {own:.2g}; the rest is {rest}"]


def _most(x: Tensor, n: int, memory: int) -> int:
    """Rows for :func:`~expost.diagnose.codes.linear.spectrum`: 5n, or n where these are fewer than the numbers in a row; and no more than fit."""
    dims = x[0].numel()
    rows = 5 * n if 5 * n >= dims else n
    return rows if 32 * min(rows, len(x), dims) ** 2 <= memory else math.isqrt(memory // 32)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
