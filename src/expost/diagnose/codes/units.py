r"""Which latent units live? Four criteria, because each is blind to something.

For unit u of a model with posterior q(z | x):

| criterion | definition | blind to |
|---|---|---|
| variance | Var_x(E q[z_u given x]) > 0.01 (Burda, Grosse, Salakhutdinov 2016, "Importance weighted autoencoders", section 5) | the scale of z; units that the decoder ignores |
| relative | the same, divided by the variance of the prior (without a prior: by that of the largest unit) | units that the decoder ignores |
| kl | mean_x KL(q(z_u given x) to p(z_u)) > 0.01 nat | units that the decoder ignores |
| ablation | -log p(x given z) grows by more than 3 standard errors when z_u alone is replaced | units whose loss another unit makes up for |

In the ablation z ~ q(z | x), and unit u takes the value of a draw from the prior; so a unit whose posterior is the prior costs nothing, whatever
the decoder does with it. For a deterministic encoder, whose prior says nothing about its codes, u takes its value in the code of another image.
The increase is in nats per image. A Gaussian head on a deterministic encoder has no σ that was trained: there the increase is of ‖x - x̂‖²,
and its floor is set in nats with σ² = the mean squared error per pixel, the closed-form optimum.

Two units that say the same thing make up for each other: the ablation is the loss of *one* unit, and the losses do not add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from expost.autoencoder import Autoencoder, evaluating
from expost.distributions import IsotropicGaussian, base_of, check_data, describe, deterministic, normalised
from expost.divergences import kl_per_dimension
from expost.results import Result, Table
from expost.seeds import permutation, seeded, some
from expost.system.progress import Bar
from expost.tensors import batches, check_finite, sum_event, takes_data, unit

__all__ = ["ABLATION", "KL", "VARIANCE", "Units", "gaussian_error", "loss_of", "standard_error", "units"]

#: Var_x(E q[z_u | x]) above which a unit is active (Burda et al. 2016); also the share of the prior's variance.
VARIANCE = 0.01
#: Mean KL of a unit, and its ablation loss, above which it counts, in nats per image.
KL, ABLATION = 0.01, 0.01
#: Below this many images a note is made.
FEW = 100

Criterion = Literal["variance", "relative", "kl", "ablation"]


def standard_error(values: Tensor) -> Tensor:
    """Standard deviation of the mean over the first dimension: NaN for a single row."""
    return values.double().std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.full_like(values[0].double(), math.nan)


def gaussian_error(model: Autoencoder, q: Distribution, p: Distribution) -> bool:
    """Whether losses are squared errors: a Gaussian head on a deterministic encoder, whose σ was never trained."""
    return deterministic(q) and isinstance(base_of(p), IsotropicGaussian | Normal)


def loss_of(p: Distribution, x: Tensor, squared: bool) -> Tensor:
    """-log p(x | z), or ‖x - x̂‖², per image: (n,) float64 on the CPU."""
    value = sum_event((x - p.mean).square(), len(p.event_shape)) if squared else -p.log_prob(x)
    return value.double().cpu()


@dataclass(frozen=True, eq=False)
class Units:
    """What is known of each of d latent units; tensors are (d,) float64 on the CPU.

    Attributes:
        variance: Var_x(E q[z_u | x]), with its standard error ``variance_error``.
        scale: what the relative variance is relative to, and ``scale_of`` its name.
        posterior_variance: mean_x Var q[z_u | x]; None for a deterministic encoder.
        kl: mean_x KL(q(z_u | x) || p(z_u)), nats, with ``kl_error``; None where it has no closed form.
        ablation: increase of the loss when the unit alone is replaced, with ``ablation_error``, in ``measure``.
        floor: the least increase that counts, in ``measure``.
        loss: mean loss of the codes as they are, in ``measure``.
        measure: unit of the last four.
        n: images for variances and KL; ``images``: for the ablation; ``seed``: of the codes and replacements.
        notes: sentences that the reader must know.
    """

    variance: Tensor
    variance_error: Tensor
    scale: Tensor
    scale_of: str
    posterior_variance: Tensor | None
    kl: Tensor | None
    kl_error: Tensor | None
    ablation: Tensor
    ablation_error: Tensor
    floor: float
    loss: float
    measure: str
    n: int
    images: int
    seed: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.variance)

    @property
    def relative(self) -> Tensor:
        """Var_x(E q[z_u | x]) / scale."""
        return self.variance / self.scale.clamp_min(torch.finfo(torch.float64).tiny)

    def active(self, by: Criterion) -> Tensor:
        """Which units live by one criterion, (d,) bool."""
        if by == "variance":
            return self.variance > VARIANCE
        if by == "relative":
            return self.relative > VARIANCE
        if by == "kl":
            if self.kl is None:
                raise ValueError('the KL of single units is not available for this model: use by="relative" or "ablation"')
            return self.kl > KL
        if by == "ablation":
            return self.ablation > torch.nan_to_num(3 * self.ablation_error).clamp_min(self.floor)
        raise ValueError(f'by must be "variance", "relative", "kl" or "ablation", not {by!r}')

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria that this model allows."""
        return ("variance", "relative", "ablation") if self.kl is None else ("variance", "relative", "kl", "ablation")

    @property
    def unused(self) -> Tensor:
        """Units whose ablation loss is near zero for certain, (d,) bool: with two standard errors added it is below the floor, or half of the KL.

        A unit whose posterior is optimal saves at least its KL in distortion: one that may save half of it is not called unused.
        """
        upper = self.ablation + torch.nan_to_num(2 * self.ablation_error, nan=math.inf)
        limit = torch.full_like(upper, self.floor) if self.kl is None else (0.5 * self.kl).clamp_min(self.floor)
        return ~self.active("ablation") & (upper <= limit)

    @property
    def ignored(self) -> Tensor:
        """Units that vary (relative criterion) although the decoder does not use them, (d,) bool."""
        return self.active("relative") & self.unused

    def disagreements(self) -> dict[str, list[int]]:
        """Units on which the criteria differ, by what that means; without entries where they agree."""
        absolute, relative, used = self.active("variance"), self.active("relative"), self.active("ablation")
        found = {
            "varies but the decoder ignores it": self.ignored,
            "varies, and whether the decoder uses it is lost in the noise of the ablation (take more images)": relative
            & ~used
            & ~self.unused,
            "does not vary but the decoder depends on it": ~relative & used,
            f"varies by less than {VARIANCE} only because codes are small": relative & ~absolute,
            f"varies by more than {VARIANCE} only because codes are large": absolute & ~relative,
        }
        if self.kl is not None:
            found["its KL is paid but the decoder ignores it"] = self.active("kl") & ~relative & self.unused
        return {meaning: which.nonzero().flatten().tolist() for meaning, which in found.items() if bool(which.any())}

    def results(self) -> dict[str, Result]:
        """Counts of living units by each criterion, and what they cost, by name."""
        names = {"variance": "active_units", "relative": "active_units_relative", "kl": "kl_units", "ablation": "used_units"}
        context = {"d": len(self), "seed": self.seed}
        results = {}
        for by in self.criteria:
            n = self.images if by == "ablation" else self.n
            results[names[by]] = Result(
                names[by], float(self.active(by).sum()), n=n, unit=f"of {len(self)}", notes=self.notes, context=context
            )
        results["ignored_units"] = Result(
            "ignored_units", float(self.ignored.sum()), n=self.images, unit=f"of {len(self)}", context=context
        )
        if self.kl is not None:
            results["rate"] = Result("rate", float(self.kl.sum()), n=self.n, unit="nats", context=context)
        return results

    def table(self, title: str = "") -> Table:
        """One row per unit, the most used first."""
        table = Table(("unit", "Var_x(mean)", f"of {self.scale_of}", "mean q variance", "KL", "ablation", "error", "lives by"), title=title)
        for u in self.ablation.argsort(descending=True, stable=True).tolist():
            lives = [by for by in self.criteria if bool(self.active(by)[u])]
            table.add(
                u, float(self.variance[u]), float(self.relative[u]),
                None if self.posterior_variance is None else float(self.posterior_variance[u]),
                None if self.kl is None else float(self.kl[u]),
                float(self.ablation[u]), float(self.ablation_error[u]),
                "all" if len(lives) == len(self.criteria) else ", ".join(lives) or "none",
            )  # fmt: skip
        counts = ", ".join(f"{int(self.active(by).sum())} by {by}" for by in self.criteria)
        table.notes += [
            f"living units of {len(self)}: {counts}; n = {self.n} images, {self.images} for the ablation, in {self.measure}, seed {self.seed}",
            *(f"unit{'s' * (len(which) > 1)} {', '.join(map(str, which))}: {meaning}" for meaning, which in self.disagreements().items()),
            *self.notes,
        ]
        return table

    def __str__(self) -> str:
        return str(self.table("latent units"))

    def to_json(self) -> dict[str, Any]:
        return {k: v.tolist() if isinstance(v, Tensor) else list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items()}


@takes_data("x")
def units(model: Autoencoder, x: Tensor, *, images: int = 500, batch_size: int = 500, seed: int = 0, progress: bool | None = None) -> Units:
    """Variance, KL and ablation of every latent unit (see the top of this file).

    Args:
        model: any autoencoder with codes of shape (d,).
        x: (n, *event), uint8 or floats; all of them are encoded.
        images: rows of ``x``, drawn with the seed, for the ablation, which decodes d + 1 times as many codes.
        batch_size: images encoded or decoded together: what memory depends on, and nothing else.
        seed: of these rows, of z ~ q(z | x) and of the replacements.
        progress: False for silence, True to be heard off a terminal too; default: see :mod:`expost.system.progress`.

    Raises:
        ValueError: fewer than two images, NaN, or data that the decoder cannot score.
    """
    if len(x) < 2:
        raise ValueError(f"the variance over images needs at least two of them, not {len(x)}: pass more data")
    check_finite(x, "data")
    notes: list[str] = [f"only {len(x)} images: variances and KL are uncertain"] if len(x) < FEW else []
    means, variances, divergences = [], [], []
    prior = None if model.prior is None else model.latent
    with evaluating(model):
        for part in batches(x, batch_size):
            q = model.encode(unit(part.to(model.device)))
            means.append(q.mean.double().cpu())
            if q.event_shape != q.mean.shape[1:] or q.mean.dim() != 2:
                raise ValueError(
                    f"codes have shape {tuple(q.mean.shape[1:])}: units are counted in vectors, flatten the codes in the encoder"
                )
            if not deterministic(q):
                variances.append(q.variance.double().cpu())
            divergence = None if prior is None else unit_kl(q, prior())
            if divergence is not None:
                divergences.append(divergence.double().cpu())
        scale, scale_of = _scale(model, torch.cat(means), seed)
    if prior is not None and not deterministic(q) and not divergences:
        notes.append(f"KL per unit is not available: it needs Gaussian posteriors and a factorised Gaussian prior, not {describe(prior())}")
    if divergences and isinstance(base_of(q), MultivariateNormal):
        notes.append(
            "posteriors have a full covariance: the KL of a unit is that of its marginal, and the sum leaves out their correlation"
        )
    mean = torch.cat(means)
    centred = mean - mean.mean(0)
    variance = centred.square().mean(0)
    kl = torch.cat(divergences) if divergences else None
    ablation = _ablate(model, some(x, images, "units", seed), batch_size, seed, progress, notes)
    return Units(
        variance=variance,
        variance_error=standard_error(centred.square()),
        scale=scale,
        scale_of=scale_of,
        posterior_variance=torch.cat(variances).mean(0) if variances else None,
        kl=None if kl is None else kl.mean(0),
        kl_error=None if kl is None else standard_error(kl),
        n=len(x),
        seed=seed,
        notes=tuple(notes),
        **ablation,
    )


def unit_kl(q: Distribution, p: Distribution) -> Tensor | None:
    """KL(q(z_u | x) || p(z_u)) of each unit, (n, d), for Gaussian q (of a full one: its marginals) and factorised Gaussian p; else None."""
    if deterministic(q):
        return None
    if isinstance(base_of(q), MultivariateNormal):
        q = Independent(Normal(q.mean, q.variance.sqrt(), validate_args=False), 1, validate_args=False)
    try:
        return kl_per_dimension(q, p)
    except ValueError:
        return None


def _scale(model: Autoencoder, means: Tensor, seed: int) -> tuple[Tensor, str]:
    """Variance of the prior in every unit; without a prior, that of the unit that varies most."""
    if model.prior is None:
        return means.var(0, correction=0).max().expand(means.shape[1]).clone(), "largest"
    prior = model.latent()
    try:
        variance = prior.variance
    except (NotImplementedError, AttributeError):
        with seeded("units", "prior", seed):
            variance = prior.sample((10_000,)).var(0)
    return variance.double().cpu().expand(means.shape[1]).clone(), "prior"


def _ablate(model: Autoencoder, x: Tensor, batch_size: int, seed: int, progress: bool | None, notes: list[str]) -> dict[str, Any]:
    n, increases, losses, error = len(x), [], [], 0.0
    codes = model.latents(x, at="sample", batch_size=batch_size, seed=seed)
    d = codes.shape[1]
    with evaluating(model), Bar(n * d, enabled=progress, what="units") as bar:
        q = model.encode(unit(x[:1].to(model.device)))
        if deterministic(q):
            order = permutation(n, "units", "partner", seed)
            partner = torch.empty_like(order)
            partner[order] = order.roll(1)
            replacement = codes[partner.to(codes.device)]
        elif model.prior is None:
            raise ValueError("this model draws codes but has no prior to replace units from: give it one with model.with_prior(...)")
        else:
            with seeded("units", "replacement", seed):
                replacement = model.latent().sample((n,)).to(codes)
        for start in range(0, n, batch_size):
            block = slice(start, start + batch_size)
            images, z = unit(x[block].to(model.device)), codes[block]
            p = model.decode(z)
            check_data(p, images)
            squared = gaussian_error(model, q, p)
            kept = loss_of(p, images, squared)
            losses.append(kept)
            error += float((images - p.mean).square().double().sum())
            columns = []
            for u in range(d):
                changed = z.clone()
                changed[:, u] = replacement[block, u]
                columns.append(loss_of(model.decode(changed), images, squared) - kept)
                bar.update(start * d + u * len(z))
            increases.append(torch.stack(columns, 1))
    every = torch.cat(increases)
    if not bool(torch.isfinite(every).all()):
        raise ValueError("a loss is not finite when a unit is replaced: check the data's range and that the training did not diverge")
    if not squared and not normalised(p):
        notes.append(f"{describe(p)} is not a likelihood: ablations are increases of the loss")
    if n < FEW:
        notes.append(f"only {n} images for the ablation: small losses are not seen")
    mse = error / x.numel()
    return {
        "ablation": every.mean(0),
        "ablation_error": standard_error(every),
        "floor": 2 * mse * ABLATION if squared else ABLATION,
        "loss": float(torch.cat(losses).mean()),
        "measure": "squared error per image" if squared else "nats per image",
        "images": n,
    }
