r"""Are these codes draws from that density? Two tests of two samples.

* :func:`mmd`: the unbiased squared maximum mean discrepancy (Gretton et al. 2012, "A kernel two-sample test", lemma 6) with WAE's kernel, or a Gaussian
  one. Zero in expectation for equal distributions; its p-value comes from permutations of the pooled points and is exact for any sample size.
* :func:`c2st`: a classifier two-sample test (Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests"): held-out accuracy in telling
  the two apart. Its logit estimates log q(z)/p(z), and so bounds KL(q || p), the only route where q has no density (RAE, WAE).

Both see samples only: a difference smaller than n points can show is not found, and finding none proves nothing. Which dimension is to blame is
asked in :mod:`expost.diagnose.codes.marginals`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from expost.density.base import Density
from expost.divergences import multi_scale_imq
from expost.optimise import minimise
from expost.results import Result
from expost.seeds import generator, permutation, seed_from, seeded
from expost.system.progress import Bar
from expost.tensors import check_finite, in_range, shifted

__all__ = ["MEMORY", "c2st", "codes_pair", "mmd"]

MEMORY = 256 << 20
#: Points per side unless asked otherwise: 4000² kernel values are 128 MB.
POINTS = 2000
#: Below this many points per side a note is made.
FEW = 200
#: Factor by which the folds' shared training points raise the variance of the accuracy under equality, at most.
SHARED = 2.0

Reference = Tensor | Density | Distribution


def codes_pair(a: Tensor, b: Reference, n: int, seed: int, *, least: int = 2) -> tuple[Tensor, Tensor]:
    """At most ``n`` rows of ``a``, and as many of ``b`` or draws from it, in float64 on the device of ``a``."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor | Density | Distribution):
        raise TypeError("codes must be tensors (n, d), the second set may be a density: convert arrays with torch.as_tensor(...)")
    for x in (a, b):
        if isinstance(x, Tensor) and (x.dim() != 2 or not x.is_floating_point()):
            raise ValueError(f"codes must be a floating-point matrix (n, d), not {x.dtype} of shape {tuple(x.shape)}")
    check_finite(a, "codes")
    first = a[permutation(len(a), "mismatch", "a", seed)[:n].to(a.device)]
    if isinstance(b, Tensor):
        second = b[permutation(len(b), "mismatch", "b", seed)[:n].to(b.device)]
    else:
        with seeded("mismatch", "draws", seed), torch.no_grad():
            second = (b() if isinstance(b, Density) else b).sample(torch.Size((len(first),)))
    check_finite(second, "codes of the second set")
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"codes of {first.shape[1]} and of {tuple(second.shape[1:])} dimensions cannot be compared: use one model for both"
        )
    if min(len(first), len(second)) < least:
        raise ValueError(f"at least {least} codes are needed on each side, there are {len(first)} and {len(second)}: pass more data")
    return first.detach().double(), second.detach().to(first.device).double()


def mmd(
    a: Tensor,
    b: Reference,
    *,
    kernel: Literal["imq", "rbf"] = "imq",
    n: int = POINTS,
    permutations: int = 500,
    seed: int = 0,
    memory: int = MEMORY,
    name: str = "mmd",
) -> Result:
    r"""Unbiased MMD² between codes and other codes, or a density, with a permutation p-value.

    One matrix K of the pooled points serves all permutations: with a column s of zeros and ones that names the first set, the sum inside it
    is sᵀKs, so that all of them cost one matrix product.

    Args:
        a: codes (n_a, d).
        b: codes (n_b, d), or a density or distribution, from which as many draws are taken.
        kernel: ``"imq"``: Σ_s C_s / (C_s + ‖z - z′‖²), C_s = 2 d s σ² with seven scales s (WAE, Tolstikhin et al. 2018) and σ² the mean variance of
            the pooled codes, 1 for a standard normal prior that is met. ``"rbf"``: exp(-‖z - z′‖² / 2m²), m the median distance of pooled pairs.
        n: points per side at most, drawn with the seed.
        permutations: of the pooled points; the p-value is at least 1 / (permutations + 1).
        memory: bytes; the kernel matrix needs 8 (n_a + n_b)².

    Returns:
        ``value``: MMD², no unit, may be negative. ``error``: first-order standard error and that of the permutations, added in squares.
        ``details``: ``p``, the share of permutations at least as large; ``null``, their standard deviation; ``scale``: σ² or m².

    Raises:
        ValueError: fewer than two codes on a side, different dimensions, NaN, or ``memory`` too small for the kernel matrix.
    """
    if kernel not in ("imq", "rbf"):
        raise ValueError(f'kernel must be "imq" or "rbf", not {kernel!r}')
    if permutations < 1:
        raise ValueError(f"at least one permutation is needed, not {permutations}")
    e, (first, second) = in_range(*codes_pair(a, b, n, seed))
    pooled, size = torch.cat([first, second]), len(first)
    total = len(pooled)
    if memory < 12 * total**2:
        raise ValueError(
            f"kernels between {total} codes need {12 * total**2} bytes, memory allows {memory}: raise it, or n = {math.isqrt(memory // 48)}"
        )
    matrix, scale = _kernel(pooled, kernel, memory)
    scale = float(shifted(torch.tensor(scale, dtype=torch.float64), 2 * e))
    rows = matrix.sum(1)
    everything = rows.sum()
    labels = torch.zeros(permutations + 1, total, dtype=torch.float64, device=pooled.device)
    labels[0, :size] = 1
    random = torch.rand(permutations, total, generator=generator("mmd", seed), dtype=torch.float64)
    labels[1:].scatter_(1, random.argsort(1)[:, :size].to(pooled.device), 1)
    within = torch.cat([(part @ matrix * part).sum(1) for part in labels.split(max(1, memory // (128 * total)))])
    towards = labels @ rows
    other = total - size
    values = (
        within / (size * (size - 1))
        + (everything - 2 * towards + within) / (other * (other - 1))
        - 2 * (towards - within) / (size * other)
    )  # fmt: skip
    value, null = float(values[0]), float(values[1:].std()) if permutations > 1 else 0.0
    p = (1 + int((values[1:] >= values[0]).sum())) / (permutations + 1)
    inside, across = matrix[:, :size].sum(1), matrix[:, size:].sum(1)
    influence = [inside[:size] / (size - 1) - across[:size] / other, across[size:] / (other - 1) - inside[size:] / size]
    first_order = sum(4 * float(h.var()) / len(h) for h in influence)
    notes = (f"only {min(size, other)} codes on a side: small differences are not seen",) if min(size, other) < FEW else ()
    details = {"p": p, "null": null, "scale": scale}
    return Result(
        name, value, math.sqrt(first_order + null**2), size, notes=notes, details=details, context={"kernel": kernel, "seed": seed}
    )


def _kernel(z: Tensor, kernel: str, memory: int) -> tuple[Tensor, float]:
    """k(z_i, z_j) with a zero diagonal, (N, N) float64, and the kernel's scale."""
    n, d = z.shape
    z = z - z.mean(0)
    norms = z.square().sum(1)
    if kernel == "imq":
        scale = float(z.square().mean()) or 1.0

        def of(squared: Tensor) -> Tensor:
            return multi_scale_imq(squared, d, scale)
    else:
        part = z[:: max(1, n // 1000)]
        distances = torch.pdist(part)
        scale = float(distances.median()) ** 2 or 1.0

        def of(squared: Tensor) -> Tensor:
            return (squared / (-2 * scale)).exp_()

    matrix = torch.empty(n, n, dtype=torch.float64, device=z.device)
    side = max(1, min(n, 512, math.isqrt(memory // 128)))
    with Bar(n, what="kernel", after=1.0) as bar:
        for i in range(0, n, side):
            bar.update(i)
            for j in range(0, i + 1, side):
                squared = norms[i : i + side, None] + norms[None, j : j + side] - 2 * z[i : i + side] @ z[j : j + side].T
                values = of(squared.clamp_(min=0))
                matrix[i : i + side, j : j + side] = values
                matrix[j : j + side, i : i + side] = values.T
    return matrix.fill_diagonal_(0), scale


def c2st(
    a: Tensor,
    b: Reference,
    *,
    classifier: Literal["mlp", "logistic"] = "mlp",
    n: int = POINTS,
    folds: int = 5,
    seed: int = 0,
    name: str = "c2st",
) -> Result:
    r"""Held-out accuracy of a classifier that tells codes from other codes, or from a density: ½ for equal distributions.

    Every point is judged by a classifier trained on the other folds; both sets are cut to equal size, and the half of a held-out fold with the
    larger logits is taken for codes. So guessing is right half of the time, and a classifier that is sure of one answer gains nothing.
    Folds share their training points: under equality, what point i teaches about j, j teaches about i, which doubles the variance of the accuracy
    for a linear classifier (others: less). The p-value is that of a normal with twice the binomial variance, one-sided: on the safe side.

    Args:
        a: codes (n_a, d).
        b: codes (n_b, d), or a density or distribution, from which as many draws are taken.
        classifier: ``"mlp"``: two hidden layers of 64, stopped early on a seventh of its training points; ``"logistic"``: a linear one, which sees
            differences of means only.
        n: points per side at most, drawn with the seed.
        folds: at least 2.

    Returns:
        ``value``: accuracy in [0, 1]. ``error``: its standard error. ``details``: ``p``; ``kl``, a held-out lower bound of KL(a || b) in nats,
        E_a[T] - E_b[e^T] + 1 with the logit T (Nguyen, Wainwright, Jordan 2010), biased low, and far too low beyond a few nats;
        ``kl_error``; ``folds``.

    Raises:
        ValueError: fewer than 20 codes on a side, different dimensions, or NaN.
    """
    if classifier not in ("mlp", "logistic"):
        raise ValueError(f'classifier must be "mlp" or "logistic", not {classifier!r}')
    if folds < 2:
        raise ValueError(f"at least two folds are needed, not {folds}")
    first, second = in_range(*codes_pair(a, b, n, seed, least=20))[1]
    size = min(len(first), len(second))
    pooled = torch.cat([first[:size], second[:size]])
    x = ((pooled - pooled.mean(0)) / pooled.std(0).clamp_min(1e-12)).float()  # needs no labels, so that folds stay apart
    y = torch.cat([torch.ones(size), torch.zeros(size)]).to(x.device)
    fold = torch.cat([permutation(size, "c2st", side, seed) % folds for side in ("a", "b")]).to(x.device)
    logits, right = torch.empty(2 * size, dtype=torch.float64, device=x.device), 0.0
    with Bar(folds, what="two-sample test", unit="fold", after=1.0) as bar:
        for k in bar.over(range(folds)):
            held = fold == k
            logits[held] = t = _classify(x[~held], y[~held], x[held], classifier, seed, k).double()
            middle = t.sort().values[len(t) // 2 - 1 : len(t) // 2 + 1].mean()
            # a tie, as when the classifier has learned nothing, is half right
            right += float((0.5 + 0.5 * (t - middle).sign() * (2 * y[held] - 1)).sum())
    accuracy, total = right / (2 * size), 2 * size
    p = max(0.5 * math.erfc((accuracy - 0.5) / math.sqrt(2 * SHARED * 0.25 / total)), 1e-300)
    t, e = logits[:size], logits[size:].exp()
    kl, kl_error = float(t.mean() - e.mean() + 1), math.sqrt(float(t.var() + e.var()) / size)
    notes = (f"only {size} codes on a side: small differences are not seen",) if size < FEW else ()
    details = {"p": p, "kl": kl, "kl_error": kl_error, "folds": float(folds)}
    error = math.sqrt(SHARED * max(accuracy * (1 - accuracy), 0.25 / total) / total)
    return Result(name, accuracy, error, size, notes=notes, details=details, context={"classifier": classifier, "seed": seed})


def _classify(x: Tensor, y: Tensor, held: Tensor, classifier: str, seed: int, fold: int) -> Tensor:
    """Logits of the held-out points from a classifier trained on the others."""
    d = x.shape[1]
    with seeded("c2st", "start", seed, fold):
        last = nn.Linear(d if classifier == "logistic" else 64, 1)
        nn.init.zeros_(last.weight)  # so that a classifier stopped at once guesses
        hidden = [] if classifier == "logistic" else [nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
        network = nn.Sequential(*hidden, last).to(x.device)
        order = torch.randperm(len(x)).to(x.device)
    data = torch.cat([x, y[:, None]], 1)[order]
    check, train = data[: len(data) // 7], data[len(data) // 7 :]

    def loss(rows: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(network(rows[:, :-1])[:, 0], rows[:, -1])

    def validate() -> float:
        return float(loss(check))

    minimise(
        loss, network.parameters(), data=train, epochs=40, batch_size=min(128, len(train)), lr=3e-3, seed=seed_from("c2st", seed, fold),
        validate=validate, patience=4,
    )  # fmt: skip
    with torch.no_grad():
        return network(held)[:, 0]
