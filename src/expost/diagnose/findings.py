r"""A verdict in words: what is wrong with this model, by how much, says who, and what to do.

:func:`diagnose` measures, compares with thresholds and returns :class:`Finding` objects. The first three faults of the table leave nothing else to be
trusted and stand above the others, which follow by how far they exceed their threshold. Every threshold is a named constant with its source; a model within all of them has no findings.

| finding | measured | threshold | source |
|---|---|---|---|
| ``exploding codes`` | rms of codes / rms of draws from p(z) | 10 | ours |
| ``collapsed posterior`` | active units, I(n; z), gain of own codes over codes of the prior | none; 0.1 nat | Burda et al. 2016; ours |
| ``failed reconstruction`` | squared error of reconstructions of held-out data / that of the mean of the training data | 1 | ours |
| ``memorising decoder`` | where one or two training examples explain a code (perplexity < 2): share of held-out data reconstructed closer to themselves than to the optimal decoder | 1/2 | Bozkurt et al. 2018, Figure 2 |
| ``mismatched aggregate posterior`` | accuracy of a classifier between codes and draws from p(z) | 0.7 | ours; 1/2 is chance (Lopez-Paz and Oquab 2017) |
| ``dead units`` | share of units that do not vary with x or that the decoder ignores | 1/4 | unit: Burda et al. 2016; share: ours |
| ``overfitted reconstruction`` | held-out loss above its floor / the same of training data | 2 | ours |
| ``wrong decoder variance`` | fixed βγ / mean squared error | 2, 1/2 | optimum γ* = error: Dai and Wipf 2019 |

A memorising decoder is one whose reconstruction of *new* data is an old example. An average over many training data is no copy of any, so only codes
whose weights are concentrated count, and only if at least :data:`CONCENTRATED` of the held-out data have such codes. Where the encoder has no posterior (AE, RAE, WAE) only
the ratio of losses can tell, and it cannot tell an old example from a bad reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from expost import heads
from expost.autoencoder import Autoencoder, check_weights, evaluating, remembering
from expost.density.base import Density
from expost.diagnose.health import LEAST, Panel, panel
from expost.diagnose.optimal import OptimalDecoder, distance, floor, kind_of, optimal_decoder
from expost.distributions import deterministic
from expost.fast.memory import retained
from expost.results import Result, Table, format_number
from expost.seeds import seeded, some
from expost.tensors import batches, takes_data, unit

__all__ = [
    "CONCENTRATED",
    "DEAD",
    "EXPLODED",
    "FAILED",
    "GENERALISES",
    "MISMATCH",
    "PERPLEXITY",
    "RATIO",
    "VARIANCE",
    "Diagnosis",
    "Finding",
    "Remedy",
    "code_scale",
    "diagnose",
    "generalising",
    "loss_ratio",
    "relative_error",
]

#: Squared error relative to that of always answering the mean of the training data.
FAILED = 1.0
#: rms of codes relative to the density's, above which codes have exploded.
EXPLODED = 10.0
#: Share of held-out data that must be reconstructed closer to themselves than to training data.
GENERALISES = 0.5
#: Perplexity of the optimal decoder's weights below which one or two training examples explain a code; share of held-out data that must be so.
PERPLEXITY, CONCENTRATED = 2.0, 0.25
#: Held-out loss relative to training loss, both above their floor.
RATIO = 2.0
#: Accuracy of the classifier between codes and draws of the density.
MISMATCH = 0.7
#: Share of units that may be dead.
DEAD = 0.25
#: βγ / MSE of a fixed decoder variance, or its inverse.
VARIANCE = 2.0


@dataclass(frozen=True)
class Remedy:
    """What to do: ``text`` in words; and for those who can act on it a ``density`` to fit ex post, a ``recipe`` or ``settings`` to train again with."""

    text: str
    density: str | None = None
    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        name: as in the table at the top of this file.
        sentence: what is wrong.
        measured: the figures.
        threshold: what they were compared with, and its source.
        remedy: what to do.
        excess: how far beyond the threshold, 1 at the threshold; infinite for faults that leave nothing else to be trusted.
    """

    name: str
    sentence: str
    measured: str
    threshold: str
    remedy: Remedy
    excess: float = math.inf

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence}\n    measured   {self.measured}\n    threshold  {self.threshold}\n    remedy     {self.remedy.text}"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`diagnose` found.

    Attributes:
        findings: the gravest first; empty for a model within all thresholds.
        panel: all measurements of units, mismatch and dimension.
        optimal: the optimal decoder on held-out data; None for a deterministic encoder.
        measured: scale of the codes, ratio of losses, and others, by name.
        notes: sentences that the reader must know.
    """

    findings: tuple[Finding, ...]
    panel: Panel
    optimal: OptimalDecoder | None
    measured: dict[str, Result]
    notes: tuple[str, ...] = ()

    def table(self, title: str = "findings") -> Table:
        table = Table(("rank", "finding", "measured", "threshold", "remedy"), title=title)
        for rank, finding in enumerate(self.findings, 1):
            table.add(rank, finding.name, finding.measured, finding.threshold, finding.remedy.text)
        if not self.findings:
            table.notes.append("no findings: every measurement is within its threshold")
        table.notes += self.notes
        return table

    def results(self) -> dict[str, Result]:
        """Every number by name."""
        return {**self.panel.results(), **self.measured}

    def to_json(self) -> dict[str, Any]:
        return {
            "findings": [
                {"name": f.name, "sentence": f.sentence, "measured": f.measured, "threshold": f.threshold, "remedy": f.remedy.text}
                for f in self.findings
            ],
            "measured": {name: result.to_json() for name, result in self.measured.items()},
            "panel": self.panel.to_json(),
            "notes": list(self.notes),
        }


@takes_data("train", "held_out")
def diagnose(
    model: Autoencoder,
    train: Tensor,
    held_out: Tensor,
    *,
    density: Density | None = None,
    at: Literal["sample", "mean"] = "sample",
    beta: float = 1.0,
    n: int = 2000,
    seed: int = 0,
    memory: int = 256 << 20,
    progress: bool | None = None,
) -> Diagnosis:
    """Measure a model and say what is wrong with it (see the top of this file).

    Args:
        model: any autoencoder.
        train: (N, *event), what it was trained on, uint8 or floats.
        held_out: (m, *event), data of the same kind that it has not seen.
        density: p(z) that is sampled from; default the model's prior, and without one a Gaussian fitted to the codes.
        at: whether codes are compared as samples of q(z | x), or as posterior means: for a density that was fitted to means.
        beta: weight of the KL term in training: a decoder variance γ acts as βγ.
        n: held-out data used.
        seed: of every choice and draw.
        memory: bytes that each part may take beyond its inputs.

    Raises:
        ValueError: fewer than 20 data on a side, NaN in the data or the weights, or data that do not fit the model.
    """
    check_weights(model)
    with remembering(model.encoder), retained():
        numbers = panel(model, train, held_out, density=density, at=at, beta=beta, n=n, seed=seed, memory=memory, progress=progress)
        chosen = some(held_out, n, "panel", "held", seed)  # the panel's, so that they are encoded once
        notes: list[str] = []
        measured = {"code_scale": code_scale(model, chosen, density if density is not None else model.prior, seed=seed)}
        measured["loss_ratio"] = loss_ratio(model, train, chosen, seed=seed)
        optimal = None
        with evaluating(model):
            exact = not deterministic(model.encode(unit(train[:1].to(model.device))))
        if exact:
            optimal = optimal_decoder(model, train, chosen, memory=memory)
            measured["closer_to_input"], measured["certain"] = optimal.closer_to_input, optimal.certain(PERPLEXITY)
            if (new := generalising(optimal)) is not None:
                measured["generalising"] = new
        else:
            notes.append(
                "the encoder is deterministic: there are no weights q(z | x_n), so memorisation is judged by the ratio of losses alone"
            )
        gamma = _fixed_variance(model, chosen, beta) if exact else None
        if gamma is not None:
            measured["variance_ratio"] = gamma
        measured["relative_error"] = relative_error(model, train, chosen)
    failed = _failed(measured["relative_error"])
    if failed is not None and numbers.collapsed and not _silent(numbers):
        collapse = None  # codes say something, so it is the decoder that fails, whatever the gain
    else:
        collapse, failed = _collapsed(numbers), None if numbers.collapsed else failed
    collapsed = collapse is not None
    fitted = density is not None and density is not model.prior
    found = [
        _exploding(measured["code_scale"]),
        collapse,
        failed,
        _memorising(measured, optimal),
        None if collapsed else _mismatched(numbers, fitted),
        None if collapsed else _dead(numbers),
        _overfitted(measured["loss_ratio"]),
        _variance(gamma),
    ]
    ranked = sorted((f for f in found if f is not None), key=lambda f: -f.excess)  # stable: those beyond trust keep their order
    return Diagnosis(tuple(ranked), numbers, optimal, measured, tuple(notes))


def code_scale(model: Autoencoder, x: Tensor, density: Density | None, *, seed: int = 0) -> Result:
    """rms of posterior means over data and units, relative to the rms of draws from the density (N(0, I): 1); without one, relative to the median norm.

    Codes that are orders of magnitude from what is sampled leave the decoder nothing to hold on to, and lose precision. Without a density the
    figure is the largest norm over the median one: its tail.
    """
    z = model.latents(x, at="mean").double()
    finite = bool(torch.isfinite(z).all())
    if density is None:
        norms = z.norm(dim=1)
        value = float(norms.max() / norms.median().clamp_min(1e-300)) if finite else math.inf
        return Result("code_scale", value, None, len(x), "largest norm / median norm")
    with evaluating(density), seeded("code scale", seed):
        draws = density().sample(torch.Size((len(z),))).double()
    value = float((z.square().mean() / draws.square().mean().clamp_min(1e-300)).sqrt()) if finite else math.inf
    return Result("code_scale", value, None, len(x), "rms of codes / rms of draws", context={"seed": seed})


def loss_ratio(model: Autoencoder, train: Tensor, held_out: Tensor, *, seed: int = 0) -> Result:
    """Mean distance of reconstructions from held-out data over that from training data, both above their floor: 1 for a model that generalises.

    The error is that of the held-out mean alone.
    """
    with evaluating(model):
        kind = kind_of(model, model.latents(train[:1], at="mean"))
    losses = []
    for part in (some(train, len(held_out), "loss ratio", seed), held_out):
        z = model.latents(part, at="mean")
        outputs = model.decode_points(z)
        pairs = zip(batches(part, 500), batches(outputs, 500), strict=True)
        losses.append(torch.cat([distance(unit(a.to(b.device)), b, kind) - floor(unit(a.to(b.device)), kind) for a, b in pairs]).cpu())
    seen, new = losses
    scale = float(seen.mean().clamp_min(1e-12))
    error = float(new.std() / math.sqrt(len(new))) / scale if len(new) > 1 else None
    details = {"train": float(seen.mean()), "held out": float(new.mean())}
    return Result("loss_ratio", float(new.mean()) / scale, error, len(new), kind, details=details, context={"seed": seed})


def generalising(optimal: OptimalDecoder) -> Result | None:
    """Share of held-out data reconstructed closer to themselves than to the optimal decoder, among those whose weights are concentrated.

    None if too few are (:data:`CONCENTRATED`): then the optimal decoder averages many training data, and is no memory of any.
    """
    concentrated = (optimal.weights.perplexity < PERPLEXITY).cpu()
    n = int(concentrated.sum())
    if n < max(2, CONCENTRATED * len(concentrated)):
        return None
    share = float((optimal.to_input < optimal.to_average)[concentrated].double().mean())
    return Result("generalising", share, math.sqrt(share * (1 - share) / n), n, "")


def relative_error(model: Autoencoder, train: Tensor, held_out: Tensor) -> Result:
    """Squared error of reconstructions of held-out data, relative to that of always answering the mean of the training data."""
    mean = torch.stack([unit(part).double().sum(0) for part in batches(train, 4096)]).sum(0) / len(train)
    outputs = model.reconstruct(held_out)
    own, trivial = [], []
    for part, decoded in zip(batches(held_out, 500), batches(outputs, 500), strict=True):
        x = unit(part).double().flatten(1)
        own.append((x - decoded.to(x.device).double().flatten(1)).square().sum(1))
        trivial.append((x - mean.flatten()).square().sum(1))
    ours, theirs = torch.cat(own).cpu(), float(torch.cat(trivial).mean().clamp_min(1e-300))
    error = float(ours.std() / math.sqrt(len(ours))) / theirs if len(ours) > 1 else None
    return Result("relative_error", float(ours.mean()) / theirs, error, len(ours), "of the mean's squared error")


def _fixed_variance(model: Autoencoder, x: Tensor, beta: float) -> Result | None:
    """βγ / MSE for a Gaussian decoder whose variance is fixed and whose encoder has a posterior; None for others, whose γ is fitted or means nothing."""
    head = model.decoder.head
    if not isinstance(head, heads.Gaussian) or head.kind != "fixed":
        return None
    outputs, total = model.decode_points(model.latents(x, at="sample")), 0.0
    for part, decoded in zip(batches(x, 500), batches(outputs, 500), strict=True):
        total += float((unit(part.to(decoded.device)) - decoded).square().sum(dtype=torch.float64))
    gamma, error = beta * float(head.variance), total / x.numel()
    return Result("variance_ratio", gamma / max(error, 1e-300), None, len(x), "", details={"gamma": gamma, "mse": error})


def _silent(numbers: Panel) -> bool:
    """Whether the codes themselves say nothing: no unit varies, or next to no information."""
    information = numbers.measured.get("mutual_information")
    nothing = numbers.units is not None and not bool(numbers.units.active("relative").any())
    return nothing or (information is not None and information.value < LEAST)


def _collapsed(numbers: Panel) -> Finding | None:
    if not numbers.collapsed:
        return None
    results = numbers.results()
    parts = []
    if "active_units_relative" in results:
        parts.append(f"{results['active_units_relative'].value:g} of {numbers.d} units vary with x")
    if "mutual_information" in results:
        parts.append(f"I(n; z) = {format_number(float(results['mutual_information'].value))} nats")
    if "reconstruction_gain" in results:
        gain = results["reconstruction_gain"]
        parts.append(f"own codes gain {format_number(float(gain.value))} {gain.unit} over codes of the prior")
    linear = numbers.linear
    cause = ""
    if linear is not None and linear.kept == 0:
        cause = f" (βγ = {linear.gamma:.3g} exceeds the data's largest variance {float(linear.eigenvalues[0]):.3g}: a linear VAE would collapse too)"
    return Finding(
        "collapsed posterior",
        "; ".join(numbers.collapse) + cause,
        ", ".join(parts),
        "a unit lives if its posterior mean varies by more than 0.01 (Burda et al. 2016); 0.1 nat (ours)",
        Remedy(
            "lower the weight of the KL term, or learn the decoder variance, so that the data's variance exceeds βγ",
            recipe="dai2019/vae-learned",
        ),
    )


def _failed(error: Result) -> Finding | None:
    if error.value < FAILED:
        return None
    return Finding(
        "failed reconstruction",
        "new data are reconstructed no better than by answering the mean of the training data: the decoder cannot use the codes, "
        "or its outputs have another range than the data",
        f"squared error {format_number(float(error.value))} ± {format_number(error.error)} of the mean's",
        f"{FAILED:g} (ours)",
        Remedy(
            "look at the reconstructions: a wrong range or link of the outputs (expost wrap --range, --outputs), or too short a training"
        ),
    )


def _exploding(scale: Result) -> Finding | None:
    if scale.value <= EXPLODED:
        return None
    return Finding(
        "exploding codes",
        "codes lie orders of magnitude away from what is sampled"
        if "draws" in scale.unit
        else "a few codes lie orders of magnitude away from the others",
        f"{scale.unit} = {format_number(float(scale.value))}",
        f"{EXPLODED:g} (ours)",
        Remedy("bound the codes: a larger weight of the KL term, or of ‖z‖² with a regularised decoder (RAE)", recipe="ghosh2020/rae-l2"),
    )


def _memorising(measured: dict[str, Result], optimal: OptimalDecoder | None) -> Finding | None:
    new, ratio = measured.get("generalising"), measured["loss_ratio"]
    if new is None or new.value >= GENERALISES or optimal is None:
        return None
    what = "new data are reconstructed as training data"
    if float(optimal.weights.perplexity.median()) < PERPLEXITY:
        what += ", and one or two training examples explain a code"
    return Finding(
        "memorising decoder",
        what,
        f"{new.value:.3f} ± {new.error or 0:.3f} of {new.n} held-out data are closer to themselves than to training data; "
        f"held-out loss / training loss = {format_number(float(ratio.value))}",
        f"{GENERALISES:g}, the diagonal of Figure 2 (Bozkurt et al. 2018)",
        Remedy("a larger weight of the KL term, so that posteriors overlap; or a shallower decoder, fewer units, more data"),
        1 + 4 * (1 - new.value / GENERALISES),
    )


def _overfitted(ratio: Result) -> Finding | None:
    if ratio.value <= RATIO:
        return None
    return Finding(
        "overfitted reconstruction",
        "new data are reconstructed much worse than training data",
        f"held-out loss / training loss = {format_number(float(ratio.value))} ± {format_number(ratio.error)}, above their floor",
        f"{RATIO:g} (ours)",
        Remedy("more data, a shorter training, a larger weight of the KL term or of the decoder's penalty"),
        1 + math.log2(ratio.value / RATIO),
    )


def _mismatched(numbers: Panel, fitted: bool) -> Finding | None:
    test = numbers.measured.get("c2st")
    if test is None or test.value <= MISMATCH:
        return None
    parts = [f"a classifier tells codes from draws with accuracy {test.value:.3f} ± {test.error or 0:.3f}"]
    if "mmd" in numbers.measured:
        mmd = numbers.measured["mmd"]
        parts.append(f"MMD² {format_number(float(mmd.value))} (p = {mmd.details['p']:.2g})")
    blamed = ""
    if numbers.marginals is not None and numbers.marginals.guilty:
        guilty = numbers.marginals.guilty[:3]
        parts.append("largest marginal KL: " + ", ".join(f"unit {u} ({float(numbers.marginals.kl[u]):.2g} nats)" for u in guilty))
        blamed = f"; unit{'s' if len(guilty) > 1 else ''} {', '.join(map(str, guilty))} most of all"
    return Finding(
        "mismatched aggregate posterior",
        f"codes are not distributed like the {numbers.reference} that is sampled from{blamed}: samples are decoded where no data are",
        "; ".join(parts),
        f"accuracy {MISMATCH:g} (ours; chance is 1/2)",
        Remedy("a density that fits better: more components", density="gmm:50")
        if fitted
        else Remedy("sample from a density fitted to the codes", density="gmm:10"),
        2 ** ((test.value - MISMATCH) / (1 - MISMATCH)),
    )


def _dead(numbers: Panel) -> Finding | None:
    units = numbers.units
    if units is None:
        return None
    alive = units.active("relative") & ~units.unused
    dead = int((~alive).sum())
    if dead < 1 or dead / len(units) < DEAD:
        return None
    used = max(1, int(units.active("ablation").sum()))
    listed = (~alive).nonzero().flatten().tolist()
    names = ", ".join(map(str, listed[:8])) + (", ..." if len(listed) > 8 else "")
    predicted = f"; a linear VAE would keep {numbers.linear.kept}" if numbers.linear is not None else ""
    return Finding(
        "dead units",
        f"units {names} do not vary with x, or the decoder ignores them: they carry nothing, and samples and densities pay for them",
        f"{dead} of {len(units)} units dead, {used} proven in use{predicted}",
        f"variance of posterior means 0.01 of the {units.scale_of}'s (Burda et al. 2016), or an ablation that costs nothing; a share of {DEAD:g} (ours)",
        Remedy(f"as many latent units as are proven in use: {used}", settings={"latent": used}),
        1 + math.log2(dead / len(units) / DEAD),
    )


def _variance(ratio: Result | None) -> Finding | None:
    if ratio is None or 1 / VARIANCE <= ratio.value <= VARIANCE:
        return None
    gamma, mse = ratio.details["gamma"], ratio.details["mse"]
    effect = "detail is given up for the prior's sake" if ratio.value > 1 else "the prior hardly counts"
    return Finding(
        "wrong decoder variance",
        f"the fixed decoder variance (times the weight of the KL term) is not what the reconstructions' error is: {effect}",
        f"βγ = {format_number(gamma)}, mean squared error {format_number(mse)}, ratio {format_number(float(ratio.value))}",
        f"optimum γ = mean squared error (Dai and Wipf 2019); factor {VARIANCE:g} (ours)",
        Remedy("learn the decoder variance", recipe="dai2019/vae-learned"),
        1 + abs(math.log2(ratio.value)) - math.log2(VARIANCE) if ratio.value > 0 else 2.0,
    )
