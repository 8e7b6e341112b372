r"""log p(x) from both sides: annealed importance sampling with Hamiltonian moves, and bidirectional Monte Carlo.

Between a base density that can be sampled and the unnormalised posterior lies a path of densities, b from 0 to 1,

    prior path:    f_b(z) = p(z) p(x | z)^b                                    base p(z),      log r = log p(x | z)
    encoder path:  f_b(z) = q(z | x)^(1-b) [p(z) p(x | z)]^b                   base q(z | x),  log r = log p(x | z) p(z) / q(z | x)

so that f_b = base r^b on both. Annealed importance sampling (Neal 2001) starts at z_0 ~ base, moves z_{t-1} -> z_t by a kernel that leaves
f_{b_t} unchanged, and weights the chain by

    log w = Σ_t (b_t - b_{t-1}) log r(z_{t-1}),   E w = p(x):   log mean w is a stochastic *lower* bound of log p(x).

The same chain run backwards from an exact posterior sample has E 1/w = 1/p(x), hence -log mean 1/w is a stochastic *upper* bound. An
exact posterior sample is known where x itself was drawn from the model, z ~ p(z), x ~ p(x | z): :func:`bdmc` does that and reports the
gap between both (Grosse, Ghahramani, Adams 2015; Wu, Burda, Salakhutdinov, Grosse 2017, "On the quantitative analysis of decoder-based
generative models"). For real data no exact posterior sample exists, so :func:`annealed_bound` gives a lower bound only; the gap on simulated
data at the same settings says how tight such a bound is on data like the model's own.

The kernel is Hamiltonian Monte Carlo, L leapfrog steps with a step size per image and temperature. Adapting a step size to the chain it moves
breaks the bounds; so a first round tunes them (x 1.02 after more than 65 % acceptance over the image's chains, x 0.98 after less) and the
second, with other random numbers, keeps them as they are. Temperatures follow Wu et al.'s sigmoid, dense at both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from expost.autoencoder import Autoencoder, evaluating
from expost.distributions import Marginal, check_data
from expost.evaluate.likelihood.importance import (
    bits_per_dim,
    check_head,
    is_mass,
    log_likelihood,
    posterior,
    prepare,
    standard_error,
    stored,
)
from expost.results import Result, Table
from expost.seeds import seeded
from expost.system.progress import Bar
from expost.system.schema import Meta, check_counts, check_value
from expost.tensors import takes_data

__all__ = ["Annealed", "annealed_bound", "bdmc", "sigmoid_schedule"]

Path = Literal["prior", "encoder"]
TARGET, UP, DOWN = 0.65, 1.02, 0.98
#: Range of step sizes in tuning.
SMALLEST, LARGEST = 1e-5, 10.0


def sigmoid_schedule(temperatures: int, rad: float = 4.0) -> Tensor:
    """b_0 = 0 < ... < b_T = 1, (T + 1,) float64: a sigmoid from -rad to rad, scaled to [0, 1] (Wu et al. 2017)."""
    check_counts(temperatures=temperatures)
    s = torch.sigmoid(torch.linspace(-rad, rad, temperatures + 1, dtype=torch.float64))
    return (s - s[0]) / (s[-1] - s[0])


@dataclass(frozen=True, eq=False)
class Annealed:
    """Bounds of log p(x) for each image.

    Attributes:
        lower: forward bound, (n,) float64 on the CPU, nats.
        upper: reverse bound of the same images, (n,); only for images drawn from the model.
        dims: numbers per image; ``mass`` says whether p(x | z) is a probability rather than a density.
        acceptance: of the Hamiltonian moves in the second, frozen round, over all chains.
        settings: path, temperatures, chains, leapfrog steps, seed.
        certificate: the same measurement on images drawn from the model, where one was asked for.
        notes: sentences that the reader must know.
    """

    lower: Tensor
    upper: Tensor | None
    dims: int
    mass: bool
    acceptance: float
    settings: dict[str, Any]
    certificate: Annealed | None = None
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        return len(self.lower)

    @property
    def gap(self) -> Result | None:
        """Mean of upper - lower in nats, which bounds both errors in expectation; None for real data."""
        if self.upper is None:
            return None
        difference = self.upper - self.lower
        return Result("BDMC gap", float(difference.mean()), standard_error(difference), self.n, "nats")

    @property
    def nll(self) -> Result:
        """-(lower bound), in nats per image."""
        name = f"NLL[annealed {self.settings['temperatures']}x{self.settings['chains']}]"
        return Result(name, -float(self.lower.mean()), standard_error(self.lower), self.n, "nats", self.notes)

    @property
    def bits_per_dim(self) -> Result:
        """-log2 / D of the lower bound, with the conversion in its notes."""
        return bits_per_dim(self.nll, self.dims, self.mass)

    def table(self, title: str = "") -> Table:
        table = Table(("what", "value", "error", "unit"), title=title)
        table.add("log p(x), lower bound", float(self.lower.mean()), standard_error(self.lower), "nats")
        if self.upper is not None:
            table.add("log p(x), upper bound", float(self.upper.mean()), standard_error(self.upper), "nats")
        for name, gap in (("gap", self.gap), ("gap on simulated data", self.certificate.gap if self.certificate else None)):
            if gap is not None:
                table.add(name, gap.value, gap.error, "nats")
        bits = self.bits_per_dim
        table.add("bits/dim", bits.value, bits.error, "bits/dim")
        table.add("acceptance", self.acceptance, None, "")
        table.notes += [f"n = {self.n} images, " + ", ".join(f"{k} {v}" for k, v in self.settings.items()), *bits.notes]
        return table

    def __str__(self) -> str:
        return str(self.table("Annealed importance sampling"))

    def to_json(self) -> dict[str, Any]:
        return {
            "nll": self.nll.to_json(),
            "bits_per_dim": self.bits_per_dim.to_json(),
            "upper": None if self.upper is None else float(self.upper.mean()),
            "gap": None if self.gap is None else self.gap.to_json(),
            "acceptance": self.acceptance,
            "settings": self.settings,
            "certificate": None if self.certificate is None else self.certificate.to_json(),
        }


@takes_data("x")
def annealed_bound(
    model: Autoencoder,
    x: Tensor,
    *,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 10,
    path: Path = "prior",
    step: float = 0.1,
    simulated: int = 0,
    batch_size: int = 50,
    seed: int = 0,
    progress: bool | None = None,
) -> Annealed:
    """A stochastic lower bound of log p(x) for given images, usually far tighter than :func:`importance_bound` and far dearer:
    2 x temperatures x (leapfrog + 1) x chains decodings and gradients per image.

    Args:
        model: with a prior whose density is known exactly (not another autoencoder), and a normalised differentiable decoder.
        x: (n, *event), uint8 or floats.
        chains: per image, in parallel; the bound is the log of the mean weight over them.
        temperatures: T; the gap falls about as 1/T.
        leapfrog: steps per move.
        path: "prior" needs no encoder; "encoder" starts nearer to the posterior, and suits good encoders and few temperatures.
        step: where tuning of the step sizes starts.
        simulated: if positive, :func:`bdmc` runs on so many images drawn from the model with the same settings, and becomes the
            :attr:`Annealed.certificate`.
        batch_size: images annealed together; memory is batch_size x chains decodings with their gradient.
    """
    check_value(simulated, Annotated[int, Meta(ge=0)], "simulated")
    check_counts(batch_size=batch_size)
    run = _Run(model, chains, temperatures, leapfrog, path, step, seed)
    run.prepare(x)
    certificate = None
    if simulated:
        certificate = bdmc(
            model, simulated, chains=chains, temperatures=temperatures, leapfrog=leapfrog, path=path, step=step, batch_size=batch_size,
            seed=seed, progress=progress,
        )  # fmt: skip
    with _bar(len(x), batch_size, run, 2, progress) as bar, evaluating(model):
        for start in range(0, len(x), batch_size):
            run.batch(stored(model, x[start : start + batch_size]), None, start, bar)
    result = run.result()
    note = "a lower bound only: an upper one needs exact posterior samples, which exist for simulated data alone"
    if certificate is not None:
        note += "; the gap on simulated data vouches for real data as far as these resemble the model's samples"
    return replace(result, certificate=certificate, notes=(*result.notes, note))


def bdmc(
    model: Autoencoder,
    n: int,
    *,
    chains: int = 16,
    temperatures: int = 500,
    leapfrog: int = 10,
    path: Path = "prior",
    step: float = 0.1,
    batch_size: int = 50,
    seed: int = 0,
    progress: bool | None = None,
) -> Annealed:
    """Lower and upper bounds of log p(x) for n images drawn from the model itself, and their gap (bidirectional Monte Carlo).

    Arguments as in :func:`annealed_bound`; 3 x temperatures x (leapfrog + 1) x chains decodings and gradients per image.
    """
    check_counts(n=n, batch_size=batch_size)
    run = _Run(model, chains, temperatures, leapfrog, path, step, seed)
    prior = run.prepare(None)
    with _bar(n, batch_size, run, 3, progress) as bar, evaluating(model):
        for start in range(0, n, batch_size):
            with seeded("bdmc", seed, start):
                z = prior.sample((min(batch_size, n - start),))
                p = model.decode(z)
                check_head(p)
                images = p.sample()
            run.batch(images, z, start, bar)
    return run.result()


# -- one run -------------------------------------------------------------------------------------------------------------------------------


class _Run:
    """Settings, and the bounds gathered batch by batch."""

    def __init__(self, model: Autoencoder, chains: int, temperatures: int, leapfrog: int, path: Path, step: float, seed: int) -> None:
        check_counts(chains=chains, temperatures=temperatures, leapfrog=leapfrog)
        check_value(path, Path, "path")
        check_value(step, Annotated[float, Meta(gt=0)], "step")
        self.model, self.chains, self.leapfrog, self.path, self.step, self.seed = model, chains, leapfrog, path, step, seed
        self.betas = sigmoid_schedule(temperatures)
        self.lower: list[Tensor] = []
        self.upper: list[Tensor] = []
        self.accepted: list[tuple[float, int]] = []
        self.done, self.dims, self.mass = 0, 0, False
        self.notes: tuple[str, ...] = ()

    def prepare(self, x: Tensor | None) -> Distribution:
        prior, _ = prepare(self.model, x)
        if isinstance(prior, Marginal):
            raise ValueError(
                "annealing needs the exact log p(z), and a prior that is itself an autoencoder gives only a bound: use importance_bound"
            )
        self.prior = prior
        return prior

    def batch(self, images: Tensor, exact: Tensor | None, start: int, bar: Bar) -> None:
        """Tune, anneal with frozen steps, and from exact posterior samples (batch, d) anneal backwards too."""
        q = posterior(self.model, images) if self.path == "encoder" else None
        base = self.prior if q is None else q

        def target(z: Tensor) -> tuple[Tensor, Tensor]:
            """log base(z) and log r(z), (chains, batch) each."""
            likelihood = log_likelihood(self.model.decode(z), images)
            log_prior = self.prior.log_prob(z)
            return (log_prior, likelihood) if q is None else (q.log_prob(z), likelihood + log_prior - q.log_prob(z))

        with seeded("annealed", self.seed, start, "tune"):
            z = self._start(base, len(images))
            p = self.model.decode(z)
            self.notes = check_head(p)
            check_data(p, images)
            self.dims, self.mass = math.prod(images.shape[1:]), is_mass(p)
            steps = torch.full((len(self.betas), len(images)), self.step, dtype=z.dtype, device=z.device)
            self._chain(target, z, steps, bar, tune=True)
        with seeded("annealed", self.seed, start, "forward"):
            log_weights, accepted = self._chain(target, self._start(base, len(images)), steps, bar)
        self.lower.append((torch.logsumexp(log_weights, 0) - math.log(self.chains)).cpu())
        if exact is not None:
            with seeded("annealed", self.seed, start, "reverse"):
                log_weights, back = self._chain(target, exact.expand(self.chains, *exact.shape), steps, bar, reverse=True)
            self.upper.append((math.log(self.chains) - torch.logsumexp(-log_weights, 0)).cpu())
            accepted = (accepted + back) / 2
        self.accepted.append((accepted, len(images)))

    def _start(self, base: Distribution, images: int) -> Tensor:
        """Chains at the base: (chains, images, d)."""
        return base.sample((self.chains, images) if base is self.prior else (self.chains,))

    def _chain(
        self,
        target: Callable[[Tensor], tuple[Tensor, Tensor]],
        z: Tensor,
        steps: Tensor,
        bar: Bar,
        *,
        tune: bool = False,
        reverse: bool = False,
    ) -> tuple[Tensor, float]:
        """log w of each chain (chains, images), float64, and the mean acceptance; tuning writes the step sizes it used into ``steps``."""
        last = len(self.betas) - 1
        base, ratio = target(z)
        log_weights = torch.zeros(ratio.shape, dtype=torch.float64, device=z.device)
        accepted = 0.0
        # forward: weight of interval 1, move at b_1, weight of interval 2, ..., weight of interval T; backwards the same from the end
        for turn in range(last):
            interval = last - turn if reverse else turn + 1
            log_weights += float(self.betas[interval] - self.betas[interval - 1]) * ratio.double()
            at = interval - 1 if reverse else interval
            self.done += 1
            bar.update(self.done)
            if turn == last - 1:
                break
            z, base, ratio, yes = _move(target, z, base, ratio, float(self.betas[at]), steps[at], self.leapfrog)
            accepted += float(yes.mean())
            if tune:
                factor = torch.where(yes.mean(0) > TARGET, UP, DOWN).to(steps.dtype)
                steps[at + 1] = (steps[at] * factor).clamp(SMALLEST, LARGEST)
        return log_weights, accepted / max(1, last - 1)

    def result(self) -> Annealed:
        lower = torch.cat(self.lower)
        upper = torch.cat(self.upper) if self.upper else None
        if not bool(torch.isfinite(lower).all()) or (upper is not None and not bool(torch.isfinite(upper).all())):
            raise ValueError("an annealed weight is not finite: check the data's range and that the training did not diverge")
        images = sum(n for _, n in self.accepted)
        acceptance = sum(a * n for a, n in self.accepted) / images
        settings = {
            "path": self.path, "temperatures": len(self.betas) - 1, "chains": self.chains, "leapfrog": self.leapfrog, "seed": self.seed,
        }  # fmt: skip
        notes = self.notes
        if len(self.betas) > 2 and not 0.3 < acceptance < 0.95:
            notes += (
                f"{acceptance:.0%} of the moves were accepted, far from {TARGET:.0%}: raise temperatures, or start with another step",
            )
        return Annealed(lower, upper, self.dims, self.mass, acceptance, settings, None, notes)


def _move(
    target: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, base: Tensor, ratio: Tensor, b: float, step: Tensor, leapfrog: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One Hamiltonian move with unit masses at f_b = base r^b (Neal 2011): z (chains, images, d), step sizes (images,).

    Returns the new z with its log base and log r, and acceptances (chains, images) as 0 and 1. Each chain decides alone.
    """
    eps = step[:, None]
    momentum = torch.randn_like(z)
    kinetic = 0.5 * momentum.square().sum(-1)
    new, p = z, momentum
    new_base, new_ratio, gradient = _gradient(target, new, b)
    p = p + 0.5 * eps * gradient
    for i in range(leapfrog):
        new = new + eps * p
        new_base, new_ratio, gradient = _gradient(target, new, b)
        p = p + (eps if i < leapfrog - 1 else 0.5 * eps) * gradient
    log_accept = (new_base + b * new_ratio) - (base + b * ratio) + kinetic - 0.5 * p.square().sum(-1)
    yes = torch.rand_like(log_accept).log() < log_accept  # false where the trajectory left the numbers
    z = torch.where(yes[..., None], new, z)
    return z, torch.where(yes, new_base, base), torch.where(yes, new_ratio, ratio), yes.to(z.dtype)


def _gradient(target: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, b: float) -> tuple[Tensor, Tensor, Tensor]:
    """log base, log r and ∇ log f_b at z, without a graph; chains do not interact, so one sum gives all gradients."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        base, ratio = target(leaf)
        (gradient,) = torch.autograd.grad((base + b * ratio).sum(), leaf)
    return base.detach(), ratio.detach(), gradient


def _bar(n: int, batch_size: int, run: _Run, rounds: int, progress: bool | None) -> Bar:
    """A bar over all temperatures of all batches and rounds."""
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, not {batch_size}")
    total = -(-n // batch_size) * (len(run.betas) - 1) * rounds
    return Bar(total, enabled=progress, what="annealing")
