"""Feature likelihood divergence: a density made of generated features, judged by how likely it makes test and training data.

The generated features μ₁ … μ_n become the centres of a mixture of isotropic Gaussians

    p(x) = 1/n Σⱼ N(x; μⱼ, σⱼ² I),

whose variances are fitted by maximum likelihood to the *training* data. A generator that misses modes or is off leaves test data unlikely;
one that copies training data gets variances near zero, which makes training data likely and test data unlikely. Per dimension and times
100 (Jiralerspong et al. 2023, "Feature likelihood divergence: evaluating the generalization of generative models using samples", section 3):

    FLD = 100 (NLL_test − NLL_base) / d,        gap = 100 (NLL_train − NLL_test) / d,

where NLL is −mean log p and NLL_base that of the test data under a mixture made of half of the training data and fitted to the other half:
FLD near 0 is as good as fresh data, and a negative gap is overfitting. Features are first brought to mean 0 and standard deviation 1 in
every dimension by the statistics of the test set (features constant on it are left out), as the authors' code does.

**Fit.** While fitting, and only then, one more component stands behind the others so that no training row is lost: e(x) = N-density at
squared distance 0.9² |x − x̄|² with a variance σ₀² of its own, x̄ the mean of the training data (again as the authors' code). Variances begin
at twice the squared distance to the nearest training row (+10⁻³) over d. The authors take 50 epochs of Adam from half of that. Given who is responsible for a row,
the best variance has a closed form, so this file uses expectation maximisation (Dempster, Laird and Rubin 1977):

    r_ij = N(xᵢ; μⱼ, σⱼ²)/n / (p(xᵢ) + e(xᵢ)),    σⱼ² ← Σᵢ r_ij |xᵢ − μⱼ|² / (d Σᵢ r_ij),

which raises the likelihood in every step, needs no learning rate, and ends once a step gains less than ``tolerance``: after some five steps,
mostly above what Adam reaches in fifty, and in our trials never more than 0.03 of the result's unit below. log σ² stays within
[−40, 20]: a component that sits on a training row would go to −∞, and FLD of a generator of copies is set by that bound.

**Cost.** Every step and every evaluation is one pass over all pairs in chunks: one float32 product and one exp per pair, nothing kept. Pairs
nearer than 10⁻³ of their squared norms, where the product cancels, are computed again in float64 from differences; sums over rows are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log, pi

import torch
from torch import Tensor

from expost.evaluate.metrics.registry import Compared, metric
from expost.results import Result
from expost.seeds import permutation
from expost.statistics.samples import canonical_order, feature_matrix, feature_pair
from expost.system.hashes import distinct, row_keys
from expost.system.progress import Bar
from expost.tensors import in_range

__all__ = ["FeatureLikelihood", "Mixture", "feature_likelihood"]

FLOOR, CEILING = -40.0, 20.0  # of log variances
PULL = 0.9**2  # on squared distances to the centre behind
CLOSE = 1e-3  # of the squared norms: nearer pairs are computed again
START = 2.0  # times the best variance for the nearest row alone: ends at a better optimum than 1 does
ROWS = 256
FEW = 1000


@dataclass(frozen=True)
class FeatureLikelihood:
    """What a density made of generated features says about test and training data.

    Attributes:
        fld: 100 (NLL_test − NLL_base)/d; ``error`` over test rows (paired), ``details``: the three NLL per dimension in nats.
        gap: 100 (NLL_train − NLL_test)/d, negative where training data are overfitted; ``error`` over rows of both.
        memorised: share of the components whose variance ended at the lower bound: generated rows equal to a training row.
        steps: of expectation maximisation, for the generated and for the base mixture.
        notes: sentences on small n, on copies and on fits cut short.
    """

    fld: Result
    gap: Result
    memorised: float
    steps: tuple[int, int]
    notes: tuple[str, ...] = ()

    def results(self) -> dict[str, Result]:
        return {"fld": self.fld, "gap": self.gap}

    def __str__(self) -> str:
        head = (
            f"FLD {self.fld.value:.4g} ± {self.fld.error or 0:.2g}, gap {self.gap.value:.4g} ± {self.gap.error or 0:.2g} (n = {self.fld.n})"
        )
        return "\n".join([head, *(f"  note: {note}" for note in self.notes)])


def feature_likelihood(
    generated: Tensor,
    test: Tensor,
    train: Tensor,
    *,
    seed: int = 0,
    size: int = 10_000,
    steps: int = 50,
    tolerance: float = 1e-2,
    memory: int = 256 * 2**20,
) -> FeatureLikelihood:
    """Feature likelihood divergence and generalisation gap of a generated set (see the top of this file).

    Args:
        generated: features (n, d); at most ``size`` rows, drawn at random, become components.
        test: features (m, d) of data unseen in training.
        train: features (l, d) of the data that the generator was trained on; rows that are equal count once.
        seed: of the rows drawn and of the halves of ``train``.
        size: components at most, of either mixture. The other half of ``train``, all of ``train`` and ``test`` are used in full.
        steps: of expectation maximisation at most, for each mixture.
        tolerance: a fit ends once a step gains less than this in 100 nats per dimension, the unit of the result.
        memory: bytes beyond the inputs, their standardised float32 copies and a few numbers per row.

    Chunk size and threads move the results by less than 10⁻³ of their unit; shuffling any set, not at all.

    Raises:
        ValueError: features that are no finite matrices of one width, fewer than 4 rows, or test features that are all constant.

    >>> draws = torch.Generator().manual_seed(0)
    >>> train, test, fresh = (torch.randn(300, 4, generator=draws) for _ in range(3))
    >>> found = feature_likelihood(fresh, test, train)
    >>> copied = feature_likelihood(train.clone(), test, train)
    >>> bool(abs(found.fld.value) < 10), bool(copied.gap.value < -100), copied.memorised
    (True, True, 1.0)
    """
    generated, test = feature_pair(generated, test, least=4)
    train = feature_matrix(train, what="features of the training set")
    first, _ = distinct(row_keys(train))
    copies, train = len(train) - len(first), train[first.to(train.device)]
    train, _ = feature_pair(train, test, least=4)
    generated, test, train = in_range(generated, test, train)[1]  # what follows is standardised
    if size < 2 or steps < 1:
        raise ValueError(f"at least 2 components and 1 step are needed, not size = {size} and steps = {steps}")
    generated, test, train = (side[canonical_order(side).to(side.device)] for side in (generated, test, train.to(test.device)))
    sizes = len(generated), len(test), len(train)
    draw, halves = (
        permutation(len(side), "feature-likelihood", seed, which) for side, which in ((generated, "generated"), (train, "train"))
    )

    mean, std = test.double().mean(0), test.double().std(0)
    varying = std > 1e-12 * test.double().abs().amax(0)
    if not bool(varying.any()):
        raise ValueError("all features are constant on the test set, so none can be standardised: choose another extractor")
    generated, test, train = (
        ((side[:, varying].double() - mean[varying]) / std[varying]).float()
        for side in (generated[draw[:size].to(test.device)], test, train)
    )
    if not bool(torch.isfinite(generated.sum() + train.sum())):
        raise ValueError("features are too far from the test set's scale for float32: divide all sets by one constant, or look at them")
    d = test.shape[1]
    mixture = Mixture(generated).fit(train, steps=steps, tolerance=tolerance, memory=memory)
    half = min(size, len(train) // 2)
    halves = halves.to(train.device)
    base = Mixture(train[halves[:half]]).fit(train[halves[half:]], steps=steps, tolerance=tolerance, memory=memory)

    on_test, on_train, on_base = (
        mixture.log_prob(test, memory=memory),
        mixture.log_prob(train, memory=memory),
        base.log_prob(test, memory=memory),
    )
    excess, scale = on_base - on_test, 100 / d
    memorised = float((mixture.log_variance <= FLOOR).double().mean())
    notes = _notes(min(*sizes, len(generated)), memorised, (mixture.steps, base.steps), steps)
    if int(varying.sum()) < len(varying):
        notes += (f"{len(varying) - d} of {len(varying)} features are constant on the test set and were left out",)
    if copies:
        notes += (f"{copies} of the training images repeat others and were left out",)
    if half < len(generated):
        notes += (
            f"the base mixture has {half} components, the generated one {len(generated)}: FLD of fresh data lies below 0, pass more train",
        )
    details = {f"nll_{name}": -float(values.mean()) / d for name, values in (("test", on_test), ("train", on_train), ("base", on_base))}
    context = {"generated": len(generated), "test": sizes[1], "train": sizes[2], "seed": seed}
    n = len(generated)
    fld = Result("FLD", float(excess.mean()) * scale, _error(excess) * scale, n, "100 nats/dim", notes, details, context)
    error = (_error(on_test) ** 2 + _error(on_train) ** 2) ** 0.5 * scale
    gap = Result("FLD gap", float(on_test.mean() - on_train.mean()) * scale, error, n, "100 nats/dim", notes, details, context)
    return FeatureLikelihood(fld, gap, memorised, (mixture.steps, base.steps), notes)


@dataclass(eq=False)
class Mixture:
    """A mixture of isotropic Gaussians, all of weight 1/n, around given centres.

    Attributes:
        centres: (n, d) float32.
        log_variance: (n,) float64, log σⱼ².
        behind: log σ₀² of the component that takes part in the fit alone.
        objective: mean log (p(x) + e(x)) of the rows fitted to, before every step and at the end: it never falls.
    """

    centres: Tensor
    log_variance: Tensor = field(default_factory=lambda: torch.empty(0))
    behind: float = 0.0
    objective: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return max(len(self.objective) - 1, 0)

    def fit(self, x: Tensor, *, steps: int = 50, tolerance: float = 1e-2, memory: int = 256 * 2**20) -> Mixture:
        """Variances by expectation maximisation on the rows of ``x`` (m, d) float32; returns itself."""
        d = x.shape[1]
        far = PULL * (x.double() - x.double().mean(0)).square().sum(1)  # (m,)
        nearest = torch.full((len(self.centres),), float("inf"), device=x.device)
        for rows in x.split(self._rows(memory)):
            nearest = torch.minimum(nearest, self._squares(rows).amin(0))
        self.log_variance, self.behind, self.objective = (START * (nearest.double() + 1e-3) / d).log(), 0.0, []
        with Bar(steps + 1, what="feature likelihood", unit="step", after=1.0) as bar:
            for step in bar.over(range(steps + 1)):
                total, weight, moment = 0.0, torch.zeros_like(self.log_variance), torch.zeros_like(self.log_variance)
                behind = -d / 2 * (log(2 * pi) + self.behind) - far / 2 * torch.tensor(-self.behind, dtype=torch.float64).exp()
                weight_behind = moment_behind = 0.0
                for rows, extra, distance in zip(*(side.split(self._rows(memory)) for side in (x, behind, far)), strict=True):
                    squares = self._squares(rows)
                    scores, top = self._scores(squares, extra)
                    back = (extra - top).exp()
                    sums = scores.sum(1).double() + back
                    total += float((sums.log() + top).sum())
                    share = sums.reciprocal().float()
                    weight += share @ scores
                    moment += share @ scores.mul_(squares)
                    weight_behind += float((back / sums).sum())
                    moment_behind += float((back / sums * distance).sum())
                self.objective.append(total / len(x))
                gained = len(self.objective) > 1 and 100 / d * (self.objective[-1] - self.objective[-2]) < tolerance
                if gained or step == steps:
                    break
                new = (moment / (d * weight)).log().clamp(FLOOR, CEILING)
                self.log_variance = torch.where(weight > 1e-20, new, self.log_variance)  # nobody's component stays as it is
                if weight_behind > 1e-20:
                    self.behind = min(max(log(max(moment_behind, 1e-300) / (d * weight_behind)), FLOOR), CEILING)
        return self

    def log_prob(self, x: Tensor, *, memory: int = 256 * 2**20) -> Tensor:
        """log p(x) of rows (m, d) float32: (m,) float64, without the component behind."""
        values = []
        for rows in x.split(self._rows(memory)):
            scores, top = self._scores(self._squares(rows))
            values.append(scores.sum(1).double().log() + top)
        return torch.cat(values)

    def _rows(self, memory: int) -> int:
        """Rows per chunk: squared distances, scores and a temporary of all components, in float32."""
        return max(min(ROWS, memory // (16 * len(self.centres))), 1)

    def _squares(self, x: Tensor) -> Tensor:
        """|xᵢ − μⱼ|², (b, n) float32, right to about 10⁻⁴ of itself."""
        norms, own = x.square().sum(1), self.centres.square().sum(1)
        squares = torch.addmm(own, x, self.centres.T, alpha=-2).add_(norms[:, None])
        for i in (squares.amin(1) < CLOSE * (norms + own.max())).nonzero()[:, 0].tolist():
            for j in (squares[i] < CLOSE * (norms[i] + own)).nonzero()[:, 0].split(4096):
                squares[i, j] = (x[i].double() - self.centres[j].double()).square().sum(1).float()
        return squares

    def _scores(self, squares: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """exp(log N(xᵢ; μⱼ, σⱼ²)/n − topᵢ), (b, n) float32, and top (b,) float64: the largest logarithm of the row, ``extra`` included."""
        d = self.centres.shape[1]
        level = (-d / 2 * (log(2 * pi) + self.log_variance) - log(len(self.centres))).float()
        scores = torch.addcmul(level, squares, (-0.5 * (-self.log_variance).exp()).float())
        top = scores.amax(1).double()
        if extra is not None:
            top = torch.maximum(top, extra)
        top = top.float()  # below -80 nothing is left to see, and what underflows is slow
        return scores.sub_(top[:, None]).clamp_(min=-80).exp_(), top.double()


def _error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5


def _notes(n: int, memorised: float, taken: tuple[int, int], steps: int) -> tuple[str, ...]:
    notes = []
    if n < FEW:
        notes.append(f"n = {n} is below {FEW}: the mixtures are coarse, compare with values at the same n only")
    if memorised > 0:
        notes.append(f"{memorised:.2%} of the generated rows equal a training row: their variance, and with it FLD, is set by a bound")
    if max(taken) >= steps:
        notes.append(f"a fit was cut short after {steps} steps: allow more")
    return tuple(notes)


@metric("fld", "FLD", "FLD gap", copying=True, forbidden=lambda sets: sets.seen and sets.train is not None)
def _likelihoods(sets: Compared) -> dict[str, Result]:
    assert sets.train is not None
    if sets.seen:
        return {}
    found = feature_likelihood(sets.generated, sets.test, sets.train, seed=sets.seed, memory=sets.memory)
    return {"FLD": found.fld, "FLD gap": found.gap}
